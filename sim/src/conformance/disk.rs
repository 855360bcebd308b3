//! The `Disk` port, short of crashes.

use sheetanchor_core::error::FaultKind;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::{Disk, EntryKind, Env, OpenMode, Published};

use super::{Breach, fails, promise, same};

/// Checks files, names, links, publishing and locks below `root`, a folder that is there and empty.
///
/// # Errors
/// The first promise that is not kept.
pub async fn disk(env: &Env, root: &str) -> Result<(), Breach> {
    let disk = env.disk.as_ref();
    bytes(disk, root).await?;
    folders(disk, root).await?;
    renaming(disk, root).await?;
    publishing(disk, root).await?;
    links(disk, root).await?;
    replacing(disk, root).await?;
    locks(disk, root).await?;
    promise(disk.space_left(root).await?.get() > 0, "there is space left")
}

async fn bytes(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let path = format!("{root}/bytes");
    fails(disk.open(&path, OpenMode::Read).await, FaultKind::NotFound, "reading what is not there")?;
    fails(disk.open(&path, OpenMode::Write).await, FaultKind::NotFound, "writing what is not there")?;
    let file = disk.open(&path, OpenMode::CreateNew).await?;
    fails(disk.open(&path, OpenMode::CreateNew).await, FaultKind::Exists, "creating what is there")?;
    same(file.length().await?, ByteCount::new(0), "length of a new file")?;
    file.write_at(0, b"hello world".to_vec()).await?;
    file.write_at(6, b"there".to_vec()).await?;
    same(file.read_at(0, 100).await?, b"hello there".to_vec(), "bytes, fewer at the end")?;
    same(file.read_at(6, 2).await?, b"th".to_vec(), "bytes in the middle")?;
    same(file.read_at(11, 5).await?, Vec::new(), "bytes at the end")?;
    same(file.read_at(500, 5).await?, Vec::new(), "bytes beyond the end")?;
    file.write_at(13, b"!".to_vec()).await?;
    same(file.read_at(9, 9).await?, b"re\0\0!".to_vec(), "a hole reads as zeros")?;
    file.truncate(5).await?;
    same(file.read_at(0, 100).await?, b"hello".to_vec(), "a cut file")?;
    file.truncate(7).await?;
    same(file.read_at(0, 100).await?, b"hello\0\0".to_vec(), "a file extended by zeros")?;
    file.sync().await?;
    let other = disk.open(&path, OpenMode::Read).await?;
    same(other.read_at(0, 5).await?, b"hello".to_vec(), "a second handle sees the same file")?;
    promise(other.write_at(0, b"x".to_vec()).await.is_err(), "a file opened for reading refuses writes")?;
    let metadata = disk.metadata(&path).await?;
    same(
        metadata.map(|it| (it.kind, it.length, it.mode)),
        Some((EntryKind::File, ByteCount::new(7), 0o600)),
        "metadata",
    )?;
    disk.set_mode(&path, 0o640).await?;
    same(disk.metadata(&path).await?.map(|it| it.mode), Some(0o640), "a changed mode")?;
    disk.remove(&path).await?;
    same(other.read_at(0, 5).await?, b"hello".to_vec(), "an open file outlives its name")?;
    same(disk.metadata(&path).await?, None, "metadata of what is gone")?;
    fails(disk.remove(&path).await, FaultKind::NotFound, "removing what is gone")
}

async fn folders(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let deep = format!("{root}/folders/b/c");
    disk.create_folder(&deep).await?;
    disk.create_folder(&deep).await?;
    let folder = format!("{root}/folders");
    for name in ["z", "a", "m"] {
        drop(disk.open(&format!("{folder}/{name}"), OpenMode::CreateNew).await?);
    }
    let entries = disk.list(&folder).await?;
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    same(names, vec!["a", "b", "m", "z"], "a folder's names, sorted")?;
    let kinds: Vec<EntryKind> = entries.iter().map(|entry| entry.kind).collect();
    same(kinds, vec![EntryKind::File, EntryKind::Folder, EntryKind::File, EntryKind::File], "their kinds")?;
    fails(disk.list(&format!("{root}/nowhere")).await, FaultKind::NotFound, "listing what is not there")?;
    let orphan = disk.open(&format!("{root}/nowhere/file"), OpenMode::CreateNew).await;
    fails(orphan, FaultKind::NotFound, "creating in a folder that is not there")?;
    promise(disk.remove_folder(&folder).await.is_err(), "a folder that is not empty stays")?;
    disk.remove_folder(&deep).await?;
    same(disk.metadata(&deep).await?, None, "a removed folder")?;
    promise(disk.remove(&format!("{folder}/b")).await.is_err(), "a folder is not removed as a file")?;
    disk.sync_dir(&folder).await?;
    disk.sync_dir(root).await?;
    Ok(())
}

async fn written(disk: &(dyn Disk + 'static), path: &str, bytes: &[u8]) -> Result<(), Breach> {
    let file = disk.open(path, OpenMode::CreateNew).await?;
    file.write_at(0, bytes.to_vec()).await?;
    file.sync().await?;
    Ok(())
}

async fn renaming(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let (one, two) = (format!("{root}/one"), format!("{root}/two"));
    written(disk, &one, b"1").await?;
    disk.rename(&one, &two).await?;
    same(disk.metadata(&one).await?, None, "the old name")?;
    same(disk.read(&two).await?, b"1".to_vec(), "the new name")?;
    written(disk, &one, b"11").await?;
    disk.rename(&one, &two).await?;
    same(disk.read(&two).await?, b"11".to_vec(), "a replaced file")?;
    fails(disk.rename(&one, &two).await, FaultKind::NotFound, "renaming what is not there")?;
    let folder = format!("{root}/moved");
    disk.create_folder(&folder).await?;
    disk.rename(&two, &format!("{folder}/two")).await?;
    let elsewhere = format!("{root}/elsewhere");
    disk.rename(&folder, &elsewhere).await?;
    same(disk.read(&format!("{elsewhere}/two")).await?, b"11".to_vec(), "a file in a renamed folder")
}

async fn publishing(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let (temporary, name) = (format!("{root}/p.tmp"), format!("{root}/p"));
    written(disk, &temporary, b"first").await?;
    same(disk.publish(&temporary, &name).await?, Published::Created, "publishing under a free name")?;
    same(disk.metadata(&temporary).await?, None, "the temporary file after Created")?;
    written(disk, &temporary, b"second").await?;
    same(disk.publish(&temporary, &name).await?, Published::Exists, "publishing under a name that is taken")?;
    same(disk.metadata(&temporary).await?, None, "the temporary file after Exists")?;
    same(disk.read(&name).await?, b"first".to_vec(), "what was published first")?;
    fails(disk.publish(&temporary, &name).await, FaultKind::NotFound, "publishing what is not there")
}

async fn links(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let target = format!("{root}/linked");
    disk.create_folder(&target).await?;
    let link = format!("{root}/link");
    disk.symlink(&target, &link).await?;
    same(disk.read_link(&link).await?, target.clone(), "where a link leads")?;
    same(disk.metadata(&link).await?.map(|it| it.kind), Some(EntryKind::Link), "links are not followed")?;
    written(disk, &format!("{link}/inside"), b"x").await?;
    same(disk.read(&format!("{target}/inside")).await?, b"x".to_vec(), "a path through a link")?;
    fails(disk.symlink(&target, &link).await, FaultKind::Exists, "a link under a name that is taken")?;
    disk.remove(&link).await?;
    promise(disk.metadata(&target).await?.is_some(), "removing a link leaves its target")?;
    promise(disk.read_link(&target).await.is_err(), "a folder is no link")
}

async fn replacing(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let path = format!("{root}/replaced");
    disk.replace(&path, b"one".to_vec()).await?;
    disk.replace(&path, b"two!".to_vec()).await?;
    same(disk.read(&path).await?, b"two!".to_vec(), "a replaced file")
}

async fn locks(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let path = format!("{root}/lock");
    let held = disk.lock(&path).await?;
    promise(held.is_some(), "a free lock is taken")?;
    promise(disk.lock(&path).await?.is_none(), "a held lock is not taken again")?;
    drop(held);
    promise(disk.lock(&path).await?.is_some(), "a lock that was let go is free")
}
