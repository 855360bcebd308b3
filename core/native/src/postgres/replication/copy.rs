//! What a connection in replication mode brings beside WAL: the history of a timeline, and all files of a server, by
//! `BASE_BACKUP` as release 15 and later have it (PostgreSQL's manual, "Streaming Replication Protocol").

use std::time::Duration;

use bytes::{Buf, Bytes};
use postgres_protocol::message::frontend;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};

use super::super::session::Said;
use super::{LINK, Replication, said, unexpected};

/// How long the checkpoint at a backup's begin may take, and a look at all files that are to be sent.
const BEGIN_WAIT: Duration = Duration::from_mins(15);

/// How long the server may take for the next message of a backup: it reads its own disk meanwhile.
const COPY_WAIT: Duration = Duration::from_mins(5);

const COPY: &str = "stream the server's files";

/// What a server says of damaged pages, and of a file that is not there.
const DATA_CORRUPTED: &str = "XX001";
const UNDEFINED_FILE: &str = "58P01";

/// What a server is about to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct CopyPlan {
    /// Where replay starts.
    pub start: Lsn,
    /// The timeline that it starts on.
    pub timeline: TimelineId,
    /// Its tablespaces but for the usual ones, which are in the data folder.
    pub tablespaces: Vec<Tablespace>,
    /// About how much it is.
    pub total: ByteCount,
}

/// A tablespace apart from the data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Tablespace {
    /// Its number, by which its link is named.
    pub oid: u32,
    /// Where it lies, as the server says.
    pub location: String,
}

/// What comes next of a server's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Copied {
    /// A new archive: the data folder's, or that of the tablespace of this number.
    Archive(Option<u32>),
    /// Bytes of it.
    Bytes(Bytes),
    /// Nothing of a file.
    Other,
    /// All is sent. The end of the WAL that it needs, and that one's timeline.
    Over(Lsn, TimelineId),
}

type Row = Vec<Option<Bytes>>;

impl Replication {
    /// The history of a timeline; `None` if the server has none.
    ///
    /// # Errors
    /// Faults.
    pub(in super::super) async fn history(&mut self, timeline: TimelineId) -> Result<Option<Bytes>> {
        const STEP: &str = "ask for the history of a timeline";
        let command = format!("TIMELINE_HISTORY {timeline}");
        self.send(|out| frontend::query(&command, out)).await?;
        let (mut row, mut refused) = (None, None);
        loop {
            let (tag, body) = self.answer().await?;
            match tag {
                b'D' => row = columns(&body),
                b'E' => refused = Some(said(&body)),
                b'Z' => break,
                b'T' | b'C' | b'N' | b'S' => {}
                other => return Err(unexpected(STEP, other)),
            }
        }
        match refused {
            Some(said) if said.state == UNDEFINED_FILE => Ok(None),
            Some(said) => Err(Fault::new(FaultKind::Other, STEP, said.to_string()).into()),
            None => {
                let history = row.and_then(|row| row.into_iter().nth(1).flatten());
                history.map(Some).ok_or_else(|| unexpected(STEP, b'D'))
            }
        }
    }

    /// Begins a backup that the server sends whole, with a checkpoint at once. It stands still until it is read, and is over
    /// with the connection.
    ///
    /// # Errors
    /// Faults, and what the server says against it.
    pub(in super::super) async fn base_backup(&mut self, label: &str) -> Result<CopyPlan> {
        // Links of tablespaces are made from the list of them: in an archive long ones do not fit. Whether the WAL is in the
        // archive is ours to wait for. How fast it is read is, too: the server waits until we take what it has sent.
        let command = format!(
            "BASE_BACKUP ( LABEL '{}', PROGRESS true, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP true, \
             VERIFY_CHECKSUMS true, MANIFEST 'no' )",
            label.replace('\'', "''")
        );
        self.send(|out| frontend::query(&command, out)).await?;
        let mut results: Vec<Vec<Row>> = Vec::new();
        loop {
            let (tag, body) = self.message_within(BEGIN_WAIT).await?;
            match tag {
                b'T' => results.push(Vec::new()),
                b'D' => {
                    let row = columns(&body).ok_or_else(|| unexpected(COPY, b'D'))?;
                    results.last_mut().ok_or_else(|| unexpected(COPY, b'D'))?.push(row);
                }
                b'H' => break,
                b'E' => return Err(copy_error(&said(&body))),
                b'C' | b'N' | b'S' => {}
                other => return Err(unexpected(COPY, other)),
            }
        }
        plan(&results).ok_or_else(|| unexpected(COPY, b'T'))
    }

    /// What comes next of it.
    ///
    /// # Errors
    /// `SA007` if the server has found damaged pages, `SA204` if it is gone; faults.
    pub(in super::super) async fn next_copied(&mut self) -> Result<Copied> {
        loop {
            let (tag, mut body) = self.message_within(COPY_WAIT).await?;
            match tag {
                b'd' => return copied(&mut body),
                b'c' => return self.copy_end().await,
                b'E' => return Err(copy_error(&said(&body))),
                // What is no file, folder or known link is left out by the server, with no more than a word.
                b'N' => tracing::warn!(said = %said(&body), "the server has a word on its backup"),
                b'S' => {}
                other => return Err(unexpected(COPY, other)),
            }
        }
    }

    /// After all files: where the backup ends.
    async fn copy_end(&mut self) -> Result<Copied> {
        let mut row = None;
        loop {
            let (tag, body) = self.message_within(BEGIN_WAIT).await?;
            match tag {
                b'D' => row = columns(&body),
                b'E' => return Err(copy_error(&said(&body))),
                b'Z' => break,
                b'T' | b'C' | b'N' | b'S' => {}
                other => return Err(unexpected(COPY, other)),
            }
        }
        let (end, timeline) = row.as_deref().and_then(place).ok_or_else(|| unexpected(COPY, b'D'))?;
        Ok(Copied::Over(end, timeline))
    }

    async fn message_within(&mut self, wait: Duration) -> Result<(u8, Bytes)> {
        let late = |_| Fault::new(FaultKind::TimedOut, LINK, format!("nothing comes for {} s", wait.as_secs()));
        tokio::time::timeout(wait, self.message()).await.map_err(late)?
    }
}

/// What the results say that come before the files: where the backup starts, and its tablespaces.
fn plan(results: &[Vec<Row>]) -> Option<CopyPlan> {
    let [starts, listed] = results else { return None };
    let (start, timeline) = place(starts.first()?)?;
    let (mut tablespaces, mut total) = (Vec::new(), 0_u64);
    for row in listed {
        // In KiB, and none where the server was not asked.
        let size: u64 = word(row, 2).and_then(|size| size.parse().ok()).unwrap_or(0);
        total = total.saturating_add(size.saturating_mul(1024));
        // The data folder itself has no number.
        if let Some(oid) = word(row, 0) {
            tablespaces.push(Tablespace { oid: oid.parse().ok()?, location: word(row, 1)? });
        }
    }
    Some(CopyPlan { start, timeline, tablespaces, total: ByteCount::new(total) })
}

/// A place in the WAL, and its timeline.
fn place(row: &[Option<Bytes>]) -> Option<(Lsn, TimelineId)> {
    Some((word(row, 0)?.parse().ok()?, TimelineId::new(word(row, 1)?.parse().ok()?)))
}

fn word(row: &[Option<Bytes>], column: usize) -> Option<String> {
    String::from_utf8(row.get(column)?.as_ref()?.to_vec()).ok()
}

/// The columns of a row.
fn columns(body: &Bytes) -> Option<Row> {
    let mut body = body.clone();
    let count = body.try_get_u16().ok()?;
    let mut row = Vec::new();
    for _ in 0..count {
        let column = match usize::try_from(body.try_get_i32().ok()?) {
            Ok(length) if length <= body.len() => Some(body.split_to(length)),
            Ok(_) => return None,
            // Null.
            Err(_) => None,
        };
        row.push(column);
    }
    Some(row)
}

/// A message of the copy: what it is, and what it holds.
fn copied(body: &mut Bytes) -> Result<Copied> {
    match body.try_get_u8() {
        Ok(b'd') => Ok(Copied::Bytes(body.clone())),
        Ok(b'n') => {
            // The archive's name, and where its tablespace lies: each ended by a zero.
            let name = body.split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok());
            let stem = name.and_then(|name| name.strip_suffix(".tar"));
            match stem {
                Some("base") => Ok(Copied::Archive(None)),
                Some(oid) => oid.parse().map(|oid| Copied::Archive(Some(oid))).map_err(|_| unexpected(COPY, b'n')),
                None => Err(unexpected(COPY, b'n')),
            }
        }
        // How far it is.
        Ok(b'p') => Ok(Copied::Other),
        // A manifest was not asked for.
        Ok(other) => Err(unexpected(COPY, other)),
        Err(_) => Err(unexpected(COPY, b'd')),
    }
}

fn copy_error(said: &Said) -> Error {
    if said.state == DATA_CORRUPTED {
        return Refusal::new(Code::PageDamaged, format!("the server finds its own files damaged: {said}")).into();
    }
    let kind = if said.is_going() { FaultKind::Unreachable } else { FaultKind::Other };
    Fault::new(kind, COPY, said.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[Option<&str>]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            match column {
                Some(text) => {
                    body.extend_from_slice(&i32::try_from(text.len()).unwrap().to_be_bytes());
                    body.extend_from_slice(text.as_bytes());
                }
                None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
        }
        body
    }

    fn parsed(columns: &[Option<&str>]) -> Row {
        super::columns(&Bytes::from(row(columns))).unwrap()
    }

    #[test]
    fn a_row_that_is_cut_short_is_none() {
        let whole = row(&[Some("0/2000028"), None, Some("1")]);
        let read = super::columns(&Bytes::from(whole.clone())).unwrap();
        assert_eq!((word(&read, 0), word(&read, 1), word(&read, 3)), (Some("0/2000028".to_owned()), None, None));
        for length in 0..whole.len() {
            assert_eq!(super::columns(&Bytes::from(whole[..length].to_vec())), None, "{length} bytes");
        }
    }

    #[test]
    fn what_comes_before_the_files_is_understood_or_nothing_is_taken() {
        let start = vec![parsed(&[Some("0/2000028"), Some("3")])];
        let listed = vec![parsed(&[Some("16400"), Some("/srv/fast"), Some("7")]), parsed(&[None, None, Some("100")])];
        let read = plan(&[start.clone(), listed.clone()]).unwrap();
        let expected = CopyPlan {
            start: Lsn::new(0x200_0028),
            timeline: TimelineId::new(3),
            tablespaces: vec![Tablespace { oid: 16400, location: "/srv/fast".to_owned() }],
            total: ByteCount::new(107 * 1024),
        };
        assert_eq!(read, expected);
        let strange = vec![parsed(&[Some("-1"), Some("/srv/fast"), None])];
        for bad in [
            vec![],
            vec![start.clone()],
            vec![vec![], listed.clone()],
            vec![listed, start.clone()],
            vec![start, strange],
        ] {
            assert_eq!(plan(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn each_message_of_a_copy_is_told_by_its_first_byte() {
        let read = |bytes: &'static [u8]| copied(&mut Bytes::from_static(bytes));
        assert_eq!(read(b"nbase.tar\0\0").unwrap(), Copied::Archive(None));
        assert_eq!(read(b"n16400.tar\0/srv/fast\0").unwrap(), Copied::Archive(Some(16400)));
        assert_eq!(read(b"dbytes").unwrap(), Copied::Bytes(Bytes::from_static(b"bytes")));
        assert_eq!(read(b"p\0\0\0\0\0\0\0\x07").unwrap(), Copied::Other);
        for bad in [&b""[..], b"n", b"n../etc.tar\0", b"nbase.tar.gz\0", b"m", b"x"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn damage_that_the_server_finds_is_told_from_its_end() {
        let error = |state: &str| copy_error(&Said { state: state.to_owned(), message: "no".to_owned() });
        assert_eq!(error("XX001").refusal().map(|refusal| refusal.code), Some(Code::PageDamaged));
        assert!(error("57P01").is(FaultKind::Unreachable));
        assert!(error("42601").is(FaultKind::Other));
    }
}
