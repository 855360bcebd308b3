//! What looking at a long catalog costs in a folder repository, and how it grows: `cargo bench -p sheetanchor-native
//! --bench catalog -- FOLDER`, where FOLDER is on the file system in question. The catalog is written there in its formats,
//! without the operations that would have made it, and removed afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a program that talks to whoever runs it"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use sheetanchor_core::error::Fault;
use sheetanchor_core::format::catalog::{
    Cluster, Cut, Ending, Guarantee, IncarnationObject, IncarnationState, Members, Method, Opened, Outcome, Point,
    Registered, Seal, Term, ThreadCut,
};
use sheetanchor_core::format::{self, Object, keys};
use sheetanchor_core::identity::{
    ByteCount, ClusterId, ContentHash, Epoch, Incarnation, Membership, Nonce, OperationId, OperationKind, ThreadId,
    TimelineId,
};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::WallMillis;
use sheetanchor_core::views::archive::Run;
use sheetanchor_core::views::pitr::pitr_status;
use sheetanchor_engine::coordinator::{Coordinator, Limits, Setup};
use sheetanchor_engine::env::{Bucket, Env, Put};
use sheetanchor_engine::repository::Repository;
use sheetanchor_native::env::native_env;

const ROUNDS: usize = 5;

/// Restore points; a tenth as many backups stand beside them.
const POINTS: [u64; 3] = [100, 1_000, 10_000];

const THREADS: u16 = 3;

/// Counts what is asked of a bucket.
struct Counted {
    bucket: Arc<dyn Bucket>,
    reads: AtomicU64,
}

#[async_trait]
impl Bucket for Counted {
    async fn put_new(&self, key: &str, body: Bytes) -> Result<Put, Fault> {
        self.bucket.put_new(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, Fault> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bucket.get(key).await
    }

    async fn get_range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>, Fault> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bucket.get_range(key, from, length).await
    }

    async fn head(&self, key: &str) -> Result<Option<ByteCount>, Fault> {
        self.bucket.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.bucket.list(prefix).await
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        self.bucket.folders(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        self.bucket.delete(key).await
    }
}

/// Writes an object where the repository looks for it.
fn put(root: &Path, key: &str, object: &impl Object) {
    let path = root.join(key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format::write(object)).unwrap();
}

fn cut(place: u64) -> Cut {
    let lsn = Lsn::new(1 + place);
    let at = ThreadCut { proof: lsn, timeline: TimelineId::new(1), until: lsn };
    let threads = (1..=THREADS).map(|thread| (ThreadId::new(thread), at)).collect();
    Cut { record: format!("sheetanchor-{place:016x}"), scn: Scn::new(1 + place), threads }
}

/// An archive without a gap, past every cut.
fn run(points: u64) -> Run {
    Run {
        timeline: TimelineId::new(1),
        from: Lsn::new(0),
        until: Lsn::new(1 + points),
        scn_last: Some(Scn::new(points)),
    }
}

/// An operation that was begun once and came to an end.
fn operation(root: &Path, kind: OperationKind, place: u64, result: Ending) {
    let operation = OperationId::new(kind, 1 + place, 7);
    let (nonce, incarnation, membership) = (Nonce::new(place), Incarnation::new(1), Membership::new(1));
    let registered = Registered { incarnation, label: None, membership, nonce, operation };
    put(root, &keys::registration(operation), &registered);
    let epoch = Epoch::new(1);
    put(root, &keys::epoch(operation, epoch), &Term { epoch, nonce, operation });
    put(root, &keys::outcome(operation), &Outcome { nonce, operation, result });
}

/// A cluster whose nodes nobody asks, with a history.
fn fill(root: &Path, points: u64) {
    let (nonce, membership, incarnation) = (Nonce::new(1), Membership::new(1), Incarnation::new(1));
    let (id, created_ms) = (ClusterId::new(1), WallMillis::new(1));
    put(root, keys::CLUSTER, &Cluster { created_ms, id, name: "bench".to_owned(), nonce });
    let (engine, nodes) = ("refdb".to_owned(), BTreeMap::new());
    put(root, &keys::members(membership), &Members { engine, membership, nodes, nonce, shared: false });
    let opened = Opened {
        branch: None,
        membership,
        origin: None,
        opened_ms: created_ms,
        scn_floor: Scn::ZERO,
        scn_offset_ms: 0,
    };
    let state = IncarnationState::Opened(opened);
    put(root, &keys::incarnation(incarnation), &IncarnationObject { incarnation, nonce, restore: None, state });
    let (guarantee, method) = (Guarantee::Atomic, Method::Fence);
    for place in 0..points {
        let (cut, ended_ms) = (cut(place), WallMillis::new(1 + place));
        if place % 10 == 0 {
            let manifest = ContentHash::of(&place.to_le_bytes());
            let (base, point, stored, cut) = (None, None, ByteCount::new(1), cut.clone());
            let seal = Seal { base, cut, ended_ms, guarantee, incarnation, manifest, point, stored, why_full: None };
            operation(root, OperationKind::Backup, place, Ending::Sealed(seal));
        }
        let name = Some(format!("point-{place}").parse().unwrap());
        let point = Point { cut, ended_ms, guarantee, incarnation, membership, method, name };
        operation(root, OperationKind::Point, place, Ending::Published(point));
    }
}

/// What a process sees that was started for one command: nothing is known of the folder yet.
fn fresh(root: &Path) -> (Arc<Counted>, Env) {
    let mut env = native_env(root.to_str().unwrap());
    let counted = Arc::new(Counted { bucket: env.bucket.clone(), reads: AtomicU64::new(0) });
    env.bucket = counted.clone();
    (counted, env)
}

fn coordinator(env: Env) -> Coordinator {
    let setup = Setup { name: "bench".to_owned(), addresses: BTreeMap::new() };
    Coordinator::new(env, setup, Limits::default())
}

/// One way to look, as often as is measured.
#[derive(Default)]
struct Look {
    times: Vec<Duration>,
    reads: u64,
}

impl Look {
    fn took(&mut self, start: Instant, counted: &Counted) {
        self.times.push(start.elapsed());
        self.reads = counted.reads.load(Ordering::Relaxed);
    }

    fn print(mut self, name: &str, points: u64) {
        self.times.sort();
        let ms = |time: Option<&Duration>| time.unwrap().as_secs_f64() * 1e3;
        let (median, all) = (ms(self.times.get(ROUNDS / 2)), (ms(self.times.first()), ms(self.times.last())));
        println!("{points:>6} points, {name}: {median:.2} ms ({:.2} to {:.2}), {} objects", all.0, all.1, self.reads);
    }
}

async fn measure(root: &Path, points: u64) {
    let (mut catalog, mut status, mut scene, mut view) =
        (Look::default(), Look::default(), Look::default(), Look::default());
    // Whoever looks first pays for what was just written.
    let repository = Repository::new(&fresh(root).1);
    drop(repository.whole_catalog().await.unwrap());
    // As it comes about: folded whenever so many are in no digest.
    for kind in [OperationKind::Backup, OperationKind::Point] {
        let start = Instant::now();
        let held = repository.fold(kind, 1).await.unwrap();
        println!(
            "{points:>6} points, folding {held} of {}: {:.2} ms",
            kind.word(),
            start.elapsed().as_secs_f64() * 1e3
        );
    }
    for _ in 0..ROUNDS {
        let (counted, env) = fresh(root);
        let start = Instant::now();
        let found = Repository::new(&env).whole_catalog().await.unwrap();
        catalog.took(start, &counted);
        assert_eq!(found.points.len(), usize::try_from(points).unwrap(), "every point is listed");

        let (counted, env) = fresh(root);
        let start = Instant::now();
        let found = coordinator(env).status().await.unwrap();
        status.took(start, &counted);
        assert_eq!(found.unfinished, [], "all of them ended");

        let (counted, env) = fresh(root);
        let start = Instant::now();
        let mut found = coordinator(env).scene().await.unwrap();
        scene.took(start, &counted);
        for thread in (1..=THREADS).map(ThreadId::new) {
            found.archive.insert((Incarnation::new(1), thread), Vec::from([run(points)]));
        }
        let (counted, _) = fresh(root);
        let start = Instant::now();
        let rows = pitr_status(&found);
        view.took(start, &counted);
        let window = rows.first().and_then(|row| row.windows.first()).unwrap();
        assert_eq!(window.points, points, "one window holds every point");
    }
    assert!(scene.reads < 64, "lists are read from digests");
    catalog.print("catalog, as a restore reads it", points);
    status.print("status", points);
    scene.print("scene", points);
    view.print("pitr_status of that scene", points);
}

fn main() {
    let Some(folder) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        println!("in which folder?");
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for points in POINTS {
        let root: PathBuf = fs::canonicalize(&folder).unwrap().join(format!("catalog-of-{points}"));
        fill(&root, points);
        runtime.block_on(measure(&root, points));
        fs::remove_dir_all(&root).unwrap();
    }
}
