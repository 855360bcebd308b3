//! WAL delivered to a server while it recovers, where it is more than may lie in its folder at once.
//!
//! Segments are proven and laid ready in a folder beside the server's, a few ahead of it. Its `restore_command` is
//! `sheetanchor wal fetch %f %p`, which asks over a socket in the data folder for the segment that the server wants next, and
//! takes it over by renaming it ([`fetch`](super::fetch())). The server takes an ordinary failure of that command for the end of
//! WAL: so it is told `none` only of what the plan does not hold. If anything fails here the socket goes, and the command
//! ends so that recovery stops.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::fetch::{HERE, NONE, SOCKET, SPOOL};
use super::install::Account;
use super::wal::Place;
use super::wal_out::WalOut;
use crate::faults::{blocking, fault};

/// How many segments lie ready, at most.
const READY_MAX: usize = 4;

/// How long whoever asks may take to say what for.
const QUESTION_WAIT: Duration = Duration::from_secs(10);

/// Bytes in the longest question.
const QUESTION_BYTES_MAX: u64 = 128;

/// Bytes in the longest path of a Unix socket.
const SOCKET_PATH_MAX: usize = 107;

/// How archived WAL comes to a server that recovers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WalBack {
    /// All of it is put into the server's folder before it starts.
    #[default]
    Placed,
    /// So much of it is; the rest is fetched by the server, segment by segment, while it recovers.
    Fetched {
        /// What may be put there beforehand; and after how much WAL the server makes a restartpoint, which frees what it has
        /// replayed.
        beyond: ByteCount,
        /// The path of the program that does `wal fetch`.
        program: String,
    },
}

/// The `restore_command` of a server whose WAL is delivered. Whatever but a plain yes or no happens to the program, and were
/// it that there is none, recovery stops: above 125 a status is no end of WAL.
pub(super) fn restore_command(program: &str) -> String {
    let program = program.replace('\'', "'\\''").replace('%', "%%");
    format!("'{program}' wal fetch '%f' '%p'; case $? in 0) exit 0;; 1) exit 1;; *) exit 200;; esac")
}

/// The delivery to one server.
pub(super) struct Delivery {
    data: String,
    account: Option<Account>,
    listener: UnixListener,
    shelf: Mutex<Shelf>,
    /// A segment was laid ready.
    came: Notify,
    /// One was taken.
    taken: Notify,
}

struct Shelf {
    /// What lies ready, in order.
    ready: VecDeque<Place>,
    /// The segment that was not delivered yet; all before it are in the server's folder.
    next: Place,
    /// The end of the last segment.
    until: Lsn,
}

impl Delivery {
    /// Opens the socket in `data`, for `account` if that is not us. What was left there of an earlier delivery goes. Segments
    /// from that of `next` on, up to `until`, will be delivered.
    ///
    /// # Errors
    /// `SA101` if the folder's path is too long for a socket, and faults.
    pub(super) async fn open(data: &str, account: Option<Account>, next: Place, until: Lsn) -> Result<Self> {
        let socket = format!("{data}/{SOCKET}");
        if socket.len() > SOCKET_PATH_MAX {
            let message = format!("the path {data} is too long: {SOCKET} in it must fit into {SOCKET_PATH_MAX} bytes");
            return Err(Refusal::new(Code::ConfigInvalid, message).into());
        }
        let folder = data.to_owned();
        let listener = blocking(move || {
            let opened = remove(&folder).and_then(|()| open(&folder, &socket, account));
            opened.map_err(|error| fault(format!("open {socket}"), &error))
        })
        .await?;
        let listener = UnixListener::from_std(listener).map_err(|error| fault(format!("listen in {data}"), &error))?;
        let shelf = Mutex::new(Shelf { ready: VecDeque::new(), next, until });
        Ok(Self { data: data.to_owned(), account, listener, shelf, came: Notify::new(), taken: Notify::new() })
    }

    /// Delivers `wal`, until dropped; answers what stands against that.
    pub(super) async fn run(&self, wal: Option<WalOut<'_>>) -> Error {
        tokio::select! {
            biased;
            error = self.fill(wal) => error,
            error = self.answer() => error,
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays segments ready as long as there is room.
    async fn fill(&self, wal: Option<WalOut<'_>>) -> Error {
        let Some(mut wal) = wal else { return std::future::pending().await };
        while let Some(place) = wal.next() {
            while self.shelf().ready.len() >= READY_MAX {
                self.taken.notified().await;
            }
            let path = format!("{}/{SPOOL}/{}", self.data, place.file_name());
            if let Err(error) = wal.segment(Some(path.clone())).await {
                return error;
            }
            if let Some(account) = self.account
                && let Err(error) = lchown(&path, Some(account.uid), Some(account.gid))
            {
                return fault(format!("hand {path} over"), &error).into();
            }
            self.shelf().ready.push_back(place);
            self.came.notify_one();
        }
        std::future::pending().await
    }

    /// Answers one question after the other: a server asks one at a time.
    async fn answer(&self) -> Error {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = self.converse(stream).await {
                        return error;
                    }
                }
                Err(error) => return fault(format!("listen in {}", self.data), &error).into(),
            }
        }
    }

    /// Whoever goes away in the middle of it has no answer, and is no trouble of ours.
    async fn converse(&self, stream: UnixStream) -> Result<()> {
        let (question, mut out) = stream.into_split();
        let mut name = String::new();
        let reading = tokio::time::timeout(QUESTION_WAIT, async {
            BufReader::new(question.take(QUESTION_BYTES_MAX)).read_line(&mut name).await
        });
        if !matches!(reading.await, Ok(Ok(_))) {
            return Ok(());
        }
        let answer = if self.deliver(name.trim_end()).await? { HERE } else { NONE };
        tracing::debug!(data = self.data, segment = name.trim_end(), answer, "a server asked for WAL");
        drop(tokio::time::timeout(QUESTION_WAIT, out.write_all(format!("{answer}\n").as_bytes())).await);
        Ok(())
    }

    /// Whether the segment of that name is one to be delivered; if so, returns once it lies ready. A server that begins with
    /// a later one (that of its checkpoint) comes back to those before it: they are put into its folder.
    async fn deliver(&self, name: &str) -> Result<bool> {
        loop {
            let first = {
                let mut held = self.shelf();
                let Some(wanted) = held.find(name) else { return Ok(false) };
                let first = held.ready.pop_front();
                if let Some(first) = first {
                    held.next.start = first.size.end(first.start);
                }
                first.map(|first| (first, first.start == wanted))
            };
            match first {
                Some((_, true)) => {
                    self.taken.notify_one();
                    return Ok(true);
                }
                Some((first, false)) => {
                    self.put(&first).await?;
                    self.taken.notify_one();
                }
                None => self.came.notified().await,
            }
        }
    }

    /// Puts what lies ready into the server's folder.
    async fn put(&self, place: &Place) -> Result<()> {
        let name = place.file_name();
        let (from, to) = (format!("{}/{SPOOL}/{name}", self.data), format!("{}/pg_wal/{name}", self.data));
        let folder = format!("{}/pg_wal", self.data);
        let put = move || {
            // The server does not sync it: what it fetches it does, and what was there when it began.
            let taken = super::fetch::take_over(&from, &to);
            let done = taken.and_then(|()| File::open(&to)?.sync_all()).and_then(|()| File::open(folder)?.sync_all());
            done.map_err(|error| fault(format!("put {to} there"), &error))
        };
        Ok(blocking(put).await?)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // What cannot be removed here goes once the folder is opened.
        drop(remove(&self.data));
    }
}

impl Shelf {
    /// The start of the segment of that name, if it is one that is still to be delivered.
    fn find(&self, name: &str) -> Option<Lsn> {
        let mut place = self.next;
        while place.start < self.until {
            if place.file_name() == name {
                return Some(place.start);
            }
            place.start = place.size.end(place.start);
        }
        None
    }
}

fn open(data: &str, socket: &str, account: Option<Account>) -> io::Result<std::os::unix::net::UnixListener> {
    let spool = format!("{data}/{SPOOL}");
    fs::DirBuilder::new().mode(0o700).create(&spool)?;
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    if let Some(account) = account {
        for path in [spool.as_str(), socket] {
            lchown(path, Some(account.uid), Some(account.gid))?;
        }
    }
    Ok(listener)
}

/// Removes from `data` what a delivery leaves there.
///
/// # Errors
/// The system's.
pub(super) fn remove(data: &str) -> io::Result<()> {
    let absent = |outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    };
    absent(fs::remove_file(format!("{data}/{SOCKET}")))?;
    absent(fs::remove_dir_all(format!("{data}/{SPOOL}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// As a server does it: letters after a percent sign stand for something, a doubled one is one.
    fn status(command: &str) -> Option<i32> {
        let line = command.replace("%f", "segment").replace("%p", "pg_wal/RECOVERYXLOG").replace("%%", "%");
        Command::new("sh").args(["-c", &line]).status().unwrap().code()
    }

    #[test]
    fn nothing_but_a_plain_no_ends_the_wal() {
        let folder = std::env::temp_dir().join(format!("it's 100% sheetanchor-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("program");
        let command = restore_command(program.to_str().unwrap());
        assert_eq!(status(&command), Some(200), "no such program");
        for (line, expected) in [
            ("[ \"$*\" = 'wal fetch segment pg_wal/RECOVERYXLOG' ]", 0),
            ("exit 1", 1),
            ("exit 2", 200),
            ("exit 101", 200),
            ("exit 200", 200),
            ("kill -KILL $$", 200),
        ] {
            fs::write(&program, format!("#!/bin/sh\n{line}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            assert_eq!(status(&command), Some(expected), "{line}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
