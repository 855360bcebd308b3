//! What an operator can get wrong, each refused with its code before anything is changed.

use std::time::Duration;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{NodeId, TimelineId};
use sheetanchor_core::plan::Target;
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::{Database, WalPiece};
use tokio::net::{UnixListener, UnixStream};

use crate::bench::{Bench, Copy, Segments, code, recovery};
use crate::cluster::Cluster;

const NODE: NodeId = NodeId::new(1);

/// A pooler as far as a client sees it: another place, where the server answers.
async fn stand_between(bench: &Bench, place: &str, server: &str) {
    let folder = bench.own_folder(&format!("{place}.s")).await;
    let behind = format!("{}/.s.PGSQL.5432", bench.path(&format!("{server}.s")));
    let listener = UnixListener::bind(format!("{folder}/.s.PGSQL.5432")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = UnixStream::connect(&behind).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await.ok() });
        }
    });
}

#[tokio::test]
async fn a_connection_through_a_pooler_is_refused() {
    let bench = Bench::new("pooler");
    let server = bench.fenced("source", &[("fsync", "off")]).await;
    stand_between(&bench, "pool", "source").await;
    bench.client("pool").sql("SELECT 1").await;
    let node = bench.node_at("source", "pool", NODE);
    assert_eq!(code(node.join(&crate::bench::joining()).await), Code::ConfigInvalid);
    assert_eq!(code(node.pin("archive").await), Code::ConfigInvalid);
    let said = node.begin_backup("b").await.unwrap_err().to_string();
    assert!(said.contains("pooler"), "{said}");
    assert!(bench.client("source").column("SELECT slot_name::text FROM pg_replication_slots").await.is_empty());
    let node = bench.node("source", NODE);
    node.join(&crate::bench::joining()).await.unwrap();
    drop(server);
}

#[tokio::test]
async fn another_version_of_the_fence_is_not_relied_on() {
    let bench = Bench::new("fence-version");
    let server = bench.fenced("source", &[("fsync", "off")]).await;
    // As the library of another version would say.
    server
        .sql(
            "CREATE OR REPLACE FUNCTION sheetanchor_fence_version(OUT version int, OUT preloaded boolean) \
             LANGUAGE sql AS 'SELECT 2, true'",
        )
        .await;
    let node = bench.node("source", NODE);
    node.status().await.unwrap();
    assert!(!node.capabilities().fence);
    let missing = node.fence_missing().unwrap();
    assert!(missing.contains("version 2") && missing.contains("ALTER EXTENSION sheetanchor_fence UPDATE"), "{missing}");
}

#[tokio::test]
async fn a_segment_of_another_timeline_is_not_replayed() {
    let bench = Bench::new("other-timeline");
    let source = bench.server("source", &[("fsync", "off")]).await;
    let node = bench.node("source", NODE);
    let copy = Copy::take(&node, "backup-1").await;
    source.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    let cut = node.cut_alone("cut-1").await.unwrap();
    let mut wal = Segments::read(&node, copy.begun.start, cut.proof).await;
    let place = *wal.0.keys().next_back().unwrap();
    let piece = wal.0.get_mut(&place).unwrap();
    piece.from = Position { timeline: TimelineId::new(2), ..piece.from };
    let restored = bench.restored("target", &copy, NODE).await;
    assert_eq!(code(restored.recover(&recovery(&copy, &cut, "cut-1"), &wal).await), Code::WalDamaged);
    // Nor does a piece of no length lead on for ever.
    let whole = wal.0.clone();
    let piece = wal.0.get_mut(&place).unwrap();
    *piece = WalPiece {
        until: place,
        bytes: bytes::Bytes::new(),
        from: Position { lsn: place, ..cut.until },
        ..piece.clone()
    };
    let recovery = recovery(&copy, &cut, "cut-1");
    let recovered = tokio::time::timeout(Duration::from_secs(20), restored.recover(&recovery, &wal));
    assert_eq!(code(recovered.await.expect("an end")), Code::WalDamaged);
    wal.0 = whole;
    // Its bytes say so, too.
    let piece = wal.0.get_mut(&place).unwrap();
    piece.from = Position { timeline: TimelineId::new(1), ..piece.from };
    // The timeline of the first page's head, after magic and flags.
    wal.damage(place, |bytes| bytes[4] = 2);
    assert_eq!(code(restored.recover(&recovery, &wal).await), Code::WalDamaged);
}

#[tokio::test]
async fn targets_that_cannot_be_and_folders_in_use_are_refused() {
    let cluster = Cluster::fenced("targets").await;
    let coordinator = &cluster.coordinator;
    coordinator.init().await.unwrap();
    coordinator.create_point("too-early".parse().unwrap()).await.unwrap();
    let early = Target::Name("too-early".parse().unwrap());
    assert_eq!(code(coordinator.plan_restore(&early).await), Code::NoBackup);
    let sealed = coordinator.backup(None, Method::Fence).await.unwrap();
    assert_eq!(code(coordinator.plan_restore(&early).await), Code::NoBackup, "it lies before the backup");
    let unknown = Target::Name("nobody".parse().unwrap());
    assert_eq!(code(coordinator.plan_restore(&unknown).await), Code::NoSuchTarget);
    let sought = Target::Scn(sealed.seal.cut.scn.next());
    assert_eq!(code(coordinator.plan_restore(&sought).await), Code::PointsOnly);
    assert_eq!(code(coordinator.restore(&Target::Latest).await), Code::FolderNotEmpty, "its servers run");
    for server in &cluster.servers {
        server.server.stop(sheetanchor_native::postgres::postmaster::StopMode::Fast).await.unwrap();
    }
    assert_eq!(code(coordinator.restore(&Target::Latest).await), Code::FolderNotEmpty, "they are down");
    for server in &cluster.servers {
        server.start().await;
    }
}
