//! Recovery of a staged data folder to a named restore point, and its opening.
//!
//! While it recovers, and until it is opened, the server listens on one Unix socket inside its own data folder, which
//! only its account may enter, with an access file of ours; it archives nothing. All of that is said on its command line,
//! so that no configuration file has to be changed, and changed back. A server that an operator starts there by hand
//! finds `recovery.signal` without a `restore_command`, and refuses.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;
use std::time::{Duration, Instant};

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, ThreadId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{Recovery, WalSource};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::control::Control;
use super::database::{PostgresDatabase, same_folder};
use super::delivery::{self, Delivery, WalBack, restore_command};
use super::files::TABLESPACES;
use super::in_doubt;
use super::install::Account;
use super::marker::{MARKER, Restored, write_synced};
use super::postmaster::{Launch, POLL, Postmaster, Started, StopMode, last_words};
use super::session::Session;
use super::target::Target;
use super::wal::{Place, SegmentSize};
use super::wal_out::{OwnRange, WalOut, make_folder};
use crate::faults::{blocking, fault};

/// Who may connect before the folder is opened.
const ACCESS: &str = "sheetanchor.hba";

const SIGNAL: &str = "recovery.signal";

/// The port in the private socket's name. Nobody else has a socket in that folder.
const PRIVATE_PORT: u16 = 5432;

/// Bytes in the longest path of a Unix socket.
const SOCKET_PATH_MAX: usize = 107;

/// How long a recovery may show no progress.
const PATIENCE: Duration = Duration::from_hours(1);

/// How long promotion, and the checkpoint after it, may take.
const PROMOTE_WAIT: Duration = Duration::from_mins(15);

/// How long an opened server may take to answer.
const OPEN_WAIT: Duration = Duration::from_mins(5);

/// Whether recovery has yet to come to its end: promotion takes this file away.
fn is_to_recover(data: &str) -> bool {
    Path::new(&format!("{data}/{SIGNAL}")).exists()
}

/// Whether `postmaster` is a server that recovers, or has recovered, and is not open.
pub(super) fn is_private(postmaster: &Postmaster, data: &str) -> Result<bool> {
    match postmaster.socket_folder() {
        Some(folder) => Ok(same_folder(folder, data)),
        // It is starting.
        None => Ok(Restored::read(data)?.is_some()),
    }
}

/// How to connect to the server in `data` before it is opened: as `target` says, but for the place.
pub(super) fn private_target(target: &Target, data: &str) -> Target {
    let mut private = Config::new();
    private.host_path(data).port(PRIVATE_PORT);
    if let Some(user) = target.config().get_user() {
        private.user(user);
    }
    if let Some(name) = target.config().get_dbname() {
        private.dbname(name);
    }
    Target::over_socket(private)
}

/// A session with that server as a superuser, in one of its databases if that is named: what others have prepared is ended by
/// nobody else, and the cut may lie before whatever was granted. Whoever gets through to the socket may be any role there.
///
/// # Errors
/// `SA408` if the server has no superuser who may log in; `SA112`, and faults.
pub(super) async fn superuser_session(database: &PostgresDatabase, name: Option<&str>) -> Result<Session> {
    let target = private_target(database.target(), database.data());
    let target = name.map_or_else(|| target.clone(), |name| target.clone().in_database(name));
    let session = Session::open(&target).await?;
    if session.facts().superuser {
        return Ok(session);
    }
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1";
    let Some(role) = session.rows(sql, &[]).await?.into_iter().next() else {
        let message = format!("the server of {} has no superuser who may log in", database.data());
        return Err(Refusal::new(Code::RecoveryFailed, message).into());
    };
    Session::open(&target.of_role(&role.text(0)?)).await
}

/// Recovers the files staged in the data folder of `database`, promotes what has come to the cut, and lists what is
/// prepared there. Afterwards no server runs.
///
/// # Errors
/// As [`Database::recover`](sheetanchor_engine::database::Database::recover).
pub(super) async fn recover(database: &PostgresDatabase, recovery: &Recovery, wal: &dyn WalSource) -> Result<()> {
    let data = database.data();
    let range = range_of(database, recovery)?;
    let wanted =
        Restored { record: recovery.record.clone(), timeline: range.timeline, until: range.until, reached: false };
    let marker = Restored::read(data)?;
    if let Some(other) = marker.as_ref().filter(|marker| !marker.is_same_cut(&wanted)) {
        let (stands, asked) =
            (format!("{} of {}", other.until, other.record), format!("{} of {}", range.until, recovery.record));
        return Err(Refusal::new(Code::OutOfOrder, format!("{data} is at {stands}, not {asked}")).into());
    }
    let mut again = false;
    if let Some(marker) = marker.as_ref().filter(|_| !is_to_recover(data)) {
        if !marker.reached {
            return Err(opened_itself(database, &wanted));
        }
        again = is_half_promoted(database, &range, marker).await?;
        if !again {
            return in_doubt::note(database, marker).await;
        }
        tracing::warn!(data, "the machine failed while the server was promoted: it recovers to its cut once more");
    }
    let stands = marker.as_ref().is_some_and(|marker| marker.reached);
    let (child, wanted, delivery) = match private_server(database, &range, stands).await? {
        // Perhaps it is just being promoted.
        Some(_) => {
            let delivery = if is_fetched(database, &range) { Some(nothing(database, &range).await?) } else { None };
            (None, marker.unwrap_or(wanted), delivery.map(|delivery| (delivery, None)))
        }
        None if marker.is_some() && !again && !is_to_recover(data) => return Err(opened_itself(database, &wanted)),
        None => {
            let delivery = stage(database, &range, &wanted, marker.is_some(), wal).await?;
            let child = start(database, &wanted, delivery.is_some()).await?;
            (Some(child), wanted, delivery.map(|(delivery, rest)| (delivery, Some(rest))))
        }
    };
    let reached = Restored { reached: true, ..wanted.clone() };
    let reaching = async {
        wait_reached(database, &range, &wanted, child, wal).await?;
        promote(database, &reached).await
    };
    match delivery {
        None => reaching.await?,
        Some((delivery, wal)) => tokio::select! {
            biased;
            error = delivery.run(wal) => {
                database.stop_server(StopMode::Immediate).await?;
                return Err(error);
            }
            outcome = reaching => outcome?,
        },
    }
    in_doubt::note(database, &reached).await
}

/// Whether the machine failed in the midst of promotion: the signal is gone, and the checkpoint that ends recovery was not
/// made. A server that is started there would read the WAL in its folder up to wherever that ends, which power may have taken
/// away in part, and end on the timeline of the cut.
async fn is_half_promoted(database: &PostgresDatabase, range: &OwnRange, marker: &Restored) -> Result<bool> {
    let data = database.data();
    if in_doubt::listed(data, marker)?.is_some() || Postmaster::of(data)?.is_some() {
        return Ok(false);
    }
    let control = Control::read(&database.install().await?, data).await?;
    Ok(control.in_recovery && control.timeline == range.timeline)
}

/// Whether more WAL is replayed than is put into the folder.
fn is_fetched(database: &PostgresDatabase, range: &OwnRange) -> bool {
    let all = range.proof.bytes_since(range.start).unwrap_or_default();
    matches!(database.wal_back(), WalBack::Fetched { beyond, .. } if all > beyond.get())
}

/// The server that recovers the folder already, if one goes on with that by itself. One that WAL is delivered to does not
/// without the agent that began it, unless it `stands` at its cut: it is ended.
async fn private_server(database: &PostgresDatabase, range: &OwnRange, stands: bool) -> Result<Option<Postmaster>> {
    let data = database.data();
    let Some(postmaster) = Postmaster::of(data)? else { return Ok(None) };
    if !is_private(&postmaster, data)? {
        return Err(Refusal::new(Code::OutOfOrder, format!("a server runs in {data}")).into());
    }
    if stands || !is_fetched(database, range) {
        return Ok(Some(postmaster));
    }
    database.stop_server(StopMode::Immediate).await?;
    Ok(None)
}

/// The delivery to a server that has all: it asks once more when it is promoted.
async fn nothing(database: &PostgresDatabase, range: &OwnRange) -> Result<Delivery> {
    let (install, account) = (database.install().await?, database.account().await?);
    let control = Control::read(&install, database.data()).await?;
    let size = SegmentSize::new(control.segment_bytes)?;
    let end =
        Place { system: control.system, size, timeline: range.timeline, start: size.end(size.start(range.proof)) };
    Delivery::open(database.data(), account, end, range.proof).await
}

/// A session with the server of a folder that was promoted at its cut, which is started behind its private socket if it
/// does not run.
///
/// # Errors
/// `SA408` if it ends, and faults.
pub(super) async fn closed_session(database: &PostgresDatabase, restored: &Restored) -> Result<Session> {
    let data = database.data();
    let mut child = match Postmaster::of(data)? {
        Some(postmaster) if is_private(&postmaster, data)? => None,
        Some(_) => return Err(Refusal::new(Code::OutOfOrder, format!("a server runs in {data}")).into()),
        None => Some(start(database, restored, false).await?),
    };
    let (target, begun) = (private_target(database.target(), data), Instant::now());
    loop {
        ensure_running(database, &mut child, restored)?;
        if let Ok(session) = Session::open(&target).await
            && look(&session).await?.is_none_or(|seen| !seen.in_recovery)
        {
            return Ok(session);
        }
        if begun.elapsed() > OPEN_WAIT {
            let cause = format!("no answer within {} s; its log is {}", OPEN_WAIT.as_secs(), database.log());
            return Err(Fault::new(FaultKind::TimedOut, format!("start the server of {data}"), cause).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Opens what [`recover`] has reached; carries on where an earlier call, or the machine, was cut off.
///
/// # Errors
/// `SA209` if nothing was recovered there, `SA403` if it is not at its cut, `SA408` if the server ends.
pub(super) async fn open(database: &PostgresDatabase) -> Result<()> {
    let data = database.data();
    let Some(restored) = Restored::read(data)? else {
        return match Postmaster::of(data)? {
            Some(_) => wait_open(database, None).await,
            None => Err(Refusal::new(Code::OutOfOrder, format!("nothing was recovered in {data}")).into()),
        };
    };
    if in_doubt::listed(data, &restored)?.is_none() {
        let message = format!("{data} has not recovered to {} yet", restored.until);
        return Err(Refusal::new(Code::OutOfOrder, message).into());
    }
    if let Some(postmaster) = Postmaster::of(data)?
        && is_private(&postmaster, data)?
    {
        postmaster.stop(StopMode::Fast).await?;
    }
    let child = match Postmaster::of(data)? {
        Some(_) => None,
        None => Some(start_open(database).await?),
    };
    wait_open(database, child).await?;
    forget(data)
}

fn range_of(database: &PostgresDatabase, recovery: &Recovery) -> Result<OwnRange> {
    let own = recovery.threads.get(&database.thread()).filter(|_| recovery.threads.len() == 1);
    let Some(range) = own else {
        let threads = recovery.threads.keys().map(ThreadId::to_string).collect::<Vec<_>>().join(", ");
        let message = format!("a PostgreSQL node recovers its own thread {}, not {threads}", database.thread());
        return Err(Refusal::new(Code::OutOfOrder, message).into());
    };
    let [span] = range.spans.as_slice() else {
        let message = "recovery through the WAL of two incarnations: it needs a backup of the one that holds the cut";
        return Err(Refusal::new(Code::NotSupported, message).into());
    };
    if recovery.sought {
        let message = "recovery to an SCN: PostgreSQL's records carry none, it reaches restore points only";
        return Err(Refusal::new(Code::NotSupported, message).into());
    }
    if span.from > range.until || range.until > range.proof {
        let message = format!("thread {} starts at {}, after its cut {}", database.thread(), span.from, range.until);
        return Err(Refusal::new(Code::ThreadShort, message).into());
    }
    Ok(OwnRange { timeline: span.timeline, start: span.from, until: range.until, proof: range.proof })
}

/// Makes the staged folder ready for recovery. Answers the delivery of the WAL that does not fit into it.
async fn stage<'a>(
    database: &PostgresDatabase,
    range: &OwnRange,
    wanted: &Restored,
    resumed: bool,
    wal: &'a dyn WalSource,
) -> Result<Option<(Delivery, WalOut<'a>)>> {
    let data = database.data();
    if data.len().saturating_add("/.s.PGSQL.5432".len()) > SOCKET_PATH_MAX {
        let message = format!("the path {data} is too long: a Unix socket in it must fit into {SOCKET_PATH_MAX} bytes");
        return Err(Refusal::new(Code::ConfigInvalid, message).into());
    }
    // Without its label a copy would start at the newest checkpoint, and skip what was changed while it was copied. A
    // recovery that was begun has put it aside.
    if !resumed && !Path::new(&format!("{data}/backup_label")).exists() {
        return Err(Refusal::new(Code::RecoveryFailed, format!("there is no backup_label in {data}")).into());
    }
    let (install, account) = (database.install().await?, database.account().await?);
    let control = Control::read(&install, data).await?;
    let delivery = place_wal(database, &control, range, &wanted.record, wal).await?;
    let (folder, marker) = (data.to_owned(), wanted.clone());
    blocking(move || prepare(&folder, &marker, account).map_err(|error| fault(format!("prepare {folder}"), &error)))
        .await?;
    Ok(delivery)
}

/// Starts the server that recovers a folder which is ready for it; whether WAL is delivered to it.
async fn start(database: &PostgresDatabase, wanted: &Restored, delivered: bool) -> Result<Started> {
    let data = database.data();
    let (install, account) = (database.install().await?, database.account().await?);
    let control = Control::read(&install, data).await?;
    let mut settings = recovery_settings(data, &control, wanted);
    if let WalBack::Fetched { beyond, program } = database.wal_back()
        && delivered
    {
        settings.extend(delivery_settings(&control, *beyond, program));
    }
    Launch { install: &install, account, data, log: database.log(), settings: &settings }.start()
}

/// Puts the segments from the backup's start on into `pg_wal`, again if need be: after a crash, what lies there may be torn.
/// All of them, up to the cut, if they are no more than may lie there; the delivery of the rest, otherwise, and the WAL that
/// it goes on with.
async fn place_wal<'a>(
    database: &PostgresDatabase,
    control: &Control,
    range: &OwnRange,
    record: &str,
    wal: &'a dyn WalSource,
) -> Result<Option<(Delivery, WalOut<'a>)>> {
    let data = database.data();
    let size = SegmentSize::new(control.segment_bytes)?;
    let first = Place { system: control.system, size, timeline: range.timeline, start: size.start(range.start) };
    let mut out = WalOut::new(wal, database.thread(), *range, first, record);
    make_folder(data).map_err(|error| fault(format!("make {data}/pg_wal"), &error))?;
    let (from, until) = match database.wal_back() {
        WalBack::Fetched { beyond, .. }
            if range.proof.bytes_since(first.start).is_some_and(|all| all > beyond.get()) =>
        {
            // A server that has come some way already does not read what lies before.
            let labelled = Path::new(&format!("{data}/backup_label")).exists();
            let from = if labelled { first.start } else { size.start(control.redo).max(first.start) };
            (from, Lsn::new(from.get().saturating_add(beyond.get())))
        }
        WalBack::Placed | WalBack::Fetched { .. } => (first.start, range.proof),
    };
    while let Some(place) = out.next() {
        if place.start >= until {
            let account = database.account().await?;
            return Ok(Some((Delivery::open(data, account, place, range.proof).await?, out)));
        }
        let path = format!("{data}/pg_wal/{}", place.file_name());
        out.segment((place.start >= from).then_some(path)).await?;
    }
    Ok(None)
}

/// Makes a staged folder one that a server takes. The marker comes after the signal: a folder with the marker and without
/// the signal is one that has been promoted.
fn prepare(data: &str, marker: &Restored, account: Option<Account>) -> io::Result<()> {
    let sync = || File::open(data)?.sync_all();
    write_synced(&format!("{data}/{ACCESS}"), "local all all trust\n")?;
    write_synced(&format!("{data}/{SIGNAL}"), "")?;
    sync()?;
    marker.write(data, account)?;
    fs::set_permissions(data, fs::Permissions::from_mode(0o700))?;
    if let Some(account) = account {
        hand_over(Path::new(data), account)?;
    }
    File::open(format!("{data}/pg_wal"))?.sync_all()?;
    sync()
}

/// Gives a folder and all in it to `account`.
fn hand_over(folder: &Path, account: Account) -> io::Result<()> {
    let mut folders = vec![folder.to_path_buf()];
    lchown(folder, Some(account.uid), Some(account.gid))?;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            lchown(entry.path(), Some(account.uid), Some(account.gid))?;
            let is_tablespace = folder.ends_with(TABLESPACES) && entry.file_type()?.is_symlink();
            if is_tablespace {
                let target = fs::canonicalize(entry.path())?;
                lchown(&target, Some(account.uid), Some(account.gid))?;
                fs::set_permissions(&target, fs::Permissions::from_mode(0o700))?;
            }
            if is_tablespace || entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

/// What a recovering server is told, whatever its configuration files say.
fn recovery_settings(data: &str, control: &Control, wanted: &Restored) -> Vec<(&'static str, String)> {
    // Not where the configuration says: a live server may have its own there.
    let external_pid = format!("{data}/sheetanchor.pid");
    let mut settings: Vec<(&'static str, String)> = [
        // The folder's own configuration may name the folder that it was copied from.
        ("data_directory", data),
        ("external_pid_file", &external_pid),
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("unix_socket_group", ""),
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("lc_messages", "C"),
        ("hot_standby", "on"),
        // The usual way opens every file and syncs it, which takes seconds. Those that were staged are synced, and WAL is
        // few files.
        ("recovery_init_sync_method", "syncfs"),
        ("archive_mode", "off"),
        ("autovacuum", "off"),
        ("synchronous_standby_names", ""),
        // Unless WAL is delivered: then what follows here overrides it.
        ("restore_command", "false"),
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("recovery_min_apply_delay", "0"),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("max_logical_replication_workers", "0"),
        ("recovery_target", ""),
        ("recovery_target_lsn", ""),
        ("recovery_target_time", ""),
        ("recovery_target_xid", ""),
        ("recovery_target_action", "pause"),
        ("recovery_target_name", wanted.record.as_str()),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into();
    settings.push(("unix_socket_directories", quoted_folder(data)));
    settings.push(("port", PRIVATE_PORT.to_string()));
    settings.push(("hba_file", format!("{data}/{ACCESS}")));
    // Never `latest`: a later timeline's history may lie in the archive.
    settings.push(("recovery_target_timeline", wanted.timeline.to_string()));
    settings.extend(control.settings.iter().cloned());
    settings
}

/// What a server is told that WAL is delivered to: to fetch it, and to let go of what it has replayed.
fn delivery_settings(control: &Control, beyond: ByteCount, program: &str) -> [(&'static str, String); 4] {
    // The least that a server takes.
    let least = control.segment_bytes.saturating_mul(2);
    let kib = |bytes: u64| format!("{}kB", bytes / 1024);
    [
        ("restore_command", restore_command(program)),
        ("max_wal_size", kib(beyond.get().max(least))),
        ("min_wal_size", kib(least)),
        ("wal_keep_size", "0".to_owned()),
    ]
}

/// A folder as one element of a list of folders.
fn quoted_folder(folder: &str) -> String {
    format!("\"{}\"", folder.replace('"', "\"\""))
}

async fn wait_reached(
    database: &PostgresDatabase,
    range: &OwnRange,
    wanted: &Restored,
    mut child: Option<Started>,
    wal: &dyn WalSource,
) -> Result<()> {
    let target = private_target(database.target(), database.data());
    let mut session: Option<Session> = None;
    let mut progress = (Instant::now(), None);
    loop {
        ensure_running(database, &mut child, wanted)?;
        if session.as_ref().is_none_or(Session::is_closed) {
            session = Session::open(&target).await.ok();
        }
        if let Some(open) = &session {
            match look(open).await {
                Ok(Some(seen)) => {
                    if progress.1 != Some(seen.replayed) {
                        progress = (Instant::now(), Some(seen.replayed));
                        let (thread, timeline) = (database.thread(), range.timeline);
                        wal.replayed(Position { thread, timeline, lsn: seen.replayed });
                    }
                    if seen.paused || !seen.in_recovery {
                        judge(database, wanted, &seen).await?;
                        return mark_reached(database, wanted).await;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "a recovering server did not answer");
                    session = None;
                }
            }
        }
        if progress.0.elapsed() > PATIENCE {
            let cause = format!("no progress for {} s; its log is {}", PATIENCE.as_secs(), database.log());
            return Err(Fault::new(FaultKind::TimedOut, format!("recover {}", database.data()), cause).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What a server that recovers says of itself.
pub(super) struct Seen {
    pub in_recovery: bool,
    pub paused: bool,
    pub replayed: Lsn,
}

/// A look at a server that is not open; `None` if it has replayed nothing yet.
pub(super) async fn look(session: &Session) -> Result<Option<Seen>> {
    let sql = "SELECT pg_is_in_recovery()::text, pg_last_wal_replay_lsn()::text, \
        CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END";
    let row = session.row(sql, &[]).await?;
    let in_recovery = row.text(0)? == "true";
    if row.maybe(1)?.is_none() {
        return Ok(None);
    }
    let paused = row.maybe(2)?.as_deref() == Some("paused");
    Ok(Some(Seen { in_recovery, paused, replayed: row.lsn(1)? }))
}

/// Accepts a recovery that stands exactly at the cut, or that stood there when it was promoted; ends any other.
async fn judge(database: &PostgresDatabase, wanted: &Restored, seen: &Seen) -> Result<()> {
    let stood_there = if seen.in_recovery { seen.replayed == wanted.until } else { wanted.reached };
    if stood_there {
        return Ok(());
    }
    database.stop_server(StopMode::Immediate).await?;
    if !seen.in_recovery {
        return Err(opened_itself(database, wanted));
    }
    let message =
        format!("recovery stopped at {}, not at {}; its log is {}", seen.replayed, wanted.until, database.log());
    Err(Refusal::new(Code::CutMissed, message).into())
}

/// A server that could not let anybody connect when it came to its target has promoted itself instead of waiting.
fn opened_itself(database: &PostgresDatabase, wanted: &Restored) -> Error {
    let seen = format!("{} opened itself on its way to {}", database.data(), wanted.until);
    Refusal::new(Code::CutMissed, format!("{seen}; its log is {}", database.log())).into()
}

/// Notes that recovery stands at the cut, durably.
async fn mark_reached(database: &PostgresDatabase, wanted: &Restored) -> Result<()> {
    let (data, account) = (database.data().to_owned(), database.account().await?);
    let marker = Restored { reached: true, ..wanted.clone() };
    let write = move || {
        let done = marker.write(&data, account).and_then(|()| File::open(&data)?.sync_all());
        done.map_err(|error| fault(format!("write {data}/{MARKER}"), &error))
    };
    Ok(blocking(write).await?)
}

/// Refuses if the server has ended.
fn ensure_running(database: &PostgresDatabase, child: &mut Option<Started>, wanted: &Restored) -> Result<()> {
    let words = match child {
        Some(started) => {
            if !started.has_ended() {
                return Ok(());
            }
            started.last_words()
        }
        // Somebody else started it: an earlier life of this agent.
        None if Postmaster::of(database.data())?.is_some() => return Ok(()),
        None => last_words(database.log(), 0),
    };
    let code = if words.contains("recovery ended before configured recovery target was reached") {
        Code::ThreadShort
    } else {
        Code::RecoveryFailed
    };
    let message = format!(
        "the server in {} ended on its way to {}: {words}; its log is {}",
        database.data(),
        wanted.until,
        database.log()
    );
    Err(Refusal::new(code, message).into())
}

async fn promote(database: &PostgresDatabase, restored: &Restored) -> Result<()> {
    let session = superuser_session(database, None).await?;
    if let Some(seen) = look(&session).await?
        && seen.in_recovery
    {
        if !seen.paused {
            return Err(Refusal::new(Code::OutOfOrder, format!("{} has not recovered yet", database.data())).into());
        }
        judge(database, restored, &seen).await?;
        // What pauses at its target goes on by ending recovery, at once. To `pg_promote` it listens once a second.
        session.row("SELECT pg_wal_replay_resume()::text", &[]).await?;
        wait_promoted(database, &session).await?;
    }
    // From here on a restart is an ordinary one, on the new timeline.
    session.command(PROMOTE_WAIT, "CHECKPOINT").await
}

async fn wait_promoted(database: &PostgresDatabase, session: &Session) -> Result<()> {
    let begun = Instant::now();
    while look(session).await?.is_none_or(|seen| seen.in_recovery) {
        if begun.elapsed() > PROMOTE_WAIT {
            let cause = format!("no end within {} s", PROMOTE_WAIT.as_secs());
            return Err(Fault::new(FaultKind::TimedOut, format!("promote {}", database.data()), cause).into());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Starts the server as its own configuration says, but in this folder and where the node's connection expects it.
async fn start_open(database: &PostgresDatabase) -> Result<Started> {
    let (install, account) = (database.install().await?, database.account().await?);
    let mut settings = vec![("data_directory", database.data().to_owned())];
    if let Some(Host::Unix(folder)) = database.target().config().get_hosts().first() {
        settings.push(("unix_socket_directories", quoted_folder(&folder.display().to_string())));
    }
    if let Some(port) = database.target().config().get_ports().first() {
        settings.push(("port", port.to_string()));
    }
    let launch = Launch { install: &install, account, data: database.data(), log: database.log(), settings: &settings };
    launch.start()
}

async fn wait_open(database: &PostgresDatabase, mut child: Option<Started>) -> Result<()> {
    let start = Instant::now();
    loop {
        if let Some(started) = &mut child
            && started.has_ended()
        {
            let words = started.last_words();
            let message =
                format!("the opened server in {} ended: {words}; its log is {}", database.data(), database.log());
            return Err(Refusal::new(Code::RecoveryFailed, message).into());
        }
        match database.open_session().await {
            Ok(session) => {
                if session.row("SELECT pg_is_in_recovery()::text", &[]).await?.text(0)? == "false" {
                    return Ok(());
                }
            }
            Err(error) if start.elapsed() > OPEN_WAIT => return Err(error),
            // Another server answers where this one should: waiting does not help.
            Err(error) if error.refusal().is_some_and(|refusal| refusal.code == Code::OtherNode) => return Err(error),
            Err(_) => {}
        }
        if start.elapsed() > OPEN_WAIT {
            let cause = format!("it is in recovery still after {} s", OPEN_WAIT.as_secs());
            return Err(Fault::new(FaultKind::TimedOut, format!("open {}", database.data()), cause).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Takes away what says that the folder was restored. The list, of which nothing is left, goes last: without it, what has
/// the marker has not come to its cut.
fn forget(data: &str) -> Result<()> {
    delivery::remove(data).map_err(|error| fault(format!("remove what was delivered in {data}"), &error))?;
    for name in [ACCESS, MARKER, in_doubt::LIST] {
        let path = format!("{data}/{name}");
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(format!("remove {path}"), &error).into()),
        }
    }
    let sync = File::open(data).and_then(|folder| folder.sync_all());
    sync.map_err(|error| crate::faults::sync_fault(format!("sync {data}"), &error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_comma_is_one_folder() {
        assert_eq!(quoted_folder("/srv/a, \"b\""), "\"/srv/a, \"\"b\"\"\"");
    }
}
