//! Clones on real processes and files: two clusters of the embedded database side by side.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may be blunt")]
#![allow(clippy::format_push_string, clippy::format_collect, reason = "tests may be blunt")]

mod site;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;
use sheetanchor_native::env::native_env;
use sheetanchor_refdb::{Ledger, Outcome, Session, Transfer};
use site::{Site, eventually};

fn ledger(site: &Site, node: usize) -> Ledger {
    let env = native_env(site.path("unused"));
    Ledger::new(&env, &site.nodes[node].connection, Session::Causal, Duration::from_secs(20))
}

async fn write(site: &Site, from: u64, until: u64) {
    for id in from..until {
        let transfer = Transfer { id, from: id % 9, to: (id + 4) % 9, amount: 1 };
        let outcome = ledger(site, usize::try_from(id % 3).unwrap()).transfer(transfer).await;
        assert!(matches!(outcome, Outcome::Acknowledged(_)), "{transfer:?}: {outcome:?}");
    }
}

async fn ids(site: &Site, node: usize) -> Vec<u64> {
    ledger(site, node).read_all().await.unwrap().transfers.into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_cloned_while_it_works() {
    let source = Site::running("source");
    ledger(&source, 0).create(9, 100).await.unwrap();
    write(&source, 1, 10).await;
    source.run(&["backup"]).done();
    write(&source, 10, 16).await;
    source.run(&["restore-point", "create", "here"]).done();
    eventually(|| Some(source.run(&["restore-point", "list"]).done()).filter(|list| !list.contains("pending")));
    write(&source, 16, 20).await;

    let mut copy = Site::refdb("copy");
    copy.name = "copy";
    copy.write_cluster_file();
    copy.start_agents();
    copy.run(&["restore", "--clone", "--name", "here"]).refused("SA412");
    copy.kill_all();
    copy.source = Some(source.repository());
    copy.write_cluster_file();
    copy.start_agents();
    copy.run(&["restore", "--clone", "--name", "nowhere"]).refused("SA301");
    let planned = copy.run(&["restore", "--clone", "--name", "here", "--dry-run"]).done();
    assert!(planned.contains("nothing was changed"), "{planned}");
    let cloned = copy.run(&["restore", "--clone", "--name", "here"]).done();
    assert!(cloned.contains("incarnation 1 is open") && cloned.contains("no backup of its own yet"), "{cloned}");
    for node in 0..3 {
        assert_eq!(ids(&copy, node).await, (1..16).collect::<Vec<u64>>());
    }

    // Both go on, and nobody sees the other's.
    write(&copy, 100, 105).await;
    write(&source, 20, 25).await;
    copy.run(&["backup"]).done();
    source.run(&["backup"]).done();
    assert_eq!(ids(&copy, 1).await, (1..16).chain(100..105).collect::<Vec<u64>>());
    assert_eq!(ids(&source, 1).await, (1..25).collect::<Vec<u64>>());
    let (ours, theirs) = (copy.run(&["--json", "status"]).json(), source.run(&["--json", "status"]).json());
    assert_ne!(ours["cluster"]["id"], theirs["cluster"]["id"]);
    let origin = &ours["incarnations"][0]["state"]["opened"]["origin"];
    assert_eq!(origin["cluster"], theirs["cluster"]["id"]);
    assert_eq!(theirs["unfinished"], json!([]));
    copy.run(&["restore", "--clone", "--name", "here"]).refused("SA103");

    // Somebody gives the clone's nodes the source's repository.
    copy.kill_all();
    let own = fs::read_to_string(copy.path("cluster.toml")).unwrap();
    let wrong = own.replace(&copy.path("repository"), source.repository().to_str().unwrap());
    let wrong: String =
        wrong.lines().filter(|line| !line.starts_with("source")).map(|line| format!("{line}\n")).collect();
    fs::write(copy.path("cluster.toml"), wrong).unwrap();
    copy.start_agents();
    eventually(|| {
        let log = fs::read_to_string(copy.path("agent-1.log")).unwrap();
        log.contains("the archive does not move on").then(|| assert!(log.contains("SA104"), "{log}"))
    });
    copy.run(&["status"]).refused("SA104");
    copy.run(&["backup"]).refused("SA104");
}

#[test]
fn a_source_that_cannot_be_written_to_is_cloned_only_unheld() {
    let mut source = Site::running("unheld");
    source.run(&["backup"]).done();
    source.kill_all();
    let mut copy = Site::refdb("unheld-copy");
    copy.name = "copy";
    copy.source = Some(source.repository());
    copy.write_cluster_file();
    copy.start_agents();
    // What stands in the way of a folder hinders the superuser, too.
    let operations = source.repository().join("operations");
    let aside = source.repository().join("operations.aside");
    fs::rename(&operations, &aside).unwrap();
    fs::write(&operations, b"").unwrap();
    fs::set_permissions(&operations, fs::Permissions::from_mode(0o444)).unwrap();
    copy.run(&["restore", "--clone"]).refused("SA411");
    assert!(!copy.repository().exists(), "what was refused has left nothing");
    let cloned = copy.run(&["restore", "--clone", "--unheld"]).done();
    assert!(cloned.contains("incarnation 1 is open"), "{cloned}");
}
