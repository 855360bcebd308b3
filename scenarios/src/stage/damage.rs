//! Verbs for runs in which bits rot and writes are lost or go astray without a word: what is asked for ends right, or in a
//! refusal that names damage.

use std::fmt::Debug;

use sheetanchor_core::error::{Error, Result as Outcome};
use sheetanchor_core::identity::{OperationId, OperationKind};
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::{Coordinator, Manner, Restored};
use sheetanchor_sim::atlas::Atlas;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::{Damage, Fault, Plan, When};
use sheetanchor_sim::world::Failure;

use super::{BOUND, Begun, Stage};
use crate::cluster::{NODES, host};

/// What is refused is refused by what is wrong with it.
pub const NAMED: &str = "damage has no effect, or is refused by its name";

/// Codes that name damage, or what is missing for it.
const CODES: [Code; 12] = [
    Code::Damaged,
    Code::Missing,
    Code::ChunkDamaged,
    Code::PageDamaged,
    Code::NotWritten,
    Code::WalDamaged,
    Code::WalGap,
    Code::NotReachable,
    Code::NoSuchTarget,
    Code::CutMissed,
    Code::ChainBroken,
    Code::RecoveryFailed,
];

/// How many passes of the gate ahead damage waits, at most. Half as far is as likely, and half of that.
const AHEAD: u64 = 512;

/// Whose reads and writes go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// Those of nodes, or of the operator who comes next.
    Anybody,
    /// Those of the operator who comes next.
    Operator,
}

impl Stage {
    /// When: from here on up to so many writes and reads of the victims go wrong without a word, wherever the atlas allows.
    pub fn damage_begins(&mut self, atlas: Atlas, most: u64, victims: Victims) {
        self.world.chart(atlas);
        let count = self.damage.below(most + 1);
        let drawn = (0..count).fold(Plan::peaceful(), |plan, _| plan.and(self.any_damage(victims)));
        if self.draws {
            self.world.arm(drawn);
        }
    }

    /// One of these, by the draws of silent damage.
    pub fn damage_of<T: Copy>(&self, things: &[T]) -> Option<T> {
        let count = u64::try_from(things.len()).unwrap_or(u64::MAX);
        things.get(usize::try_from(self.damage.below(count)).unwrap_or(0)).copied()
    }

    /// When: from here on nothing more is damaged. What is damaged stays so.
    pub fn damage_ends(&mut self) {
        self.world.chart(Atlas::closed());
    }

    fn any_damage(&self, victims: Victims) -> Fault {
        let damage = self.damage_of(&[Damage::Rot, Damage::Rot, Damage::Lost, Damage::Astray]).unwrap_or(Damage::Rot);
        let node = self.damage_of(&NODES).map(host).unwrap_or_default();
        let of_operator = victims == Victims::Operator || self.damage.one_in(4);
        let victim = if of_operator { self.next_operator() } else { node };
        let ahead = self.damage.below(AHEAD >> self.damage.below(7));
        let at = When::pass(&victim, self.world.passes(&victim) + 1 + ahead);
        Fault::Silent { at, damage, draw: self.damage.word() }
    }

    /// Waits for the end of an operation: it succeeds, or it is refused by a code that names damage, of which there is some.
    pub fn ends_or_names_damage<T: Debug>(&mut self, what: &str, begun: &Begun<T>) -> Result<Option<T>, Failure> {
        let outcome = self.world.finish(&begun.promise, BOUND)?;
        self.is_right_or_named(what, outcome)
    }

    fn is_right_or_named<T: Debug>(&mut self, what: &str, outcome: Outcome<T>) -> Result<Option<T>, Failure> {
        let harmed = !self.world.harm().is_empty();
        let named = match &outcome {
            Ok(_) => true,
            Err(Error::Refusal(refusal)) => harmed && CODES.contains(&refusal.code),
            Err(Error::Fault(_) | Error::Bug(_)) => false,
        };
        let detail = format!("{what} ended as {outcome:?}, after {:?}", self.world.harm());
        if let Err(error) = &outcome {
            self.world.note(format!("{what}: {error}"));
        }
        self.holds(named, Violation::new(NAMED, detail))?;
        Ok(outcome.ok())
    }

    /// An operator reads a backup again.
    pub fn begin_verify(&mut self, backup: OperationId) -> Begun<()> {
        self.operate(move |operator| async move { operator.verify(backup, &|_, _| {}).await.map(|_| ()) })
    }

    /// An operator begins to restore a backup, in a manner of its own.
    pub fn begin_restore_of(&mut self, backup: OperationId, manner: Manner) -> Begun<Restored> {
        self.operate(move |operator| async move { operator.restore_in(Target::Backup(backup), manner).await })
    }

    /// An operator ends whatever restore has no outcome.
    pub fn restores_are_given_up(&mut self) -> Result<(), Failure> {
        let list =
            |operator: Coordinator| async move { operator.repository().operations(OperationKind::Restore).await };
        let listed = self.operate(list);
        let listed = self.succeeds("restores are listed", &listed)?;
        for operation in listed {
            let aborted = self.operate(move |operator| async move { operator.abort(operation).await });
            drop(self.ends(&aborted)?);
        }
        Ok(())
    }

    /// Then: what was restored is exactly what had been committed up to the cut.
    pub fn is_exactly(&mut self, restored: &Restored) -> Result<(), Failure> {
        self.holds_exactly_the_history_up_to(restored.plan.cut.scn)
    }
}
