//! What lies behind links: tablespaces, and WAL on another volume. It is captured with the rest, and restored to where it
//! was, or to where it is told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::OperationId;
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Manner;
use sheetanchor_native::postgres::postmaster::StopMode;

use crate::bench::{Bench, code};
use crate::cluster::{Cluster, NODES};

/// All names in a folder and below it.
fn below(folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path().to_str().unwrap().to_owned();
        names.extend(below(&path));
        names.push(path);
    }
    names
}

#[tokio::test]
async fn every_tablespace_is_restored_to_where_it_was_or_is_told_to_be() {
    let mut bench = Bench::new("tblspc");
    // The first node's tablespace goes elsewhere; the second node's goes back to its place; the third has none.
    let (moved, kept, elsewhere) = (bench.path("moved"), bench.path("kept"), bench.path("elsewhere"));
    bench.tablespaces.insert(moved.clone(), elsewhere.clone());
    let cluster = Cluster::of(bench, false).await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for (server, folder) in cluster.servers.iter().zip(["moved", "kept"]) {
        let folder = bench.own_folder(folder).await;
        server.sql(&format!("CREATE TABLESPACE apart LOCATION '{folder}'")).await;
        server
            .sql("CREATE TABLE t TABLESPACE apart AS SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n")
            .await;
        server.sql("CREATE INDEX ON t (n) TABLESPACE apart").await;
        server.sql("CREATE UNLOGGED TABLE fleeting TABLESPACE apart AS SELECT n FROM generate_series(1, 5000) n").await;
        server.sql("CREATE DATABASE other TABLESPACE apart; CHECKPOINT").await;
    }
    // WAL on another volume.
    let third = &cluster.servers[2];
    third.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 5000) n").await;
    third.server.stop(StopMode::Fast).await.unwrap();
    fs::rename(bench.path("n3/pg_wal"), bench.path("volume")).unwrap();
    std::os::unix::fs::symlink(bench.path("volume"), bench.path("n3/pg_wal")).unwrap();
    third.start().await;
    let sealed = coordinator.backup(None, Method::Alone).await.unwrap();

    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Kill).await.unwrap();
        fs::remove_dir_all(bench.path(&format!("n{node}"))).unwrap();
    }
    fs::remove_dir_all(bench.path("volume")).unwrap();
    // Somebody's files are in the way.
    let target = Target::Backup(sealed.operation);
    let before = below(&kept);
    assert_eq!(code(coordinator.restore(&target).await), Code::FolderNotEmpty);
    assert_eq!(below(&kept), before, "what was in the way is untouched");
    assert_eq!(below(&elsewhere), [""; 0], "what was staged is gone again");
    fs::remove_dir_all(&kept).unwrap();
    let before = below(&moved);
    coordinator.restore(&target).await.unwrap();

    assert_eq!(below(&moved), before, "nobody touched the old place");
    for (node, place) in [(1, &elsewhere), (2, &kept)] {
        let client = bench.client(&format!("n{node}"));
        let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'apart'";
        assert_eq!(client.column(location).await, [place.as_str()]);
        assert_eq!(client.column("SELECT sum(n)::text FROM t").await, ["12502500"]);
        assert_eq!(client.column("SELECT count(*)::text FROM fleeting").await, ["0"], "unlogged relations are empty");
        client.sql("INSERT INTO fleeting VALUES (1); INSERT INTO t VALUES (0, ''); CHECKPOINT").await;
        bench.amcheck(&format!("n{node}")).await;
    }
    assert_eq!(bench.client("n3").column("SELECT sum(n)::text FROM t").await, ["12502500"]);
    assert!(fs::symlink_metadata(bench.path("n3/pg_wal")).unwrap().is_dir(), "WAL is in the data folder now");
    is_restored_over_what_is_there(&cluster, sealed.operation, &elsewhere).await;
    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Fast).await.unwrap();
        bench.page_checksums(&format!("n{node}")).await;
    }
}

/// Each file below a folder: which it is, and when it was written to.
fn written(folder: &str) -> BTreeMap<String, (u64, i64, i64)> {
    let look = |path: String| {
        let found = fs::symlink_metadata(&path).unwrap();
        found.is_file().then(|| (path, (found.ino(), found.mtime(), found.mtime_nsec())))
    };
    below(folder).into_iter().filter_map(look).collect()
}

/// Changes a byte in the middle of a file, and nothing that shows from outside.
fn rots(path: &str) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let (seen, mut byte) = (file.metadata().unwrap(), [0]);
    let at = seen.len() / 2;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(seen.modified().unwrap()).unwrap();
}

/// Refusals change nothing; then a restore over what servers have left writes what is wrong, and nothing else.
async fn is_restored_over_what_is_there(cluster: &Cluster, backup: OperationId, elsewhere: &str) {
    let (bench, coordinator, target) = (&cluster.bench, &cluster.coordinator, Target::Backup(backup));
    let over = || coordinator.restore_in(&target, Manner { delta: true, ..Manner::default() });
    assert_eq!(code(over().await), Code::FolderInUse, "servers run");
    let table = bench.client("n1").column("SELECT pg_relation_filepath('t')").await.remove(0);
    // One leaves its process file behind.
    for (server, mode) in cluster.servers.iter().zip([StopMode::Fast, StopMode::Kill, StopMode::Fast]) {
        server.server.stop(mode).await.unwrap();
    }
    let before = written(&bench.path("n1"));
    let (control, aside) = (bench.path("n1/global/pg_control"), bench.path("aside"));
    fs::rename(&control, &aside).unwrap();
    fs::copy(bench.path("n2/global/pg_control"), &control).unwrap();
    assert_eq!(code(over().await), Code::OtherNode, "another system's control file");
    fs::rename(&aside, &control).unwrap();
    fs::rename(bench.path("n3/PG_VERSION"), &aside).unwrap();
    assert_eq!(code(over().await), Code::ForeignFolder, "no database");
    fs::rename(&aside, bench.path("n3/PG_VERSION")).unwrap();
    let link = bench.path("n3/pg_tblspc/77777");
    std::os::unix::fs::symlink(bench.path("repository"), &link).unwrap();
    assert_eq!(code(over().await), Code::UnsafePath, "a link that leads elsewhere");
    fs::remove_file(&link).unwrap();
    assert_eq!(written(&bench.path("n1")), before, "whatever one node refuses, nothing is changed on any");

    rots(&bench.path(&format!("n1/{table}")));
    let wal = "pg_wal/000000010000000000000099";
    let (strays, others) = ([wal, "base/77777/1", "recovery.signal"], format!("{elsewhere}/PG_9.6_201608131"));
    for stray in strays {
        let path = bench.path(&format!("n2/{stray}"));
        fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
        fs::write(&path, "stray").unwrap();
    }
    fs::create_dir_all(&others).unwrap();
    let before = written(&bench.path("n3"));
    over().await.unwrap();
    for node in ["n1", "n2", "n3"] {
        assert_eq!(bench.client(node).column("SELECT sum(n)::text FROM t").await, ["12502500"]);
        bench.amcheck(node).await;
    }
    for stray in strays {
        assert!(fs::symlink_metadata(bench.path(&format!("n2/{stray}"))).is_err(), "{stray} is gone");
    }
    assert!(fs::exists(&others).unwrap(), "what others have behind a link is theirs");
    let after = written(&bench.path("n3"));
    let kept = before.iter().filter(|(path, seen)| after.get(*path) == Some(seen)).count();
    assert!(kept > before.len() / 2, "{kept} of {} files are as they were", before.len());
}
