//! The term: two candidates for one operation, both of whose writes may take effect without their learning of it.

use std::collections::BTreeMap;

use sheetanchor_core::format::catalog::Term;
use sheetanchor_core::identity::{Epoch, Nonce, OperationId, OperationKind};
use stateright::{Model, Property};

use crate::explore::{breaks, holds};

/// What the repository does for a candidate: it creates the object of the next term, and reads back if it has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Writes(Epoch),
    ReadsBack(Epoch),
    Holds(Epoch),
}

impl Doing {
    fn is_held(self) -> bool {
        matches!(self, Self::Holds(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The operation's terms, as the bytes that stand for them: created once or not at all.
    terms: BTreeMap<Epoch, Vec<u8>>,
    candidates: [Doing; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Action {
    candidate: usize,
    /// The write's answer is lost; whether it took effect or not.
    lost: bool,
    effect: bool,
}

/// How many terms there may be.
const TERMS_MAX: u32 = 4;

struct TakingOver {
    /// D16: candidates write nothing of their own.
    same_body: bool,
}

const ONE_HOLDER: &str = "no two coordinators hold one term";

impl TakingOver {
    fn body(&self, candidate: usize, epoch: Epoch) -> Vec<u8> {
        let own = u64::try_from(candidate).expect("two candidates");
        let nonce = Nonce::new(if self.same_body { 0 } else { own + 1 });
        let operation = OperationId::new(OperationKind::Backup, 1, 2);
        sheetanchor_core::format::write(&Term { epoch, nonce, operation })
    }
}

impl Model for TakingOver {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = Doing::Writes(Epoch::new(1));
        vec![State { terms: BTreeMap::new(), candidates: [first, first] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (candidate, doing) in state.candidates.iter().enumerate() {
            match doing {
                Doing::Writes(epoch) if epoch.get() < TERMS_MAX => {
                    let outcomes = [(false, true), (true, true), (true, false)];
                    actions.extend(outcomes.map(|(lost, effect)| Action { candidate, lost, effect }));
                }
                Doing::ReadsBack(_) => actions.push(Action { candidate, lost: false, effect: false }),
                Doing::Writes(_) | Doing::Holds(_) => {}
            }
        }
    }

    fn next_state(&self, state: &State, Action { candidate, lost, effect }: Action) -> Option<State> {
        let mut next = state.clone();
        next.candidates[candidate] = match state.candidates[candidate] {
            Doing::Writes(epoch) => {
                let created = effect && !state.terms.contains_key(&epoch);
                if created {
                    next.terms.insert(epoch, self.body(candidate, epoch));
                }
                if created && !lost { Doing::Holds(epoch) } else { Doing::ReadsBack(epoch) }
            }
            Doing::ReadsBack(epoch) => match state.terms.get(&epoch) {
                Some(found) if *found == self.body(candidate, epoch) => Doing::Holds(epoch),
                Some(_) => Doing::Writes(epoch.next()?),
                None => Doing::Writes(epoch),
            },
            Doing::Holds(_) => return None,
        };
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_HOLDER, |_, state: &State| {
                let [first, second] = state.candidates;
                first != second || !first.is_held()
            }),
            Property::sometimes("both have held a term", |_, state: &State| {
                state.candidates.iter().all(|doing| doing.is_held())
            }),
        ]
    }
}

#[test]
fn every_schedule_of_two_that_take_an_operation_over_is_safe() {
    holds("the term", TakingOver { same_body: false });
}

#[test]
fn d16_two_that_write_the_same_body_both_take_it_for_their_own() {
    breaks(ONE_HOLDER, TakingOver { same_body: true });
}
