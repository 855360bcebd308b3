//! What lies behind links: tablespaces, and WAL on another volume. It is captured with the rest, and restored to where it
//! was, or to where it is told.

use std::fs;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::plan::Target;
use sheetanchor_core::refusal::Code;
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
    for (server, node) in cluster.servers.iter().zip(NODES) {
        server.server.stop(StopMode::Fast).await.unwrap();
        bench.page_checksums(&format!("n{node}")).await;
    }
}
