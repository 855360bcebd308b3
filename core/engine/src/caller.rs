//! Asks agents. Connections are kept and used again; each carries one request at a time, so that a long one does not
//! hold up a short one.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Header, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::wire::{Answered, Asked};
use tokio::sync::Mutex;

use crate::env::{Env, Stream};
use crate::frames;

/// Asks the agents of one cluster.
pub struct Caller {
    env: Env,
    addresses: BTreeMap<NodeId, String>,
    idle: Mutex<BTreeMap<NodeId, Vec<Box<dyn Stream>>>>,
    number: AtomicU64,
    scn: AtomicU64,
}

impl core::fmt::Debug for Caller {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Caller").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Caller {
    /// Asks the agents at `addresses`.
    pub fn new(env: Env, addresses: BTreeMap<NodeId, String>) -> Arc<Self> {
        let (idle, number, scn) = (Mutex::default(), AtomicU64::new(1), AtomicU64::new(0));
        Arc::new(Self { env, addresses, idle, number, scn })
    }

    /// The highest SCN that any answer carried. Requests carry it on.
    pub fn scn(&self) -> Scn {
        Scn::new(self.scn.load(Ordering::SeqCst))
    }

    /// Asks the header's node.
    ///
    /// # Errors
    /// The node's own; `SA201` if it cannot be reached or hangs up.
    pub async fn ask(&self, header: &Header, request: &Request) -> Result<Answer> {
        match self.ask_once(header, request).await {
            Err(Error::Fault(fault)) if is_silence(&fault) => {
                let message = format!("node {} cannot be asked to {}: {}", header.node, request.word(), fault.cause);
                Err(Refusal::new(Code::NodeSilent, message).into())
            }
            outcome => outcome,
        }
    }

    /// Asks the header's node, and waits at most so long.
    ///
    /// # Errors
    /// Those of [`Caller::ask`]; `SA201` if there is no answer in time.
    pub async fn ask_within(&self, wait: Duration, header: &Header, request: &Request) -> Result<Answer> {
        tokio::select! {
            biased;
            answer = self.ask(header, request) => answer,
            () = self.env.clock.sleep(wait) => {
                let message = format!("node {} did not answer `{}` in {} s", header.node, request.word(), wait.as_secs());
                Err(Refusal::new(Code::NodeSilent, message).into())
            }
        }
    }

    async fn ask_once(&self, header: &Header, request: &Request) -> Result<Answer> {
        let idle = self.idle.lock().await.get_mut(&header.node).and_then(Vec::pop);
        if let Some(stream) = idle {
            match self.ask_over(stream, header, request).await {
                // The connection may have gone stale while it was idle. Every request may be repeated.
                Err(Error::Fault(fault)) if is_silence(&fault) => {
                    self.idle.lock().await.remove(&header.node);
                }
                outcome => return outcome,
            }
        }
        let unknown =
            || Fault::new(FaultKind::Unreachable, "dial a node", format!("node {} has no address", header.node));
        let address = self.addresses.get(&header.node).ok_or_else(unknown)?;
        let stream = self.env.net.connect(address).await?;
        self.ask_over(stream, header, request).await
    }

    async fn ask_over(&self, mut stream: Box<dyn Stream>, header: &Header, request: &Request) -> Result<Answer> {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let asked = Asked { number, scn: self.scn(), header: header.clone(), request: request.clone() };
        frames::send(&mut stream, &asked).await?;
        let goodbye = || Fault::new(FaultKind::Unreachable, "hear from the peer", "it said goodbye instead");
        let answered: Answered = frames::receive(&mut stream).await?.ok_or_else(goodbye)?;
        if answered.number == 0 {
            // The agent could not read the request, and has hung up after saying so.
            return answered.answer.map_err(Error::from);
        }
        if answered.number != number {
            let message = format!("asked number {number}, answered {}", answered.number);
            return Err(Refusal::new(Code::FrameDamaged, message).into());
        }
        self.scn.fetch_max(answered.scn.get(), Ordering::SeqCst);
        self.idle.lock().await.entry(header.node).or_default().push(stream);
        answered.answer.map_err(Error::from)
    }
}

fn is_silence(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::Unreachable | FaultKind::TimedOut)
}
