//! What lies in the repository: each object's one spelling is a golden file, and no flipped byte passes.
#![allow(
    clippy::expect_used,
    clippy::items_after_statements,
    clippy::needless_pass_by_value,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests may be blunt"
)]

use std::collections::BTreeMap;

use sheetanchor_core::format::catalog::{
    Abort, Branch, Cluster, Condemned, Cut, Ending, Guarantee, IncarnationObject, IncarnationState, Members, Method,
    NameClaim, NodeOpened, Opened, Origin, Outcome, Point, Registered, Resolutions, Seal, Term, ThreadCut,
};
use sheetanchor_core::format::files::{Chunk, FileContent, FileEntry, FileList, Patch};
use sheetanchor_core::format::hole::{Hole, HoleReason};
use sheetanchor_core::format::manifest::{ListRef, Manifest, Plan, Resolved, ThreadPlan, ThreadSpan, Unit, WalSpan};
use sheetanchor_core::format::wal::{self, WalHeader};
use sheetanchor_core::format::{self, Object};
use sheetanchor_core::identity::{
    ByteCount, ClusterId, ContentHash, Epoch, Incarnation, Membership, NodeId, Nonce, OperationId, OperationKind,
    ThreadId, TimelineId,
};
use sheetanchor_core::in_doubt::{self, Verdict, Why};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::WallMillis;
use sheetanchor_snapshots::assert_snapshot;

const STARTED_MS: u64 = 0x0190_f3a2_c4d5;

fn id(kind: OperationKind) -> OperationId {
    OperationId::new(kind, STARTED_MS, 0x9f31_a2b7)
}

fn cut() -> Cut {
    let thread =
        |until| ThreadCut { proof: Lsn::new(until + 40), timeline: TimelineId::new(1), until: Lsn::new(until) };
    Cut {
        record: format!("sa-{}", id(OperationKind::Point)),
        scn: Scn::at(WallMillis::new(STARTED_MS)),
        threads: BTreeMap::from([(ThreadId::new(1), thread(0x1_0000_2000)), (ThreadId::new(2), thread(0x3000))]),
    }
}

fn unit() -> Unit {
    let hash = ContentHash::of(b"list");
    Unit {
        base: None,
        bytes: ByteCount::new(81_920),
        entries: 3,
        lists: vec![ListRef { hash, key: format!("files/{}-1-{hash}", id(OperationKind::Backup)) }],
        stored: ByteCount::new(4_096),
        why_full: None,
    }
}

fn manifest() -> Manifest {
    let span = |start, stop| ThreadSpan { start: Lsn::new(start), stop: Lsn::new(stop), timeline: TimelineId::new(1) };
    Manifest {
        begun_scn: Scn::new(77),
        cluster: ClusterId::new(0xFEED),
        cut: cut(),
        durable_scn: cut().scn.next(),
        engine: "refdb".into(),
        guarantee: Guarantee::Atomic,
        incarnation: Incarnation::new(1),
        label: Some("nightly".parse().unwrap()),
        membership: Membership::new(1),
        method: Method::Fence,
        nodes: BTreeMap::from([(NodeId::new(1), "a".into()), (NodeId::new(2), "b".into())]),
        operation: id(OperationKind::Backup),
        shared: true,
        started_ms: WallMillis::new(STARTED_MS),
        threads: BTreeMap::from([
            (ThreadId::new(1), span(0x1_0000_1000, 0x1_0000_1800)),
            (ThreadId::new(2), span(0, 0x2800)),
        ]),
        units: BTreeMap::from([(NodeId::new(1), unit())]),
    }
}

fn plan() -> Plan {
    let manifest = manifest();
    let span = |incarnation: u32, scn, from, until| WalSpan {
        from: Lsn::new(from),
        incarnation: Incarnation::new(incarnation),
        pieces: vec![format!("wal/{incarnation:010}/00001/{incarnation:010}/{from:016X}")],
        scn: Scn::new(scn),
        timeline: TimelineId::new(incarnation),
        until: Lsn::new(until),
    };
    let resolved = Resolved {
        clock_bound_ms: 60_000,
        sought: false,
        time_ms: Some(WallMillis::new(1_722_074_449_109)),
        words: "restore point `before-migration` (point-0190f3a2c4d5-9f31a2b7)".into(),
    };
    Plan {
        backup: manifest.operation,
        begun_scn: manifest.begun_scn,
        cluster: manifest.cluster,
        cut: manifest.cut,
        delta: false,
        engine: manifest.engine,
        guarantee: manifest.guarantee,
        incarnation: manifest.incarnation,
        membership: manifest.membership,
        nodes: manifest.nodes,
        opens: Incarnation::new(2),
        operation: id(OperationKind::Restore),
        resolved,
        scn_floor: Scn::new(99),
        shared: true,
        source: None,
        target: "name before-migration".into(),
        threads: BTreeMap::from([(
            ThreadId::new(1),
            ThreadPlan { spans: vec![span(1, 99, 0, 0x1800), span(2, 1 << 20, 0x1800, 0x2028)] },
        )]),
        units: manifest.units,
    }
}

fn wal_header() -> WalHeader {
    WalHeader {
        from: Lsn::new(0x1000),
        hash: ContentHash::of(b"wal"),
        incarnation: Incarnation::new(1),
        length: ByteCount::new(0x800),
        scn_last: Some(Scn::new(1 << 20)),
        stored: ByteCount::new(5),
        thread: ThreadId::new(1),
        timeline: TimelineId::new(1),
        until: Lsn::new(0x1800),
    }
}

fn hole() -> Hole {
    Hole {
        declared_ms: WallMillis::new(STARTED_MS),
        from: Lsn::new(0x1_0000_2000),
        incarnation: Incarnation::new(1),
        message: "67108872 bytes of WAL waited for the archive, and 67108864 may".into(),
        nonce: Nonce::new(0xABCD),
        reason: HoleReason::Bound,
        thread: ThreadId::new(2),
        timeline: TimelineId::new(1),
        until: Lsn::new(0x1_0400_0000),
    }
}

/// Holds one object to its golden file, and shows that every flipped byte of it is noticed.
fn check<T: Object + PartialEq + std::fmt::Debug>(name: &str, object: &T) {
    let bytes = format::write(object);
    assert_eq!(format::read::<T>(name, &bytes).as_ref(), Ok(object));
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            let refusal = format::read::<T>(name, &bytes).expect_err("a flipped bit");
            assert_eq!(refusal.code, Code::Damaged, "{name}, byte {at}, bit {bit}: {refusal}");
        }
        let refusal = format::read::<T>(name, &bytes[..at]).expect_err("a truncated object");
        assert_eq!(refusal.code, Code::Damaged, "{name}, first {at} bytes: {refusal}");
    }
    assert_snapshot!("formats", format!("v0-{name}"), String::from_utf8(bytes).unwrap());
}

#[test]
fn the_catalog_has_one_spelling() {
    let (nonce, membership, incarnation) = (Nonce::new(0xABCD), Membership::new(1), Incarnation::new(1));
    let started_ms = WallMillis::new(STARTED_MS);
    check("cluster", &Cluster { created_ms: started_ms, id: ClusterId::new(0xFEED), name: "ledger".into(), nonce });
    let nodes =
        BTreeMap::from([(NodeId::new(1), "a".into()), (NodeId::new(10), "c".into()), (NodeId::new(2), "b".into())]);
    check("members", &Members { engine: "refdb".into(), membership, nodes, nonce, shared: true });
    let operation = id(OperationKind::Backup);
    check("registered", &Registered { incarnation, label: None, membership, nonce, operation });
    check("term", &Term { epoch: Epoch::new(2), nonce, operation });
    check("condemned", &Condemned { backups: vec![operation], generation: 0, nonce });
    check("name", &NameClaim { name: "before-migration".parse().unwrap(), nonce, operation: id(OperationKind::Point) });
    let half = |node, verdict| in_doubt::Resolved {
        gid: "transfer-7".into(),
        node: NodeId::new(node),
        transaction: "742".into(),
        verdict,
    };
    let verdicts = [Verdict::Commit, Verdict::Rollback, Verdict::Left(Why::Evidence)];
    let resolved = (1..).zip(verdicts).map(|(node, verdict)| half(node, verdict)).collect();
    check("in-doubt", &Resolutions { nonce, operation: id(OperationKind::Restore), resolved });
    let abort = Abort { code: "SA201".into(), message: "node 2 did not answer \"in time\"".into() };
    check("aborted", &Outcome { nonce, operation, result: Ending::Aborted(abort.clone()) });
    let seal = Seal {
        base: None,
        cut: cut(),
        ended_ms: started_ms,
        guarantee: Guarantee::Atomic,
        incarnation,
        manifest: ContentHash::of(b"manifest"),
        point: Some(id(OperationKind::Point)),
        stored: ByteCount::new(4_096),
        why_full: None,
    };
    check("sealed", &Outcome { nonce, operation, result: Ending::Sealed(seal) });
    let point = Point {
        cut: cut(),
        ended_ms: started_ms,
        guarantee: Guarantee::Causal,
        incarnation,
        membership,
        method: Method::Fence,
        name: Some("before-migration".parse().unwrap()),
    };
    check("published", &Outcome { nonce, operation: id(OperationKind::Point), result: Ending::Published(point) });
    let opened = Opened {
        branch: Some(Branch { cut: cut(), parent: incarnation }),
        membership,
        origin: None,
        opened_ms: started_ms,
        scn_floor: Scn::new(99),
        scn_offset_ms: 0,
    };
    let restore = Some(id(OperationKind::Restore));
    let state = IncarnationState::Opened(opened.clone());
    check("incarnation", &IncarnationObject { incarnation: Incarnation::new(2), nonce, restore, state });
    let origin = Origin { backup: id(OperationKind::Backup), cluster: ClusterId::new(0xFEED), cut: cut(), incarnation };
    let state = IncarnationState::Opened(Opened { branch: None, origin: Some(origin), ..opened.clone() });
    check("clone", &IncarnationObject { incarnation, nonce, restore, state });
    let result = Ending::Cloned(ClusterId::new(12_648_430));
    check("cloned", &Outcome { nonce, operation: id(OperationKind::Clone), result });
    check("opened", &NodeOpened { node: NodeId::new(2), nonce, operation: id(OperationKind::Restore) });
    let state = IncarnationState::Aborted(abort);
    check("tombstone", &IncarnationObject { incarnation: Incarnation::new(3), nonce, restore, state });
}

#[test]
fn the_manifest_and_the_plan_have_one_spelling() {
    check("manifest", &manifest());
    check("plan", &plan());
    // A clone's says where it comes from, and is the same besides.
    let cloned = Plan { source: Some(ClusterId::new(0xFEED)), ..plan() };
    let spelled = String::from_utf8(format::write(&cloned)).unwrap();
    assert!(spelled.contains("\"source\": \"000000000000feed\""), "{spelled}");
    assert_eq!(format::read::<Plan>("x", spelled.as_bytes()).unwrap(), cloned);
    assert!(!String::from_utf8(format::write(&plan())).unwrap().contains("source"));
    // So does one that may find an older copy in its folders.
    let over = Plan { delta: true, ..plan() };
    let spelled = String::from_utf8(format::write(&over)).unwrap();
    assert!(spelled.contains("\"delta\": true"), "{spelled}");
    assert_eq!(format::read::<Plan>("x", spelled.as_bytes()).unwrap(), over);
    assert!(!String::from_utf8(format::write(&plan())).unwrap().contains("delta"));
}

#[test]
fn a_cut_lies_after_another_if_every_thread_of_both_goes_on() {
    let (one, two) = (ThreadId::new(1), ThreadId::new(2));
    let later = |breaks: &dyn Fn(&mut Cut)| {
        let mut later = cut();
        later.scn = Scn::new(later.scn.get() + 1);
        for thread in later.threads.values_mut() {
            thread.until = Lsn::new(thread.until.get() + 1);
        }
        breaks(&mut later);
        later.is_after(&cut())
    };
    let moved = |cut: &mut Cut, timeline: u32, until: u64| {
        let thread = ThreadCut { timeline: TimelineId::new(timeline), until: Lsn::new(until), proof: Lsn::new(until) };
        cut.threads.insert(one, thread);
    };
    assert!(later(&|_| {}));
    assert!(!later(&|later| later.scn = cut().scn), "at the same SCN");
    assert!(!later(&|later| later.scn = Scn::ZERO), "without one");
    assert!(!later(&|later| moved(later, 1, 0x1_0000_2000)), "a thread stands still");
    assert!(!later(&|later| moved(later, 0, u64::MAX)), "a thread is back on an earlier timeline");
    assert!(later(&|later| moved(later, 2, 0)), "a later timeline may begin at any place");
    assert!(later(&|later| later.threads.retain(|thread, _| *thread == one)), "a node has left");
    assert!(!cut().is_after(&cut()));
    // Databases without SCNs have only their places.
    let unstamped = |until| {
        let mut cut = Cut { scn: Scn::ZERO, ..cut() };
        moved(&mut cut, 1, until);
        cut.threads.remove(&two);
        cut
    };
    assert!(unstamped(2).is_after(&unstamped(1)) && !unstamped(1).is_after(&unstamped(1)));
}

#[test]
fn lists_of_files_have_one_spelling() {
    let chunk = Chunk {
        hash: ContentHash::of(b"chunk"),
        length: ByteCount::new(9),
        offset: 0,
        pack: 0,
        patch: None,
        stored: ByteCount::new(18),
    };
    let entries = vec![
        FileEntry { content: FileContent::Folder, mode: 0o700, name: "base".into() },
        FileEntry { content: FileContent::File(vec![chunk]), mode: 0o600, name: "base/1".into() },
        FileEntry { content: FileContent::Link("../elsewhere".into()), mode: 0o777, name: "base/l".into() },
    ];
    check("files", &FileList { entries, packs: vec!["packs/x-1-0".into()] });
}

#[test]
fn what_an_incremental_backup_adds_has_one_spelling() {
    let hash = ContentHash::of(b"blocks");
    let patch = Patch { block: 4, hash, numbers: vec![0, 2], offset: 18, pack: 1, stored: ByteCount::new(17) };
    let chunk = Chunk {
        hash: ContentHash::of(b"chunk"),
        length: ByteCount::new(9),
        offset: 0,
        pack: 0,
        patch: Some(patch),
        stored: ByteCount::new(18),
    };
    let entries = vec![FileEntry { content: FileContent::File(vec![chunk]), mode: 0o600, name: "base/1".into() }];
    check("files-incremental", &FileList { entries, packs: vec!["packs/x-1-0".into(), "packs/y-1-0".into()] });
    let mut manifest = manifest();
    let base = OperationId::new(OperationKind::Backup, STARTED_MS - 1, 7);
    let unit = manifest.units.values().next().cloned().unwrap();
    let why_full = Some("the WAL since then is not in the archive".into());
    manifest.shared = false;
    manifest.units =
        [(NodeId::new(1), Unit { base: Some(base), ..unit.clone() }), (NodeId::new(2), Unit { why_full, ..unit })]
            .into();
    assert_eq!((manifest.base(), manifest.validate()), (Some(base), Ok(())));
    check("manifest-incremental", &manifest);
}

#[test]
fn a_piece_of_wal_is_whole_or_refused() {
    check("wal-header", &wal_header());
    check("hole", &hole());
    let none = Hole { until: hole().from, ..hole() };
    assert_eq!(none.checked("a hole").unwrap_err().code, Code::Damaged);
    let piece = wal::join(&wal_header(), b"frame");
    assert_eq!(wal::split("piece", &piece), Ok((wal_header(), &b"frame"[..])));
    let header_bytes = piece.len() - 5;
    for at in 0..header_bytes * 8 {
        let mut piece = piece.clone();
        piece[at / 8] ^= 1 << (at % 8);
        assert_eq!(wal::split("piece", &piece).expect_err("a flipped bit").code, Code::WalDamaged, "bit {at}");
    }
    for length in 0..piece.len() {
        assert_eq!(wal::split("piece", &piece[..length]).expect_err("truncated").code, Code::WalDamaged);
    }
}

#[test]
fn a_newer_format_is_told_from_a_damaged_one() {
    let ours = String::from_utf8(format::write(&wal_header())).unwrap();
    let body = serde_json::to_value(wal_header()).unwrap();
    let checksum = ContentHash::of(format!("7 wal {body}").as_bytes());
    let ours_checksum = ContentHash::of(format!("0 wal {body}").as_bytes());
    let newer = ours
        .replace("\"format_version\": 0", "\"format_version\": 7")
        .replace(&ours_checksum.to_string(), &checksum.to_string());
    assert_eq!(format::read::<WalHeader>("x", newer.as_bytes()).unwrap_err().code, Code::FormatNewer);
    let damaged = ours.replace("\"format_version\": 0", "\"format_version\": 7");
    assert_eq!(format::read::<WalHeader>("x", damaged.as_bytes()).unwrap_err().code, Code::Damaged);
}

#[test]
fn one_kind_never_passes_for_another() {
    let bytes =
        format::write(&Term { epoch: Epoch::new(1), nonce: Nonce::new(1), operation: id(OperationKind::Backup) });
    assert_eq!(format::read::<NameClaim>("x", &bytes).unwrap_err().code, Code::Damaged);
}

#[test]
fn a_manifest_that_a_restore_could_not_use_is_not_valid() {
    assert_eq!(manifest().validate(), Ok(()));
    type Breaks = fn(&mut Manifest);
    let broken: [(&str, Breaks); 7] = [
        ("no nodes", |manifest| manifest.nodes.clear()),
        ("a thread missing", |manifest| manifest.threads.retain(|thread, _| thread.get() != 2)),
        ("a cut missing", |manifest| manifest.cut.threads.retain(|thread, _| thread.get() != 2)),
        ("a cut before the stop", |manifest| {
            manifest.cut.threads.get_mut(&ThreadId::new(2)).unwrap().until = Lsn::new(0x2799);
        }),
        ("a cut on another timeline", |manifest| {
            manifest.cut.threads.get_mut(&ThreadId::new(2)).unwrap().timeline = TimelineId::new(2);
        }),
        ("no lists", |manifest| manifest.units.get_mut(&NodeId::new(1)).unwrap().lists.clear()),
        ("an overstated guarantee", |manifest| manifest.method = Method::Alone),
    ];
    for (what, breaks) in broken {
        let mut manifest = manifest();
        breaks(&mut manifest);
        assert_eq!(manifest.validate().expect_err(what).code, Code::Damaged, "{what}");
    }
}
