//! One PostgreSQL server as a [`Database`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::changes::ChangeMap;
use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::identity::{ByteCount, ClusterId, HoldId, LifeId, NodeId, ThreadId, TimelineId};
use sheetanchor_core::in_doubt::{Fate, Trace};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::agent::archive::ARCHIVE_PIN;
use sheetanchor_engine::database::{
    Begun, Capabilities, CutMade, Database, Ended, FileStream, Identity, Joining, Opening, PageVerdict, Pin, Recovery,
    Search, SourceFile, State, Status, Storage, WalPiece, WalSource,
};
use tokio::sync::Mutex;

use super::afar::{self, Afar, NOWHERE};
use super::backup::{self, Backups};
use super::control::{CONTROL_FILE, system_identifier};
use super::delivery::WalBack;
use super::direct;
use super::fence::Fence;
use super::install::{Account, Install};
use super::look::{end_of_wal, flush, look, segment_size};
use super::marker::Restored;
use super::postmaster::{Postmaster, StopMode};
use super::recovery::{self, is_private, private_target};
use super::session::{Facts, Session, down, is_closed, is_down, over_is_down};
use super::target::Target;
use super::wal::Place;
use super::wal_chain::{Chain, prove_record};
use super::wal_road::{WalRoad, Wanted};
use super::wal_stream::WalStream;
use super::{changes, files, in_doubt, pages, pins, privileges, wal_from_afar};
use crate::faults::{blocking, fault};

/// What identities call this engine.
pub(super) const ENGINE: &str = "postgres";

/// Bytes in the longest name of a restore point record.
const RECORD_NAME_MAX: usize = 63;

/// How many cuts are remembered, for calls that are repeated.
const CUTS_MAX: usize = 64;

/// How many pins may wait to be dropped.
const LET_GO_MAX: usize = 256;

/// What the bridge must know of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// The node that it is.
    pub node: NodeId,
    /// Its data folder, absolute. Without one the server is elsewhere, and reached over its connection only: it sends its
    /// files by `BASE_BACKUP`, and nothing can be restored there.
    pub data: Option<String>,
    /// How to connect, as a role that may do what `docs/postgres.md` lists: `host=/run/postgresql port=5432
    /// user=sheetanchor`. A restored server is started so that it is found there.
    pub connection: String,
    /// The folder with PostgreSQL's programs; sought if it is not given.
    pub bin: Option<String>,
    /// The user to run a restored server as, when we are root; `postgres` if not given.
    pub run_as: Option<String>,
    /// The file that takes what a server prints that was started here.
    pub log: String,
    /// How its WAL comes into the archive.
    pub wal: WalRoad,
    /// How archived WAL comes to the server when it recovers.
    pub wal_back: WalBack,
    /// Where a restore puts a tablespace that was elsewhere: its folder then, and now, both absolute.
    pub tablespaces: BTreeMap<String, String>,
    /// Whether its clients commit what spans nodes in two phases only, under one gid on all of them: the operator's word.
    pub two_phase: bool,
}

/// The port to one PostgreSQL server.
pub struct PostgresDatabase {
    config: PostgresConfig,
    target: Target,
    session: Mutex<Option<Arc<Session>>>,
    backups: Backups,
    afar: Afar,
    fence: Fence,
    /// The outcome of each cut by its record's name; `None` while, and if, it is not known.
    cuts: Mutex<BTreeMap<String, Option<CutMade>>>,
    /// Pins that were let go of while no server ran: their slots go as soon as one answers.
    let_go: Mutex<BTreeSet<String>>,
    chain: Arc<Chain>,
    stream: Mutex<Option<WalStream>>,
    wanted: Wanted,
    scn: AtomicU64,
    checksums: AtomicBool,
    /// The server was seen to let nobody prepare a transaction.
    never_prepares: AtomicBool,
}

impl PostgresDatabase {
    /// The port to the server that `config` describes. Nothing is connected or started yet.
    ///
    /// # Errors
    /// `SA101` if the connection string is none, names no host or says what cannot be held to, the data folder's path is not
    /// absolute, or WAL is to be read from a folder that is not there.
    pub fn new(config: PostgresConfig) -> Result<Self> {
        let invalid = |message: String| Refusal::new(Code::ConfigInvalid, message);
        let target = Target::parse(&config.connection)
            .map_err(|refusal| invalid(format!("the connection of node {}: {}", config.node, refusal.message)))?;
        match &config.data {
            Some(data) if !data.starts_with('/') || data.len() < 2 || data.ends_with('/') => {
                let message = format!("the data folder `{data}` must be an absolute path without a `/` at its end");
                return Err(invalid(message).into());
            }
            None if config.wal == WalRoad::Folder => {
                let message = format!("WAL of node {} cannot be read from a folder: it has none here", config.node);
                return Err(invalid(message).into());
            }
            Some(_) | None => {}
        }
        Ok(Self {
            config,
            target,
            session: Mutex::new(None),
            backups: Backups::default(),
            afar: Afar::default(),
            fence: Fence::default(),
            cuts: Mutex::new(BTreeMap::new()),
            let_go: Mutex::new(BTreeSet::new()),
            chain: Arc::default(),
            stream: Mutex::new(None),
            wanted: Wanted::default(),
            scn: AtomicU64::new(0),
            checksums: AtomicBool::new(false),
            never_prepares: AtomicBool::new(false),
        })
    }

    /// The data folder; where there is none, a path that leads nowhere.
    pub(super) fn data(&self) -> &str {
        self.config.data.as_deref().unwrap_or(NOWHERE)
    }

    /// Whether nothing but its connection leads to the server.
    pub(super) fn is_afar(&self) -> bool {
        self.config.data.is_none()
    }

    pub(super) fn afar(&self) -> &Afar {
        &self.afar
    }

    pub(super) fn node(&self) -> NodeId {
        self.config.node
    }

    pub(super) fn log(&self) -> &str {
        &self.config.log
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn road(&self) -> WalRoad {
        self.config.wal
    }

    pub(super) fn wal_back(&self) -> &WalBack {
        &self.config.wal_back
    }

    pub(super) fn stream(&self) -> &Mutex<Option<WalStream>> {
        &self.stream
    }

    pub(super) fn backups(&self) -> &Backups {
        &self.backups
    }

    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub(super) fn chain(&self) -> &Arc<Chain> {
        &self.chain
    }

    pub(super) fn thread(&self) -> ThreadId {
        ThreadId::of(self.config.node)
    }

    /// The programs of the version that made the data folder.
    pub(super) async fn install(&self) -> Result<Install> {
        let major = self.major()?.and_then(|major| major.parse().ok());
        Install::find(self.config.bin.as_deref(), major).await
    }

    pub(super) async fn account(&self) -> Result<Option<Account>> {
        Account::to_run_as(self.config.run_as.as_deref()).await
    }

    /// A new connection to the open server, which must be the one of our data folder.
    ///
    /// # Errors
    /// `SA112`, `SA113`, `SA114`; `SA115` if its role lacks a privilege; `SA101` through a pooler; `0A000` for a server that is
    /// not supported; faults.
    pub(super) async fn open_session(&self) -> Result<Session> {
        let session = match Session::open(&self.target).await {
            Err(error) if self.is_afar() && is_down(&error) => {
                self.afar.is_silent(self.config.node, &error);
                return Err(error);
            }
            opened => opened?,
        };
        let facts = session.facts();
        privileges::check(self.config.node, &session, &self.functions(facts)).await.map_err(over_is_down)?;
        if !self.is_afar() && !same_folder(&facts.data, self.data()) {
            let message = format!(
                "the server that answers for node {} serves {}, not {}",
                self.config.node,
                facts.data,
                self.data()
            );
            return Err(Refusal::new(Code::OtherNode, message).into());
        }
        direct::check_release(facts)?;
        if self.is_afar() {
            afar::check_release(facts)?;
        }
        direct::check(self.config.node, &self.target, facts)?;
        if !facts.usual_sizes {
            return Err(not_supported("pages other than of 8192 bytes, or relation segments other than of a gigabyte"));
        }
        self.checksums.store(facts.checksums, Ordering::Relaxed);
        if self.is_afar() {
            self.afar.answers(self.config.node, facts);
        }
        Ok(session)
    }

    /// What PostgreSQL lets superusers call only, unless it is granted, and is called here.
    fn functions(&self, facts: &Facts) -> Vec<&'static str> {
        let mut functions = vec![privileges::RESTORE_POINT];
        if !self.is_afar() {
            functions.extend(privileges::backup(facts.major()));
        }
        if self.config.wal == WalRoad::Folder {
            functions.push(privileges::SWITCH);
        }
        functions
    }

    pub(super) async fn stop_server(&self, mode: StopMode) -> Result<()> {
        *self.session.lock().await = None;
        // A server that streams waits at its end until everything is confirmed.
        *self.stream.lock().await = None;
        self.fence.abandon().await;
        self.backups.abandon_all().await;
        match Postmaster::of(self.data())? {
            Some(postmaster) => postmaster.stop(mode).await,
            None => Ok(()),
        }
    }

    /// The connection that calls share.
    pub(super) async fn session(&self) -> Result<Arc<Session>> {
        let mut shared = self.session.lock().await;
        if let Some(session) = shared.as_ref().filter(|session| !session.is_closed()) {
            return Ok(session.clone());
        }
        let session = Arc::new(self.open_session().await?);
        self.drop_let_go(&session).await?;
        *shared = Some(session.clone());
        Ok(session)
    }

    async fn let_go_later(&self, name: &str) -> Result<()> {
        pins::slot(name)?;
        let mut let_go = self.let_go.lock().await;
        if let_go.len() >= LET_GO_MAX {
            return Err(down(format!("{LET_GO_MAX} pins wait to be dropped")));
        }
        let_go.insert(name.to_owned());
        Ok(())
    }

    async fn drop_let_go(&self, session: &Session) -> Result<()> {
        let mut let_go = self.let_go.lock().await;
        while let Some(name) = let_go.first() {
            pins::unpin(session, name).await?;
            let_go.pop_first();
        }
        Ok(())
    }

    /// The version that made the data folder: `15`.
    pub(super) fn major(&self) -> Result<Option<String>> {
        let path = format!("{}/PG_VERSION", self.data());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(format!("read {path}"), &error).into()),
        }
    }

    pub(super) fn position(&self, timeline: TimelineId, lsn: Lsn) -> Position {
        Position { thread: self.thread(), timeline, lsn }
    }

    pub(super) fn scn_seen(&self) -> Scn {
        Scn::new(self.scn.load(Ordering::SeqCst))
    }

    pub(super) fn status_of(&self, state: State, end: Lsn) -> Status {
        let end = self.position(TimelineId::new(0), end);
        Status {
            state,
            life: LifeId::new(0),
            scn: self.scn_seen(),
            frontier: Scn::ZERO,
            end,
            incarnation: None,
            in_doubt: Vec::new(),
        }
    }

    /// What a server says that is not open yet.
    async fn private_status(&self) -> Result<Status> {
        let Ok(session) = Session::open(&private_target(&self.target, self.data())).await else {
            return Ok(self.status_of(State::Down, Lsn::new(0)));
        };
        let seen = recovery::look(&session).await?;
        Ok(self.status_of(State::Down, seen.map_or(Lsn::new(0), |seen| seen.replayed)))
    }

    /// What a folder says that stands at its cut, whether or not a server runs there that is not open.
    fn reached_status(&self) -> Result<Option<Status>> {
        let Some(restored) = Restored::read(self.data())? else { return Ok(None) };
        Ok(in_doubt::listed(self.data(), &restored)?.map(|in_doubt| {
            let mut status = self.status_of(State::Reached, restored.until);
            status.end.timeline = restored.timeline;
            Status { in_doubt, ..status }
        }))
    }

    /// What an open server says. `is_stopping` tells whether one shuts down that lets nobody in, as its answer has it.
    async fn open_status(&self, is_stopping: impl Fn(&Error) -> bool + Send + Sync) -> Result<Status> {
        let session = match self.session().await {
            Ok(session) => session,
            Err(error) if is_down(&error) => return Ok(self.ending_status(is_stopping(&error))),
            Err(error) => return Err(error),
        };
        let seen = match look(&session).await {
            Err(error) if error.is(FaultKind::Unreachable) => return Ok(self.status_of(State::Down, Lsn::new(0))),
            seen => seen?,
        };
        let Some((timeline, end)) = seen.end else { return Ok(self.status_of(State::Down, Lsn::new(0))) };
        let mut status = self.status_of(State::Open, end);
        status.end.timeline = timeline;
        status.life = seen.life;
        self.never_prepares.store(!seen.can_prepare, Ordering::Relaxed);
        self.fence.prove(self, seen.life).await;
        Ok(status)
    }

    /// Writes the record; nothing is known of the outcome until it returns.
    async fn write_cut(&self, session: &Session, record: &str) -> Result<CutMade> {
        let row = session.row("SELECT pg_create_restore_point($1)::text", &[&record]).await?;
        let until = row.lsn(0)?;
        self.hurry(session, until).await?;
        flush(session, until).await?;
        let (timeline, _) = end_of_wal(session).await?;
        self.prove_cut(session, timeline, record, until).await?;
        Ok(CutMade { until: self.position(timeline, until), proof: until })
    }

    /// Reads the record of a cut in the durable WAL: it lies where the server said.
    async fn prove_cut(&self, session: &Session, timeline: TimelineId, record: &str, until: Lsn) -> Result<()> {
        let size = segment_size(session)?;
        let place = Place { system: session.facts().system, size, timeline, start: size.start(until) };
        if self.is_afar() {
            return wal_from_afar::prove_record(&self.target, &place, record, until).await.map_err(over_is_down);
        }
        let (data, record) = (self.data().to_owned(), record.to_owned());
        blocking(move || Ok(prove_record(&data, &place, &record, until))).await?
    }
}

#[async_trait]
impl Database for PostgresDatabase {
    fn capabilities(&self) -> Capabilities {
        let two_phase = self.config.two_phase && !self.never_prepares.load(Ordering::Relaxed);
        Capabilities { storage: Storage::PerNode, stamped: false, fence: self.fence.is_proven(), two_phase }
    }

    fn data_folder(&self) -> &str {
        self.data()
    }

    fn control_file(&self) -> &str {
        CONTROL_FILE
    }

    async fn identity(&self) -> Result<Identity> {
        if self.is_afar() {
            return self.identity_from_afar().await;
        }
        let system = system_identifier(self.data())?.map(|system| system.to_string());
        Ok(Identity {
            engine: ENGINE.to_owned(),
            version: self.major()?.unwrap_or_default(),
            system: system.unwrap_or_default(),
        })
    }

    async fn status(&self) -> Result<Status> {
        if self.is_afar() {
            return self.open_status(is_closed).await;
        }
        match Postmaster::of(self.data())? {
            Some(postmaster) if is_private(&postmaster, self.data())? => match self.reached_status()? {
                Some(status) => Ok(status),
                None => self.private_status().await,
            },
            Some(postmaster) => self.open_status(|_| postmaster.is_stopping()).await,
            None if self.major()?.is_none() => Ok(self.status_of(State::Empty, Lsn::new(0))),
            None => Ok(self.reached_status()?.unwrap_or_else(|| self.status_of(State::Down, Lsn::new(0)))),
        }
    }

    async fn join(&self, _joining: &Joining) -> Result<()> {
        let session = self.session().await?;
        let sql = "SELECT pg_is_in_recovery()::text, current_setting('wal_level'), current_setting('fsync'), \
            current_setting('max_prepared_transactions')";
        let row = session.row(sql, &[]).await?;
        let invalid = |message: String| Error::from(Refusal::new(Code::ConfigInvalid, message));
        if row.text(0)? != "false" {
            return Err(not_supported("a node that is a standby: back its primary up"));
        }
        let wal_level = row.text(1)?;
        if wal_level == "minimal" {
            return Err(invalid(format!(
                "wal_level of node {} is {wal_level}, and must be replica or logical",
                self.config.node
            )));
        }
        if self.config.two_phase && row.text(3)? == "0" {
            return Err(in_doubt::cannot_prepare(self.config.node));
        }
        if row.text(2)? != "on" {
            tracing::warn!(node = %self.config.node, "fsync is off: after a loss of power this node's database is not to be trusted");
        }
        self.try_road().await?;
        pins::pin(&session, ARCHIVE_PIN).await.map(|_| ())
    }

    async fn observe(&self, scn: Scn) -> Result<Scn> {
        let before = self.scn.fetch_max(scn.get(), Ordering::SeqCst);
        Ok(Scn::new(before.max(scn.get())))
    }

    async fn pin(&self, name: &str) -> Result<Position> {
        let session = self.session().await?;
        let kept = pins::pin(&session, name).await.map_err(over_is_down)?;
        let (timeline, _) = end_of_wal(&session).await.map_err(over_is_down)?;
        Ok(self.position(timeline, self.archive_from(&session, kept, timeline).await?))
    }

    async fn unpin(&self, name: &str) -> Result<()> {
        let dropped = match self.session().await {
            Ok(session) => pins::unpin(&session, name).await.map_err(over_is_down),
            Err(error) => Err(error),
        };
        match dropped {
            // A database that does not run keeps its slots on disk.
            Err(error) if is_down(&error) => self.let_go_later(name).await,
            dropped => dropped,
        }
    }

    async fn pins(&self) -> Result<Vec<Pin>> {
        let session = self.session().await?;
        let (timeline, _) = end_of_wal(&session).await.map_err(over_is_down)?;
        let (size, began) = (segment_size(&session)?, self.began(timeline).await?);
        let pin =
            |(name, kept): (String, Lsn)| Pin { name, from: self.position(timeline, size.start(kept.max(began))) };
        Ok(pins::all(&session).await?.into_iter().map(pin).collect())
    }

    async fn advance_pin(&self, name: &str, from: Lsn) -> Result<()> {
        if name == ARCHIVE_PIN && self.confirm(from).await {
            return Ok(());
        }
        pins::advance(&*self.session().await?, name, from).await.map_err(over_is_down)
    }

    async fn resume_at(&self) -> Result<Position> {
        let session = self.session().await?;
        let (timeline, durable) = end_of_wal(&session).await.map_err(over_is_down)?;
        // A segment that is being written is there, whatever any slot keeps; and an archive begins with a whole one.
        Ok(self.position(timeline, segment_size(&session)?.start(durable)))
    }

    async fn skip_pin(&self, name: &str, until: Position) -> Result<Position> {
        let kept = self.skip_slot(name, until.lsn).await.map_err(over_is_down)?;
        let session = self.session().await?;
        let (timeline, _) = end_of_wal(&session).await.map_err(over_is_down)?;
        Ok(self.position(timeline, self.archive_from(&session, kept, timeline).await?))
    }

    async fn begin_backup(&self, label: &str) -> Result<Begun> {
        if self.is_afar() {
            return self.begin_sending(label).await;
        }
        if let Some(begun) = self.backups.begun(label).await {
            return Ok(begun);
        }
        let session = self.open_session().await?;
        warn_of_checksums(self.config.node, session.facts());
        let redo = backup::start(&session, label).await.map_err(over_is_down)?.lsn(0)?;
        changes::note_checksums(&session).await.map_err(over_is_down)?;
        let (timeline, _) = end_of_wal(&session).await.map_err(over_is_down)?;
        // A server reads the head of a segment before anything in it.
        let start = segment_size(&session)?.start(redo);
        let begun = Begun { start: self.position(timeline, start), scn: self.scn_seen() };
        self.backups.add(label, session, begun, redo).await?;
        Ok(begun)
    }

    async fn end_backup(&self, label: &str) -> Result<Ended> {
        if self.is_afar() {
            return self.end_sending(label);
        }
        let begun = self.backups.begun(label).await;
        let timeline = begun.map_or_else(TimelineId::default, |begun| begun.start.timeline);
        self.backups
            .end(label, |_, said| {
                // Not the map of tablespaces: a server that finds one leads its links to where they led before.
                let files = vec![("backup_label".to_owned(), said.text(1)?.into_bytes())];
                Ok(Ended { stop: self.position(timeline, said.lsn(0)?), scn: self.scn_seen(), files })
            })
            .await
    }

    async fn abandon_backup(&self, label: &str) -> Result<()> {
        self.backups.abandon(label).await;
        self.afar.abandon(label);
        Ok(())
    }

    async fn file_stream(&self, label: &str) -> Result<Option<Box<dyn FileStream>>> {
        self.sent_files(label)
    }

    async fn files(&self) -> Result<Vec<SourceFile>> {
        self.check_folder("listed")?;
        // It must run, and learning whether its pages carry checksums is the other half of this call.
        let session = self.session().await?;
        let (data, major) = (self.data().to_owned(), session.facts().major());
        // A refusal passes through a call that knows faults only.
        blocking(move || Ok(files::list(&data, major))).await?
    }

    async fn changes(&self, since: Position, until: Position, wal: &dyn WalSource) -> Result<Option<ChangeMap>> {
        // Its files come whole or not at all.
        if self.is_afar() { Ok(None) } else { changes::changes(self, since, until, wal).await }
    }

    fn link_target(&self, name: &str, target: &str) -> Result<String> {
        self.check_folder("restored into")?;
        let mapped = self.config.tablespaces.get(target).map_or(target, String::as_str);
        let inside = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        if !mapped.starts_with('/')
            || mapped == self.data()
            || inside(self.data(), mapped)
            || inside(mapped, self.data())
        {
            let message = format!("{name} cannot lead to {mapped}: a folder apart from {} is needed", self.data());
            return Err(Refusal::new(Code::UnsafePath, message).into());
        }
        Ok(mapped.to_owned())
    }

    fn may_shrink(&self, name: &str) -> bool {
        name != self.control_file()
    }

    fn check_pages(&self, name: &str, offset: u64, bytes: &[u8]) -> PageVerdict {
        pages::check(name, offset, bytes, self.checksums.load(Ordering::Relaxed))
    }

    fn fence_missing(&self) -> Option<String> {
        self.afar.unreachable().or_else(|| self.fence.missing())
    }

    async fn close(&self, hold: HoldId, lease: Duration) -> Result<()> {
        self.fence.close(self, hold, lease).await
    }

    async fn drain(&self, hold: HoldId) -> Result<(Scn, Position)> {
        let drained = self.fence.drain(hold).await?;
        // The servers' clocks stand in for stamps: a later point has a higher SCN.
        let stamp = Scn::at(drained.wall).max(self.scn_seen().next());
        Ok((self.observe(stamp).await?, self.position(drained.timeline, drained.end)))
    }

    async fn cut(&self, hold: HoldId, scn: Scn, record: &str) -> Result<CutMade> {
        check_record(record)?;
        let (timeline, until) = self.fence.cut(hold, scn, record).await?;
        self.observe(scn).await?;
        Ok(CutMade { until: self.position(timeline, until), proof: until })
    }

    async fn release(&self, hold: HoldId) -> Result<()> {
        self.fence.release(self, hold).await
    }

    async fn cut_alone(&self, record: &str) -> Result<CutMade> {
        check_record(record)?;
        let session = self.session().await?;
        {
            let mut cuts = self.cuts.lock().await;
            match cuts.get(record) {
                Some(Some(made)) => return Ok(*made),
                // Recovery stops at the first record of a name: a second of the same would be a cut that is never reached.
                Some(None) => {
                    let message = format!("record {record} may have been written already; its answer was lost");
                    return Err(Refusal::new(Code::OutOfOrder, message).into());
                }
                None => {}
            }
            if cuts.len() >= CUTS_MAX {
                cuts.pop_first();
            }
            cuts.insert(record.to_owned(), None);
        }
        let made = self.write_cut(&session, record).await?;
        self.cuts.lock().await.insert(record.to_owned(), Some(made));
        Ok(made)
    }

    async fn flush(&self, until: Lsn) -> Result<()> {
        let session = self.session().await?;
        self.hurry(&session, until).await?;
        flush(&session, until).await?;
        match self.fence.cut_at(until).await {
            Some((timeline, record)) => self.prove_cut(&session, timeline, &record, until).await,
            None => Ok(()),
        }
    }

    async fn durable_wal(&self, from: Position, _bytes_max: ByteCount) -> Result<Option<WalPiece>> {
        self.wal_from(from).await.map_err(over_is_down)
    }

    async fn recover(&self, recovery: &Recovery, wal: &dyn WalSource) -> Result<()> {
        self.check_folder("recovered")?;
        self.wanted.forget();
        recovery::recover(self, recovery, wal).await
    }

    async fn search(&self, search: &Search, wal: &dyn WalSource) -> Result<Vec<Trace>> {
        self.check_folder("asked for what was in doubt")?;
        in_doubt::search(self, search, wal).await
    }

    async fn resolve(&self, fates: &[(String, Fate)]) -> Result<()> {
        self.check_folder("opened by a restore")?;
        in_doubt::resolve(self, fates).await
    }

    async fn open(&self, _opening: &Opening) -> Result<()> {
        self.check_folder("opened by a restore")?;
        recovery::open(self).await
    }

    async fn stop(&self) -> Result<()> {
        self.check_folder("stopped")?;
        self.stop_server(StopMode::Fast).await
    }

    async fn check_unused(&self) -> Result<()> {
        self.check_folder("restored into")?;
        let data = self.data().to_owned();
        match blocking(move || Ok(Postmaster::user_of(&data))).await?? {
            Some(user) => {
                let message = format!("{user} uses {}", self.data());
                Err(Refusal::new(Code::FolderInUse, message).into())
            }
            None => Ok(()),
        }
    }

    async fn check_own(&self, _cluster: ClusterId, system: &str) -> Result<()> {
        self.check_folder("restored into")?;
        let data = self.data();
        let foreign = |message: String| Err(Refusal::new(Code::ForeignFolder, message).into());
        if self.major()?.is_none() {
            return foreign(format!("{data} is not empty, and has no PG_VERSION"));
        }
        match system_identifier(data) {
            Ok(Some(found)) if found.to_string() == system => Ok(()),
            Ok(Some(found)) => foreign(format!("{data} holds system {found}, not {system}")),
            Ok(None) => Ok(()),
            Err(error) => foreign(format!("what {data} holds cannot be told: {error}")),
        }
    }
}

/// Whether two paths lead to one folder.
pub(super) fn same_folder(one: &str, other: &str) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

pub(super) fn warn_of_checksums(node: NodeId, facts: &Facts) {
    if !facts.checksums {
        tracing::warn!(%node, "page checksums are off: a page that the disk has damaged is captured as it is");
    }
}

fn check_record(record: &str) -> Result<()> {
    if record.is_empty() || record.len() > RECORD_NAME_MAX {
        let message = format!("`{}` cannot name a record: 1 to {RECORD_NAME_MAX} bytes", record.escape_debug());
        return Err(Refusal::new(Code::BadName, message).into());
    }
    Ok(())
}

fn not_supported(missing: &str) -> Error {
    Refusal::new(Code::NotSupported, format!("PostgreSQL as it stands here does not have {missing}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_work_is_refused_without_showing_its_password() {
        for (data, connection) in [
            ("/srv/pg", "host=/run/postgresql password=secret port=x"),
            ("/srv/pg", "port=5432 password=secret"),
            ("/srv/pg/", "host=/run/postgresql password=secret"),
            ("srv/pg", "host=/run/postgresql password=secret"),
            ("/", "host=/run/postgresql password=secret"),
        ] {
            let config = PostgresConfig {
                node: NodeId::new(1),
                data: Some(data.to_owned()),
                connection: connection.to_owned(),
                bin: None,
                run_as: None,
                log: "/dev/null".to_owned(),
                wal: WalRoad::default(),
                wal_back: WalBack::default(),
                tablespaces: BTreeMap::new(),
                two_phase: false,
            };
            let error = PostgresDatabase::new(config).err().unwrap();
            assert_eq!(error.refusal().unwrap().code, Code::ConfigInvalid, "{data} {connection}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
