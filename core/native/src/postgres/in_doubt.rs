//! What is prepared at the cut that recovery has reached: which transactions, what archived WAL says of them, and how they
//! end.
//!
//! A server shows what is prepared only once it is promoted, and ends it only then. So recovery promotes it at the cut, with
//! nobody let in, lists what is prepared in a file beside the marker, and stops it: the list is there whoever dies. Once all
//! is decided, the server runs again behind its private socket, and each transaction is ended in the database that it
//! belongs to. An opened server has nothing left to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::lchown;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::in_doubt::{Fate, Held, Trace};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Search, WalSource};

use super::control::Control;
use super::database::PostgresDatabase;
use super::install::Account;
use super::look::end_of_wal;
use super::marker::{Restored, write_synced};
use super::postmaster::{Postmaster, StopMode};
use super::recovery::{closed_session, superuser_session};
use super::session::{QUERY_WAIT, Session};
use super::wal::{Place, SegmentSize, ancestors};
use super::wal_reader::{Event, Noted, Outcome, Reader, Version};
use crate::faults::{blocking, fault};

/// The list's name in the data folder.
pub(super) const LIST: &str = "sheetanchor.prepared";

/// What the server says of a prepared transaction that is not there any more.
const NO_SUCH: &str = "42704";

/// A transaction that is prepared here, and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prepared {
    transaction: u32,
    /// As the server keeps it: in the encoding of whichever database.
    gid: Vec<u8>,
    /// Where it was prepared: it ends only there.
    database: String,
}

impl Prepared {
    /// The gid as [`wal_reader`](super::wal_reader) shows it, too.
    fn gid(&self) -> String {
        String::from_utf8_lossy(&self.gid).into_owned()
    }

    fn line(&self) -> String {
        format!("{} {} {}\n", self.transaction, hex(&self.gid), hex(self.database.as_bytes()))
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let transaction = words.next()?.parse().ok()?;
        let (gid, database) = (unhex(words.next()?)?, unhex(words.next()?)?);
        Some(Self { transaction, gid, database: String::from_utf8(database).ok()? })
    }
}

fn hex(bytes: &[u8]) -> String {
    marked_hex(bytes, "")
}

/// Two digits a byte, with `mark` before each.
fn marked_hex(bytes: &[u8], mark: &str) -> String {
    let mut text = String::new();
    for byte in bytes {
        text.extend([mark, &format!("{byte:02x}")]);
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at.checked_add(2)?)?, 16).ok()).collect()
}

/// What is prepared at a cut, as the file beside the marker says. It names its cut: that of another restore does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    record: String,
    until: Lsn,
    prepared: Vec<Prepared>,
}

impl List {
    fn of(restored: &Restored, prepared: Vec<Prepared>) -> Self {
        Self { record: restored.record.clone(), until: restored.until, prepared }
    }

    /// The list of the folder `data` at the cut of `restored`, if recovery has come so far.
    fn read(data: &str, restored: &Restored) -> Result<Option<Self>> {
        let path = format!("{data}/{LIST}");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(format!("read {path}"), &error).into()),
        };
        match Self::parse(&text) {
            Some(list) if (&list.record, list.until) == (&restored.record, restored.until) => Ok(Some(list)),
            Some(_) => Ok(None),
            None => Err(Refusal::new(Code::RecoveryFailed, format!("{path} is not understood")).into()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (record, until) = (lines.next()?.to_owned(), lines.next()?.parse().ok()?);
        let list = Self { record, until, prepared: lines.map(Prepared::parse).collect::<Option<_>>()? };
        (list.text() == text).then_some(list)
    }

    fn text(&self) -> String {
        let lines: String = self.prepared.iter().map(Prepared::line).collect();
        format!("{}\n{}\n{lines}", self.record, self.until)
    }

    /// Writes it, durably, for `account` if that is not us.
    async fn write(self, data: &str, account: Option<Account>) -> Result<()> {
        let data = data.to_owned();
        let write = move || self.put(&data, account).map_err(|error| fault(format!("write {data}/{LIST}"), &error));
        Ok(blocking(write).await?)
    }

    fn put(&self, data: &str, account: Option<Account>) -> io::Result<()> {
        let (path, new) = (format!("{data}/{LIST}"), format!("{data}/{LIST}.new"));
        write_synced(&new, &self.text())?;
        if let Some(Account { uid, gid }) = account {
            lchown(&new, Some(uid), Some(gid))?;
        }
        fs::rename(new, path)?;
        File::open(data)?.sync_all()
    }
}

/// What is prepared in the folder `data` at the cut of `restored`; `None` if recovery has not come so far.
///
/// # Errors
/// `SA408` if the list is not understood, and faults.
pub(super) fn listed(data: &str, restored: &Restored) -> Result<Option<Vec<Held>>> {
    let list = List::read(data, restored)?.filter(|_| restored.reached);
    let held = |prepared: Prepared| Held { gid: prepared.gid(), transaction: prepared.transaction.to_string() };
    Ok(list.map(|list| list.prepared.into_iter().map(held).collect()))
}

/// Lists what is prepared in a folder that was promoted at its cut, and stops its server. Repeating it lists nothing anew.
///
/// # Errors
/// `SA403` if the folder was not promoted at its cut, `SA408` if its server ends, and faults.
pub(super) async fn note(database: &PostgresDatabase, restored: &Restored) -> Result<()> {
    let data = database.data();
    if List::read(data, restored)?.is_none() {
        let session = closed_session(database, restored).await?;
        prove_branch(&session, data, restored).await?;
        let prepared = look(&session).await?;
        if !prepared.is_empty() {
            tracing::info!(data, count = prepared.len(), "transactions are prepared at the cut");
        }
        List::of(restored, prepared).write(data, database.account().await?).await?;
    }
    match Postmaster::of(data)? {
        Some(postmaster) => postmaster.stop(StopMode::Fast).await,
        None => Ok(()),
    }
}

/// The new timeline must have left the cut's own exactly at the cut.
async fn prove_branch(session: &Session, data: &str, restored: &Restored) -> Result<()> {
    let (writes, _) = end_of_wal(session).await?;
    let folder = data.to_owned();
    let ancestors = blocking(move || Ok(ancestors(&folder, writes))).await??;
    if ancestors.last() == Some(&(restored.timeline, restored.until)) {
        return Ok(());
    }
    let left = ancestors.last().map_or_else(|| "nowhere".to_owned(), |(timeline, at)| format!("{at} of {timeline}"));
    let message = format!("{data} was promoted to timeline {writes} at {left}, not at {}", restored.until);
    Err(Refusal::new(Code::CutMissed, message).into())
}

/// What the server holds prepared, in all its databases, in the order of their numbers.
async fn look(session: &Session) -> Result<Vec<Prepared>> {
    // The bytes of a gid are in the encoding of the database that it was given in, so they are not to be converted: only a
    // backslash needs care on the way to bytes.
    let sql = "SELECT transaction::text, encode(replace(gid, chr(92), repeat(chr(92), 2))::bytea, 'hex'), database::text \
        FROM pg_prepared_xacts";
    let mut prepared = Vec::new();
    for row in session.rows(sql, &[]).await? {
        let gid = row.text(1)?;
        let gid = unhex(&gid)
            .ok_or_else(|| Fault::new(FaultKind::Other, "read what is prepared", format!("`{gid}` spells no bytes")))?;
        prepared.push(Prepared { transaction: row.parsed(0)?, gid, database: row.text(2)? });
    }
    prepared.sort();
    Ok(prepared)
}

/// Ends what was decided, each transaction in its own database.
///
/// # Errors
/// `SA209` if nothing was recovered in the folder; faults, and whatever the server says against it.
pub(super) async fn resolve(database: &PostgresDatabase, fates: &[(String, Fate)]) -> Result<()> {
    let data = database.data();
    let restored = Restored::read(data)?;
    let list = restored.as_ref().map(|restored| List::read(data, restored)).transpose()?.flatten();
    let (Some(restored), Some(list)) = (restored, list) else {
        return Err(Refusal::new(Code::OutOfOrder, format!("nothing was recovered in {data}")).into());
    };
    let fates: BTreeMap<&str, Fate> = fates.iter().map(|(gid, fate)| (gid.as_str(), *fate)).collect();
    let fate_of = |prepared: &Prepared| fates.get(prepared.gid().as_str()).copied();
    let (ending, left): (Vec<Prepared>, Vec<Prepared>) =
        list.prepared.into_iter().partition(|prepared| fate_of(prepared).is_some());
    let databases: BTreeSet<&str> = ending.iter().map(|prepared| prepared.database.as_str()).collect();
    for name in databases {
        // Starts the server if it does not run, and waits until it answers.
        drop(closed_session(database, &restored).await?);
        let session = superuser_session(database, Some(name)).await?;
        session.command(QUERY_WAIT, "SET statement_timeout = 0; SET lock_timeout = 0").await?;
        for prepared in ending.iter().filter(|prepared| prepared.database == name) {
            if let Some(fate) = fate_of(prepared) {
                end(&session, prepared, fate).await?;
            }
        }
    }
    if ending.is_empty() {
        return Ok(());
    }
    List::of(&restored, left).write(data, database.account().await?).await
}

/// Commits or rolls back one transaction, durably.
async fn end(session: &Session, prepared: &Prepared, fate: Fate) -> Result<()> {
    let command = match fate {
        Fate::Committed => "COMMIT PREPARED",
        Fate::RolledBack => "ROLLBACK PREPARED",
    };
    // Byte by byte: no quoting, and no encoding but the database's own.
    let gid = marked_hex(&prepared.gid, "\\x");
    match session.run(QUERY_WAIT, &format!("{command} E'{gid}'")).await? {
        Ok(()) => {
            tracing::info!(gid = prepared.gid(), database = prepared.database, ?fate, "ended");
            Ok(())
        }
        // An earlier call was cut off after it.
        Err(said) if said.state == NO_SUCH => Ok(()),
        Err(said) => {
            let operation = format!("{command} `{}` in {}", prepared.gid(), prepared.database);
            Err(Fault::new(FaultKind::Other, operation, said.to_string()).into())
        }
    }
}

/// What archived WAL says of some prepared transactions.
///
/// # Errors
/// As [`Database::search`](sheetanchor_engine::database::Database::search).
pub(super) async fn search(database: &PostgresDatabase, search: &Search, wal: &dyn WalSource) -> Result<Vec<Trace>> {
    let control = Control::read(&database.install().await?, database.data()).await?;
    let version = database.major()?.and_then(|major| Version::of_major(major.parse().ok()?));
    let Some(version) = version else {
        let message = format!("the WAL of {} is of an unknown release", database.data());
        return Err(Refusal::new(Code::NotSupported, message).into());
    };
    let size = SegmentSize::new(control.segment_bytes)?;
    let (thread, span) = (search.thread, search.span);
    let place = |at: Lsn| Place { system: control.system, size, timeline: span.timeline, start: size.start(at) };
    let mut reader = Reader::at_record(place(span.from).origin(), version, span.from);
    let mut tracer = Tracer::new(search.gids.clone());
    while reader.next() < span.until {
        let at = Position { thread, timeline: span.timeline, lsn: reader.next() };
        let piece = wal.piece(at).await?.filter(|piece| piece.from == at && !piece.bytes.is_empty());
        let Some(piece) = piece else {
            let message = format!("the WAL of thread {thread} ends at {}, before {}", at.lsn, span.until);
            return Err(Refusal::new(Code::WalDamaged, message).into());
        };
        // What lies beyond the cut has no effect.
        let wanted = usize::try_from(span.until.get().saturating_sub(at.lsn.get())).unwrap_or(usize::MAX);
        let segment = place(at.lsn);
        let fed = move || {
            let bytes = piece.bytes.get(..wanted).unwrap_or(&piece.bytes);
            let fed = reader.feed(bytes, &mut |noted| tracer.see(&noted));
            Ok(fed.map(|()| (reader, tracer)).map_err(|broken| segment.damaged(&broken)))
        };
        (reader, tracer) = blocking(fed).await??;
    }
    Ok(tracer.traces)
}

/// Picks out of WAL what it says of some gids.
struct Tracer {
    gids: BTreeSet<String>,
    /// What was met as prepared and not yet as ended, by the server's numbers: most ends name no gid.
    prepared: BTreeMap<u32, String>,
    traces: Vec<Trace>,
}

impl Tracer {
    fn new(gids: BTreeSet<String>) -> Self {
        Self { gids, prepared: BTreeMap::new(), traces: Vec::new() }
    }

    fn see(&mut self, noted: &Noted) {
        match &noted.event {
            Event::Prepared { transaction, gid, .. } => {
                self.prepared.insert(*transaction, gid.clone());
                self.add(noted.start, Some(gid.clone()), *transaction, None);
            }
            Event::Ended { transaction, outcome, prepared: true, gid, .. } => {
                let known = self.prepared.remove(transaction);
                let fate = match outcome {
                    Outcome::Committed => Fate::Committed,
                    Outcome::Aborted => Fate::RolledBack,
                };
                self.add(noted.start, gid.clone().or(known), *transaction, Some(fate));
            }
            Event::Ended { .. }
            | Event::RestorePoint { .. }
            | Event::Checkpoint { .. }
            | Event::EndOfRecovery { .. }
            | Event::Switch
            | Event::GivenUp { .. } => {}
        }
    }

    fn add(&mut self, at: Lsn, gid: Option<String>, transaction: u32, fate: Option<Fate>) {
        if gid.as_ref().is_none_or(|gid| self.gids.contains(gid)) {
            self.traces.push(Trace { at, gid, transaction: transaction.to_string(), fate });
        }
    }
}

/// The refusal of what is declared and cannot be.
pub(super) fn cannot_prepare(node: impl std::fmt::Display) -> Error {
    let message =
        format!("two_phase is declared, and max_prepared_transactions of node {node} is 0: nothing can be prepared");
    Refusal::new(Code::ConfigInvalid, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_and_a_strange_one_does_not() {
        let prepared = Prepared { transaction: 742, gid: b"caf\xe9 \\".to_vec(), database: "po st".to_owned() };
        assert_eq!((prepared.gid(), marked_hex(&prepared.gid, "\\x").len()), ("caf\u{fffd} \\".to_owned(), 24));
        let none = Prepared { transaction: 743, gid: Vec::new(), database: String::new() };
        let list =
            List { record: "sa-1".to_owned(), until: "0/30044A0".parse().unwrap(), prepared: vec![prepared, none] };
        let text = list.text();
        assert_eq!(List::parse(&text), Some(list));
        let cut = &text[..text.len() - 3];
        for bad in ["", "sa-1\n", cut, &text.replace("742", "-1"), &text.replace("e9", "E9"), &format!("{text}\n")] {
            assert_eq!(List::parse(bad), None, "{bad}");
        }
    }
}
