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
    errors(disk, root).await?;
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
    file.write_at(0, b"hello world".to_vec().into()).await?;
    file.write_at(6, b"there".to_vec().into()).await?;
    same(file.read_at(0, 100).await?, b"hello there".to_vec(), "bytes, fewer at the end")?;
    same(file.read_at(6, 2).await?, b"th".to_vec(), "bytes in the middle")?;
    same(file.read_at(11, 5).await?, Vec::new(), "bytes at the end")?;
    same(file.read_at(500, 5).await?, Vec::new(), "bytes beyond the end")?;
    file.write_at(13, b"!".to_vec().into()).await?;
    same(file.read_at(9, 9).await?, b"re\0\0!".to_vec(), "a hole reads as zeros")?;
    file.truncate(5).await?;
    same(file.read_at(0, 100).await?, b"hello".to_vec(), "a cut file")?;
    file.truncate(7).await?;
    same(file.read_at(0, 100).await?, b"hello\0\0".to_vec(), "a file extended by zeros")?;
    file.sync().await?;
    let other = disk.open(&path, OpenMode::Read).await?;
    same(other.read_at(0, 5).await?, b"hello".to_vec(), "a second handle sees the same file")?;
    promise(other.write_at(0, b"x".to_vec().into()).await.is_err(), "a file opened for reading refuses writes")?;
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
    file.write_at(0, bytes.to_vec().into()).await?;
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

/// What is not there, what is taken, and what is of another kind.
async fn errors(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let (file, folder, nowhere) = (format!("{root}/e-file"), format!("{root}/e-folder"), format!("{root}/e-nowhere"));
    let inside = |folder: &str| format!("{folder}/x");
    written(disk, &file, b"file").await?;
    disk.create_folder(&folder).await?;
    written(disk, &inside(&folder), b"x").await?;
    fails(
        disk.rename(&file, &inside(&nowhere)).await,
        FaultKind::NotFound,
        "renaming into a folder that is not there",
    )?;
    promise(disk.rename(&file, &folder).await.is_err(), "a file does not replace a folder")?;
    promise(disk.rename(&folder, &file).await.is_err(), "a folder does not replace a file")?;
    disk.create_folder(&inside(&nowhere)).await?;
    fails(disk.rename(&nowhere, &folder).await, FaultKind::Exists, "renaming over a folder that is not empty")?;
    fails(disk.remove_folder(&folder).await, FaultKind::Exists, "removing a folder that is not empty")?;
    disk.remove_folder(&inside(&nowhere)).await?;
    disk.remove_folder(&nowhere).await?;
    disk.rename(&file, &file).await?;
    same(disk.read(&file).await?, b"file".to_vec(), "a file renamed to its own name")?;
    fails(disk.publish(&file, &inside(&nowhere)).await, FaultKind::NotFound, "publishing into a missing folder")?;
    same(disk.read(&file).await?, b"file".to_vec(), "what could not be published")?;
    fails(disk.remove_folder(&nowhere).await, FaultKind::NotFound, "removing a folder that is gone")?;
    promise(disk.remove_folder(&file).await.is_err(), "a file is not removed as a folder")?;
    fails(disk.create_folder(&file).await, FaultKind::Exists, "a folder in the place of a file")?;
    promise(disk.create_folder(&inside(&file)).await.is_err(), "a folder below a file")?;
    same(disk.metadata(&inside(&file)).await?, None, "a name below a file")?;
    promise(disk.open(&folder, OpenMode::Write).await.is_err(), "a folder is not written to")?;
    promise(disk.list(&file).await.is_err(), "a file is not listed")?;
    fails(disk.sync_dir(&nowhere).await, FaultKind::NotFound, "syncing a folder that is not there")?;
    fails(disk.set_mode(&nowhere, 0o600).await, FaultKind::NotFound, "the mode of what is not there")?;
    fails(disk.read_link(&nowhere).await, FaultKind::NotFound, "a link that is not there")?;
    disk.symlink(&nowhere, &format!("{root}/e-link")).await?;
    let dangling = disk.open(&format!("{root}/e-link"), OpenMode::Read).await;
    fails(dangling, FaultKind::NotFound, "opening where a link leads to nothing")?;
    written(disk, &nowhere, b"second").await?;
    same(disk.publish(&nowhere, &folder).await?, Published::Exists, "publishing under a folder's name")?;
    same(disk.read(&inside(&folder)).await?, b"x".to_vec(), "the folder in the way")
}

async fn locks(disk: &(dyn Disk + 'static), root: &str) -> Result<(), Breach> {
    let path = format!("{root}/lock");
    let held = disk.lock(&path).await?;
    promise(held.is_some(), "a free lock is taken")?;
    promise(disk.lock(&path).await?.is_none(), "a held lock is not taken again")?;
    drop(held);
    promise(disk.lock(&path).await?.is_some(), "a lock that was let go is free")
}
