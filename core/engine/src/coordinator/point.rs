//! Runs a restore point.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use core::time::Duration;

use futures_util::future::BoxFuture;
use sheetanchor_core::by_scn::ScnPoint;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{Cut, Ending, Guarantee, Method, Outcome, Point};
use sheetanchor_core::identity::{NodeId, OperationId, OperationKind, PointName};
use sheetanchor_core::point::{Effect, Event, FencedPoint, Floor};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Description, FenceSeen};
use sheetanchor_core::scn::Scn;

use super::{Coordinator, Footing, Term};
use crate::agent::{state_word, without_fence};
use crate::database::State;
use crate::pump::{self, Machine, Perform, Performed};

impl Coordinator {
    /// Takes a cluster-wide restore point named `name`, under a fence.
    ///
    /// # Errors
    /// `0A000` if the engine has no fence, `SA213` if the name is taken, and whatever the nodes refuse with. Then the
    /// point does not exist, and commits flow again within the lease.
    pub async fn create_point(&self, name: PointName) -> Result<(OperationId, Point)> {
        self.create_point_by(name, Method::Fence).await
    }

    /// Takes a cluster-wide restore point named `name`, as `method` says. By SCN it holds everything that was acknowledged
    /// before this was called, and no commit waits.
    ///
    /// # Errors
    /// `0A000` if the engine lacks what the method needs, `SA112` if nobody can tell since it is down; else as
    /// [`Coordinator::create_point`].
    pub async fn create_point_by(&self, name: PointName, method: Method) -> Result<(OperationId, Point)> {
        let mut footing = self.footing().await?;
        if method == Method::Alone {
            let message = "each node by itself is no state of the cluster: a restore point is taken by fence or by scn";
            return Err(Refusal::new(Code::NotSupported, message).into());
        }
        self.check_primitive(&mut footing, method).await?;
        self.take_point(&footing, Some(name), method, &Floor::default(), is_busy).await
    }

    /// Refuses at once what some node cannot do, before anything is registered; answers every node's description, and notes
    /// what all of them say about transactions over several nodes.
    pub(super) async fn check_primitive(
        &self,
        footing: &mut Footing,
        method: Method,
    ) -> Result<BTreeMap<NodeId, Description>> {
        let seen = self.survey(footing).await?;
        footing.two_phase = seen.values().all(|node| node.two_phase);
        footing.stamped = seen.values().all(|node| node.stamped);
        let name = |node: &Description| format!("node {} ({} {})", node.node, node.engine, node.version);
        // Where no database answers, nobody can tell yet what it has.
        let is_unseen = |node: &&Description| node.fence != FenceSeen::Ready && node.state != state_word(State::Open);
        if let Some(node) = seen.values().find(is_unseen).filter(|_| method == Method::Fence) {
            let message = format!("the database of node {} is `{}`", node.node, node.state);
            return Err(Refusal::new(Code::DatabaseDown, message).into());
        }
        let unfenced = seen.values().find(|node| node.fence != FenceSeen::Ready);
        let unstamped = seen.values().find(|node| !node.stamped);
        let lacking = match method {
            Method::Fence => unfenced.map(|node| {
                let missing = match &node.fence {
                    FenceSeen::Missing(missing) => Some(missing.as_str()),
                    FenceSeen::Absent | FenceSeen::Ready => None,
                };
                without_fence(&name(node), missing).message
            }),
            Method::Scn => unstamped.map(|node| format!("{} has no SCN in its WAL records (stamped)", name(node))),
            Method::Alone => footing
                .members
                .shared
                .then(|| "the nodes share one set of files, which has no state of one node by itself".to_string()),
        };
        match lacking {
            None => Ok(seen),
            Some(message) => Err(Refusal::new(Code::NotSupported, message).into()),
        }
    }

    /// The SCN of a point by SCN: the highest that any node reports now, or that this coordinator has seen. Whatever was
    /// acknowledged before now lies at or below it.
    async fn choose_scn(&self, footing: &Footing, floor: Scn) -> Result<Scn> {
        let seen = self.survey(footing).await?;
        Ok(seen.values().map(|node| node.scn).fold(floor.max(self.caller.scn()), Scn::max))
    }

    /// Takes a point; one that fails in a way that `again` knows is taken anew, as another operation, with jitter, within
    /// the budget.
    pub(super) async fn take_point(
        &self,
        footing: &Footing,
        name: Option<PointName>,
        method: Method,
        floor: &Floor,
        again: fn(&Error) -> bool,
    ) -> Result<(OperationId, Point)> {
        let until = self.env.clock.now().after(self.limits.retry);
        loop {
            let outcome = self.take_point_once(footing, name.clone(), method, floor.clone()).await;
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
        method: Method,
        mut floor: Floor,
    ) -> Result<(OperationId, Point)> {
        let term = self.register(footing, OperationKind::Point, footing.incarnation, name.clone()).await?;
        let prepared = async {
            if let Some(name) = &name {
                self.repository.claim_name(name, term.operation, term.nonce).await?;
            }
            let previous = if footing.stamped {
                self.repository.newest_point(footing.incarnation).await?
            } else {
                self.repository.highest_point(footing.incarnation, self.env.clock.wall()).await?
            };
            let previous = previous.map(|point| point.cut);
            let scn = if method == Method::Scn { self.choose_scn(footing, floor.scn).await? } else { floor.scn };
            Ok((previous, scn))
        };
        (floor.previous, floor.scn) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.abort_outcome(term, &error).await?;
                return Err(error);
            }
        };
        if method == Method::Fence && !footing.stamped {
            floor.scn = above_used(&floor, footing.opened.scn_floor);
        }
        let nodes = footing.members.nodes.keys().copied().collect();
        let record = format!("sa-{}", term.operation);
        let performer = PointPerformer { coordinator: self, footing, term, method, name: name.clone() };
        let limits = self.limits.point;
        let cut: Result<Cut> = if method == Method::Scn {
            performer.run(ScnPoint::new(nodes, record, limits, floor)).await
        } else {
            performer.run(FencedPoint::new(nodes, record, self.hold(), limits, floor)).await
        };
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

/// Nodes without stamps take the SCN of a cut from their clocks, and forget it when their agents end. So a clock that was
/// ahead for a moment would keep every later point from being taken until the others had caught up, and a restored cluster
/// could use an SCN again: the catalog remembers for them.
fn above_used(floor: &Floor, used_before: Scn) -> Scn {
    let used = floor.previous.as_ref().map_or(used_before, |cut| cut.scn.max(used_before));
    if used == Scn::ZERO { floor.scn } else { floor.scn.max(used.next()) }
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
    method: Method,
    name: Option<PointName>,
}

impl PointPerformer<'_> {
    async fn run<M: Machine<Event = Event, Effect = Effect>>(&self, mut machine: M) -> Result<Cut> {
        let Coordinator { env, cancel, watcher, .. } = self.coordinator;
        pump::run(env, self.term.operation, &mut machine, self, cancel, watcher.as_deref()).await
    }

    /// Shared storage has one commit record per transaction: it is there, or it is not. How far causality reaches is the
    /// method's to say. On databases that share nothing two-phase commit does it, but under a fence only: a PREPARE may be
    /// stamped above an SCN, and the commit that followed it elsewhere below.
    fn guarantee(&self) -> Guarantee {
        let resolved = self.footing.two_phase && self.method == Method::Fence;
        if self.footing.members.shared || resolved { Guarantee::Atomic } else { Guarantee::Causal }
    }

    fn point(&self, cut: Cut) -> Point {
        Point {
            cut,
            ended_ms: self.coordinator.env.clock.wall(),
            guarantee: self.guarantee(),
            incarnation: self.footing.incarnation,
            membership: self.footing.members.membership,
            method: self.method,
            name: self.name.clone(),
        }
    }
}

impl<M: Machine<Event = Event, Effect = Effect>> Perform<M, Result<Cut>> for PointPerformer<'_> {
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
