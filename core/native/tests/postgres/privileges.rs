//! What the role of an agent may do: no more than it is granted, and that suffices. A whole backup, points, and restores as
//! such a role are in `afar` and `two_phase`.

use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::Database;
use sheetanchor_native::postgres::{PostgresConfig, PostgresDatabase, WalRoad};

use crate::bench::{Bench, Copy, LEAST, Running, code, joining};

const NODE: NodeId = NodeId::new(1);

/// The SQL that a message asks for, and the database that it names.
fn asked_for(message: &str) -> (Vec<String>, String) {
    let parts: Vec<&str> = message.split('`').collect();
    let place = parts.iter().position(|part| part.ends_with("run ")).unwrap_or_else(|| panic!("{message}"));
    assert!(parts[place + 2].ends_with("in database "), "{message}");
    (parts[place + 1].split("; ").map(str::to_owned).collect(), parts[place + 3].to_owned())
}

/// What the role lacks, by its refusal, and then it is granted.
async fn is_told_and_granted(server: &Running, node: &PostgresDatabase) -> Vec<String> {
    let error = node.join(&joining()).await.unwrap_err();
    let refusal = error.refusal().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(refusal.code, Code::PrivilegeMissing, "{refusal}");
    let (statements, database) = asked_for(&refusal.message);
    assert_eq!(database, "postgres");
    for statement in &statements {
        server.sql(statement).await;
    }
    statements
}

#[tokio::test]
async fn what_a_role_lacks_is_said_as_sql_and_then_it_suffices() {
    let mut bench = Bench::new("privileges");
    let server = bench.fenced("source", &[("fsync", "off")]).await;
    server.sql("CREATE ROLE humble LOGIN").await;
    bench.role = LEAST;

    // From afar no function is called that begins a backup.
    bench.afar.insert("source".to_owned());
    let afar = bench.node("source", NODE);
    let told = is_told_and_granted(&server, &afar).await;
    assert_eq!(
        told,
        [
            "ALTER ROLE humble REPLICATION",
            "GRANT pg_read_all_settings TO humble",
            "GRANT pg_read_all_stats TO humble",
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO humble",
        ]
    );
    afar.join(&joining()).await.unwrap();
    afar.begin_backup("sent").await.unwrap();
    let mut stream = afar.file_stream("sent").await.unwrap().unwrap();
    while stream.next().await.unwrap().is_some() {}
    afar.end_backup("sent").await.unwrap();

    bench.afar.clear();
    let beside = bench.node("source", NODE);
    let told = is_told_and_granted(&server, &beside).await;
    assert_eq!(told.len(), 2, "{told:?}");
    beside.join(&joining()).await.unwrap();
    Copy::take(&beside, "read").await;
    beside.cut_alone("cut-1").await.unwrap();
    let by_folder =
        PostgresDatabase::new(PostgresConfig { wal: WalRoad::Folder, ..bench.config("source", "source", NODE) })
            .unwrap();
    assert_eq!(
        is_told_and_granted(&server, &by_folder).await,
        ["GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO humble"]
    );
    by_folder.cut_alone("cut-2").await.unwrap();

    // The fence is no part of joining: what it lacks is said where a fence is asked for.
    beside.status().await.unwrap();
    assert!(!beside.capabilities().fence);
    let (statements, database) = asked_for(&beside.fence_missing().unwrap());
    assert_eq!((statements.len(), database.as_str()), (4, "postgres"), "{statements:?}");
    for statement in statements {
        server.sql(&statement).await;
    }
    let fenced = bench.node("source", NODE);
    fenced.status().await.unwrap();
    assert_eq!((fenced.capabilities().fence, fenced.fence_missing()), (true, None));

    // Each of them is needed: without one, the next connection is refused.
    for (revoked, granted) in [
        ("ALTER ROLE humble NOREPLICATION", "ALTER ROLE humble REPLICATION"),
        ("REVOKE pg_read_all_stats FROM humble", "GRANT pg_read_all_stats TO humble"),
    ] {
        server.sql(revoked).await;
        assert_eq!(code(bench.node("source", NODE).status().await), Code::PrivilegeMissing, "{revoked}");
        assert_eq!(is_told_and_granted(&server, &bench.node("source", NODE)).await, [granted]);
    }
}
