//! Connections to other nodes: one question at a time on each, idle ones kept for the next.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use sheetanchor_core::identity::NodeId;
use sheetanchor_core::time::Moment;

use crate::directory::LifeNo;
use crate::failure::Failure;
use crate::frame::{Envelope, Link};
use crate::protocol::{Answer, Ask, Reply, Request};
use crate::running::Running;

/// Idle connections.
#[derive(Default)]
pub(crate) struct Links {
    idle: Mutex<BTreeMap<NodeId, Vec<Link>>>,
}

impl Links {
    /// Idle connections kept to one node.
    const IDLE_MAX: usize = 4;

    fn take(&self, node: NodeId) -> Option<Link> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&node)?.pop()
    }

    fn keep(&self, node: NodeId, link: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let links = idle.entry(node).or_default();
        if links.len() < Self::IDLE_MAX {
            links.push(link);
        }
    }

    fn clear(&self, node: NodeId) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

impl Running {
    /// Asks another node, and answers what it says and in which life.
    ///
    /// # Errors
    /// Retryable: the node is down, too slow, or has a reason of its own. It may have done what was asked.
    pub(crate) async fn call(&self, node: NodeId, ask: Ask, until: Moment) -> Result<(LifeNo, Answer), Failure> {
        let request = Request::Ask { from: self.node(), life: self.life, ask };
        let asked = async {
            if let Some(link) = self.links.take(node) {
                match self.exchange(node, link, &request).await {
                    Err(Failure::Retry(_)) if !self.has_failed() => self.links.clear(node),
                    outcome => return outcome,
                }
            }
            let address = self.config.peers.get(&node);
            let address = address.ok_or_else(|| Failure::retry(format!("node {node} has no address here")))?;
            let stream = self.env.net.connect(address).await;
            let stream = stream.map_err(|fault| Failure::retry(format!("node {node} is unreachable: {fault}")))?;
            self.exchange(node, Link::new(stream), &request).await
        };
        let reply = tokio::select! {
            biased;
            outcome = asked => outcome?,
            () = self.env.clock.sleep_until(until) => {
                self.links.clear(node);
                return Err(Failure::retry(format!("node {node} does not answer")));
            }
        };
        match reply {
            Reply::Answer { life, answer } => Ok((life, answer)),
            Reply::Retry(why) => Err(Failure::retry(format!("node {node}: {why}"))),
            Reply::Failed { message, .. } => Err(Failure::retry(format!("node {node} refuses: {message}"))),
            Reply::Done
            | Reply::Value(_)
            | Reply::Committed(_)
            | Reply::Unknown(_)
            | Reply::Rows { .. }
            | Reply::Gids(_) => Err(Failure::retry(format!("node {node} answers something else"))),
        }
    }

    async fn exchange(&self, node: NodeId, mut link: Link, request: &Request) -> Result<Reply, Failure> {
        let lost = |why: String| Failure::retry(format!("node {node} is unreachable: {why}"));
        let scn = self.state().clock.last();
        let envelope = Envelope { cluster: self.cluster, scn };
        link.send(envelope, request).await.map_err(|fault| lost(fault.to_string()))?;
        let received = link.receive::<Reply>(self.cluster).await.map_err(|error| lost(error.to_string()))?;
        let (envelope, reply) = received.ok_or_else(|| lost("it hung up".into()))?;
        let now = self.now();
        self.state().clock.observe(envelope.scn, now)?;
        self.links.keep(node, link);
        Ok(reply)
    }
}
