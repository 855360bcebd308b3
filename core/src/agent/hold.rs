//! A hold: one closing of one node's fence, by one operation, in one life, until a deadline.

use alloc::format;
use alloc::string::{String, ToString};

use crate::identity::{HoldId, LifeId, OperationId};
use crate::refusal::{Code, Refusal};
use crate::request::Answer;
use crate::scn::Scn;
use crate::time::Moment;

/// A standing hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hold {
    operation: OperationId,
    id: HoldId,
    deadline: Moment,
    life: Option<LifeId>,
    cut: Option<(Scn, String, Answer)>,
}

impl Hold {
    /// A hold that is being closed, and ends at `deadline` whatever happens.
    pub fn new(operation: OperationId, id: HoldId, deadline: Moment) -> Self {
        Self { operation, id, deadline, life: None, cut: None }
    }

    /// Whose it is.
    pub fn operation(&self) -> OperationId {
        self.operation
    }

    /// Which closing.
    pub fn id(&self) -> HoldId {
        self.id
    }

    /// When commits flow again at the latest, on this node's monotonic clock.
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// Whether the database has answered that the fence is closed.
    pub fn is_closed(&self) -> bool {
        self.life.is_some()
    }

    /// Records the life in which the fence closed.
    ///
    /// # Errors
    /// `SA204` if the fence closed in another life before: the first closing went down with that life.
    pub fn closed_in(&mut self, life: LifeId) -> Result<(), Refusal> {
        match self.life {
            Some(earlier) if earlier != life => Err(life_changed(earlier, life)),
            _ => {
                self.life = Some(life);
                Ok(())
            }
        }
    }

    /// Checks the life that a request quotes.
    ///
    /// # Errors
    /// `SA204` if the fence closed in another, `SA209` if it has not closed yet.
    pub fn quoted(&self, life: LifeId) -> Result<(), Refusal> {
        match self.life {
            Some(closed) if closed == life => Ok(()),
            Some(closed) => Err(life_changed(life, closed)),
            None => Err(Refusal::new(Code::OutOfOrder, format!("hold {} is not closed yet", self.id))),
        }
    }

    /// What was answered to the same `Cut` before, if it was asked before.
    ///
    /// # Errors
    /// `SA209` if another cut was made under this hold.
    pub fn cut_before(&self, scn: Scn, record: &str) -> Result<Option<Answer>, Refusal> {
        match &self.cut {
            None => Ok(None),
            Some((made_scn, made_record, answer)) if *made_scn == scn && made_record == record => {
                Ok(Some(answer.clone()))
            }
            Some((made_scn, made_record, _)) => Err(Refusal::new(
                Code::OutOfOrder,
                format!("hold {} has cut at {made_scn} as `{made_record}`, asked for {scn} as `{record}`", self.id),
            )),
        }
    }

    /// Records what was answered to a `Cut`.
    pub fn cut_made(&mut self, scn: Scn, record: &str, answer: &Answer) {
        self.cut.get_or_insert_with(|| (scn, record.to_string(), answer.clone()));
    }
}

fn life_changed(quoted: LifeId, now: LifeId) -> Refusal {
    Refusal::new(Code::LifeChanged, format!("closed in life {quoted}, the database is in life {now}"))
}
