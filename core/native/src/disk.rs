//! Files, from the operating system. Each call runs on a thread for blocking calls.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use sheetanchor_core::error::Fault;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_engine::env::whole;
use sheetanchor_engine::env::{Disk, DiskFile, DiskLock, Entry, EntryKind, Metadata, OpenMode, Published};
use tokio::sync::Mutex;

use crate::faults::{blocking, fault, sync_fault};

/// The files of this machine.
#[derive(Clone, Copy, Debug)]
pub struct FileDisk;

#[async_trait]
impl Disk for FileDisk {
    async fn open(&self, path: &str, mode: OpenMode) -> Result<Box<dyn DiskFile>, Fault> {
        let path: Arc<str> = path.into();
        blocking(move || {
            let mut options = OpenOptions::new();
            let options = match mode {
                OpenMode::Read => options.read(true),
                OpenMode::Write => options.read(true).write(true),
                OpenMode::CreateNew => options.read(true).write(true).create_new(true).mode(0o600),
            };
            let file = options.open(&*path).map_err(|error| fault(format!("open {path}"), &error))?;
            let open: Box<dyn DiskFile> = Box::new(OpenFile { path, file: Arc::new(file), writing: Mutex::new(()) });
            Ok(open)
        })
        .await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Fault> {
        two(from, to, "rename", |from, to| fs::rename(from, to)).await
    }

    async fn publish(&self, temporary: &str, name: &str) -> Result<Published, Fault> {
        two(temporary, name, "publish", |temporary, name| {
            let outcome = match rustix::fs::renameat_with(CWD, temporary, CWD, name, RenameFlags::NOREPLACE) {
                // Not every file system has it.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => publish_by_link(temporary, name),
                outcome => outcome,
            };
            match outcome {
                Ok(()) => Ok(Published::Created),
                Err(Errno::EXIST) => fs::remove_file(temporary).map(|()| Published::Exists),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    async fn create_folder(&self, path: &str) -> Result<(), Fault> {
        one(path, "create folder", |path| DirBuilder::new().recursive(true).mode(0o700).create(path)).await
    }

    async fn remove(&self, path: &str) -> Result<(), Fault> {
        one(path, "remove", |path| fs::remove_file(path)).await
    }

    async fn remove_folder(&self, path: &str) -> Result<(), Fault> {
        one(path, "remove folder", |path| fs::remove_dir(path)).await
    }

    async fn list(&self, path: &str) -> Result<Vec<Entry>, Fault> {
        one(path, "list", |path| {
            let mut entries = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let name = entry.file_name().into_string().map_err(|name| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("the name {} is not UTF-8", name.display()))
                })?;
                entries.push(Entry { name, kind: kind_of(entry.file_type()?) });
            }
            entries.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(entries)
        })
        .await
    }

    async fn metadata(&self, path: &str) -> Result<Option<Metadata>, Fault> {
        one(path, "look at", |path| match fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(Metadata {
                kind: kind_of(found.file_type()),
                length: ByteCount::new(found.len()),
                mode: found.mode() & 0o7777,
            })),
            // There is no name below a file either.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn set_mode(&self, path: &str, mode: u32) -> Result<(), Fault> {
        one(path, "set the mode of", move |path| fs::set_permissions(path, fs::Permissions::from_mode(mode))).await
    }

    async fn symlink(&self, target: &str, path: &str) -> Result<(), Fault> {
        two(target, path, "link", |target, path| std::os::unix::fs::symlink(target, path)).await
    }

    async fn read_link(&self, path: &str) -> Result<String, Fault> {
        one(path, "read link", |path| {
            fs::read_link(path)?.into_os_string().into_string().map_err(|target| {
                io::Error::new(io::ErrorKind::InvalidData, format!("the target {} is not UTF-8", target.display()))
            })
        })
        .await
    }

    async fn sync_dir(&self, path: &str) -> Result<(), Fault> {
        let path = path.to_owned();
        blocking(move || {
            let folder = File::open(&path).map_err(|error| fault(format!("open folder {path}"), &error))?;
            folder.sync_all().map_err(|error| sync_fault(format!("sync folder {path}"), &error))
        })
        .await
    }

    async fn space_left(&self, path: &str) -> Result<ByteCount, Fault> {
        one(path, "measure the space left at", |path| {
            let volume = rustix::fs::statvfs(path)?;
            Ok(ByteCount::new(volume.f_bavail.saturating_mul(volume.f_frsize)))
        })
        .await
    }

    async fn lock(&self, path: &str) -> Result<Option<Box<dyn DiskLock>>, Fault> {
        one(path, "lock", |path| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let lock: Box<dyn DiskLock> = Box::new(HeldLock { _file: file });
                    Ok(Some(lock))
                }
                Err(Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }
}

/// An advisory lock that the kernel drops with the file's last descriptor.
struct HeldLock {
    _file: File,
}

impl DiskLock for HeldLock {}

struct OpenFile {
    path: Arc<str>,
    file: Arc<File>,
    /// The kernel lets one writer at a time into a file, and has the others spin. Waiting here costs no processor.
    writing: Mutex<()>,
}

impl OpenFile {
    async fn on<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (path, file) = (self.path.clone(), self.file.clone());
        blocking(move || call(&file).map_err(|error| fault(format!("{what} {path}"), &error))).await
    }
}

#[async_trait]
impl DiskFile for OpenFile {
    async fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        self.on("read", move |file| {
            // The caller may ask for more than there is: the buffer need not be longer than the file is now.
            let there = usize::try_from(file.metadata()?.len().saturating_sub(offset)).unwrap_or(usize::MAX);
            whole::read_full(length.min(there), |bytes, _| {
                let next = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                uninterrupted(|| Ok(rustix::io::pread(file, spare_capacity(bytes), next)?)).map(drop)
            })
        })
        .await
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> Result<(), Fault> {
        let _turn = self.writing.lock().await;
        self.on("write", move |file| {
            whole::write_full(&bytes, |rest, before| {
                match uninterrupted(|| file.write_at(rest, offset.saturating_add(before)))? {
                    0 => Err(io::ErrorKind::WriteZero.into()),
                    taken => Ok(taken),
                }
            })
        })
        .await
    }

    async fn truncate(&self, length: u64) -> Result<(), Fault> {
        self.on("truncate", move |file| file.set_len(length)).await
    }

    async fn sync(&self) -> Result<(), Fault> {
        let (path, file) = (self.path.clone(), self.file.clone());
        blocking(move || file.sync_all().map_err(|error| sync_fault(format!("sync {path}"), &error))).await
    }

    async fn length(&self) -> Result<ByteCount, Fault> {
        self.on("measure", |file| Ok(ByteCount::new(file.metadata()?.len()))).await
    }
}

/// Does it again as long as signals interrupt it.
fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Makes the name, then drops the other: a crash in between leaves both, which is what `publish` may leave undone.
fn publish_by_link(temporary: &str, name: &str) -> rustix::io::Result<()> {
    rustix::fs::link(temporary, name)?;
    rustix::fs::unlink(temporary)
}

fn kind_of(kind: fs::FileType) -> EntryKind {
    if kind.is_file() {
        EntryKind::File
    } else if kind.is_dir() {
        EntryKind::Folder
    } else if kind.is_symlink() {
        EntryKind::Link
    } else {
        EntryKind::Other
    }
}

async fn one<T: Send + 'static>(
    path: &str,
    what: &'static str,
    call: impl FnOnce(&str) -> io::Result<T> + Send + 'static,
) -> Result<T, Fault> {
    let path = path.to_owned();
    blocking(move || call(&path).map_err(|error| fault(format!("{what} {path}"), &error))).await
}

async fn two<T: Send + 'static>(
    from: &str,
    to: &str,
    what: &'static str,
    call: impl FnOnce(&str, &str) -> io::Result<T> + Send + 'static,
) -> Result<T, Fault> {
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || call(&from, &to).map_err(|error| fault(format!("{what} {from} as {to}"), &error))).await
}
