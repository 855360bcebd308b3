//! Recovery of staged files to a cut: all threads' records, merged, as one unit; and opening what was reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{NodeId, ThreadId};
use sheetanchor_core::merge::{Merge, Step};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{Opening, Recovery, Span, WalSource};
use sheetanchor_engine::env::{DiskFile, DiskLock, OpenMode};

use crate::control::{Control, NodeControl, Phase, load, seal};
use crate::create::write_node;
use crate::fields;
use crate::layout::PageNo;
use crate::node::Shared;
use crate::page::{PAGE_BYTES, Page};
use crate::prepared::{InDoubt, Prepared};
use crate::record::{Body, Found, Record};
use crate::redo::{Recovered, lock, write_changed};

/// Pages kept in memory during recovery.
const PAGES_MAX: usize = 4096;

/// Recovers what was staged to the cut, exactly. Repeating it, after a crash in the middle too, is safe: each page takes
/// only changes that it does not have.
///
/// # Errors
/// `SA009`, `SA403`, `SA404`, `SA405`, `SA408`, `SA504`; `SA209` if a node of the folder was opened.
pub(crate) async fn recover(shared: &Shared, recovery: &Recovery, wal: &dyn WalSource) -> Result<()> {
    let _turn = shared.changing.lock().await;
    let Some(control) = shared.control().await? else {
        return Err(Refusal::new(Code::DatabaseDown, format!("nothing is staged in {}", shared.folder.data())).into());
    };
    let threads: Vec<ThreadId> = control.nodes.iter().map(|node| ThreadId::of(*node)).collect();
    if !threads.iter().eq(recovery.threads.keys()) {
        let message = format!("the database has threads {threads:?}, the recovery {:?}", recovery.threads.keys());
        return Err(Refusal::new(Code::RecoveryFailed, message).into());
    }
    let _locks = lock_all(shared, &control).await?;
    let file = shared.env.disk.open(&shared.folder.pages(), OpenMode::Write).await?;
    let mut replayed = replay(&*file, recovery, wal).await?;
    for (thread, range) in &recovery.threads {
        if let Some(last) = range.spans.last() {
            wal.replayed(Position { thread: *thread, timeline: last.timeline, lsn: range.until });
        }
    }
    check_all(&*file, recovery.scn, replayed.versions).await?;
    file.sync().await?;
    for (thread, range) in &recovery.threads {
        let until = if recovery.sought { replayed.ends.get(thread).copied() } else { Some(range.until) };
        let until = until.unwrap_or(range.start());
        let prepared = replayed.prepared.remove(thread).unwrap_or_default();
        write_reached(shared, &control, NodeId::new(thread.get()), until, recovery.scn, prepared).await?;
    }
    shared.env.disk.sync_dir(&shared.folder.nodes()).await?;
    shared.env.disk.sync_dir(shared.folder.data()).await?;
    tracing::info!(target: "sheetanchor::refdb", node = %shared.config.node, cut = %recovery.scn, records = replayed.records, "recovered");
    Ok(())
}

/// Proves that no life of any node uses the folder, and that none was opened there.
async fn lock_all(shared: &Shared, control: &Control) -> Result<Vec<Box<dyn DiskLock>>> {
    let (disk, folder) = (&*shared.env.disk, &shared.folder);
    let mut locks = Vec::new();
    for node in &control.nodes {
        disk.create_folder(&folder.node(*node)).await?;
        locks.push(lock(&shared.env, folder, *node).await?);
        let own = load::<NodeControl>(disk, &folder.node_control(*node)).await?;
        if own.is_some_and(|own| own.phase == Phase::Open) {
            let message = format!("node {node} was opened in {}: it is not to be recovered again", folder.data());
            return Err(Refusal::new(Code::OutOfOrder, message).into());
        }
    }
    Ok(locks)
}

/// What was replayed.
#[derive(Default)]
struct Replayed {
    records: u64,
    /// What each page that has changes is at.
    versions: BTreeMap<PageNo, Scn>,
    /// The end of each thread's last record at or below the cut.
    ends: BTreeMap<ThreadId, Lsn>,
    /// Each thread's transactions that are prepared at the cut.
    prepared: BTreeMap<ThreadId, Prepared>,
}

/// Applies all records up to the cut.
async fn replay(file: &dyn DiskFile, recovery: &Recovery, wal: &dyn WalSource) -> Result<Replayed> {
    let mut merge = Merge::new(cut_of(recovery), recovery.threads.keys().copied());
    let mut readers: BTreeMap<ThreadId, Reader> =
        recovery.threads.iter().map(|(thread, range)| (*thread, Reader::new(*thread, &range.spans))).collect();
    let mut pages: BTreeMap<PageNo, Recovered> = BTreeMap::new();
    let mut proven: BTreeSet<ThreadId> = BTreeSet::new();
    let mut replayed = Replayed::default();
    loop {
        match merge.step() {
            Step::Feed(thread) => {
                let next = match readers.get_mut(&thread) {
                    Some(reader) => reader.next(wal).await?,
                    None => None,
                };
                match next {
                    Some(Next::Record(record, until)) => {
                        if is_proof(recovery, thread, &record, until) {
                            proven.insert(thread);
                        }
                        let scn = stamp_of(recovery, thread, &record, until);
                        merge.feed(thread, scn, record.lsn, until, (record, until))?;
                    }
                    Some(Next::BeyondBranch(until)) => {
                        replayed.ends.insert(thread, until);
                        merge.left_out(thread, until);
                    }
                    None => merge.ended(thread)?,
                }
            }
            Step::Apply { thread, scn, record: (record, until) } => {
                check_inside(recovery, thread, scn, until)?;
                replayed.records += 1;
                replayed.ends.insert(thread, until);
                replayed.prepared.entry(thread).or_default().take(&record);
                let Some((page, ..)) = record.body.page_change() else { continue };
                if !pages.contains_key(&page) {
                    if pages.len() >= PAGES_MAX {
                        make_room(file, &mut pages, &mut replayed.versions).await?;
                    }
                    pages.insert(page, Recovered::read(file, page).await?);
                }
                if let Some(recovered) = pages.get_mut(&page) {
                    recovered.take(page, &record, recovery.begun_scn)?;
                }
            }
            Step::Reached => break,
        }
    }
    if let Some((page, _)) = pages.iter().find(|(_, recovered)| recovered.chain.is_torn()) {
        return Err(Refusal::new(Code::RecoveryFailed, format!("{page} is torn and no image mends it")).into());
    }
    // A cut that is sought has no record of its own: the first one above it, which the merge has seen, is its proof.
    let unproven = readers.iter_mut().filter(|(thread, _)| !recovery.sought && !proven.contains(*thread));
    for (thread, reader) in unproven {
        find_proof(recovery, *thread, reader, wal).await?;
    }
    replayed.versions.extend(versions_of(&pages));
    write_changed(file, &mut pages).await?;
    Ok(replayed)
}

/// The SCN that recovery ends at.
fn cut_of(recovery: &Recovery) -> Scn {
    if planted::is(Bug::CutByLsn) { Scn::new(u64::MAX - 1) } else { recovery.scn }
}

/// What a record is merged by: its own stamp, wherever in the thread it lies.
fn stamp_of(recovery: &Recovery, thread: ThreadId, record: &Record, until: Lsn) -> Scn {
    let beyond = recovery.threads.get(&thread).is_none_or(|range| until > range.until);
    if planted::is(Bug::CutByLsn) && beyond { Scn::new(u64::MAX) } else { record.scn }
}

/// Whether this is the record that proves the cut in its thread.
fn is_proof(recovery: &Recovery, thread: ThreadId, record: &Record, until: Lsn) -> bool {
    let ends_there = recovery.threads.get(&thread).is_some_and(|range| range.proof == until);
    ends_there && matches!(&record.body, Body::RestorePoint { name } if *name == recovery.record)
}

/// Reads on to the record that proves the cut. A node that lost it after the point was published has reused its place.
async fn find_proof(recovery: &Recovery, thread: ThreadId, reader: &mut Reader, wal: &dyn WalSource) -> Result<()> {
    let proof = recovery.threads.get(&thread).map(|range| range.proof).unwrap_or_default();
    while reader.at < proof {
        match reader.next(wal).await? {
            Some(Next::Record(record, until)) if is_proof(recovery, thread, &record, until) => return Ok(()),
            Some(Next::Record(..) | Next::BeyondBranch(_)) => {}
            None => break,
        }
    }
    let message = format!("thread {thread}: no record `{}` ends at {proof}: the cut is not proven", recovery.record);
    Err(Refusal::new(Code::CutMissed, message).into())
}

/// Writes pages out, but for those that were torn: until all of their changes are there, the file must go on showing
/// it, in case this recovery is cut short and starts over.
async fn make_room(
    file: &dyn DiskFile,
    pages: &mut BTreeMap<PageNo, Recovered>,
    versions: &mut BTreeMap<PageNo, Scn>,
) -> Result<()> {
    let (torn, mut sound) = core::mem::take(pages).into_iter().partition(|(_, recovered)| recovered.chain.was_torn());
    *pages = torn;
    versions.extend(versions_of(&sound));
    write_changed(file, &mut sound).await?;
    Ok(())
}

fn versions_of(pages: &BTreeMap<PageNo, Recovered>) -> impl Iterator<Item = (PageNo, Scn)> {
    pages.iter().map(|(number, recovered)| (*number, recovered.page.version))
}

/// A record at or below the cut's SCN lies before the cut's position in its thread: two ways of saying the same.
fn check_inside(recovery: &Recovery, thread: ThreadId, scn: Scn, until: Lsn) -> Result<(), Refusal> {
    match recovery.threads.get(&thread) {
        Some(range) if until <= range.until => Ok(()),
        Some(range) => {
            let message =
                format!("thread {thread}: a record stamped {scn} ends at {until}, the cut is at {}", range.until);
            Err(Refusal::new(Code::CutMissed, message))
        }
        None => Err(Refusal::new(Code::CutMissed, format!("thread {thread} is not recovered"))),
    }
}

/// Reads the whole file once more: every page is sound, none is beyond the cut, and those that have changes have all of
/// them. A disk may lose a write without a word, and leave a page that is sound and older.
async fn check_all(file: &dyn DiskFile, cut: Scn, mut versions: BTreeMap<PageNo, Scn>) -> Result<()> {
    const CHUNK_PAGES: u64 = 64;
    let length = file.length().await?.get();
    let page_bytes = fields::count(PAGE_BYTES);
    for first in (0..length.div_ceil(page_bytes)).step_by(fields::length(CHUNK_PAGES)) {
        let bytes = file.read_at(Page::offset(PageNo::new(first)), PAGE_BYTES * fields::length(CHUNK_PAGES)).await?;
        for (number, bytes) in (first..).map(PageNo::new).zip(bytes.chunks(PAGE_BYTES)) {
            let torn = |_| Refusal::new(Code::RecoveryFailed, format!("{number} fails its checksum after recovery"));
            let version = Page::decode(number, bytes).map_err(torn)?.version;
            if version > cut {
                let message = format!("{number} is at {version}, beyond the cut {cut}");
                return Err(Refusal::new(Code::CutMissed, message).into());
            }
            if let Some(written) = versions.remove(&number)
                && written != version
            {
                is_not_written(number, written, version)?;
            }
        }
    }
    versions.first_key_value().map_or(Ok(()), |(number, written)| is_not_written(*number, *written, Scn::ZERO))
}

fn is_not_written(number: PageNo, written: Scn, found: Scn) -> Result<()> {
    if planted::is(Bug::RecoveredUnread) {
        return Ok(());
    }
    Err(Refusal::new(Code::NotWritten, format!("{number} was written at {written}, and is at {found}")).into())
}

/// Writes a node's control file: it has reached the cut, and its thread goes on there.
async fn write_reached(
    shared: &Shared,
    control: &Control,
    node: NodeId,
    until: Lsn,
    cut: Scn,
    prepared: Prepared,
) -> Result<()> {
    let held = if planted::is(Bug::PreparedLostAtRecovery) { Prepared::default() } else { prepared }.into_open();
    let in_doubt = held.into_values().map(|held| InDoubt { held, fate: None });
    let (disk, folder) = (&*shared.env.disk, &shared.folder);
    let own = NodeControl {
        cluster: control.cluster,
        node,
        incarnation: control.incarnation,
        life: 0,
        start: until,
        redo: until,
        durable: until,
        ceiling: cut,
        offset_ms: 0,
        phase: Phase::Reached(cut),
        in_doubt: in_doubt.collect(),
    };
    disk.replace(&folder.node_control(node), seal(&own)).await?;
    Ok(())
}

/// One thread's records, span by span and piece by piece.
pub(crate) struct Reader {
    thread: ThreadId,
    /// The span that is being read, and those that follow it.
    spans: VecDeque<Span>,
    /// Where the next record starts.
    at: Lsn,
    /// Bytes from there on.
    bytes: VecDeque<u8>,
}

/// What comes next in a thread.
pub(crate) enum Next {
    /// A record and its end.
    Record(Record, Lsn),
    /// A record of an ancestor above the SCN at which its successor branched off, and its end.
    BeyondBranch(Lsn),
}

impl Reader {
    pub(crate) fn new(thread: ThreadId, spans: &[Span]) -> Self {
        let at = spans.first().map(|span| span.from).unwrap_or_default();
        Self { thread, spans: spans.iter().copied().collect(), at, bytes: VecDeque::new() }
    }

    /// The next record; `None` past the last span.
    pub(crate) async fn next(&mut self, wal: &dyn WalSource) -> Result<Option<Next>> {
        let Some(span) = self.enter_span()? else { return Ok(None) };
        if self.bytes.is_empty() {
            let from = Position { thread: self.thread, timeline: span.timeline, lsn: self.at };
            // But for the record that the merge holds.
            wal.replayed(from);
            let Some(piece) = wal.piece(from).await? else { return Ok(None) };
            let whole = piece.until.bytes_since(piece.from.lsn) == Some(fields::count(piece.bytes.len()));
            if piece.from != from || !whole || piece.bytes.is_empty() {
                let message = format!("{piece:?} does not start at {from} or is not whole");
                return Err(Refusal::new(Code::WalDamaged, message).into());
            }
            self.bytes = Vec::from(piece.bytes).into();
        }
        match Record::read(self.bytes.make_contiguous(), self.at) {
            Found::Record(record, until) if until <= span.until => {
                let length = fields::length(until.bytes_since(self.at).unwrap_or(0));
                self.bytes.drain(..length);
                self.at = until;
                // In the last span the merge itself has to see what lies above the cut.
                let counts = self.spans.len() == 1 || record.scn <= span.scn;
                Ok(Some(if counts { Next::Record(record, until) } else { Next::BeyondBranch(until) }))
            }
            Found::Record(_, until) => {
                let message =
                    format!("thread {}: a record ends at {until}, the branch leaves at {}", self.thread, span.until);
                Err(Refusal::new(Code::WalDamaged, message).into())
            }
            Found::Short | Found::Bad => {
                let message = format!("thread {}: there is no record at {}", self.thread, self.at);
                Err(Refusal::new(Code::WalDamaged, message).into())
            }
        }
    }

    /// The span that the next record lies in: what its pieces hold beyond its end is of another branch.
    fn enter_span(&mut self) -> Result<Option<Span>> {
        while let Some(span) = self.spans.front().copied() {
            if self.at < span.until {
                return Ok(Some(span));
            }
            if self.spans.len() == 1 {
                return Ok(None);
            }
            self.spans.pop_front();
            self.bytes.clear();
            let starts = self.spans.front().map(|next| next.from);
            if starts != Some(self.at) {
                let message = format!("thread {}: its branches do not meet at {}", self.thread, self.at);
                return Err(Refusal::new(Code::RecoveryFailed, message).into());
            }
        }
        Ok(None)
    }
}

/// Opens what was reached, as a new incarnation.
///
/// # Errors
/// `SA105` for other nodes, `SA108` if it was opened as another incarnation, `SA209` if it was not recovered.
pub(crate) async fn open(shared: &Shared, opening: &Opening) -> Result<()> {
    let _turn = shared.changing.lock().await;
    let (Some(control), Some(own)) = (shared.control().await?, shared.node_control().await?) else {
        return Err(Refusal::new(Code::OutOfOrder, "there is nothing that was recovered").into());
    };
    let sharing = shared.config.sharing(&opening.nodes);
    if control.nodes != sharing || shared.config.nodes() != sharing {
        let message = format!("the database has nodes {:?}, the incarnation {:?}", control.nodes, opening.nodes);
        return Err(Refusal::new(Code::OtherMembership, message).into());
    }
    match own.phase {
        Phase::Open if own.incarnation == opening.incarnation && own.cluster == opening.cluster => {}
        Phase::Open => {
            let message =
                format!("the node was opened in incarnation {}, not {}", own.incarnation, opening.incarnation);
            return Err(Refusal::new(Code::OtherIncarnation, message).into());
        }
        Phase::Reached(_) => open_reached(shared, &control, &own, opening).await?,
    }
    shared.serve_unless_open().await
}

async fn open_reached(shared: &Shared, control: &Control, own: &NodeControl, opening: &Opening) -> Result<()> {
    let (disk, folder) = (&*shared.env.disk, &shared.folder);
    let next = Control { cluster: opening.cluster, incarnation: opening.incarnation, ..control.clone() };
    if next != *control {
        // Each node writes the same bytes; each under a temporary name of its own, as they may do so at once.
        let temporary = format!("{}.{}", folder.control(), shared.config.node);
        disk.replace(&temporary, seal(&next)).await?;
        disk.rename(&temporary, &folder.control()).await?;
        disk.sync_dir(folder.data()).await?;
    }
    let opened = NodeControl {
        cluster: opening.cluster,
        incarnation: opening.incarnation,
        ceiling: if planted::is(Bug::ScnFloorIgnored) { own.ceiling } else { opening.scn_floor.max(own.ceiling) },
        offset_ms: if planted::is(Bug::OffsetNotStored) { 0 } else { opening.scn_offset_ms },
        phase: Phase::Open,
        ..own.clone()
    };
    write_node(shared, &opened).await
}
