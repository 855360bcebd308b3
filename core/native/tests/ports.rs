//! The native ports against a real file system, each promise of the contracts that can be seen without a loss of power.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may be blunt")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sheetanchor_core::error::FaultKind;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::{EntryKind, Env, OpenMode, Published, Put};
use sheetanchor_native::env::native_env;
use sheetanchor_sim::conformance;

/// A folder of one test, gone when it ends, however it ends.
struct Folder(PathBuf);

impl Folder {
    fn of(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sa-ports-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn env(&self) -> Env {
        native_env(self.path("repository"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

async fn write(env: &Env, path: &str, bytes: &[u8]) {
    let file = env.disk.open(path, OpenMode::CreateNew).await.unwrap();
    file.write_at(0, bytes.to_vec().into()).await.unwrap();
    file.sync().await.unwrap();
}

#[tokio::test]
async fn the_ports_keep_what_every_implementation_promises() {
    let folder = Folder::of("conformance");
    let (env, root) = (folder.env(), folder.path("root"));
    env.disk.create_folder(&root).await.unwrap();
    conformance::disk(&env, &root).await.unwrap();
    conformance::bucket(env.bucket.as_ref()).await.unwrap();
    conformance::net(&env, "127.0.0.1:0").await.unwrap();
    conformance::net_half_closed(&env, "127.0.0.1:0").await.unwrap();
    conformance::net_unread(&env, "127.0.0.1:0").await.unwrap();
    conformance::clock(&env).await.unwrap();
}

#[tokio::test]
async fn a_file_holds_what_was_written_where_it_was_written() {
    let folder = Folder::of("file");
    let (env, path) = (folder.env(), folder.path("file"));
    assert_eq!(env.disk.open(&path, OpenMode::Read).await.err().unwrap().kind, FaultKind::NotFound);
    write(&env, &path, b"0123456789").await;
    assert_eq!(env.disk.open(&path, OpenMode::CreateNew).await.err().unwrap().kind, FaultKind::Exists);
    let file = env.disk.open(&path, OpenMode::Write).await.unwrap();
    file.write_at(12, b"ab".to_vec().into()).await.unwrap();
    assert_eq!(file.read_at(8, 100).await.unwrap(), b"89\0\0ab", "a gap reads as zeros, the end cuts short");
    assert_eq!(file.read_at(100, 1).await.unwrap(), b"");
    assert_eq!(file.read_at(0, usize::MAX).await.unwrap().len(), 14);
    file.truncate(3).await.unwrap();
    assert_eq!(file.length().await.unwrap(), ByteCount::new(3));
    file.truncate(5).await.unwrap();
    assert_eq!(env.disk.read(&path).await.unwrap(), b"012\0\0");
    let read_only = env.disk.open(&path, OpenMode::Read).await.unwrap();
    assert!(read_only.write_at(0, b"x".to_vec().into()).await.is_err());
    let metadata = env.disk.metadata(&path).await.unwrap().unwrap();
    assert_eq!((metadata.kind, metadata.length, metadata.mode), (EntryKind::File, ByteCount::new(5), 0o600));
    env.disk.set_mode(&path, 0o640).await.unwrap();
    assert_eq!(env.disk.metadata(&path).await.unwrap().unwrap().mode, 0o640);
    env.disk.remove(&path).await.unwrap();
    assert_eq!(env.disk.metadata(&path).await.unwrap(), None);
    assert_eq!(env.disk.remove(&path).await.unwrap_err().kind, FaultKind::NotFound);
}

#[tokio::test]
async fn publishing_never_overwrites_and_renaming_does() {
    let folder = Folder::of("names");
    let (env, first, second, name) = (folder.env(), folder.path("1"), folder.path("2"), folder.path("name"));
    write(&env, &first, b"first").await;
    write(&env, &second, b"second").await;
    assert_eq!(env.disk.publish(&first, &name).await.unwrap(), Published::Created);
    assert_eq!(env.disk.publish(&second, &name).await.unwrap(), Published::Exists);
    assert_eq!(env.disk.read(&name).await.unwrap(), b"first");
    for gone in [&first, &second] {
        assert_eq!(env.disk.metadata(gone).await.unwrap(), None, "a temporary file is gone either way");
    }
    assert_eq!(env.disk.publish(&first, &name).await.unwrap_err().kind, FaultKind::NotFound);
    write(&env, &second, b"other").await;
    env.disk.rename(&second, &name).await.unwrap();
    assert_eq!(env.disk.read(&name).await.unwrap(), b"other");
    env.disk.replace(&name, b"third".to_vec()).await.unwrap();
    assert_eq!(env.disk.read(&name).await.unwrap(), b"third");
    env.disk.sync_dir(&folder.path("")).await.unwrap();
    assert_eq!(env.disk.sync_dir(&first).await.unwrap_err().kind, FaultKind::NotFound);
}

#[tokio::test]
async fn two_publishers_of_one_name_have_one_winner() {
    let folder = Folder::of("race");
    let (env, name) = (folder.env(), folder.path("name"));
    for round in 0..50 {
        let (first, second) = (folder.path("1"), folder.path("2"));
        write(&env, &first, b"first").await;
        write(&env, &second, b"second").await;
        let (one, other) = tokio::join!(env.disk.publish(&first, &name), env.disk.publish(&second, &name));
        let expected: &[u8] = match (one.unwrap(), other.unwrap()) {
            (Published::Created, Published::Exists) => b"first",
            (Published::Exists, Published::Created) => b"second",
            both => panic!("round {round}: {both:?}"),
        };
        assert_eq!(env.disk.read(&name).await.unwrap(), expected);
        env.disk.remove(&name).await.unwrap();
    }
}

#[tokio::test]
async fn folders_list_what_they_hold_by_name_and_follow_no_link() {
    let folder = Folder::of("folders");
    let (env, root) = (folder.env(), folder.path("a/b"));
    env.disk.create_folder(&root).await.unwrap();
    env.disk.create_folder(&root).await.unwrap();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    env.disk.create_folder(&format!("{root}/folder")).await.unwrap();
    env.disk.symlink("../nowhere", &format!("{root}/link")).await.unwrap();
    write(&env, &format!("{root}/Z"), b"").await;
    let listed = env.disk.list(&root).await.unwrap();
    let listed: Vec<(&str, EntryKind)> = listed.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(listed, [("Z", EntryKind::File), ("folder", EntryKind::Folder), ("link", EntryKind::Link)]);
    assert_eq!(env.disk.read_link(&format!("{root}/link")).await.unwrap(), "../nowhere");
    assert_eq!(env.disk.metadata(&format!("{root}/link")).await.unwrap().unwrap().kind, EntryKind::Link);
    assert!(env.disk.remove_folder(&root).await.is_err(), "it is not empty");
    env.disk.remove_folder(&format!("{root}/folder")).await.unwrap();
    assert_eq!(env.disk.list(&format!("{root}/folder")).await.unwrap_err().kind, FaultKind::NotFound);
    assert!(env.disk.space_left(&root).await.unwrap() > ByteCount::new(0));
}

#[tokio::test]
async fn a_lock_has_one_holder_until_it_is_dropped() {
    let folder = Folder::of("lock");
    let (env, path) = (folder.env(), folder.path("lock"));
    let held = env.disk.lock(&path).await.unwrap();
    assert!(held.is_some());
    assert!(env.disk.lock(&path).await.unwrap().is_none());
    let other = std::process::Command::new("flock").args(["--nonblock", &path, "true"]).status().unwrap();
    assert!(!other.success(), "another process does not get it either");
    drop(held);
    assert!(env.disk.lock(&path).await.unwrap().is_some());
}

#[tokio::test]
async fn a_full_disk_is_told_from_other_faults() {
    let folder = Folder::of("full");
    // The device that is always full.
    let file = folder.env().disk.open("/dev/full", OpenMode::Write).await.unwrap();
    assert_eq!(file.write_at(0, b"x".to_vec().into()).await.unwrap_err().kind, FaultKind::NoSpace);
}

#[tokio::test]
async fn the_repository_creates_an_object_once() {
    let folder = Folder::of("bucket");
    let env = folder.env();
    assert_eq!(env.bucket.put_new("wal/1/a", b"first".to_vec().into()).await.unwrap(), Put::Created);
    assert_eq!(env.bucket.put_new("wal/1/a", b"second".to_vec().into()).await.unwrap(), Put::Exists);
    assert_eq!(env.bucket.get_range("wal/1/a", 1, 3).await.unwrap(), b"irs");
    assert_eq!(env.bucket.list("wal/").await.unwrap(), ["wal/1/a"]);
    env.bucket.delete("wal/1/a").await.unwrap();
    assert_eq!(env.bucket.get("wal/1/a").await.unwrap_err().kind, FaultKind::NotFound);
}
