//! What was prepared at the cut that recovery has reached: which, what the log says of it, and how it ends. The database is
//! closed meanwhile. What is decided is kept in the node's control file, and logged when it opens, before anybody is served:
//! so a later recovery that comes through this incarnation finds it in its log.

use std::collections::BTreeSet;

use sheetanchor_core::error::Result;
use sheetanchor_core::in_doubt::{Fate as Decided, Held as Named, Trace};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Search, WalSource};

use crate::control::{NodeControl, Phase, seal};
use crate::node::Shared;
use crate::prepared::{Fate, InDoubt};
use crate::record::{Body, Record};
use crate::recover::{Next, Reader};
use crate::transaction::Xid;

/// What is prepared at the cut that a node has reached, and not decided.
pub(crate) fn undecided(own: NodeControl) -> Vec<Named> {
    let reached = matches!(own.phase, Phase::Reached(_));
    let open = own.in_doubt.into_iter().filter(|in_doubt| reached && in_doubt.fate.is_none());
    open.map(|InDoubt { held, .. }| Named { gid: held.gid, transaction: name(held.xid) }).collect()
}

/// Remembers what was decided.
///
/// # Errors
/// `SA209` if nothing was recovered, or if something else was decided before.
pub(crate) async fn resolve(shared: &Shared, fates: &[(String, Decided)]) -> Result<()> {
    let _turn = shared.changing.lock().await;
    let mut own = reached(shared).await?;
    for (gid, decided) in fates {
        let fate = match decided {
            Decided::Committed => Fate::Committed,
            Decided::RolledBack => Fate::RolledBack,
        };
        for in_doubt in own.in_doubt.iter_mut().filter(|in_doubt| in_doubt.held.gid == *gid) {
            if in_doubt.fate.is_some_and(|before| before != fate) {
                let message = format!("`{gid}` was decided otherwise on node {} before", own.node);
                return Err(Refusal::new(Code::OutOfOrder, message).into());
            }
            in_doubt.fate = Some(fate);
        }
    }
    shared.env.disk.replace(&shared.folder.node_control(own.node), seal(&own)).await?;
    Ok(())
}

async fn reached(shared: &Shared) -> Result<NodeControl> {
    let own = if shared.control().await?.is_some() { shared.node_control().await? } else { None };
    let none = || Refusal::new(Code::OutOfOrder, "there is nothing that was recovered and is not open");
    Ok(own.filter(|own| matches!(own.phase, Phase::Reached(_))).ok_or_else(none)?)
}

/// Every word of the log about some prepared transactions.
///
/// # Errors
/// `SA504`.
pub(crate) async fn search(search: &Search, wal: &dyn WalSource) -> Result<Vec<Trace>> {
    let mut reader = Reader::new(search.thread, &[search.span]);
    let mut traces = Vec::new();
    // A checkpoint tells again of what was prepared before: once is enough.
    let mut known = BTreeSet::new();
    while let Some(Next::Record(record, _)) = reader.next(wal).await? {
        if record.scn <= search.span.scn {
            traces.extend(told(&record).into_iter().filter(|trace| {
                let wanted = trace.gid.as_ref().is_some_and(|gid| search.gids.contains(gid));
                let again = trace.fate.is_none() && !known.insert(trace.transaction.clone());
                wanted && !again
            }));
        }
    }
    Ok(traces)
}

fn told(record: &Record) -> Vec<Trace> {
    let trace =
        |at: Lsn, gid: &String, xid: Xid, fate| Trace { at, gid: Some(gid.clone()), transaction: name(xid), fate };
    match &record.body {
        Body::Prepared { gid, xid } => vec![trace(record.lsn, gid, *xid, None)],
        Body::InDoubt { held } => held.iter().map(|held| trace(held.at, &held.gid, held.xid, None)).collect(),
        Body::Committed { gid, xid, .. } => vec![trace(record.lsn, gid, *xid, Some(Decided::Committed))],
        Body::RolledBack { gid, xid } => vec![trace(record.lsn, gid, *xid, Some(Decided::RolledBack))],
        Body::Changed { .. } | Body::Released { .. } | Body::RestorePoint { .. } | Body::Barrier => Vec::new(),
    }
}

fn name(xid: Xid) -> String {
    format!("{}.{}", xid.node(), xid.counter())
}
