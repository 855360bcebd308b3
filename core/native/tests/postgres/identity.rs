//! Who a server is: its system identifier. One of another identity in a node's place is no member, whatever it can do.

use std::fs;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::refusal::Code;
use sheetanchor_native::postgres::postmaster::StopMode;

use crate::bench::{code, eventually};
use crate::cluster::Cluster;

#[tokio::test]
async fn a_server_of_another_identity_is_no_member() {
    let cluster = Cluster::fenced("foreign").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    coordinator.backup(None, Method::Fence).await.unwrap();
    let archived = |status: &sheetanchor_engine::coordinator::ClusterStatus| {
        status.nodes[1].description.as_ref().ok().map(|seen| (seen.archived, seen.archive_trouble.clone()))
    };

    // Somebody has made the database anew, in the same folder and at the same socket.
    cluster.servers[1].server.stop(StopMode::Fast).await.unwrap();
    let down = async || {
        let status = coordinator.status().await.unwrap();
        status.nodes[1].description.as_ref().is_ok_and(|seen| seen.state == "down").then_some(status)
    };
    let before = eventually(down).await;
    fs::rename(bench.path("n2"), bench.path("n2.own")).unwrap();
    let other = bench.fenced("n2", &[]).await;
    let open = async || {
        let status = coordinator.status().await.unwrap();
        status.nodes[1].description.as_ref().is_ok_and(|seen| seen.state == "open").then_some(())
    };
    eventually(open).await;
    assert_eq!(code(coordinator.create_point("foreign".parse().unwrap()).await), Code::OtherNode);
    assert_eq!(code(coordinator.backup(None, Method::Fence).await), Code::OtherNode);
    assert_eq!(code(coordinator.backup(None, Method::Alone).await), Code::OtherNode);
    assert_eq!(code(coordinator.init().await), Code::OtherNode);
    // Nor does its WAL get into the archive, where it would look like the node's.
    other
        .sql("CREATE TABLE much AS SELECT repeat('x', 1000) FROM generate_series(1, 40000); SELECT pg_switch_wal()")
        .await;
    let trouble =
        async || archived(&coordinator.status().await.unwrap())?.1.filter(|trouble| trouble.contains("SA113"));
    eventually(trouble).await;
    let now = archived(&coordinator.status().await.unwrap()).unwrap().0;
    assert_eq!(Some(now), archived(&before).map(|(until, _)| until), "nothing of it was archived");

    other.server.stop(StopMode::Fast).await.unwrap();
    fs::rename(bench.path("n2"), bench.path("n2.other")).unwrap();
    fs::rename(bench.path("n2.own"), bench.path("n2")).unwrap();
    cluster.servers[1].start().await;
    eventually(open).await;
    eventually(async || coordinator.create_point("own".parse().unwrap()).await.ok()).await;
}
