//! What a restore puts in place is what a base backup of PostgreSQL's own says of the same servers, by PostgreSQL's own tool.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::{fs, io};

use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::OperationId;
use sheetanchor_core::plan::Target;
use sheetanchor_engine::pump::Watcher;
use sheetanchor_native::postgres::postmaster::StopMode;

use crate::bench::program;
use crate::cluster::{Cluster, NODES};

/// Files that differ between any two backups of an idle server, and what tells our recovery what to do.
const OURS: [&str; 3] = ["global/pg_control", "backup_label", "sheetanchor.restore"];

/// Copies what is staged in the moment in which recovery is to begin: nothing else runs meanwhile.
struct Staged(Vec<(String, String)>);

impl Watcher for Staged {
    fn phase(&self, _operation: OperationId, phase: &'static str) {
        for (staged, copy) in self.0.iter().filter(|_| phase == "recovering") {
            assert!(Command::new("cp").args(["-a", staged, copy]).status().unwrap().success());
        }
    }
}

/// Takes all that may still change by itself away from an idle server: visibility that readers would note down, statistics.
async fn comes_to_rest(cluster: &Cluster) {
    for server in &cluster.servers {
        server.sql("ALTER SYSTEM SET autovacuum = off").await;
        for sql in
            ["SELECT pg_reload_conf()", "VACUUM (FREEZE, ANALYZE)", "VACUUM FREEZE", "VACUUM FREEZE", "CHECKPOINT"]
        {
            server.sql(sql).await;
        }
    }
}

/// What `pg_verifybackup` says of the files in `folder`, without WAL, by a manifest.
async fn verified(folder: &str, manifest: &str) -> Result<(), String> {
    let mut verify = Command::new(program("pg_verifybackup").await);
    verify.args(["--no-parse-wal", "--manifest-path", manifest]);
    for name in OURS {
        verify.args(["--ignore", name]);
    }
    let said = verify.arg(folder).output().unwrap();
    if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
}

/// The longest file of all databases.
fn longest(folder: &str) -> io::Result<String> {
    let mut longest = (0, String::new());
    for database in fs::read_dir(format!("{folder}/base"))? {
        for file in fs::read_dir(database?.path())? {
            let file = file?;
            longest = longest.max((file.metadata()?.len(), file.path().to_str().unwrap().to_owned()));
        }
    }
    Ok(longest.1)
}

#[tokio::test]
async fn what_a_restore_stages_is_what_a_base_backup_of_the_servers_own_says() {
    let cluster = Cluster::new("verified").await;
    let (bench, coordinator) = (&cluster.bench, &cluster.coordinator);
    coordinator.init().await.unwrap();
    for server in &cluster.servers {
        server.pgbench(&["-i", "-s", "2", "-q"]).await;
    }
    comes_to_rest(&cluster).await;
    let path = |node: u16, what: &str| bench.path(&format!("n{node}{what}"));
    for (node, server) in NODES.into_iter().zip(&cluster.servers) {
        let base = ["-D", &path(node, ".base"), "-X", "none", "-c", "fast", "--manifest-checksums=SHA256"];
        server.client.program("pg_basebackup", &base).await;
    }
    let sealed = coordinator.backup(None, Method::Alone).await.unwrap();
    for (node, server) in NODES.into_iter().zip(&cluster.servers) {
        server.server.stop(StopMode::Kill).await.unwrap();
        fs::remove_dir_all(path(node, "")).unwrap();
    }
    let staged = NODES.map(|node| (path(node, ""), path(node, ".staged")));
    let watched = coordinator.clone().watched_by(Arc::new(Staged(staged.to_vec())));
    watched.restore(&Target::Backup(sealed.operation)).await.unwrap();

    for node in NODES {
        let (staged, manifest) = (path(node, ".staged"), path(node, ".base/backup_manifest"));
        assert_eq!(verified(&staged, &manifest).await, Ok(()), "node {node}");
        // It does look: at a byte, and at what is missing.
        let longest = longest(&staged).unwrap();
        fs::File::options().write(true).open(&longest).unwrap().write_all_at(b"x", 12_345).unwrap();
        let said = verified(&staged, &manifest).await.unwrap_err();
        assert!(said.contains("checksum mismatch"), "{said}");
        fs::remove_file(&longest).unwrap();
        let said = verified(&staged, &manifest).await.unwrap_err();
        assert!(said.contains("is present in the manifest but not on disk"), "{said}");
    }
}
