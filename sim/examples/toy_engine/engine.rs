//! The engine: a node keeps numbers in one log, and the log is all there is. A number is there once its frame is synced.
//! LSNs are byte offsets into the log; it is never cut short while the node lives, so pins have nothing to hold back.
//! Nodes share nothing, and records carry no SCN: the engine has a commit fence instead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as Plain, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ByteCount, HoldId, LifeId, NodeId, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{
    Begun, Capabilities, CutMade, Database, Ended, Identity, Joining, Opening, PageVerdict, Pin, Recovery, SourceFile,
    SourceKind, State, Status, Storage, WalPiece, WalSource,
};
use sheetanchor_engine::env::{DiskFile, Env, OpenMode};
use tokio::sync::Mutex;

const FOLDER: &str = "/toy";
const CONTROL: &str = "/toy/control";
/// Where the log lies, on the node's own disk.
pub const LOG: &str = "/toy/log";

/// Bytes of a frame: what it is, a number, and a check over both and its place. The first frame says that this is a log.
const FRAME: u64 = 24;
const NUMBER: u64 = 1;
const CUT: u64 = 2;
/// Where the first record lies.
const START: Lsn = Lsn::new(FRAME);

/// One node's engine.
pub struct Toy {
    env: Env,
    node: NodeId,
    /// The planted bug: numbers are acknowledged before they are synced.
    forgetful: bool,
    life: LifeId,
    open: Mutex<Option<Open>>,
    fence: Plain<Option<HoldId>>,
    pins: Plain<BTreeMap<String, Position>>,
}

/// A log in use.
struct Open {
    file: Box<dyn DiskFile>,
    control: Control,
    end: u64,
    synced: u64,
    /// The cuts that were made, by record.
    cuts: BTreeMap<String, CutMade>,
}

/// The control file: one line of words.
#[derive(Clone, Debug)]
struct Control {
    system: String,
    incarnation: u32,
    /// `open`, `recovering` or `reached`.
    phase: String,
    /// Where the cut lies that was reached.
    until: u64,
}

impl Control {
    fn parse(text: &str) -> Option<Self> {
        let [system, incarnation, phase, until] = text.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        let (incarnation, until) = (incarnation.parse().ok()?, until.parse().ok()?);
        Some(Self { system: system.into(), incarnation, phase: phase.into(), until })
    }

    async fn write(&self, env: &Env) -> Result<()> {
        let line = format!("{} {} {} {}\n", self.system, self.incarnation, self.phase, self.until);
        Ok(env.disk.replace(CONTROL, line.into_bytes()).await?)
    }
}

fn check(kind: u64, number: u64, at: u64) -> [u8; 8] {
    let words = [kind, number, at].map(u64::to_le_bytes).concat();
    blake3::hash(&words).as_bytes().first_chunk().copied().unwrap_or_default()
}

fn frame(kind: u64, number: u64, at: u64) -> Vec<u8> {
    [kind.to_le_bytes(), number.to_le_bytes(), check(kind, number, at)].concat()
}

/// The whole frames of a log, each with its kind, its number and its place, up to the first that is torn.
fn frames(bytes: &[u8]) -> Vec<(u64, u64, u64)> {
    let (frames, _torn) = bytes.as_chunks::<24>();
    let word = |bytes: &[u8; 24], at: usize| bytes.get(at..at + 8)?.first_chunk().map(|word| u64::from_le_bytes(*word));
    let parse = |(place, bytes): (u64, &[u8; 24])| {
        let (kind, number, at) = (word(bytes, 0)?, word(bytes, 8)?, place * FRAME);
        (bytes.get(16..) == Some(&check(kind, number, at)[..])).then_some((kind, number, at))
    };
    (0..).zip(frames).map_while(parse).collect()
}

/// The numbers in a log.
pub fn numbers(log: &[u8]) -> Vec<u64> {
    frames(log).into_iter().filter(|(kind, ..)| *kind == NUMBER).map(|(_, number, _)| number).collect()
}

fn record_number(record: &str) -> u64 {
    blake3::hash(record.as_bytes()).as_bytes().first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

fn locked<T>(mutex: &Plain<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(code: Code, why: impl Into<String>) -> sheetanchor_core::error::Error {
    Refusal::new(code, why.into()).into()
}

impl Toy {
    /// The engine of `node`: open if it was before.
    pub async fn start(env: Env, node: NodeId, forgetful: bool) -> Result<Arc<Self>> {
        let life = LifeId::new(env.entropy.word() | 1);
        let toy = Self {
            env,
            node,
            forgetful,
            life,
            open: Mutex::default(),
            fence: Plain::default(),
            pins: Plain::default(),
        };
        if toy.control().await?.is_some_and(|control| control.phase == "open") {
            toy.open_log().await?;
        }
        Ok(Arc::new(toy))
    }

    /// Writes a number. Once this returns it is there for good.
    pub async fn commit(&self, number: u64) -> Result<()> {
        loop {
            {
                let mut open = self.open.lock().await;
                let open = open.as_mut().ok_or_else(|| refused(Code::DatabaseDown, "the toy is not open"))?;
                if locked(&self.fence).is_none() {
                    open.append(NUMBER, number).await?;
                    return if self.forgetful { Ok(()) } else { open.sync().await };
                }
            }
            self.env.clock.sleep(Duration::from_millis(2)).await;
        }
    }

    /// All numbers, in the order in which they were written.
    pub async fn numbers(&self) -> Result<Vec<u64>> {
        Ok(numbers(&self.env.disk.read(LOG).await?))
    }

    /// Whether numbers can be written.
    pub async fn is_open(&self) -> bool {
        self.open.lock().await.is_some()
    }

    async fn control(&self) -> Result<Option<Control>> {
        if self.env.disk.metadata(CONTROL).await?.is_none() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&self.env.disk.read(CONTROL).await?).into_owned();
        Ok(Some(Control::parse(&text).ok_or_else(|| refused(Code::Damaged, format!("{CONTROL} says {text:?}")))?))
    }

    /// Opens the log, and cuts off what a crash left torn.
    async fn open_log(&self) -> Result<()> {
        // Staged, and not recovered yet.
        let (Some(control), true) = (self.control().await?, self.env.disk.metadata(LOG).await?.is_some()) else {
            return Ok(());
        };
        let file = self.env.disk.open(LOG, OpenMode::Write).await?;
        let length = usize::try_from(file.length().await?.get()).unwrap_or(usize::MAX);
        let end = frames(&file.read_at(0, length).await?).last().map_or(0, |(.., at)| at + FRAME);
        file.truncate(end).await?;
        file.sync().await?;
        *self.open.lock().await = Some(Open { file, control, end, synced: end, cuts: BTreeMap::new() });
        Ok(())
    }

    /// Writes a log that holds `bytes` and nothing else, durably.
    async fn write_log(&self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.env.disk.replace(LOG, bytes).await?)
    }

    fn position(&self, incarnation: u32, lsn: u64) -> Position {
        let timeline = TimelineId::new(incarnation);
        Position { thread: ThreadId::of(self.node), timeline, lsn: Lsn::new(lsn) }
    }

    /// Does something with the open log.
    async fn with<T>(&self, act: impl AsyncFnOnce(&mut Open) -> Result<T>) -> Result<T> {
        let mut open = self.open.lock().await;
        act(open.as_mut().ok_or_else(|| refused(Code::DatabaseDown, "the toy is not open"))?).await
    }

    fn holds(&self, hold: HoldId) -> Result<()> {
        if *locked(&self.fence) == Some(hold) { Ok(()) } else { Err(refused(Code::HoldLost, format!("hold {hold}"))) }
    }
}

impl Open {
    async fn append(&mut self, kind: u64, number: u64) -> Result<u64> {
        let at = self.end;
        self.file.write_at(at, frame(kind, number, at).into()).await?;
        self.end = at + FRAME;
        Ok(at)
    }

    async fn sync(&mut self) -> Result<()> {
        self.file.sync().await?;
        self.synced = self.end;
        Ok(())
    }
}

#[async_trait]
impl Database for Toy {
    fn capabilities(&self) -> Capabilities {
        Capabilities { storage: Storage::PerNode, stamped: false, fence: true, two_phase: false }
    }

    fn data_folder(&self) -> &str {
        FOLDER
    }

    fn control_file(&self) -> &'static str {
        "control"
    }

    async fn identity(&self) -> Result<Identity> {
        let system = self.control().await?.map(|control| control.system).unwrap_or_default();
        Ok(Identity { engine: "toy".into(), version: "1".into(), system })
    }

    async fn status(&self) -> Result<Status> {
        let told = |state, life, end| Status {
            state,
            life,
            scn: Scn::ZERO,
            frontier: Scn::ZERO,
            end,
            incarnation: None,
            in_doubt: Vec::new(),
        };
        if let Some(open) = self.open.lock().await.as_ref() {
            return Ok(told(State::Open, self.life, self.position(open.control.incarnation, open.end)));
        }
        let Some(control) = self.control().await? else {
            return Ok(told(State::Empty, LifeId::default(), self.position(0, 0)));
        };
        let state = if control.phase == "reached" { State::Reached } else { State::Down };
        Ok(told(state, LifeId::default(), self.position(control.incarnation, control.until)))
    }

    async fn join(&self, joining: &Joining) -> Result<()> {
        let system = format!("{}/{}", joining.cluster, self.node);
        if let Some(control) = self.control().await? {
            let ours = control.system == system;
            return if ours { Ok(()) } else { Err(refused(Code::OtherCluster, control.system)) };
        }
        self.env.disk.create_durable_folder(FOLDER).await?;
        self.write_log(frame(0, 0, 0)).await?;
        let incarnation = joining.incarnation.get();
        Control { system, incarnation, phase: "open".into(), until: 0 }.write(&self.env).await?;
        self.open_log().await
    }

    async fn observe(&self, scn: Scn) -> Result<Scn> {
        Ok(scn)
    }

    async fn pin(&self, name: &str) -> Result<Position> {
        self.with(async |open| {
            let from = self.position(open.control.incarnation, START.get());
            Ok(*locked(&self.pins).entry(name.into()).or_insert(from))
        })
        .await
    }

    async fn unpin(&self, name: &str) -> Result<()> {
        locked(&self.pins).remove(name);
        Ok(())
    }

    async fn pins(&self) -> Result<Vec<Pin>> {
        Ok(locked(&self.pins).iter().map(|(name, from)| Pin { name: name.clone(), from: *from }).collect())
    }

    async fn advance_pin(&self, name: &str, from: Lsn) -> Result<()> {
        if let Some(pin) = locked(&self.pins).get_mut(name) {
            pin.lsn = pin.lsn.max(from);
        }
        Ok(())
    }

    async fn begin_backup(&self, _label: &str) -> Result<Begun> {
        let start = self.with(async |open| Ok(self.position(open.control.incarnation, START.get()))).await?;
        Ok(Begun { start, scn: Scn::ZERO })
    }

    async fn end_backup(&self, _label: &str) -> Result<Ended> {
        let stop = self.with(async |open| Ok(self.position(open.control.incarnation, open.end))).await?;
        Ok(Ended { stop, scn: Scn::ZERO, files: Vec::new() })
    }

    async fn abandon_backup(&self, _label: &str) -> Result<()> {
        Ok(())
    }

    async fn files(&self) -> Result<Vec<SourceFile>> {
        let length = ByteCount::new(u64::try_from(self.env.disk.read(CONTROL).await?.len()).unwrap_or(0));
        Ok(vec![SourceFile { name: "control".into(), kind: SourceKind::File { length }, mode: 0o600 }])
    }

    fn check_pages(&self, _name: &str, _offset: u64, _bytes: &[u8]) -> PageVerdict {
        PageVerdict::Sound
    }

    async fn close(&self, hold: HoldId, _lease: Duration) -> Result<()> {
        let mut fence = locked(&self.fence);
        if fence.is_some_and(|other| other != hold) {
            return Err(refused(Code::Busy, "another hold stands"));
        }
        *fence = Some(hold);
        Ok(())
    }

    async fn drain(&self, hold: HoldId) -> Result<(Scn, Position)> {
        // Whoever commits has the log: once we have it, nobody does.
        self.with(async |open| {
            self.holds(hold)?;
            Ok((Scn::ZERO, self.position(open.control.incarnation, open.end)))
        })
        .await
    }

    async fn cut(&self, hold: HoldId, _scn: Scn, record: &str) -> Result<CutMade> {
        self.with(async |open| {
            self.holds(hold)?;
            if let Some(made) = open.cuts.get(record) {
                return Ok(*made);
            }
            let at = open.append(CUT, record_number(record)).await?;
            let made = CutMade { until: self.position(open.control.incarnation, at), proof: Lsn::new(open.end) };
            open.cuts.insert(record.into(), made);
            Ok(made)
        })
        .await
    }

    async fn release(&self, hold: HoldId) -> Result<()> {
        locked(&self.fence).take_if(|standing| *standing == hold);
        Ok(())
    }

    async fn cut_alone(&self, _record: &str) -> Result<CutMade> {
        Err(refused(Code::NotSupported, "the nodes are cut together, under the fence"))
    }

    async fn flush(&self, until: Lsn) -> Result<()> {
        self.with(async |open| {
            if until.get() > open.end {
                return Err(refused(Code::LifeChanged, format!("the log ends at {}, not at {until}", open.end)));
            }
            open.sync().await
        })
        .await
    }

    async fn durable_wal(&self, from: Position, bytes_max: ByteCount) -> Result<Option<WalPiece>> {
        self.with(async |open| {
            if open.synced < open.end {
                open.sync().await?;
            }
            let until = open.synced.min(from.lsn.get() + bytes_max.get());
            let length = usize::try_from(until.saturating_sub(from.lsn.get())).unwrap_or(0);
            if length == 0 {
                return Ok(None);
            }
            let bytes = open.file.read_at(from.lsn.get(), length).await?;
            Ok(Some(WalPiece { from, until: Lsn::new(until), scn_last: None, bytes: bytes.into() }))
        })
        .await
    }

    async fn recover(&self, recovery: &Recovery, wal: &dyn WalSource) -> Result<()> {
        let thread = ThreadId::of(self.node);
        let missing = || refused(Code::ThreadShort, format!("thread {thread} does not reach `{}`", recovery.record));
        let range = recovery.threads.get(&thread).ok_or_else(missing)?;
        let span = range.spans.last().ok_or_else(missing)?;
        let mut log = frame(0, 0, 0);
        let mut at = Position { thread, timeline: span.timeline, lsn: range.start() };
        while at.lsn < range.proof {
            let piece = wal.piece(at).await?.ok_or_else(missing)?;
            log.extend(piece.bytes);
            at.lsn = piece.until;
        }
        // The cut is proven by its record, which lies where the point says, and is left out: the new history starts there.
        let record = (CUT, record_number(&recovery.record), range.until.get());
        if !frames(&log).contains(&record) {
            return Err(refused(Code::CutMissed, format!("`{}` is not at {}", recovery.record, range.until)));
        }
        log.truncate(usize::try_from(range.until.get()).unwrap_or(0));
        let Some(mut control) = self.control().await? else { return Err(missing()) };
        control.until = range.until.get();
        // A crash in between must not find a log and a control file that says `open`.
        for (phase, write) in [("recovering", true), ("reached", false)] {
            control.phase = phase.into();
            control.write(&self.env).await?;
            if write {
                self.write_log(std::mem::take(&mut log)).await?;
            }
        }
        Ok(())
    }

    async fn open(&self, opening: &Opening) -> Result<()> {
        let incarnation = opening.incarnation.get();
        if self.open.lock().await.as_ref().is_some_and(|open| open.control.incarnation == incarnation) {
            return Ok(());
        }
        let Some(control) = self.control().await? else { return Err(refused(Code::DatabaseDown, "nothing is there")) };
        Control { incarnation, phase: "open".into(), ..control }.write(&self.env).await?;
        self.open_log().await
    }

    async fn stop(&self) -> Result<()> {
        *self.open.lock().await = None;
        Ok(())
    }
}
