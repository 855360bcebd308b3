//! The restore point: what must hold in every reachable state of it, and the faults that must break it.

mod world;

use stateright::{Model, Property};

use crate::explore::{breaks, holds};
use world::{Action, Fault, State};

struct Fence {
    nodes: u16,
    crashes: u8,
    fault: Fault,
}

const CAUSAL: &str = "a published cut holds no effect without its cause";
const PROVEN: &str = "the records of a published cut are there";
const EXACT: &str = "recovery takes in nothing beyond the cut";
const LEASED: &str = "every closed fence has a lease";

impl Model for Fence {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.nodes, self.crashes)]
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
            Property::always(CAUSAL, |model, state: &State| state.is_causal(model.fault)),
            Property::always(PROVEN, |_, state: &State| state.is_proven()),
            Property::always(EXACT, |model, state: &State| state.is_exact(model.fault)),
            Property::always(LEASED, |_, state: &State| state.every_fence_has_a_lease()),
            Property::sometimes("a point is published", |_, state: &State| state.published.is_some()),
            Property::sometimes("a point is aborted", |_, state: &State| state.aborted),
        ]
    }
}

fn with(fault: Fault, crashes: u8) -> Fence {
    Fence { nodes: 2, crashes, fault }
}

#[test]
fn every_schedule_of_a_restore_point_is_safe() {
    holds("the fence", with(Fault::None, 1));
}

#[test]
fn a_fence_that_does_not_hold_tears_the_cut() {
    breaks(CAUSAL, with(Fault::FenceOpen, 0));
}

#[test]
fn l2_a_peer_that_is_cut_and_released_before_the_coordinator_tears_the_cut() {
    breaks(CAUSAL, with(Fault::PeerReleasedFirst, 0));
}

#[test]
fn l3_a_lease_that_is_ignored_leaks_the_fence() {
    breaks(LEASED, with(Fault::LeaseIgnored, 0));
}

#[test]
fn l4_a_fence_that_outlives_what_closed_it_leaks() {
    breaks(LEASED, with(Fault::FenceOutlivesLife, 1));
}

#[test]
fn l15_a_cut_at_the_end_of_its_record_takes_in_the_next_one() {
    breaks(EXACT, with(Fault::InclusiveEnd, 0));
}

#[test]
fn d4_a_flush_confirmed_in_another_life_loses_the_record() {
    breaks(PROVEN, with(Fault::FlushInAnyLife, 1));
}

#[test]
fn d5_repetitions_that_a_next_life_believes_tear_the_cut() {
    breaks(CAUSAL, with(Fault::LivesLookAlike, 1));
}
