//! The open: what must hold in every reachable state of two restores, and the faults that must break it.

mod world;

use stateright::{Model, Property};

use crate::explore::{breaks, holds};
use world::{Action, Budget, Fault, Second, State};

struct Open {
    left: Budget,
    fault: Fault,
}

const PROVED: &str = "no incarnation is decided before every node has reached the cut";
const OWN: &str = "no node opens but in its own restore's incarnation";
const ONE: &str = "no two nodes are open in two incarnations";
const REWOUND: &str = "no node that had opened is staged again";
const FORWARD: &str = "nothing is removed that belongs to an incarnation";

impl Model for Open {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.left)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let next = state.after(&action, self.fault);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(PROVED, |_, state: &State| state.is_proved()),
            Property::always(OWN, |_, state: &State| state.opens_its_own()),
            Property::always(ONE, |_, state: &State| state.is_one_cluster()),
            Property::always(FORWARD, |_, state: &State| !state.removed),
            Property::always(REWOUND, |_, state: &State| !state.rewound),
            Property::sometimes("all nodes are open", |_, state: &State| state.is_open()),
            Property::sometimes("a restore is refused", |_, state: &State| state.refused()),
        ]
    }
}

const QUIET: Budget = Budget { second: Second::Never, losses: false, restarts: 0, disks: 0, deadlines: 0, resumes: 0 };

#[test]
fn every_schedule_of_two_restores_that_race_is_safe() {
    holds(
        "the open, two restores",
        Open { left: Budget { second: Second::AnyTime, losses: true, ..QUIET }, fault: Fault::None },
    );
}

#[test]
fn every_schedule_of_a_second_restore_after_disks_are_lost_is_safe() {
    let left = Budget { second: Second::Afterwards, disks: 2, ..QUIET };
    holds("the open, disks lost", Open { left, fault: Fault::None });
}

#[test]
fn every_schedule_of_a_restore_that_is_resumed_is_safe() {
    let left = Budget { losses: true, restarts: 1, disks: 1, deadlines: 1, resumes: 1, ..QUIET };
    holds("the open, resumed", Open { left, fault: Fault::None });
}

#[test]
fn d11_a_restore_that_takes_the_next_number_opens_a_second_cluster() {
    breaks(ONE, Open { left: Budget { second: Second::Afterwards, ..QUIET }, fault: Fault::TakesNextNumber });
}

#[test]
fn a_node_that_opens_what_another_restore_has_staged_is_seen() {
    let left = Budget { second: Second::Afterwards, disks: 2, ..QUIET };
    breaks(OWN, Open { left, fault: Fault::OpensAnyFolder });
}

#[test]
fn a_node_that_says_it_is_at_the_cut_before_it_is_seen() {
    breaks(PROVED, Open { left: Budget { disks: 1, ..QUIET }, fault: Fault::ProvesUnrecovered });
}

#[test]
fn a_node_that_had_opened_and_is_staged_again_is_seen() {
    let left = Budget { disks: 1, resumes: 1, ..QUIET };
    breaks(REWOUND, Open { left, fault: Fault::StagesOpenedAgain });
}
