//! The commands on a cluster of the embedded database: real processes, real sockets, real files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests may be blunt"
)]
#![allow(clippy::format_push_string, reason = "tests may be blunt")]

mod site;

use std::fs;
use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use sheetanchor_core::identity::ContentHash;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::env::Env;
use sheetanchor_native::env::native_env;
use sheetanchor_refdb::{Contents, Ledger, Outcome, Session, Transfer};
use site::{Beside, Site, eventually};

const ACCOUNTS: u64 = 12;

/// A client's view of a site.
struct Bank {
    env: Env,
    addresses: Vec<String>,
    next: u64,
}

impl Bank {
    fn of(site: &Site) -> Self {
        let addresses = site.nodes.iter().map(|node| node.connection.clone()).collect();
        Self { env: native_env(site.path("unused")), addresses, next: 1 }
    }

    fn ledger(&self, node: usize) -> Ledger {
        Ledger::new(&self.env, &self.addresses[node], Session::Causal, Duration::from_secs(20))
    }

    async fn create(&self) {
        self.ledger(0).create(ACCOUNTS, 100).await.unwrap();
    }

    /// Transfers through every node in turn; each is acknowledged.
    async fn write(&mut self, count: u64) -> Vec<(Transfer, Scn)> {
        let mut written = Vec::new();
        for _ in 0..count {
            let id = self.next;
            self.next += 1;
            let transfer = Transfer { id, from: id % ACCOUNTS, to: (id + 5) % ACCOUNTS, amount: 1 + id % 3 };
            let node = usize::try_from(id % 3).unwrap();
            match self.ledger(node).transfer(transfer).await {
                Outcome::Acknowledged(scn) => written.push((transfer, scn)),
                Outcome::Failed(why) | Outcome::Unknown(why) => panic!("{transfer:?}: {why}"),
            }
        }
        written
    }

    async fn read(&self, node: usize) -> Contents {
        self.ledger(node).read_all().await.unwrap()
    }
}

/// The transfers, and nothing else, are there.
fn holds(contents: &Contents, transfers: &[(Transfer, Scn)]) {
    let expected = transfers.iter().map(|(transfer, _)| (transfer.id, *transfer)).collect();
    assert_eq!(contents.transfers, expected);
    assert_eq!(contents.balances.values().sum::<i64>(), i64::try_from(ACCOUNTS).unwrap() * 100);
    assert_eq!(contents.balances.len(), usize::try_from(ACCOUNTS).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_up_to_a_point_after_the_backup_is_restored() {
    let mut site = Site::running("whole");
    let mut bank = Bank::of(&site);
    bank.create().await;
    let mut kept = bank.write(15).await;
    let backup = site.run(&["--json", "backup", "--label", "first"]).json();
    kept.extend(bank.write(15).await);
    let point = site.run(&["restore-point", "create", "after"]).done();
    assert!(point.contains("method fence, guarantee atomic"), "{point}");
    let lost = bank.write(9).await;
    let listed =
        eventually(|| Some(site.run(&["restore-point", "list"]).done()).filter(|list| !list.contains("pending")));
    assert!(listed.contains("after") && listed.contains("(a backup's end)"), "{listed}");
    let id = backup["backup"].as_str().unwrap();
    assert!(site.run(&["verify", id]).done().contains("hash to what was captured"));

    site.kill_all();
    site.wipe();
    site.start_agents();
    let before = site.repository_contents();
    let planned = site.run(&["restore", "--to", "name:after", "--dry-run"]).done();
    assert!(planned.contains("open incarnation 2") && planned.contains("nothing was changed"), "{planned}");
    assert_eq!(site.repository_contents(), before, "a dry run leaves nothing behind");
    let restored = site.run(&["restore", "--to", "name:after"]).done();
    assert!(restored.contains("incarnation 2 is open") && restored.contains("guarantee atomic"), "{restored}");

    for node in 0..3 {
        holds(&bank.read(node).await, &kept);
    }
    let highest = lost.iter().map(|(_, scn)| *scn).max().unwrap();
    let again = bank.write(3).await;
    assert!(again.iter().all(|(_, scn)| *scn > highest), "no SCN is issued twice");
    let status = site.run(&["status"]).done();
    assert!(status.contains("incarnation 2") && status.contains("from SCN"), "{status}");
    // The next backup is of the new incarnation.
    site.run(&["backup"]).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_itself_and_the_latest_point_are_targets() {
    let mut site = Site::running("targets");
    let mut bank = Bank::of(&site);
    bank.create().await;
    site.run(&["backup"]).done();
    let kept = bank.write(6).await;
    // It goes on from one that is packed in another way; nobody who reads has to know.
    let backup = site.run(&["--json", "backup", "--incremental", "--compression", "lz4"]).json();
    assert_eq!((&backup["kind"], &backup["compression"]), (&json!("incremental"), &json!("lz4")));
    let id = backup["backup"].as_str().unwrap();
    assert!(fs::read(site.object(&format!("packs/{id}"))).unwrap().starts_with(&0x184D_2204_u32.to_le_bytes()));
    site.run(&["verify", id]).done();
    let _lost = bank.write(6).await;
    let target = format!("backup:{id}");
    // Over what the nodes still have, once they are closed.
    let over = ["restore", "--delta", "--to", &target];
    site.run(&over).refused("SA413");
    site.kill_all();
    for node in &site.nodes {
        fs::write(format!("{}/closed", node.data), "").unwrap();
    }
    site.start_agents();
    site.run(&["restore", "--to", &target]).refused("SA401");
    site.run(&over).done();
    holds(&bank.read(1).await, &kept);
    let more = bank.write(3).await;
    site.run(&["backup"]).done();
    site.kill_all();
    site.wipe();
    site.start_agents();
    let restored = site.run(&["restore"]).done();
    assert!(restored.contains("incarnation 3 is open"), "{restored}");
    holds(&bank.read(2).await, &[kept, more].concat());
}

#[test]
fn a_folder_that_is_not_empty_is_refused() {
    let site = Site::running("not-empty");
    site.run(&["backup"]).done();
    let before = site.repository_contents();
    site.run(&["restore"]).refused("SA401");
    let after = site.repository_contents();
    assert!(
        before.keys().all(|path| after.contains_key(path))
            && !after.keys().any(|path| path.to_str().unwrap().contains("restore-"))
    );
}

#[test]
fn a_name_is_used_once() {
    let site = Site::running("name");
    site.run(&["restore-point", "create", "a"]).done();
    site.run(&["restore-point", "create", "a"]).refused("SA213");
    site.run(&["restore-point", "create", "a b"]).refused("SA106");
    let listed = site.run(&["--json", "restore-point", "list"]).json();
    assert_eq!(listed["restore_points"].as_array().unwrap().len(), 1);
}

#[test]
fn a_second_init_changes_nothing_and_another_cluster_is_refused() {
    let mut site = Site::running("init");
    let cluster = site.run(&["init"]).done();
    assert_eq!(site.run(&["init"]).done(), cluster);
    site.name = "other";
    site.write_cluster_file();
    site.run(&["init"]).refused("SA103");
    site.run(&["status"]).refused("SA104");
}

#[test]
fn a_node_that_the_cluster_file_lacks_is_refused() {
    let mut site = Site::running("missing-node");
    let all = site.nodes.clone();
    site.nodes.pop();
    site.write_cluster_file();
    for command in [&["backup"][..], &["restore-point", "create", "a"], &["status"], &["restore"]] {
        site.run(command).refused("SA105");
    }
    site.run(&["agent", "--node", "3"]).refused("SA105");
    site.nodes = all;
    site.write_cluster_file();
    site.run(&["backup"]).done();
}

#[test]
fn two_nodes_with_one_identity_are_refused() {
    let mut site = Site::running("twins");
    let (first, second) = (site.nodes[0].agent.clone(), site.nodes[1].agent.clone());
    site.nodes[1].agent = first.clone();
    site.write_cluster_file();
    site.run(&["status"]).refused("SA107");
    // Each address is its own, and the agents behind two of them are exchanged.
    (site.nodes[0].agent, site.nodes[1].agent) = (second, first);
    site.write_cluster_file();
    site.run(&["backup"]).refused("SA113");
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let mut site = Site::running("home");
    let away = Site::running("away");
    site.nodes[2].agent.clone_from(&away.nodes[2].agent);
    site.write_cluster_file();
    let before = away.repository_contents();
    site.run(&["backup"]).refused("SA104");
    site.run(&["restore-point", "create", "a"]).refused("SA104");
    assert_eq!(away.repository_contents().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}

#[test]
fn a_repository_of_a_newer_format_is_refused() {
    let site = Site::running("newer");
    site.run(&["backup"]).done();
    let cluster = site.repository().join("cluster");
    let written: Value = serde_json::from_str(&fs::read_to_string(&cluster).unwrap()).unwrap();
    let (kind, body) = (written["kind"].as_str().unwrap(), &written["body"]);
    let checksum = ContentHash::of(format!("9 {kind} {body}").as_bytes()).to_string();
    let newer = json!({ "format_version": 9, "body": body, "checksum": checksum, "kind": kind });
    fs::write(&cluster, newer.to_string()).unwrap();
    for command in [&["backup"][..], &["restore"], &["restore-point", "create", "a"], &["status"]] {
        site.run(command).refused("SA001");
    }
}

#[test]
fn a_damaged_or_truncated_manifest_is_refused() {
    let mut site = Site::running("manifest");
    site.run(&["backup"]).done();
    site.kill_all();
    site.wipe();
    site.start_agents();
    let manifest = site.object("manifests/");
    let sound = fs::read(&manifest).unwrap();
    for at in (0..sound.len()).step_by(sound.len() / 8) {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&manifest, damaged).unwrap();
        site.run(&["restore", "--dry-run"]).refused("SA002");
    }
    fs::write(&manifest, &sound[..sound.len() / 2]).unwrap();
    site.run(&["restore"]).refused("SA002");
    assert!(!site::exists(site.path("shared").clone() + "/control"), "nothing was staged");
    fs::remove_file(&manifest).unwrap();
    site.run(&["restore"]).refused("SA003");
    fs::write(&manifest, sound).unwrap();
    site.run(&["restore"]).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_piece_of_wal_is_refused() {
    let mut site = Site::running("gap");
    let mut bank = Bank::of(&site);
    bank.create().await;
    let backup = site.run(&["--json", "backup"]).json();
    // Several pieces after the backup: one for each time that the archiver has shipped.
    for _ in 0..3 {
        bank.write(3).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    site.run(&["restore-point", "create", "after"]).done();
    eventually(|| Some(site.run(&["restore-point", "list"]).done()).filter(|list| !list.contains("pending")));
    site.kill_all();
    site.wipe();
    site.start_agents();
    let plan = site.run(&["--json", "restore", "--to", "name:after", "--dry-run"]).json();
    let pieces = plan["plan"]["threads"]["2"]["spans"][0]["pieces"].as_array().unwrap().clone();
    assert!(pieces.len() > 2, "{pieces:?}");
    let missing = site.repository().join(pieces[pieces.len() - 2].as_str().unwrap());
    fs::remove_file(missing).unwrap();
    site.run(&["restore", "--to", "name:after"]).refused("SA501");
    assert!(!site::exists(site.path("shared") + "/control"), "nothing was staged");
    // What does not need it can still be restored.
    let target = format!("backup:{}", backup["backup"].as_str().unwrap());
    site.run(&["restore", "--to", &target]).done();
}

#[test]
fn an_interrupted_backup_leaves_no_pin() {
    let site = Site::running("interrupt");
    site.run(&["backup"]).done();
    let before = site.run(&["pins", "list"]).done();
    // An archive that does not move on holds the backup up, while every node keeps WAL for it.
    let (wal, away) = (site.repository().join("wal"), site.repository().join("away"));
    fs::rename(&wal, &away).unwrap();
    fs::write(&wal, "").unwrap();
    let mut backup = Beside::start(&mut site.command(&["backup"]));
    backup.wait_for("backup: archiving");
    assert!(site.run(&["pins", "list"]).done().lines().count() > before.lines().count());
    backup.signal("-INT");
    backup.wait_for("ending");
    backup.end().refused("SA212");
    fs::remove_file(&wal).unwrap();
    fs::rename(&away, &wal).unwrap();
    assert_eq!(site.run(&["pins", "list"]).done().lines().count(), before.lines().count());
    let status = site.run(&["--json", "status"]).json();
    assert_eq!(status["backups"].as_array().unwrap().len(), 1);
    assert!(status["unfinished"].as_array().unwrap().is_empty(), "{status}");
    site.run(&["backup"]).done();
}

#[test]
fn a_backup_whose_coordinator_died_is_aborted_by_another() {
    let site = Site::running("orphan");
    site.run(&["backup"]).done();
    let pins = || site.run(&["pins", "list"]).done().lines().count();
    let before = pins();
    let (wal, away) = (site.repository().join("wal"), site.repository().join("away"));
    fs::rename(&wal, &away).unwrap();
    fs::write(&wal, "").unwrap();
    let mut backup = Beside::start(&mut site.command(&["backup"]));
    backup.wait_for("backup: archiving");
    drop(backup);
    fs::remove_file(&wal).unwrap();
    fs::rename(&away, &wal).unwrap();
    assert!(pins() > before, "the pins outlive their coordinator");
    let unfinished = unfinished(&site);
    assert_eq!(unfinished.len(), 1, "{unfinished:?}");
    site.run(&["abort", &unfinished[0]]).done();
    assert_eq!(pins(), before);
    site.run(&["abort", &unfinished[0]]).done();
    assert!(self::unfinished(&site).is_empty());
    site.run(&["backup"]).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_coordinator_died_is_resumed() {
    let mut site = Site::running("resume");
    let mut bank = Bank::of(&site);
    bank.create().await;
    let kept = bank.write(9).await;
    site.run(&["backup"]).done();
    // Should the restore be done before the signal arrives, it is tried again.
    let orphan = (0..5).find_map(|_| {
        site.kill_all();
        site.wipe();
        site.start_agents();
        let mut restore = Beside::start(&mut site.command(&["restore"]));
        restore.wait_for("restore: enlisting");
        drop(restore);
        unfinished(&site).pop()
    });
    let orphan = orphan.expect("a restore that was cut short");
    let resumed = site.run(&["restore", "--resume", &orphan]).done();
    assert!(resumed.contains(&orphan) && resumed.contains("is open"), "{resumed}");
    holds(&bank.read(1).await, &kept);
    // It is done: once more changes nothing.
    site.run(&["restore", "--resume", &orphan]).done();
    holds(&bank.read(2).await, &kept);
    bank.write(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_stops_on_arrival_and_is_opened_or_removed() {
    let mut site = Site::running("stop");
    let mut bank = Bank::of(&site);
    bank.create().await;
    let kept = bank.write(9).await;
    site.run(&["backup"]).done();
    site.kill_all();
    site.wipe();
    site.start_agents();
    let stopped = site.run(&["--json", "restore", "--stop"]).json();
    assert_eq!(stopped["is_open"], json!(false));
    let id = stopped["restore"].as_str().unwrap();
    assert_eq!(unfinished(&site), [id]);
    let status = site.run(&["status"]).done();
    assert!(status.contains("incarnation 1") && status.matches("reached").count() == 3, "{status}");
    site.run(&["backup"]).refused("SA112");
    site.run(&["abort", id]).done();
    site.run(&["restore", "--resume", id]).refused("SA207");

    let stopped = site.run(&["restore", "--stop"]).done();
    assert!(stopped.contains("stands at its cut") && stopped.contains("incarnation 3 is closed"), "{stopped}");
    site.kill_all();
    site.start_agents();
    let id = unfinished(&site).pop().unwrap();
    let opened = site.run(&["restore", "--resume", &id]).done();
    assert!(opened.contains("incarnation 3 is open"), "{opened}");
    holds(&bank.read(0).await, &kept);
}

fn unfinished(site: &Site) -> Vec<String> {
    let status = site.run(&["--json", "status"]).json();
    status["unfinished"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_agent_ends_in_order_and_a_silent_node_is_shown() {
    let mut site = Site::running("silent");
    site.run(&["backup"]).done();
    site.kill(2);
    let status = site.run(&["status"]).done();
    assert!(status.contains("silent") && status.contains("troubles"), "{status}");
    site.run(&["backup"]).refused("SA201");
    site.start_agent(2);
    site.run(&["backup"]).done();
    let mut agent = Beside::start(&mut site.command(&["agent", "--node", "2"]));
    // The address is taken by the one that runs.
    agent.wait_for("error: ");
    assert_eq!(agent.end().status, 1);
    assert_eq!(site.terminate(2), 0);
}

#[test]
fn what_is_not_there_is_refused() {
    let site = Site::running("nothing");
    site.run(&["restore", "--dry-run"]).refused("SA302");
    site.run(&["restore", "--to", "name:nothing", "--dry-run"]).refused("SA301");
    site.run(&["restore", "--to", "backup:nothing", "--dry-run"]).refused("SA106");
    site.run(&["restore", "--scn", "yesterday", "--dry-run"]).refused("SA304");
    site.run(&["restore", "--latest", "--scn", "1.0", "--dry-run"]).refused("SA304");
    site.run(&["restore", "--latest", "--incarnation", "9", "--dry-run"]).refused("SA301");
    site.run(&["verify", "backup-0190f3a2c4d5-9f31a2b7"]).refused("SA301");
    site.run(&["abort", "backup-0190f3a2c4d5-9f31a2b7"]).refused("SA208");
    site.run(&["restore", "--resume", "restore-0190f3a2c4d5-9f31a2b7"]).refused("SA208");
    site.run(&["pins", "drop", "nothing"]).refused("SA301");
}

#[test]
fn a_full_disk_is_refused() {
    let mut site = Site::refdb("full");
    let Some(_disk) = SmallDisk::mount(&site.path("repository")) else {
        eprintln!("left out: only root may mount the small disk that this needs");
        return;
    };
    site.start_agents();
    site.run(&["init"]).done();
    let ballast = site.path("repository") + "/.ballast";
    for spare in [0, 6] {
        fill(&ballast, spare);
        site.run(&["backup"]).refused("SA505");
        fs::remove_file(&ballast).unwrap();
        let status = site.run(&["--json", "status"]).json();
        assert!(status["backups"].as_array().unwrap().is_empty(), "{status}");
        // What could not even be aborted for want of space is aborted now.
        for operation in status["unfinished"].as_array().unwrap() {
            site.run(&["abort", operation.as_str().unwrap()]).done();
        }
    }
    site.run(&["backup"]).done();
}

/// Fills the disk of `ballast` but for some pages.
fn fill(ballast: &str, spare: u64) {
    const PAGE: u64 = 4096;
    let mut file = fs::File::create(ballast).unwrap();
    let page = [1; 4096];
    while file.write_all(&page).is_ok() {}
    let pages = file.metadata().unwrap().len() / PAGE;
    file.set_len((pages - spare) * PAGE).unwrap();
}

/// A file system of two megabytes.
struct SmallDisk(String);

impl SmallDisk {
    fn mount(folder: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "sheetanchor-test", folder])
            .output();
        mounted.is_ok_and(|said| said.status.success()).then(|| Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").args(["-l", &self.0]).status().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_show_what_was_done_and_expiry_removes_what_is_not_kept() {
    let site = Site::running("views");
    let mut bank = Bank::of(&site);
    bank.create().await;
    bank.write(5).await;
    let first = site.run(&["--json", "backup", "--label", "first"]).json();
    bank.write(5).await;
    site.run(&["restore-point", "create", "between"]).done();
    let second = site.run(&["--json", "backup", "--label", "second"]).json();
    let column = |view: &Value, name: &str| -> Vec<Value> {
        view.as_object()
            .unwrap()
            .values()
            .next()
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row[name].clone())
            .collect()
    };
    let states = |site: &Site, view: &str| column(&site.run(&["--json", view]).json(), "state");
    assert_eq!(states(&site, "history"), ["sealed", "sealed"]);
    eventually(|| (states(&site, "restore-points") == ["reachable"; 3]).then_some(()));
    let window = &site.run(&["--json", "pitr-status"]).json()["pitr_status"][0]["windows"][0].clone();
    assert_eq!((&window["backup_id"], &window["backups"]), (&first["backup"], &json!(2)), "{window}");
    assert_eq!(states(&site, "incarnations"), ["current"]);
    assert!(site.run(&["history"]).done().contains("first"));

    let before = site.repository_contents();
    let planned = site.run(&["expire", "--keep-backups", "1", "--dry-run"]).done();
    assert!(planned.contains("1 backups would be removed, 1 kept"), "{planned}");
    assert_eq!(
        site.repository_contents().keys().filter(|key| key.starts_with("packs")).count(),
        before.keys().filter(|key| key.starts_with("packs")).count()
    );
    let removed = site.run(&["--json", "expire", "--keep-backups", "1"]).json();
    assert_eq!(removed["condemned"], json!([first["backup"]]));
    assert_eq!(states(&site, "history"), ["expired", "sealed"]);
    assert_eq!(states(&site, "restore-points"), ["lost", "lost", "reachable"]);
    site.run(&["verify", first["backup"].as_str().unwrap()]).refused("SA301");
    assert!(site.run(&["verify", second["backup"].as_str().unwrap()]).done().contains("hash to what was captured"));
}
