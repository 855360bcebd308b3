//! Servers beside whose folder nobody is: they send their files and their WAL, and the backup is as any other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{Guarantee, Method};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::incremental::Extent;
use sheetanchor_core::plan::Target;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::request::{Description, FenceSeen};
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_engine::database::{Database, FilePart, SourceFile, SourceKind, State};
use sheetanchor_native::postgres::PostgresDatabase;
use sheetanchor_native::postgres::postmaster::StopMode;

use crate::bench::{Bench, LEAST, Load, code, eventually, number, said};
use crate::cluster::{CONTENTS, Cluster, NODES};

const NODE: NodeId = NodeId::new(1);

/// What lies under a name: its permissions, and a file's bytes or a link's target.
#[derive(Debug, PartialEq, Eq)]
enum Lies {
    File(u32, Vec<u8>),
    Folder(u32),
    Link(String),
}

/// Everything of a backup that the server of `node` sends.
async fn sent(node: &PostgresDatabase, label: &str) -> Result<BTreeMap<String, Lies>> {
    let mut stream = node.file_stream(label).await?.expect("it sends its files");
    let (mut all, mut last) = (BTreeMap::new(), String::new());
    while let Some(part) = stream.next().await? {
        match part {
            FilePart::Entry(SourceFile { name, kind, mode }) => {
                last.clone_from(&name);
                let lies = match kind {
                    SourceKind::File { .. } => Lies::File(mode, Vec::new()),
                    SourceKind::Folder => Lies::Folder(mode),
                    SourceKind::Link { target } => Lies::Link(target),
                };
                assert_eq!(all.insert(name, lies), None, "{last} comes twice");
            }
            FilePart::Bytes(more) => match all.get_mut(&last) {
                Some(Lies::File(_, bytes)) => bytes.extend_from_slice(&more),
                other => panic!("bytes of {last}: {other:?}"),
            },
        }
    }
    Ok(all)
}

/// The same, as an agent beside the server finds it.
async fn found(node: &PostgresDatabase) -> BTreeMap<String, Lies> {
    let look = |SourceFile { name, kind, mode }| {
        let lies = match kind {
            SourceKind::File { .. } => Lies::File(mode, fs::read(format!("{}/{name}", node.data_folder())).unwrap()),
            SourceKind::Folder => Lies::Folder(mode),
            SourceKind::Link { target } => Lies::Link(target),
        };
        (name, lies)
    };
    node.files().await.unwrap().into_iter().map(look).collect()
}

/// What is sent of an idle server is what lies there: names, permissions, bytes; but for the control file, which each
/// checkpoint changes.
async fn is_the_same_both_ways(bench: &mut Bench, name: &str) -> PostgresDatabase {
    let beside = bench.node(name, NODE);
    bench.afar.insert(name.to_owned());
    let afar = bench.node(name, NODE);
    let begun = afar.begin_backup("sent").await.unwrap();
    assert_eq!(afar.begin_backup("sent").await.unwrap(), begun, "a repeated call does nothing more");
    let mut sent = sent(&afar, "sent").await.unwrap();
    let ended = afar.end_backup("sent").await.unwrap();
    assert_eq!(afar.end_backup("sent").await.unwrap(), ended);
    assert!(ended.stop.lsn > begun.start.lsn && ended.stop.timeline == begun.start.timeline);
    assert_eq!(code(afar.file_stream("sent").await.map(|_| ())), Code::LifeChanged, "a second time");
    let begun = beside.begin_backup("read").await.unwrap();
    let mut found = found(&beside).await;
    let read = beside.end_backup("read").await.unwrap();
    assert!(begun.start.lsn >= ended.stop.lsn);
    assert_eq!(
        ended.files.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        read.files.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    for all in [&mut sent, &mut found] {
        assert!(matches!(all.remove("global/pg_control"), Some(Lies::File(_, bytes)) if bytes.len() == 8192));
    }
    assert_eq!(sent.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, lies) in &sent {
        assert!(*lies == found[name], "{name} differs");
    }
    afar
}

/// A backup whose connection is cut off is over, and another one can begin.
async fn a_cut_connection_ends_its_backup(bench: &Bench, afar: &PostgresDatabase) {
    afar.begin_backup("cut").await.unwrap();
    let mut stream = afar.file_stream("cut").await.unwrap().unwrap();
    for _ in 0..3 {
        assert!(stream.next().await.unwrap().is_some());
    }
    let sql = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity \
        WHERE backend_type = 'walsender' AND query LIKE 'BASE_BACKUP%'";
    assert_eq!(bench.client("source").column(sql).await, ["true"]);
    let outcome = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            outcome => break outcome,
        }
    };
    assert_eq!(code(outcome), Code::LifeChanged);
    assert_eq!(code(afar.end_backup("cut").await), Code::LifeChanged);
    assert_eq!(code(afar.file_stream("cut").await.map(|_| ())), Code::LifeChanged);
    afar.abandon_backup("cut").await.unwrap();
    // One that is given up before it is read leaves nothing behind, either.
    afar.begin_backup("unread").await.unwrap();
    afar.abandon_backup("unread").await.unwrap();
    let running = "SELECT count(*)::text FROM pg_stat_progress_basebackup";
    eventually(async || (bench.client("source").column(running).await == ["0"]).then_some(())).await;
}

#[tokio::test]
async fn what_a_server_sends_is_what_an_agent_beside_it_finds() {
    let mut bench = Bench::new("afar-sent");
    let source = bench.server("source", &[("autovacuum", "off")]).await;
    let folder = bench.own_folder("fast").await;
    source.sql(&format!("CREATE TABLESPACE fast LOCATION '{folder}'")).await;
    source.sql("CREATE TABLE rows AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n").await;
    source.sql("CREATE TABLE apart TABLESPACE fast AS SELECT * FROM rows; CREATE INDEX ON apart (n)").await;
    source.sql("CREATE UNLOGGED TABLE fleeting AS SELECT * FROM rows; VACUUM; CHECKPOINT").await;
    fs::write(bench.path("source/sheetanchor.note"), "of one run").unwrap();
    let afar = is_the_same_both_ways(&mut bench, "source").await;
    a_cut_connection_ends_its_backup(&bench, &afar).await;

    assert_eq!(afar.status().await.unwrap().state, State::Open);
    let identity = afar.identity().await.unwrap();
    bench.afar.clear();
    assert_eq!(identity, bench.node("source", NODE).identity().await.unwrap());
    let cut = afar.cut_alone("cut-1").await.expect("its record is read back from afar");
    assert!(cut.proof == cut.until.lsn);
    for refused in [
        afar.check_unused().await,
        afar.stop().await,
        afar.open(&crate::bench::opening()).await,
        afar.files().await.map(|_| ()),
    ] {
        assert_eq!(code(refused), Code::NoDataFolder);
    }
    // The server finds damage, and so do we, before all of it has come.
    let table = source.client.column("SELECT pg_relation_filepath('rows')").await.remove(0);
    source.server.stop(StopMode::Fast).await.unwrap();
    assert_eq!(afar.status().await.unwrap().state, State::Down);
    assert_eq!(afar.identity().await.unwrap(), identity, "what it has said of itself is remembered");
    fs::File::options()
        .write(true)
        .open(bench.path(&format!("source/{table}")))
        .unwrap()
        .write_all_at(b"x", 9000)
        .unwrap();
    source.start().await;
    afar.begin_backup("damaged").await.unwrap();
    assert_eq!(code(sent(&afar, "damaged").await), Code::PageDamaged);
}

/// How far the archive of a node has come, by its status.
async fn archived(cluster: &Cluster, node: usize) -> Option<Lsn> {
    let status = cluster.coordinator.status().await.unwrap();
    status.nodes[node].description.as_ref().ok().filter(|seen| seen.state == "down").map(|seen| seen.archived)
}

#[tokio::test]
async fn a_cluster_with_a_server_from_afar_is_backed_up_lost_cloned_and_read() {
    let mut cluster = with_one_afar().await;
    does_not_become_a_member_unseen(&mut cluster).await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    let folder = bench.own_folder("fast").await;
    cluster.servers[0].sql(&format!("CREATE TABLESPACE fast LOCATION '{folder}'")).await;
    for (server, place) in cluster.servers.iter().zip(["TABLESPACE fast", "", ""]) {
        let rows = "AS SELECT n, md5(n::text) AS t FROM generate_series(1, 50000) n";
        server.sql(&format!("CREATE TABLE mark (what text); CREATE TABLE rows {place} {rows}")).await;
        server.pgbench(&["-i", "-s", "2", "-q"]).await;
    }
    let mut loads = Vec::new();
    for server in &cluster.servers {
        loads.push(server.load().await);
    }
    let full = coordinator.backup(None, Method::Fence).await.unwrap();
    assert_eq!(full.seal.guarantee, Guarantee::Causal);
    let mut contents = Vec::new();
    for server in &cluster.servers {
        server.sql("INSERT INTO mark VALUES ('before'); UPDATE rows SET t = t || 'x' WHERE n % 101 = 1").await;
        contents.push(server.client.column(CONTENTS).await);
    }
    let by_lz4 = coordinator.clone().packing_by(Compression::Lz4);
    let sealed = by_lz4.backup_of(Extent::Incremental, None, Method::Fence).await.unwrap();
    let own = format!("packs/{}-{NODE}-", sealed.operation);
    let packs = coordinator.repository().bucket().list(&own).await.unwrap();
    let frames = packs.iter().map(|pack| fs::read(bench.path(&format!("repository/{pack}"))).unwrap());
    let others = frames.filter(|bytes| !bytes.starts_with(&0x184D_2204_u32.to_le_bytes())).count();
    assert_eq!((others, packs.len() > 1), (1, true), "all but the label is packed as it was asked for: {packs:?}");
    for (node, unit) in &sealed.manifest.units {
        let why = unit.why_full.as_deref().unwrap_or_default();
        assert_eq!(why.contains("cannot tell what has changed"), *node == NODE, "node {node}: {why}");
    }
    loads.into_iter().for_each(Load::stop);
    is_no_place_to_restore_to(&cluster).await;
    comes_up_beside_no_server_and_goes_on_with_it(&mut cluster).await;

    let bench = &cluster.bench;
    for node in NODES {
        fs::remove_dir_all(bench.path(&format!("n{node}"))).unwrap();
    }
    let mut copy = Bench::new("afar-copy");
    copy.role = LEAST;
    let elsewhere = copy.path("elsewhere");
    copy.tablespaces.insert(folder, elsewhere.clone());
    let mut copy = Cluster::clone_on(copy, bench).await;
    let target = Target::Backup(sealed.operation);
    copy.coordinator.clone_cluster(target, Manner::default(), false).await.unwrap();
    for node in NODES {
        let name = format!("n{node}");
        let client = copy.bench.client(&name);
        assert_eq!(client.column(CONTENTS).await, contents[usize::from(node) - 1]);
        assert_eq!(client.column("SELECT what FROM mark").await, ["before"]);
        assert!(number(&client.column("SELECT count(*)::text FROM pgbench_history").await[0]) > 0);
        let sums = "SELECT s::text FROM (SELECT sum(abalance) s FROM pgbench_accounts UNION \
            SELECT sum(tbalance) FROM pgbench_tellers UNION SELECT sum(bbalance) FROM pgbench_branches UNION \
            SELECT sum(delta) FROM pgbench_history) sums";
        assert_eq!(client.column(sums).await.len(), 1, "transactions were torn on {name}");
        copy.bench.amcheck(&name).await;
    }
    let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'";
    assert_eq!(copy.bench.client("n1").column(location).await, [elsewhere]);
    // It writes another timeline now, whose history goes with its files.
    copy.bench.client("n1").sql("ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf(); VACUUM; CHECKPOINT").await;
    let afar = is_the_same_both_ways(&mut copy.bench, "n1").await;
    assert!(afar.pin("archive").await.unwrap().timeline.get() > 1);
    copy.stop(StopMode::Fast).await;
    for node in NODES {
        copy.bench.page_checksums(&format!("n{node}")).await;
    }
}

/// Three servers, the first from afar. No agent of this cluster is a superuser.
async fn with_one_afar() -> Cluster {
    let mut bench = Bench::new("afar");
    bench.afar.insert("n1".to_owned());
    bench.role = LEAST;
    Cluster::of(bench, true).await
}

/// What a node's agent says of it.
async fn described(cluster: &Cluster) -> Description {
    let seen = cluster.coordinator.describe_all().await.remove(&NODE).unwrap();
    seen.expect("its agent answers, whatever its server does")
}

/// A server that nobody has reached yet could be any: the cluster is not made with it.
async fn does_not_become_a_member_unseen(cluster: &mut Cluster) {
    cluster.servers[0].server.stop(StopMode::Fast).await.unwrap();
    cluster.restart_agent(NODE).await;
    assert_eq!(code(cluster.coordinator.init().await), Code::DatabaseDown);
    let written = cluster.coordinator.repository().bucket().list("").await.unwrap_or_default();
    assert_eq!(written, Vec::<String>::new());
    cluster.servers[0].start().await;
}

/// An agent that starts while its server is down shows the node as down, says why, and goes on once the server is there.
async fn comes_up_beside_no_server_and_goes_on_with_it(cluster: &mut Cluster) {
    cluster.restart_agent(NODE).await;
    let seen = described(cluster).await;
    assert_eq!((seen.state.as_str(), seen.system.as_str()), ("down", ""));
    let FenceSeen::Missing(why) = &seen.fence else { panic!("{:?}", seen.fence) };
    assert!(why.contains("cannot be reached"), "{why}");
    assert_eq!(code(cluster.coordinator.backup(None, Method::Fence).await), Code::DatabaseDown);
    let server = &cluster.servers[0];
    server.start().await;
    server.sql("INSERT INTO mark VALUES ('after')").await;
    let durable: Lsn = server.client.column("SELECT pg_current_wal_flush_lsn()::text").await[0].parse().unwrap();
    let goes_on = async || {
        let seen = described(cluster).await;
        (seen.state == "open" && seen.fence == FenceSeen::Ready && seen.archived >= durable).then_some(seen)
    };
    let seen = eventually(goes_on).await;
    assert_eq!(seen.system, cluster.coordinator.status().await.unwrap().members.nodes[&NODE]);
    server.server.stop(StopMode::Fast).await.unwrap();
}

/// Before anything is changed: also on the nodes that have a folder.
async fn is_no_place_to_restore_to(cluster: &Cluster) {
    let coordinator = &cluster.coordinator;
    let over = || coordinator.restore_in(&Target::Latest, Manner { delta: true, ..Manner::default() });
    assert_eq!(code(over().await), Code::FolderInUse, "servers run");
    for server in &cluster.servers {
        let begun = Instant::now();
        server.server.stop(StopMode::Fast).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "its archive held it up for {:?}", begun.elapsed());
    }
    // What it wrote last has been sent before it ended.
    let control = said("pg_controldata", &["-D", &cluster.bench.path("n1")]).await;
    let last = control.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:")).unwrap();
    let last: Lsn = last.trim().parse().unwrap();
    eventually(async || archived(cluster, 0).await.filter(|until| *until > last)).await;
    let before = fs::read(cluster.bench.path("n2/global/pg_control")).unwrap();
    assert_eq!(code(over().await), Code::NoDataFolder);
    assert_eq!(fs::read(cluster.bench.path("n2/global/pg_control")).unwrap(), before);
    assert_eq!(code(coordinator.restore(&Target::Latest).await), Code::FolderNotEmpty);
}
