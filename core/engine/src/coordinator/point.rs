//! Runs a restore point.

use alloc::boxed::Box;
use alloc::format;
use core::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Cut, Ending, Guarantee, Method, Outcome, Point};
use sheetanchor_core::identity::{OperationId, OperationKind, PointName};
use sheetanchor_core::point::{Effect, Event, FencedPoint, Floor};
use sheetanchor_core::refusal::Code;

use super::{Coordinator, Footing, Term};
use crate::agent::without_fence;
use crate::pump::{self, Perform, Performed};

impl Coordinator {
    /// Takes a cluster-wide restore point named `name`.
    ///
    /// # Errors
    /// `0A000` if the engine has no fence, `SA213` if the name is taken, and whatever the nodes refuse with. Then the
    /// point does not exist, and commits flow again within the lease.
    pub async fn create_point(&self, name: PointName) -> Result<(OperationId, Point)> {
        let footing = self.footing().await?;
        self.check_fence(&footing).await?;
        self.take_point(&footing, Some(name), &Floor::default(), is_busy).await
    }

    /// Refuses at once what no node can do, before anything is registered.
    pub(super) async fn check_fence(&self, footing: &Footing) -> Result<()> {
        let seen = self.survey(footing).await?;
        match seen.values().find(|description| !description.fence) {
            None => Ok(()),
            Some(node) => {
                let name = format!("node {} ({} {})", node.node, node.engine, node.version);
                Err(without_fence(&name, node.fence_missing.as_deref()).into())
            }
        }
    }

    /// Takes a point; one that fails in a way that `again` knows is taken anew, as another operation, with jitter, within
    /// the budget.
    pub(super) async fn take_point(
        &self,
        footing: &Footing,
        name: Option<PointName>,
        floor: &Floor,
        again: fn(&Error) -> bool,
    ) -> Result<(OperationId, Point)> {
        let until = self.env.clock.now().after(self.limits.retry);
        loop {
            let outcome = self.take_point_once(footing, name.clone(), floor.clone()).await;
            match outcome {
                Err(error) if again(&error) && self.env.clock.now() < until && !self.cancel.get() => {
                    tracing::info!(target: "sheetanchor::phase", %error, phase = "retried");
                    self.env.clock.sleep(Duration::from_millis(50 + self.env.entropy.word() % 450)).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn take_point_once(
        &self,
        footing: &Footing,
        name: Option<PointName>,
        mut floor: Floor,
    ) -> Result<(OperationId, Point)> {
        let term = self.register(footing, OperationKind::Point, footing.incarnation, name.clone()).await?;
        let prepared = async {
            if let Some(name) = &name {
                self.repository.claim_name(name, term.operation, term.nonce).await?;
            }
            Ok(self.repository.newest_point(footing.incarnation).await?.map(|point| point.cut))
        };
        floor.previous = match prepared.await {
            Ok(previous) => previous,
            Err(error) => {
                self.abort_outcome(term, &error).await?;
                return Err(error);
            }
        };
        let nodes = footing.members.nodes.keys().copied().collect();
        let record = format!("sa-{}", term.operation);
        let mut machine = FencedPoint::new(nodes, record, self.hold(), self.limits.point, floor);
        let performer = PointPerformer { coordinator: self, footing, term, name: name.clone() };
        let cut: Result<Cut> =
            pump::run(&self.env, term.operation, &mut machine, &performer, &self.cancel, self.watcher.as_deref()).await;
        cut?;
        match self.repository.outcome(term.operation).await? {
            Some(Outcome { result: Ending::Published(point), .. }) => {
                tracing::info!(target: "sheetanchor::phase", operation = %term.operation, scn = %point.cut.scn, phase = "published");
                Ok((term.operation, point))
            }
            Some(_) | None => Err(Error::Bug(format!("{} ended well and is not published", term.operation))),
        }
    }
}

/// Another operation holds the fence: worth another try.
fn is_busy(error: &Error) -> bool {
    error.refusal().is_some_and(|refusal| refusal.code == Code::Busy)
}

/// At the end of a backup more is worth another try: the copied data is kept.
pub(super) fn is_passing(error: &Error) -> bool {
    error.refusal().is_some_and(|refusal| matches!(refusal.code, Code::Busy | Code::HoldLost | Code::DrainTimedOut))
}

struct PointPerformer<'a> {
    coordinator: &'a Coordinator,
    footing: &'a Footing,
    term: Term,
    name: Option<PointName>,
}

impl PointPerformer<'_> {
    fn point(&self, cut: Cut) -> Point {
        Point {
            cut,
            ended_ms: self.coordinator.env.clock.wall(),
            // Shared storage has one commit record per transaction: it is there, or it is not.
            guarantee: if self.footing.members.shared { Guarantee::Atomic } else { Guarantee::Causal },
            incarnation: self.footing.incarnation,
            membership: self.footing.members.membership,
            method: Method::Fence,
            name: self.name.clone(),
        }
    }
}

impl Perform<FencedPoint, Result<Cut>> for PointPerformer<'_> {
    fn perform(&self, effect: Effect) -> BoxFuture<'_, Performed<Event, Result<Cut>>> {
        Box::pin(async move {
            match effect {
                Effect::Ask(step, node, request) => {
                    let header = self.footing.header(node, Some(self.term));
                    let answer = self.coordinator.caller.ask(&header, &request).await;
                    Performed::Event(Event::Answered(step, node, answer))
                }
                Effect::Publish(cut) => {
                    let result = Ending::Published(self.point(cut));
                    let outcome = Outcome { nonce: self.term.nonce, operation: self.term.operation, result };
                    Performed::Event(Event::Settled(self.coordinator.repository.decide(&outcome).await))
                }
                Effect::Abort(why) => {
                    Performed::Event(Event::Settled(self.coordinator.abort_outcome(self.term, &why).await))
                }
                Effect::Finish(cut) => Performed::Finished(cut),
            }
        })
    }
}
