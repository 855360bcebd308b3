//! What travels between hosts: calls, bytes, and words about connections, each after a time drawn by chance. Within a
//! connection nothing overtakes. Like a kernel, and unlike a simulator that wants to be kind: a machine without power
//! answers nothing, so its peers hear nothing and calls to it are repeated until they are given up; a machine whose process
//! has died refuses; bytes for a connection that a machine knows nothing of (any more) are answered with a reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::task::Waker;
use std::time::Duration;

use super::agenda::{Agenda, Entry};
use crate::chance::Chance;

mod end;

pub(super) use end::EndId;
use end::{End, Phase};

/// A host, by the order in which hosts were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostIndex(usize);

/// One of the lives of a host, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LifeNumber(u32);

/// Connections that nobody has accepted yet, at most, for each listener.
const QUEUE_MAX: usize = 64;

/// How often a call is made, or bytes are sent that a machine without power does not confirm, before it is given up; and how
/// long that waits the first time. It waits twice as long each time.
const CALLS_MAX: u32 = 6;
const CALL_PATIENCE: Duration = Duration::from_secs(1);

/// Ports that are given to those who do not care.
const FREE_PORTS_FROM: u16 = 49_152;

/// Something on its way from one host to another.
#[derive(Debug)]
pub(super) struct Packet {
    from: HostIndex,
    to: HostIndex,
    /// The receiver's end; that of the caller if it is a call.
    end: EndId,
    said: Said,
    /// How often it was sent before.
    repeated: u32,
}

/// What a packet says.
#[derive(Debug)]
enum Said {
    /// Somebody wants to connect to a port.
    Call { port: u16 },
    /// The call was heard.
    Answer,
    /// Bytes of the stream.
    Bytes(Vec<u8>),
    /// So many bytes were taken out by the reader.
    Credit(usize),
    /// No more bytes will come.
    Close,
    /// There is no such connection, or nobody listens.
    Reset,
}

/// Whether a host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Up,
    /// The machine is there, its process is not.
    Gone,
    /// There is no power.
    Dark,
}

struct Host {
    name: String,
    life: LifeNumber,
    presence: Presence,
    free_port: u16,
}

struct Listening {
    queue: VecDeque<EndId>,
    acceptor: Option<Waker>,
}

/// The network of a world.
pub(super) struct Wire {
    hosts: Vec<Host>,
    ends: BTreeMap<EndId, End>,
    listening: BTreeMap<(HostIndex, u16), Listening>,
    held: BTreeSet<(HostIndex, HostIndex)>,
    parked: Vec<Packet>,
    connections: u64,
    chance: Chance,
}

impl Wire {
    pub(super) fn new(chance: Chance) -> Self {
        Self {
            hosts: Vec::new(),
            ends: BTreeMap::new(),
            listening: BTreeMap::new(),
            held: BTreeSet::new(),
            parked: Vec::new(),
            connections: 0,
            chance,
        }
    }

    pub(super) fn add_host(&mut self, name: &str) -> HostIndex {
        let host =
            Host { name: name.into(), life: LifeNumber(0), presence: Presence::Gone, free_port: FREE_PORTS_FROM };
        self.hosts.push(host);
        HostIndex(self.hosts.len() - 1)
    }

    pub(super) fn host(&self, name: &str) -> Option<HostIndex> {
        self.hosts.iter().position(|host| host.name == name).map(HostIndex)
    }

    pub(super) fn begin_life(&mut self, index: HostIndex) -> LifeNumber {
        let Some(host) = self.hosts.get_mut(index.0) else { return LifeNumber(0) };
        host.life = LifeNumber(host.life.0 + 1);
        host.presence = Presence::Up;
        host.life
    }

    /// Ends the life of a host. Its connections end as they are dropped: with a word, or silently.
    pub(super) fn end_life(&mut self, index: HostIndex, silent: bool, agenda: &mut Agenda) {
        if let Some(host) = self.hosts.get_mut(index.0).filter(|host| host.presence == Presence::Up) {
            host.presence = if silent { Presence::Dark } else { Presence::Gone };
        }
        for listening in self.listening.extract_if(.., |(host, _), _| *host == index).collect::<Vec<_>>() {
            for end in listening.1.queue {
                self.drop_end(end, agenda);
            }
        }
    }

    /// Whether that is the present life of the host.
    pub(super) fn lives(&self, index: HostIndex, life: LifeNumber) -> bool {
        self.hosts.get(index.0).is_some_and(|host| host.presence == Presence::Up && host.life == life)
    }

    pub(super) fn hold(&mut self, one: HostIndex, other: HostIndex) {
        self.held.insert(pair(one, other));
    }

    /// Ends a hold: what was held arrives now, in order.
    pub(super) fn release(&mut self, one: HostIndex, other: HostIndex, agenda: &mut Agenda) {
        self.held.remove(&pair(one, other));
        let freed = |packet: &mut Packet| pair(packet.from, packet.to) == pair(one, other);
        for packet in self.parked.extract_if(.., freed).collect::<Vec<_>>() {
            self.deliver(packet, agenda);
        }
    }

    /// Listens on a port, or on a free one for port 0. `None`: it is taken.
    pub(super) fn listen(&mut self, index: HostIndex, port: u16) -> Option<u16> {
        let host = self.hosts.get_mut(index.0)?;
        let port = if port == 0 {
            host.free_port = host.free_port.checked_add(1).unwrap_or(FREE_PORTS_FROM);
            host.free_port
        } else {
            port
        };
        if self.listening.contains_key(&(index, port)) {
            return None;
        }
        self.listening.insert((index, port), Listening { queue: VecDeque::new(), acceptor: None });
        Some(port)
    }

    /// Stops listening. Who was not accepted yet is hung up on.
    pub(super) fn stop_listening(&mut self, index: HostIndex, port: u16, agenda: &mut Agenda) {
        for end in self.listening.remove(&(index, port)).map(|listening| listening.queue).unwrap_or_default() {
            self.drop_end(end, agenda);
        }
    }

    /// The next connection that was made to a port; or remembers whom to wake for it.
    pub(super) fn accept(&mut self, index: HostIndex, port: u16, waker: &Waker) -> Option<EndId> {
        let listening = self.listening.get_mut(&(index, port))?;
        let accepted = listening.queue.pop_front();
        if accepted.is_none() {
            listening.acceptor = Some(waker.clone());
        }
        accepted
    }

    /// Calls a port of a host. The end it answers is open once [`Wire::has_connected`] says so.
    pub(super) fn dial(
        &mut self,
        (from, life): (HostIndex, LifeNumber),
        (to, port): (HostIndex, u16),
        agenda: &mut Agenda,
    ) -> EndId {
        self.connections += 1;
        let id = EndId::dialling(self.connections);
        self.ends.insert(id, End::new(from, life, to, Phase::Calling { port, calls: 0 }));
        self.redial(id, agenda);
        id
    }

    /// Makes a call, unless it was answered; gives it up if it was made too often.
    pub(super) fn redial(&mut self, id: EndId, agenda: &mut Agenda) {
        let Some(end) = self.ends.get_mut(&id) else { return };
        let Phase::Calling { port, calls } = end.phase else { return };
        end.redial = None;
        if calls == CALLS_MAX {
            end.fail(io::ErrorKind::TimedOut);
            return;
        }
        end.phase = Phase::Calling { port, calls: calls + 1 };
        end.redial = Some(agenda.enter(agenda.now() + CALL_PATIENCE * (1 << calls), Entry::Redial(id)));
        self.say(id, Said::Call { port }, agenda);
    }

    /// Whether a call was answered, and how; or remembers whom to wake then.
    pub(super) fn has_connected(&mut self, id: EndId, waker: &Waker) -> Option<io::Result<()>> {
        let end = self.ends.get_mut(&id)?;
        match end.phase {
            Phase::Calling { .. } => {
                end.reader = Some(waker.clone());
                None
            }
            Phase::Open => Some(Ok(())),
            Phase::Failed(kind) => Some(Err(kind.into())),
        }
    }

    /// Takes up to `length` bytes that have arrived. None at all: the peer has closed. `None`: nothing yet, the waker is
    /// kept.
    ///
    /// # Errors
    /// The connection was reset, and all that came before is read.
    pub(super) fn read(
        &mut self,
        id: EndId,
        length: usize,
        waker: &Waker,
        agenda: &mut Agenda,
    ) -> Option<io::Result<Vec<u8>>> {
        let Some(end) = self.ends.get_mut(&id) else { return Some(Err(io::ErrorKind::NotConnected.into())) };
        let read = end.read(length, waker);
        if let Some(bytes) = end.credit_to_give() {
            self.say(id, Said::Credit(bytes), agenda);
        }
        read
    }

    /// Sends what there is room for, and answers how much. `None`: there is no room, the waker is kept.
    ///
    /// # Errors
    /// The connection was reset, or closed from this side.
    pub(super) fn write(
        &mut self,
        id: EndId,
        bytes: &[u8],
        waker: &Waker,
        agenda: &mut Agenda,
    ) -> Option<io::Result<usize>> {
        let Some(end) = self.ends.get_mut(&id) else { return Some(Err(io::ErrorKind::NotConnected.into())) };
        let taken = match end.room(bytes.len(), waker)? {
            Ok(room) => bytes.get(..room).unwrap_or(bytes).to_vec(),
            Err(error) => return Some(Err(error)),
        };
        let length = taken.len();
        self.say(id, Said::Bytes(taken), agenda);
        Some(Ok(length))
    }

    /// Says that no more bytes will come from this end.
    pub(super) fn shut(&mut self, id: EndId, agenda: &mut Agenda) {
        let open = self.ends.get_mut(&id).filter(|end| end.phase == Phase::Open && !end.shut);
        if open.map(|end| end.shut = true).is_some() {
            self.say(id, Said::Close, agenda);
        }
    }

    /// Lets go of an end. Its peer hears of it, unless the power is gone.
    pub(super) fn drop_end(&mut self, id: EndId, agenda: &mut Agenda) {
        let Some(end) = self.ends.get(&id) else { return };
        let host = self.hosts.get(end.host.0).filter(|host| host.life == end.life);
        let presence = host.map_or(Presence::Dark, |host| host.presence);
        // As a kernel does: whoever leaves bytes unread resets. One that cleans up after a dead process may do either.
        let resets = end.has_unread() || presence == Presence::Gone && self.chance.one_in(2);
        match end.phase {
            Phase::Open if presence == Presence::Dark => {}
            Phase::Open if resets => self.say(id, Said::Reset, agenda),
            Phase::Open => self.shut(id, agenda),
            Phase::Calling { .. } | Phase::Failed(_) => {}
        }
        if let Some(redial) = self.ends.remove(&id).and_then(|end| end.redial) {
            drop(agenda.cancel(redial));
        }
    }

    /// A packet arrives, or waits for the end of a hold.
    pub(super) fn deliver(&mut self, packet: Packet, agenda: &mut Agenda) {
        if self.held.contains(&pair(packet.from, packet.to)) {
            self.parked.push(packet);
            return;
        }
        let Some(host) = self.hosts.get(packet.to.0) else { return };
        if host.presence == Presence::Dark {
            self.repeat(packet, agenda);
            return;
        }
        let Packet { from, to, end, said, .. } = packet;
        let (up, life) = (host.presence == Presence::Up, host.life);
        let (known, peer) = (self.ends.get_mut(&end).filter(|end| up && end.life == life), end.other());
        match (said, known) {
            (Said::Call { port }, _) => self.called((to, life, port), (from, end), agenda),
            (Said::Answer, Some(end)) => end.answered(),
            (Said::Bytes(bytes), Some(end)) => end.arrived(&bytes),
            (Said::Credit(bytes), Some(end)) => end.credited(bytes),
            (Said::Close, Some(end)) => end.closed(),
            (Said::Reset, Some(end)) => end.fail(io::ErrorKind::ConnectionReset),
            (Said::Answer | Said::Bytes(_), None) => {
                let reset = Packet { from: to, to: from, end: peer, said: Said::Reset, repeated: 0 };
                self.send(reset, Duration::ZERO, agenda);
            }
            (Said::Credit(_) | Said::Close | Said::Reset, None) => {}
        }
    }

    /// Sends bytes again that were not confirmed: once the machine is back it answers that it knows nothing of them. A call
    /// is repeated by its caller.
    fn repeat(&mut self, mut packet: Packet, agenda: &mut Agenda) {
        let Some(sender) = self.ends.get_mut(&packet.end.other()) else { return };
        if !matches!(packet.said, Said::Bytes(_)) {
            return;
        }
        if packet.repeated == CALLS_MAX {
            sender.fail(io::ErrorKind::TimedOut);
            return;
        }
        let wait = CALL_PATIENCE * (1 << packet.repeated);
        packet.repeated += 1;
        agenda.enter(agenda.now() + wait, Entry::Deliver(packet));
    }

    /// A call arrives at a port. One that was heard already, or that its caller has given up, is a late repetition.
    fn called(
        &mut self,
        (to, life, port): (HostIndex, LifeNumber, u16),
        call: (HostIndex, EndId),
        agenda: &mut Agenda,
    ) {
        let (from, caller) = call;
        let Some(calling) = self.ends.get_mut(&caller).filter(|end| !end.heard) else { return };
        let Some(listening) = self.listening.get_mut(&(to, port)) else {
            self.send(
                Packet { from: to, to: from, end: caller, said: Said::Reset, repeated: 0 },
                Duration::ZERO,
                agenda,
            );
            return;
        };
        if listening.queue.len() >= QUEUE_MAX {
            return;
        }
        calling.heard = true;
        let id = caller.other();
        listening.queue.push_back(id);
        if let Some(acceptor) = listening.acceptor.take() {
            acceptor.wake();
        }
        self.ends.insert(id, End::new(to, life, from, Phase::Open));
        self.say(id, Said::Answer, agenda);
    }

    /// Sends something from an end to its peer, behind all that it has sent before.
    fn say(&mut self, id: EndId, said: Said, agenda: &mut Agenda) {
        let Some((from, to, after)) = self.ends.get(&id).map(|end| (end.host, end.peer, end.arrives_after)) else {
            return;
        };
        let end = if matches!(said, Said::Call { .. }) { id } else { id.other() };
        let arrives = self.send(Packet { from, to, end, said, repeated: 0 }, after, agenda);
        if let Some(end) = self.ends.get_mut(&id) {
            end.arrives_after = arrives;
        }
    }

    /// Sends a packet that arrives not before `after`. Answers when it arrives.
    fn send(&self, packet: Packet, after: Duration, agenda: &mut Agenda) -> Duration {
        let arrives = (agenda.now() + self.latency(packet.from == packet.to)).max(after);
        agenda.enter(arrives, Entry::Deliver(packet));
        arrives
    }

    /// Most packets are quick, a few take the long way.
    fn latency(&self, loopback: bool) -> Duration {
        let (from_us, until_us) = match self.chance.below(64) {
            _ if loopback => (10, 60),
            0 => (8_000, 30_000),
            1..8 => (2_000, 8_000),
            _ => (150, 2_000),
        };
        Duration::from_micros(self.chance.between(from_us, until_us))
    }
}

fn pair(one: HostIndex, other: HostIndex) -> (HostIndex, HostIndex) {
    if one <= other { (one, other) } else { (other, one) }
}
