//! The seal: what must hold in every reachable state of a backup, and the faults that must break it.

mod world;

use stateright::{Model, Property};

use crate::explore::{breaks, holds};
use world::{Action, Budget, Fault, Outcome, State};

struct Seal {
    left: Budget,
    fault: Fault,
}

const PROVEN: &str = "what is sealed is all there and belongs together";
const HELD: &str = "nobody lets go of a pin before the outcome is decided";
const ONE: &str = "nobody is told of an outcome other than the one that stands";
const REASON: &str = "a backup does not fail for another operation's sake";
const LEASED: &str = "every pin has a lease";

impl Model for Seal {
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
            Property::always(PROVEN, |_, state: &State| state.is_proven()),
            Property::always(HELD, |_, state: &State| state.pins_are_held()),
            Property::always(ONE, |_, state: &State| state.has_one_outcome()),
            Property::always(REASON, |_, state: &State| state.fails_for_a_reason()),
            Property::always(LEASED, |_, state: &State| state.every_pin_has_a_lease()),
            Property::sometimes("a backup is sealed", |_, state: &State| {
                matches!(state.outcome, Some(Outcome::Sealed(_)))
            }),
            Property::sometimes("a backup is aborted", |_, state: &State| state.outcome == Some(Outcome::Aborted)),
        ]
    }
}

const QUIET: Budget =
    Budget { crashes: 0, coordinator_crash: false, deadlines: 0, leases: 0, takeover: false, point: false };

#[test]
fn every_schedule_of_a_backup_with_a_crash_is_safe() {
    holds("the seal, a crash", Seal { left: Budget { crashes: 1, ..QUIET }, fault: Fault::None });
}

#[test]
fn every_schedule_of_a_backup_whose_coordinator_crashes_and_is_replaced_is_safe() {
    let left = Budget { coordinator_crash: true, takeover: true, ..QUIET };
    holds("the seal, a coordinator lost", Seal { left, fault: Fault::None });
}

#[test]
fn every_schedule_of_a_backup_that_two_coordinators_want_to_end_is_safe() {
    holds("the seal, two coordinators", Seal { left: Budget { takeover: true, ..QUIET }, fault: Fault::None });
}

#[test]
fn every_schedule_of_a_backup_whose_deadlines_come_is_safe() {
    holds("the seal, deadlines", Seal { left: Budget { deadlines: 2, ..QUIET }, fault: Fault::None });
}

#[test]
fn every_schedule_of_a_backup_whose_leases_run_out_is_safe() {
    holds("the seal, leases", Seal { left: Budget { deadlines: 1, leases: 1, ..QUIET }, fault: Fault::None });
}

#[test]
fn every_schedule_of_a_backup_beside_a_point_that_failed_is_safe() {
    holds("the seal, a point beside it", Seal { left: Budget { point: true, ..QUIET }, fault: Fault::None });
}

#[test]
fn l12_one_place_for_all_pins_loses_the_wal_of_a_backup() {
    breaks(HELD, Seal { left: Budget { point: true, ..QUIET }, fault: Fault::OnePinSlot });
}

#[test]
fn l13_an_abort_that_touches_other_operations_ends_a_backup() {
    breaks(REASON, Seal { left: Budget { point: true, ..QUIET }, fault: Fault::AbortTouchesAll });
}

#[test]
fn d2_a_point_that_takes_the_epoch_of_a_backup_ends_it() {
    breaks(REASON, Seal { left: Budget { point: true, ..QUIET }, fault: Fault::OneEpochForAll });
}

#[test]
fn d3_a_coordinator_that_wakes_and_writes_over_the_outcome_seals_what_is_gone() {
    breaks(PROVEN, Seal { left: Budget { takeover: true, ..QUIET }, fault: Fault::OutcomeOverwritten });
    breaks(ONE, Seal { left: Budget { takeover: true, ..QUIET }, fault: Fault::OutcomeOverwritten });
}

#[test]
fn an_end_of_what_another_life_began_seals_two_halves() {
    breaks(PROVEN, Seal { left: Budget { crashes: 1, ..QUIET }, fault: Fault::EndsAnyBeginning });
}
