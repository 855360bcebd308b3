//! A node that missed a change of incarnation: it was cut off, or its host was replaced, while the cluster was restored. It
//! goes on under its own incarnation, and archives there, where readers stop at the branch cut: nothing that it writes is
//! taken for the new cluster's. But it must not stay unknown.

use sheetanchor_core::agent::Belonging;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{IncarnationObject, IncarnationState};
use sheetanchor_core::format::keys;
use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::goes_on;

use super::{Agent, state};

impl Agent {
    /// Looks from time to time whether the cluster was opened in a later incarnation than the node lives in, for as long
    /// as the agent lives.
    pub(super) async fn watch_incarnations(&self) {
        let mut known = None;
        loop {
            self.env.clock.sleep(self.config.lineage_interval).await;
            let Some(belonging) = self.belonging.get() else { continue };
            match self.later_incarnation(belonging).await {
                Ok(missed) => {
                    self.missed.set(missed);
                    if let Some(newest) = missed.filter(|_| missed != known) {
                        let why = alloc::format!("the node {}", goes_on(belonging.incarnation, newest));
                        let error = Refusal::new(Code::OtherIncarnation, why);
                        tracing::warn!(target: "sheetanchor::agent", node = %self.config.node, %error, "missed an incarnation");
                    }
                    known = missed;
                }
                Err(error) => tracing::debug!(target: "sheetanchor::agent", %error, "cannot look for incarnations"),
            }
            if let Some(incarnation) = known.filter(|_| planted::is(Bug::MissedIsJoined)) {
                self.belongs(Belonging { incarnation, ..belonging }).await;
            }
        }
    }

    /// The newest incarnation that was opened after the node's own; none while a restore has the node in its hands.
    async fn later_incarnation(&self, belonging: Belonging) -> Result<Option<Incarnation>> {
        if state::marker(&self.env, &self.config).await?.is_some() {
            return Ok(None);
        }
        let own = keys::incarnation(belonging.incarnation);
        for key in self.repository.bucket().list(keys::INCARNATIONS).await?.into_iter().rev() {
            if key <= own {
                break;
            }
            let object: IncarnationObject = self.repository.load(&key).await?;
            if matches!(object.state, IncarnationState::Opened(_)) {
                return Ok(Some(object.incarnation));
            }
        }
        Ok(None)
    }
}
