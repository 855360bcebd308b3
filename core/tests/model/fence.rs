//! What must hold in every reachable state of a restore point, and the faults that must break it.

use stateright::{Checker, Model, Property};

use crate::world::{Action, Fault, State};

struct Fence {
    nodes: u16,
    crashes: u8,
    fault: Fault,
}

const CAUSAL: &str = "a published cut holds no effect without its cause";
const PROVEN: &str = "the records of a published cut are there";
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
            Property::always(CAUSAL, |_, state: &State| state.is_causal()),
            Property::always(PROVEN, |_, state: &State| state.is_proven()),
            Property::always(LEASED, |_, state: &State| state.every_fence_has_a_lease()),
            Property::sometimes("a point is published", |_, state: &State| state.published.is_some()),
            Property::sometimes("a point is aborted", |_, state: &State| state.aborted),
        ]
    }
}

/// Explores everything and answers the invariants that do not hold; the model must not be vacuous.
fn broken(fault: Fault, crashes: u8) -> Vec<&'static str> {
    let checker = Fence { nodes: 2, crashes, fault }.checker().threads(2).spawn_bfs().join();
    println!("{fault:?}, {crashes} crashes: {} states, {} deep", checker.unique_state_count(), checker.max_depth());
    let mut broken: Vec<&'static str> = checker.discoveries().into_keys().collect();
    broken.sort_unstable();
    for reachable in ["a point is aborted", "a point is published"] {
        assert!(broken.contains(&reachable), "{reachable} is not reachable: the model shows nothing");
    }
    broken.retain(|name| [CAUSAL, PROVEN, LEASED].contains(name));
    broken
}

#[test]
fn every_schedule_of_a_restore_point_is_safe() {
    assert_eq!(broken(Fault::None, 1), Vec::<&str>::new());
}

#[test]
fn a_fence_that_does_not_hold_tears_the_cut() {
    assert_eq!(broken(Fault::FenceOpen, 0), [CAUSAL]);
}

#[test]
fn a_flush_confirmed_in_another_life_loses_the_record() {
    assert_eq!(broken(Fault::FlushInAnyLife, 1), [PROVEN]);
}

#[test]
fn a_lease_that_is_ignored_leaks_the_fence() {
    assert_eq!(broken(Fault::LeaseIgnored, 0), [LEASED]);
}
