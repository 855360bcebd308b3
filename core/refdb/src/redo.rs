//! Crash recovery of one node's thread, and the start of its next life.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex};

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::merge::{Chain, Verdict};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::{DiskFile, DiskLock, Env, OpenMode, TaskGroup};
use sheetanchor_engine::watched::Watched;
use tokio::sync::Notify;

use crate::backups::Backups;
use crate::barrier::{Marks, barriers_forever};
use crate::checkpoint::{checkpoint_forever, first_ceiling, reserve_forever};
use crate::config::Config;
use crate::control::{Control, Folder, NodeControl, Pins, load, seal};
use crate::directory::{Directory, LifeNo, Owner};
use crate::fence::Fence;
use crate::layout::{Layout, PageNo};
use crate::links::Links;
use crate::log::Log;
use crate::ownership::register_at;
use crate::page::{PAGE_BYTES, Page};
use crate::pages::Pages;
use crate::prepared::{Held, InDoubt, Prepared};
use crate::record::{Body, Record};
use crate::running::{Running, flush_forever};
use crate::segments::{self, Scan};
use crate::state::{Now, Stamps, State, Transactions};

/// A page during recovery.
pub(crate) struct Recovered {
    pub(crate) page: Page,
    pub(crate) chain: Chain,
    pub(crate) changed: bool,
}

impl Recovered {
    /// Reads a page as recovery finds it.
    pub(crate) async fn read(file: &dyn DiskFile, number: PageNo) -> Result<Self> {
        let bytes = file.read_at(Page::offset(number), PAGE_BYTES).await?;
        let (page, chain) = match Page::decode(number, &bytes) {
            Ok(page) => (page.clone(), Chain::sound(page.version)),
            Err(_) if planted::is(Bug::TornTakenForSound) => {
                let page = Page::unchecked(&bytes).unwrap_or_else(Page::fresh);
                let chain = Chain::sound(page.version);
                (page, chain)
            }
            Err(_) => (Page::fresh(), Chain::torn()),
        };
        Ok(Self { page, chain, changed: false })
    }

    /// Takes the next change of page `number`, if it does not have it.
    ///
    /// # Errors
    /// `SA404` if a change before it is missing; `SA504` if it fits no page.
    pub(crate) fn take(&mut self, number: PageNo, record: &Record, torn_until: Scn) -> Result<(), Refusal> {
        let Some((_, previous, change)) = record.body.page_change() else { return Ok(()) };
        let place = change.place(previous, record.scn);
        let followed = self.chain.follow(place, torn_until);
        let verdict =
            followed.map_err(|refusal| Refusal::new(refusal.code, format!("{number}: {}", refusal.message)))?;
        if verdict == Verdict::Apply {
            let misfit =
                || Refusal::new(Code::WalDamaged, format!("the record at {} does not fit {number}", record.lsn));
            change.apply(&mut self.page, record.scn).ok_or_else(misfit)?;
            self.changed = true;
        }
        Ok(())
    }
}

/// Repeats a thread's changes, writes and syncs the pages. Changes of a page that the thread gave away afterwards are
/// left out: another node may own it by now, and it was written before it was given.
///
/// # Errors
/// `SA404`, `SA007`, `SA504`.
async fn repeat(file: &dyn DiskFile, scan: &Scan) -> Result<usize> {
    let mut given: BTreeMap<PageNo, Lsn> = BTreeMap::new();
    for record in &scan.records {
        if let Body::Released { page, .. } = &record.body {
            given.insert(*page, record.lsn);
        }
    }
    let mut pages: BTreeMap<PageNo, Recovered> = BTreeMap::new();
    for record in &scan.records {
        let Some((page, ..)) = record.body.page_change() else { continue };
        let is_given = given.get(&page).is_some_and(|until| record.lsn < *until);
        if is_given && !planted::is(Bug::GivenAwayRepeated) {
            continue;
        }
        let recovered = match pages.entry(page) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(Recovered::read(file, page).await?),
        };
        recovered.take(page, record, Scn::new(u64::MAX))?;
        // Written in any case: a sync that failed may have given up what is still to be seen there, and the next one succeeds.
        recovered.changed = true;
    }
    let changed = write_changed(file, &mut pages).await?;
    file.sync().await?;
    Ok(changed)
}

/// Writes the pages that recovery changed; answers how many.
pub(crate) async fn write_changed(file: &dyn DiskFile, pages: &mut BTreeMap<PageNo, Recovered>) -> Result<usize> {
    let mut changed = 0;
    for (number, recovered) in pages {
        if recovered.changed {
            file.write_at(Page::offset(*number), recovered.page.encode(*number).into()).await?;
            recovered.changed = false;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Takes the lock that only one life of a node can hold.
///
/// # Errors
/// `SA107` if another life holds it.
pub(crate) async fn lock(env: &Env, folder: &Folder, node: NodeId) -> Result<Box<dyn DiskLock>> {
    let lock = env.disk.lock(&folder.lock(node)).await?;
    let held =
        || Refusal::new(Code::DuplicateIdentity, format!("another process runs node {node} on {}", folder.data()));
    lock.ok_or_else(|| Error::from(held()))
}

/// Starts the next life of a node whose control file says that it was opened: recovers its thread, and serves.
///
/// # Errors
/// `SA107`, `SA404`, `SA504`, and faults.
pub(crate) async fn start(env: &Env, config: &Config, control: &Control) -> Result<Arc<Running>> {
    let folder = Folder::new(&config.data);
    let node = config.node;
    let lock = lock(env, &folder, node).await?;
    let Some(mut own) = load::<NodeControl>(&*env.disk, &folder.node_control(node)).await? else {
        return Err(Refusal::new(Code::RecoveryFailed, format!("node {node} has no control file")).into());
    };
    check_identity(&own, control, node)?;
    let wal = folder.wal(node, own.incarnation);
    env.disk.create_folder(&wal).await?;
    env.disk.sync_dir(sheetanchor_engine::env::disk::parent(&wal)).await?;
    let scan = segments::scan(&*env.disk, &wal, own.redo, own.durable).await?;
    let pages_file = env.disk.open(&folder.pages(), OpenMode::Write).await?;
    let repeated = repeat(&*pages_file, &scan).await?;
    let layout = Layout { nodes: control.nodes.clone(), data_pages: control.data_pages };
    let next = Running::first_unused(&*pages_file, &layout, node).await?;

    let last = scan.records.last().map_or(Scn::ZERO, |record| record.scn);
    let floor = if planted::is(Bug::CeilingIgnored) { last } else { own.ceiling.max(last) };
    let mut stamps = wait_for_the_clock(env, config, floor, own.offset_ms).await?;
    own.life = own.life.saturating_add(1);
    own.redo = scan.end;
    own.durable = scan.end;
    // What lies before that end is not read again: the log is told of them once more before anybody is served.
    own.in_doubt = open_at_the_end(&scan, &own.in_doubt);
    let in_doubt = own.in_doubt.clone();
    own.ceiling = first_ceiling(own.ceiling.max(floor), stamps.ceiling_wanted(now(env)));
    env.disk.replace(&folder.node_control(node), seal(&own)).await?;
    stamps.reserved(own.ceiling);
    let pins = load_pins(env, &folder, node, &own).await?;
    let life = u64::from(own.incarnation.get()) << 32 | u64::from(own.life);
    tracing::info!(
        target: "sheetanchor::refdb", %node, incarnation = %own.incarnation, end = %scan.end, records = scan.records.len(),
        pages = repeated, "opened"
    );
    let mut state = state_at(config, &layout, &scan, life, next, stamps, pins);
    state.transactions.resumed(in_doubt.iter().map(|in_doubt| in_doubt.held.xid));
    state.prepared = in_doubt.into_iter().map(|InDoubt { held, .. }| (held.gid.clone(), held)).collect();
    Ok(Arc::new(Running {
        env: env.clone(),
        config: config.clone(),
        folder,
        cluster: control.cluster,
        incarnation: own.incarnation,
        life,
        layout,
        pages_file,
        links: Links::default(),
        control: tokio::sync::Mutex::new(own),
        page_writer: tokio::sync::Mutex::default(),
        segment_namer: tokio::sync::Mutex::default(),
        checkpointing: tokio::sync::Mutex::default(),
        pins_writer: tokio::sync::Mutex::default(),
        flush_wanted: Notify::new(),
        reserve_wanted: Notify::new(),
        checkpoint_wanted: Notify::new(),
        state: Mutex::new(state),
        changes: Watched::new(()),
        lock: Mutex::new(Some(lock)),
    }))
}

/// The transactions that are prepared at the end of a scan, with what was decided of those that recovery to a cut left.
fn open_at_the_end(scan: &Scan, left: &[InDoubt]) -> Vec<InDoubt> {
    let mut prepared = Prepared::left(left.iter().map(|in_doubt| in_doubt.held.clone()));
    scan.records.iter().for_each(|record| prepared.take(record));
    let fate = |held: &Held| left.iter().find(|in_doubt| in_doubt.held == *held).and_then(|in_doubt| in_doubt.fate);
    prepared.into_open().into_values().map(|held| InDoubt { fate: fate(&held), held }).collect()
}

fn state_at(
    config: &Config,
    layout: &Layout,
    scan: &Scan,
    life: LifeNo,
    next: u64,
    clock: Stamps,
    pins: BTreeMap<String, Lsn>,
) -> State {
    let peers = layout.nodes.iter().copied().filter(|peer| *peer != config.node);
    State {
        // The clock starts above all that this node may have stamped.
        log: Log::new(scan.segments.clone(), scan.end, clock.last(), config.segment_bytes),
        clock,
        pages: Pages::new(scan.end),
        directory: Directory::new(Owner { node: config.node, life }, peers),
        transactions: Transactions::new(next),
        fence: Fence::default(),
        marks: Marks::default(),
        backups: Backups::default(),
        pins,
        prepared: BTreeMap::new(),
        settled: None,
        failed: None,
    }
}

/// The tasks of a life. Whoever owns the group ends them.
pub(crate) fn tasks(running: &Arc<Running>) -> TaskGroup {
    let mut group = TaskGroup::default();
    let tasks = &running.env.tasks;
    group.add(tasks.spawn("refdb flusher", Box::pin(flush_forever(Arc::clone(running)))));
    group.add(tasks.spawn("refdb reserver", Box::pin(reserve_forever(Arc::clone(running)))));
    group.add(tasks.spawn("refdb checkpointer", Box::pin(checkpoint_forever(Arc::clone(running)))));
    group.add(tasks.spawn("refdb barriers", Box::pin(barriers_forever(Arc::clone(running)))));
    for peer in running.layout.nodes.iter().copied().filter(|peer| *peer != running.node()) {
        group.add(tasks.spawn("refdb registrar", Box::pin(register_at(Arc::clone(running), peer))));
    }
    group
}

fn now(env: &Env) -> Now {
    Now { moment: env.clock.now(), wall: env.clock.wall() }
}

/// A clock above `floor`. Each restart may put it a reserve ahead of wall time; before peers would refuse its messages
/// for that, the node waits until time has caught up.
async fn wait_for_the_clock(env: &Env, config: &Config, floor: Scn, offset_ms: u64) -> Result<Stamps> {
    let deadline = env.clock.now().after(config.drift_max);
    loop {
        let now = now(env);
        let stamps = Stamps::new(floor, offset_ms, config.drift_max, config.reserve, now);
        let bound = config.drift_max / 2;
        let ahead = stamps.ahead(now);
        if ahead <= bound {
            return Ok(stamps);
        }
        if now.moment >= deadline {
            let message = format!("node {} used SCNs that lie {} s ahead of its clock", config.node, ahead.as_secs());
            return Err(Refusal::new(Code::ClockDrift, message).into());
        }
        tracing::warn!(target: "sheetanchor::refdb", node = %config.node, ?ahead, "waits for the wall clock");
        env.clock.sleep(ahead.saturating_sub(bound).min(config.drift_max)).await;
    }
}

fn check_identity(own: &NodeControl, control: &Control, node: NodeId) -> Result<()> {
    if own.node != node {
        let message = format!("the control file of node {node} is that of node {}", own.node);
        return Err(Refusal::new(Code::OtherNode, message).into());
    }
    if own.cluster != control.cluster {
        let message = format!("node {node} is of cluster {}, its folder of {}", own.cluster, control.cluster);
        return Err(Refusal::new(Code::OtherCluster, message).into());
    }
    Ok(())
}

async fn load_pins(env: &Env, folder: &Folder, node: NodeId, own: &NodeControl) -> Result<BTreeMap<String, Lsn>> {
    let pins = load::<Pins>(&*env.disk, &folder.pins(node)).await?;
    let ours = pins.filter(|pins| pins.cluster == own.cluster && pins.incarnation == own.incarnation);
    Ok(ours.map(|pins| pins.kept).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Change;
    use async_trait::async_trait;
    use bytes::Bytes;
    use sheetanchor_core::identity::ByteCount;
    use sheetanchor_engine::env::Fault;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    #[derive(Default)]
    struct InMemory(Mutex<Vec<u8>>);

    #[async_trait]
    impl DiskFile for InMemory {
        async fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
            let bytes = self.0.lock().unwrap();
            Ok(bytes.iter().skip(offset as usize).take(length).copied().collect())
        }

        async fn write_at(&self, offset: u64, new: Bytes) -> Result<(), Fault> {
            let mut bytes = self.0.lock().unwrap();
            let (from, until) = (offset as usize, offset as usize + new.len());
            let length = bytes.len().max(until);
            bytes.resize(length, 0);
            bytes[from..until].copy_from_slice(&new);
            Ok(())
        }

        async fn truncate(&self, length: u64) -> Result<(), Fault> {
            self.0.lock().unwrap().resize(length as usize, 0);
            Ok(())
        }

        async fn sync(&self) -> Result<(), Fault> {
            Ok(())
        }

        async fn length(&self) -> Result<ByteCount, Fault> {
            Ok(ByteCount::new(self.0.lock().unwrap().len() as u64))
        }
    }

    /// Nothing here waits.
    fn now<T>(work: impl Future<Output = T>) -> T {
        match std::pin::pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("memory does not wait"),
        }
    }

    fn scan(bodies: Vec<Body>) -> Scan {
        let record =
            |(number, body)| Record { lsn: Lsn::new(number), scn: Scn::new(number), durable: Lsn::default(), body };
        Scan {
            segments: std::collections::BTreeSet::new(),
            records: (1..).zip(bodies).map(record).collect(),
            end: Lsn::new(9),
        }
    }

    fn changed(page: u64, previous: u64, change: Change) -> Body {
        Body::Changed { page: PageNo::new(page), previous: Scn::new(previous), change }
    }

    fn patch(offset: u16) -> Change {
        Change::Patch { offset, bytes: b"ab".to_vec() }
    }

    #[test]
    fn a_page_that_was_given_away_is_left_alone_even_if_it_looks_torn() {
        let file = InMemory::default();
        // Its new owner is in the middle of writing it.
        now(file.write_at(0, vec![7; PAGE_BYTES].into())).unwrap();
        let released = Body::Released { page: PageNo::new(0), version: Scn::new(1) };
        let thread = scan(vec![changed(0, 0, Change::Whole(b"old".to_vec())), released, changed(1, 0, patch(0))]);
        assert_eq!(now(repeat(&file, &thread)).unwrap(), 1);
        assert_eq!(now(file.read_at(0, PAGE_BYTES)).unwrap(), vec![7; PAGE_BYTES]);
    }

    #[test]
    fn a_torn_page_is_mended_by_its_image_and_what_is_there_is_not_done_twice() {
        let file = InMemory::default();
        now(file.write_at(0, vec![7; PAGE_BYTES].into())).unwrap();
        let thread = scan(vec![changed(0, 0, Change::Whole(b"old".to_vec())), changed(0, 1, patch(10))]);
        assert_eq!(now(repeat(&file, &thread)).unwrap(), 1);
        let page = Page::decode(PageNo::new(0), &now(file.read_at(0, PAGE_BYTES)).unwrap()).unwrap();
        assert_eq!((page.version, &page.body[..3], &page.body[10..12]), (Scn::new(2), &b"old"[..], &b"ab"[..]));
        let mended = now(file.read_at(0, PAGE_BYTES)).unwrap();
        // Written again, since what is seen there need not be durable; and the same as before.
        assert_eq!(now(repeat(&file, &thread)).unwrap(), 1);
        assert_eq!(now(file.read_at(0, PAGE_BYTES)).unwrap(), mended);
    }

    #[test]
    fn a_page_that_a_change_does_not_fit_is_refused() {
        let file = InMemory::default();
        let refused = now(repeat(&file, &scan(vec![changed(0, 5, patch(0))]))).unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::ChainBroken);
    }
}
