//! A small run, made by hand, for goldens.

use std::time::Duration;

use sheetanchor_sim::disk::FileView;
use sheetanchor_sim::gate::Kind;
use sheetanchor_sim::host::HostId;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::recording::{CrashView, FileFate, Recording};
use sheetanchor_sim::trace::{Detail, Event, Flow};

use crate::backends::Simulator;
use crate::case::Case;

/// Two nodes, an operator, a restore point, a message, a sync and a crash.
pub fn run() -> (Case, Recording) {
    let case = Case {
        trace_hash: Some("0123456789abcdef".into()),
        commit: Some("abc".into()),
        backend: "own".into(),
        ..Case::of("a-story", 7, Simulator::DEFAULT, Some("no-fence"))
    };
    let hosts = ["n1", "n2", "operator1"].map(str::to_string).to_vec();
    let flow = |forth, from, until| Some(Flow { link: 1, forth, from, until });
    let pass = |kind, outcome: Option<&str>, flow| Detail::Pass { kind, outcome: outcome.map(Into::into), flow };
    let told: [(u64, Option<u16>, &str, Detail); 22] = [
        (0, None, "start n1", Detail::Milestone),
        (0, None, "start n2", Detail::Milestone),
        (1, None, "start operator1", Detail::Milestone),
        (2, Some(2), "phase operation=point-1-a phase=closing", Detail::Milestone),
        (2, Some(2), "1 connect n1:7000 done", pass(Kind::Net, Some("done"), None)),
        (3, Some(2), "2 send to n1:7000 40", pass(Kind::Net, None, flow(true, 0, 40))),
        (3, Some(2), "3 send to n1:7000 5", pass(Kind::Net, None, flow(true, 40, 45))),
        (6, Some(0), "1 receive at n1:7000 40", pass(Kind::Net, Some("40"), flow(true, 0, 40))),
        (6, Some(0), "refdb fence closed node=1 hold=ff", Detail::Milestone),
        (6, Some(1), "refdb fence closed node=2 hold=ff", Detail::Milestone),
        (7, Some(0), "2 send at n1:7000 8", pass(Kind::Net, None, flow(false, 0, 8))),
        (7, Some(0), "3 disk sync /data/wal", pass(Kind::Sync, None, None)),
        (9, Some(0), "4 disk sync /data/wal done", pass(Kind::Sync, Some("done"), None)),
        (9, Some(2), "4 receive to n1:7000 8", pass(Kind::Net, Some("8"), flow(false, 0, 8))),
        (9, Some(2), "phase operation=point-1-a phase=drained", Detail::Milestone),
        (12, Some(1), "refdb fence released node=2 hold=ff", Detail::Milestone),
        (13, None, "crash n1 policy=torn-prefix", Detail::Milestone),
        (14, Some(2), "phase operation=point-1-a phase=released", Detail::Milestone),
        (15, Some(2), "phase operation=point-1-a scn=1700000000009.0 phase=published", Detail::Milestone),
        (16, None, "hold n1 n2", Detail::Milestone),
        (18, None, "restart n1", Detail::Milestone),
        (20, Some(0), "agent listening node=1 address=<n1>", Detail::Milestone),
    ];
    let events = (1..).zip(told).map(|(number, (at_ms, host, what, detail))| Event {
        number,
        at: Duration::from_millis(at_ms),
        host: host.map(HostId::new),
        what: what.into(),
        detail,
    });
    let view = |path: &str, seen_bytes, durable_bytes, unsynced_bytes| FileView {
        path: path.into(),
        seen_bytes: Some(seen_bytes),
        durable_bytes,
        unsynced_bytes,
        name_durable: unsynced_bytes == 0,
    };
    let wal = FileFate { before: Some(view("/data/wal", 900, 512, 388)), after: Some(view("/data/wal", 512, 512, 0)) };
    let lost = FileFate { before: Some(view("/data/new", 7, 0, 7)), after: None };
    let crash = CrashView {
        event: 17,
        at: Duration::from_millis(13),
        host: "n1".into(),
        policy: CrashPolicy::TornPrefix,
        files: vec![lost, wal],
        untouched: 3,
    };
    (case, Recording { hosts, events: events.collect(), crashes: vec![crash] })
}
