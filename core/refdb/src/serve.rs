//! The listener: sessions of clients, and questions of other nodes.

use std::sync::Arc;

use sheetanchor_core::error::Error;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::{Listener, Stream, TaskGroup};

use crate::directory::{LifeNo, Owner};
use crate::failure::Failure;
use crate::frame::{ANY_CLUSTER, Envelope, Link, is_lost};
use crate::layout::PageNo;
use crate::node::Shared;
use crate::prepared::Fate;
use crate::protocol::{Answer, Ask, Reply, Request, Statement};
use crate::running::Running;
use crate::session::{Commit, Transaction};

/// Accepts connections until it is dropped, and its connections with it.
pub(crate) async fn accept_forever(shared: Arc<Shared>, mut listener: Box<dyn Listener>) {
    let mut connections = TaskGroup::default();
    loop {
        match listener.accept().await {
            Ok(stream) if connections.len() < shared.config.connections_max => {
                let session = Box::pin(serve(Arc::clone(&shared), stream));
                connections.add(shared.env.tasks.spawn("refdb connection", session));
            }
            Ok(_) => tracing::warn!(target: "sheetanchor::refdb", node = %shared.config.node, "too many connections"),
            Err(fault) => {
                tracing::debug!(target: "sheetanchor::refdb", node = %shared.config.node, %fault, "no connection");
                shared.env.clock.sleep(shared.config.call_timeout / 100).await;
            }
        }
    }
}

/// Serves one connection until it is lost. An open transaction ends with it.
async fn serve(shared: Arc<Shared>, stream: Box<dyn Stream>) {
    let mut link = Link::new(stream);
    let mut session = Session::default();
    loop {
        let cluster = shared.running().map_or(ANY_CLUSTER, |running| running.cluster);
        let received = tokio::select! {
            biased;
            received = link.receive::<Request>(cluster) => received,
            () = shared.env.clock.sleep(shared.config.idle_timeout) => return,
        };
        let running = shared.running();
        let (reply, goes_on) = match received {
            Ok(None) => return,
            Err(error) if is_lost(&error) => return,
            Err(error) => (Reply::from(Failure::from(error)), false),
            Ok(Some((envelope, request))) => match &running {
                None => (Reply::Retry("the database is not open".into()), true),
                Some(running) => match carry_out(running, envelope, request, &mut session, &mut link).await {
                    Some(reply) => (reply, true),
                    None => return,
                },
            },
        };
        let envelope = running.map_or(Envelope { cluster: ANY_CLUSTER, scn: Scn::ZERO }, |running| Envelope {
            cluster: running.cluster,
            scn: running.state().clock.last(),
        });
        let sent = tokio::select! {
            biased;
            sent = link.send(envelope, &reply) => sent.is_ok(),
            () = shared.env.clock.sleep(shared.config.statement_timeout) => false,
        };
        if !sent || !goes_on {
            return;
        }
    }
}

/// Carries one request out; `None` if a client hung up meanwhile.
async fn carry_out(
    running: &Arc<Running>,
    envelope: Envelope,
    request: Request,
    session: &mut Session,
    link: &mut Link,
) -> Option<Reply> {
    // The frame is whole and of this cluster: its SCN may be believed, if it is within the drift bound.
    let now = running.now();
    let forgets = planted::is(Bug::ScnNotObserved) && matches!(request, Request::Statement(_));
    let seen = if forgets { Scn::ZERO } else { envelope.scn };
    let observed = running.state().clock.observe(seen, now);
    if let Err(refusal) = observed {
        return Some(Reply::Failed { code: Some(refusal.code.as_str().into()), message: refusal.message });
    }
    match request {
        Request::Statement(statement) => tokio::select! {
            biased;
            reply = session.carry_out(running, statement) => Some(reply),
            () = link.hung_up() => None,
        },
        Request::Ask { from, life, ask } => {
            let answer = answer(running, envelope, Owner { node: from, life }, ask).await;
            Some(match answer {
                Ok(answer) => Reply::Answer { life: running.life, answer },
                Err(failure) => failure.into(),
            })
        }
    }
}

async fn answer(running: &Running, envelope: Envelope, peer: Owner, ask: Ask) -> Result<Answer, Failure> {
    check_peer(running, envelope, peer.node, peer.life)?;
    let until = running.statement_deadline();
    match ask {
        Ask::Register => Ok(Answer::Registered { owned: running.registered(peer.node, peer.life)? }),
        Ask::Acquire { page } => {
            check_master(running, page, running.node())?;
            Ok(Answer::Granted { version: running.grant(page, peer, until).await? })
        }
        Ask::Release { page } => {
            check_master(running, page, peer.node)?;
            running.state().directory.check_life(peer.node, peer.life)?;
            Ok(Answer::Released { version: running.release(page, until).await? })
        }
        Ask::StatusOf { xid } => {
            if xid.node() != running.node() {
                return Err(Failure::retry(format!("{xid} did not run here")));
            }
            Ok(Answer::Status(running.own_status(xid, until).await?))
        }
    }
}

fn check_peer(running: &Running, envelope: Envelope, node: NodeId, life: LifeNo) -> Result<(), Failure> {
    let known = running.layout.nodes.contains(&node) && node != running.node();
    if envelope.cluster != running.cluster || !known {
        let message = format!("node {node} of cluster {} is none of this cluster's", envelope.cluster);
        return Err(Refusal::new(Code::OtherCluster, message).into());
    }
    if life >> 32 != u64::from(running.incarnation.get()) {
        let message = format!("node {node} is not in incarnation {}", running.incarnation);
        return Err(Refusal::new(Code::OtherIncarnation, message).into());
    }
    Ok(())
}

fn check_master(running: &Running, page: PageNo, claimed: NodeId) -> Result<(), Failure> {
    if running.layout.is_data(page) && running.layout.master(page) == claimed {
        return Ok(());
    }
    Err(Failure::retry(format!("node {claimed} is not the master of {page}")))
}

/// A client's session.
#[derive(Default)]
struct Session {
    transaction: Option<Transaction>,
}

/// Pages read by one `Scan`.
const SCAN_PAGES: u64 = 16;

impl Session {
    async fn carry_out(&mut self, running: &Arc<Running>, statement: Statement) -> Reply {
        if self.transaction.as_ref().is_some_and(|open| !Arc::ptr_eq(open.running(), running)) {
            self.transaction = None;
            return Reply::Retry("the database was opened anew".into());
        }
        match self.attempt(running, statement).await {
            Ok(reply) => reply,
            Err(failure) => {
                self.transaction = None;
                failure.into()
            }
        }
    }

    async fn attempt(&mut self, running: &Arc<Running>, statement: Statement) -> Result<Reply, Failure> {
        running.state().check()?;
        match statement {
            Statement::Begin => {
                self.transaction = Some(Transaction::begin(Arc::clone(running)));
                Ok(Reply::Done)
            }
            Statement::Read { key } => {
                if let Some(transaction) = &mut self.transaction {
                    return Ok(Reply::Value(transaction.read(key).await?));
                }
                let version = running.visible(key, None, running.statement_deadline()).await?;
                Ok(Reply::Value(version.map(|version| version.value)))
            }
            Statement::Write { key, value } => {
                let transaction = self.transaction.as_mut().ok_or_else(no_transaction)?;
                transaction.write(key, value).await?;
                Ok(Reply::Done)
            }
            Statement::Commit => {
                let transaction = self.transaction.take().ok_or_else(no_transaction)?;
                Ok(committed(transaction.commit().await?))
            }
            Statement::Abort => {
                self.transaction = None;
                Ok(Reply::Done)
            }
            Statement::Scan { from_page, from, until } => scan(running, from_page, from, until).await,
            Statement::Prepare { gid } => {
                let transaction = self.transaction.take().ok_or_else(no_transaction)?;
                Ok(committed(transaction.prepare(gid).await?))
            }
            Statement::CommitPrepared { gid } => Ok(committed(running.finish_prepared(&gid, Fate::Committed).await?)),
            Statement::RollbackPrepared { gid } => Ok(match running.finish_prepared(&gid, Fate::RolledBack).await? {
                Commit::Durable(_) => Reply::Done,
                Commit::Unknown(fault) => Reply::Unknown(fault.to_string()),
            }),
            Statement::ListPrepared => Ok(Reply::Gids(running.state().prepared.keys().cloned().collect())),
        }
    }
}

async fn scan(running: &Running, from_page: u64, from: u64, until: u64) -> Result<Reply, Failure> {
    let deadline = running.statement_deadline();
    let end = running.layout.data_pages;
    let stop = from_page.saturating_add(SCAN_PAGES).min(end);
    let mut rows = Vec::new();
    for page in from_page..stop {
        let visible = running.visible_rows(PageNo::new(page), None, deadline).await?;
        rows.extend(visible.into_iter().filter(|(key, _)| (from..until).contains(key)));
    }
    Ok(Reply::Rows { rows, next_page: (stop < end).then_some(stop) })
}

fn committed(commit: Commit) -> Reply {
    match commit {
        Commit::Durable(scn) => Reply::Committed(scn),
        Commit::Unknown(fault) => Reply::Unknown(fault.to_string()),
    }
}

fn no_transaction() -> Failure {
    Failure::Final(Error::from(Refusal::new(Code::OutOfOrder, "no transaction is open")))
}
