//! What an agent does about transactions that are prepared at a restore's cut: looks their ends up in the archive, and ends
//! them as the restore has decided.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::Resolutions;
use sheetanchor_core::format::keys;
use sheetanchor_core::format::manifest::{Plan, ThreadPlan, WalSpan};
use sheetanchor_core::identity::{ContentHash, OperationId, ThreadId};
use sheetanchor_core::in_doubt::{Fate, Searched, Verdict};
use sheetanchor_core::plan::Reach;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Answer;

use super::Agent;
use super::archived_wal::ArchivedWal;
use super::perform::state_word;
use crate::database::{Search, Span, State};
use crate::repository::WalHeaders;

impl Agent {
    /// Looks through this node's archived WAL, from `from` in the cut's incarnation up to the cut.
    pub(super) async fn search(
        &self,
        operation: OperationId,
        hash: ContentHash,
        from: Lsn,
        gids: Vec<String>,
    ) -> Result<Answer> {
        let plan = self.plan(operation, hash).await?;
        let thread = ThreadId::of(self.config.node);
        let missing = || Error::from(Refusal::new(Code::Damaged, format!("the plan's cut has no thread {thread}")));
        let cut = *plan.cut.threads.get(&thread).ok_or_else(missing)?;
        if from >= cut.until {
            return Ok(Answer::Searched(Searched { traces: Vec::new(), whole: true }));
        }
        let repository = self.origin(&plan).await?;
        let WalHeaders { sound: mut headers, damaged, .. } = repository.wal_headers(plan.incarnation, thread).await?;
        headers.retain(|(_, header)| header.timeline == cut.timeline);
        let reach = Reach::from(from, headers);
        if reach.until().is_none_or(|until| until < cut.until) {
            if let Some(damaged) = damaged {
                return Err(damaged.into());
            }
            return Ok(Answer::Searched(Searched { traces: Vec::new(), whole: false }));
        }
        let span = WalSpan {
            from,
            incarnation: plan.incarnation,
            pieces: reach.pieces.into_iter().map(|(key, _)| key).collect(),
            scn: plan.cut.scn,
            timeline: cut.timeline,
            until: cut.until,
        };
        let wanted = Search {
            thread,
            span: Span { timeline: span.timeline, from, until: span.until, scn: span.scn },
            gids: gids.into_iter().collect(),
        };
        let searched = Plan { threads: BTreeMap::from([(thread, ThreadPlan { spans: Vec::from([span]) })]), ..plan };
        let source = ArchivedWal { repository, plan: &searched, replaying: None };
        let traces = self.database.search(&wanted, &source).await?;
        Ok(Answer::Searched(Searched { traces, whole: true }))
    }

    /// Ends what is prepared here as the restore has decided. What is left in doubt stays prepared.
    pub(super) async fn resolve(&self, operation: OperationId, hash: ContentHash) -> Result<Answer> {
        self.plan(operation, hash).await?;
        let _folder = self.folder.lock().await;
        self.check_folder(operation).await?;
        match self.database.status().await?.state {
            State::Reached => {}
            // It was resolved, and has opened since.
            State::Open => return Ok(Answer::Done),
            state @ (State::Empty | State::Down) => {
                let message = format!("node {} is `{}`, and stands at no cut", self.config.node, state_word(state));
                return Err(Refusal::new(Code::DatabaseDown, message).into());
            }
        }
        // Not what a coordinator says, but what was stored once and for all: two of them may be at work.
        let decided: Resolutions = self.repository.load(&keys::in_doubt(operation)).await?;
        let own = decided.resolved.into_iter().filter(|half| half.node == self.config.node);
        let fates: Vec<(String, Fate)> = own
            .filter_map(|half| match half.verdict {
                Verdict::Commit => Some((half.gid, Fate::Committed)),
                Verdict::Rollback => Some((half.gid, Fate::RolledBack)),
                Verdict::Left(_) => None,
            })
            .collect();
        if !planted::is(Bug::InDoubtUnresolved) {
            self.database.resolve(&fates).await?;
        }
        Ok(Answer::Done)
    }
}
