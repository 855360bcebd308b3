//! Who a server is: its system identifier. One of another identity in a node's place is no member, whatever it can do.

use std::fs;

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::coordinator::Coordinator;
use sheetanchor_native::postgres::postmaster::StopMode;

use crate::bench::{code, eventually};
use crate::cluster::Cluster;

#[tokio::test]
async fn a_server_of_another_identity_is_no_member() {
    let mut cluster = Cluster::fenced("foreign").await;
    let Cluster { bench, coordinator, .. } = &cluster;
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
    let open = async |coordinator: &Coordinator| {
        let status = coordinator.status().await.unwrap();
        status.nodes[1].description.as_ref().is_ok_and(|seen| seen.state == "open").then_some(())
    };
    eventually(async || open(coordinator).await).await;
    assert_eq!(code(coordinator.create_point("foreign".parse().unwrap()).await), Code::OtherNode);
    assert_eq!(code(coordinator.backup(None, Method::Fence).await), Code::OtherNode);
    assert_eq!(code(coordinator.backup(None, Method::Alone).await), Code::OtherNode);
    assert_eq!(code(coordinator.init().await), Code::OtherNode);
    // Nor does its WAL get into the archive, where it would look like the node's.
    other
        .sql("CREATE TABLE much AS SELECT repeat('x', 1000) FROM generate_series(1, 40000); SELECT pg_switch_wal()")
        .await;
    let trouble = async |coordinator: &Coordinator| {
        archived(&coordinator.status().await.unwrap())?.1.filter(|trouble| trouble.contains("SA113"))
    };
    eventually(async || trouble(coordinator).await).await;
    let now = archived(&coordinator.status().await.unwrap()).unwrap().0;
    assert_eq!(Some(now), archived(&before).map(|(until, _)| until), "nothing of it was archived");

    // An agent that starts beside it knows of no life before.
    let pieces = async |coordinator: &Coordinator| {
        coordinator.repository().bucket().list("wal/0000000001/00002/").await.unwrap()
    };
    let kept = pieces(&cluster.coordinator).await;
    cluster.restart_agent(NodeId::new(2)).await;
    let Cluster { bench, coordinator, .. } = &cluster;
    other.sql("CREATE TABLE more AS SELECT 1 AS n; SELECT pg_switch_wal()").await;
    eventually(async || trouble(coordinator).await).await;
    assert_eq!(pieces(coordinator).await, kept, "nothing of it was archived");

    other.server.stop(StopMode::Fast).await.unwrap();
    fs::rename(bench.path("n2"), bench.path("n2.other")).unwrap();
    fs::rename(bench.path("n2.own"), bench.path("n2")).unwrap();
    cluster.servers[1].start().await;
    eventually(async || open(coordinator).await).await;
    eventually(async || coordinator.create_point("own".parse().unwrap()).await.ok()).await;
}
