//! The network between hosts that have addresses of their own: each host is a network namespace, and a cable leads from it
//! to a namespace that does nothing but pass packets on. Whatever is cut there is cut as in the world: packets vanish in the
//! middle of connections, and nobody is told.
//!
//! Nothing of it has a name, and nothing lies in the machine's own namespace: a namespace is there for as long as we hold it
//! open or a process runs in it, so that a run that is killed leaves nothing behind. Agents are reached on addresses of
//! 127.0.0.0/8 only, until their messages are encrypted; here the kernel is told to route these as any others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::hosts::OPERATORS;

/// The port that every agent listens on.
const AGENT_PORT: u16 = 7001;

/// So few bits a second, and a queue of so few bytes, have a link that is slow: what does not fit in is lost.
const SLOW: &str = "root tbf rate 32kbit burst 2048 limit 4096";

/// What does not come through, of what a host sends and is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    To,
    From,
}

/// What was cut, until it is healed.
#[derive(Debug)]
pub struct Cut(u32);

/// All hosts, and what lies between them.
pub struct Network {
    wire: Namespace,
    hosts: BTreeMap<u16, Namespace>,
    /// Cuts so far.
    cuts: AtomicU32,
    slows: bool,
}

impl Network {
    /// A network of the hosts of `nodes`, and of that of operators.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn new(nodes: &[u16]) -> Result<Self, String> {
        let wire = Namespace::new()?;
        wire.set("ip_forward", "1")?;
        wire.set("conf/all/route_localnet", "1")?;
        let mut hosts = BTreeMap::new();
        for host in [OPERATORS].into_iter().chain(nodes.iter().copied()) {
            let own = Namespace::new()?;
            own.set("conf/all/route_localnet", "1")?;
            // The connections of a process that was killed while nobody hears of it are gone soon, as if power had failed.
            own.set("tcp_orphan_retries", "1")?;
            wire.ip(&format!(
                "link add h{host} type veth peer name eth0 netns {}\n\
                 addr add 127.77.{host}.1/24 dev h{host} scope global\nlink set h{host} up\n",
                own.path()
            ))?;
            // The loopback interface keeps its address, and gives up all the others that begin with 127.
            own.ip(&format!(
                "link set lo up\nroute del local 127.0.0.0/8 dev lo table local\n\
                 addr add {}/24 dev eth0 scope global\nlink set eth0 up\nroute add 127.77.0.0/16 via 127.77.{host}.1\n",
                Self::address(host)
            ))?;
            hosts.insert(host, own);
        }
        // Nobody is told that a host is not there.
        wire.ip("route add blackhole 127.77.0.0/16\n")?;
        let mut network = Self { wire, hosts, cuts: AtomicU32::new(0), slows: false };
        network.slows = network.tc("replace", OPERATORS, SLOW).is_ok();
        network.hasten(OPERATORS);
        Ok(network)
    }

    /// The address of a host.
    pub fn address(host: u16) -> String {
        format!("127.77.{host}.2")
    }

    /// Where a node's agent listens.
    pub fn agent(node: u16) -> String {
        format!("{}:{AGENT_PORT}", Self::address(node))
    }

    /// The words before a command that is to run on a host.
    pub fn entering(&self, host: u16) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.hosts[&host].path()), "--".to_owned()]
    }

    /// Does something on a host; the processes that it starts stay there.
    pub fn within<T: Send>(&self, host: u16, work: impl FnOnce() -> T + Send) -> T {
        self.hosts[&host].within(work)
    }

    /// Whether links can be made slow here.
    pub fn has_slow_links(&self) -> bool {
        self.slows
    }

    /// Pulls a host's cable.
    pub fn pull(&self, host: u16) {
        self.wire.ip(&format!("link set h{host} down\n")).unwrap();
    }

    /// Plugs it in again.
    pub fn plug(&self, host: u16) {
        self.wire.ip(&format!("link set h{host} up\n")).unwrap();
    }

    /// Nothing that a host is sent reaches it, or nothing that it sends is passed on.
    pub fn silence(&self, host: u16, way: Way) -> Cut {
        match way {
            Way::To => self.cut(&format!("to {}", Self::address(host))),
            Way::From => self.cut(&format!("from {}", Self::address(host))),
        }
    }

    /// Nothing that one host sends reaches the other.
    pub fn part(&self, one: u16, other: u16) -> Cut {
        self.cut(&format!("from {} to {}", Self::address(one), Self::address(other)))
    }

    fn cut(&self, which: &str) -> Cut {
        let number = 1_000 + self.cuts.fetch_add(1, Ordering::SeqCst);
        self.wire.ip(&format!("rule add pref {number} {which} blackhole\n")).unwrap();
        Cut(number)
    }

    /// Ends a cut.
    pub fn heal(&self, Cut(number): Cut) {
        self.wire.ip(&format!("rule del pref {number}\n")).unwrap();
    }

    /// Makes a host's link slow both ways; and it loses what is too much for it.
    pub fn slow(&self, host: u16) {
        self.tc("replace", host, SLOW).unwrap();
    }

    /// Makes it as fast as the others again.
    pub fn hasten(&self, host: u16) {
        // It may be so already.
        self.tc("del", host, "root").ok();
    }

    fn tc(&self, verb: &str, host: u16, what: &str) -> Result<(), String> {
        let tc = |port: &str| format!("qdisc {verb} dev {port} {what}\n");
        self.wire.batch("tc", &tc(&format!("h{host}")))?;
        self.hosts[&host].batch("tc", &tc("eth0"))
    }
}

/// A network namespace, for as long as this is held.
struct Namespace {
    held: File,
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let mut maker = Command::new("unshare");
        maker.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut maker = maker.spawn().map_err(|error| format!("unshare: {error}"))?;
        // It is there once the program in it answers.
        let mut heard = [0];
        let asked = maker.stdin.as_mut().unwrap().write_all(b"?");
        let answered = asked.and_then(|()| maker.stdout.as_mut().unwrap().read_exact(&mut heard));
        let held = answered.and_then(|()| File::open(format!("/proc/{}/ns/net", maker.id())));
        let ended = maker.wait_with_output().map_err(|error| format!("unshare: {error}"))?;
        held.map(|held| Self { held })
            .map_err(|error| format!("unshare: {error}; {}", String::from_utf8_lossy(&ended.stderr).trim()))
    }

    /// As others may open it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.held.as_raw_fd())
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.held.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        // Of a process each thread may be in another one.
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        let path = format!("/proc/sys/net/ipv4/{name}");
        self.within(|| fs::write(&path, value)).map_err(|error| format!("{path}: {error}"))
    }

    fn ip(&self, lines: &str) -> Result<(), String> {
        self.batch("ip", lines)
    }

    /// Has `ip` or `tc` do something, line by line, up to the first that fails.
    fn batch(&self, program: &str, lines: &str) -> Result<(), String> {
        let run = || {
            let mut command = Command::new(program);
            command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.spawn()?;
            child.stdin.take().unwrap().write_all(lines.as_bytes())?;
            child.wait_with_output()
        };
        let ended = self.within(run).map_err(|error| format!("{program}: {error}"))?;
        if ended.status.success() {
            return Ok(());
        }
        Err(format!("{program}: {}", String::from_utf8_lossy(&ended.stderr).trim()))
    }
}

/// Whoever relies on it sees that it works: what is cut is cut, in that way and in no other, and whole again afterwards.
#[test]
fn hosts_reach_each_other_unless_they_are_cut_off() {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    let network = match Network::new(&[1, 2]) {
        Ok(network) => network,
        Err(why) => return super::town::without_network(&why),
    };
    let listening: BTreeMap<u16, TcpListener> =
        [1, 2].map(|host| (host, network.within(host, || TcpListener::bind(Network::agent(host)).unwrap()))).into();
    let dial = |from: u16, to: u16, wait: u64| {
        let address: SocketAddr = Network::agent(to).parse().unwrap();
        network.within(from, || TcpStream::connect_timeout(&address, Duration::from_millis(wait)))
    };
    let reaches = |from, to| dial(from, to, 300).is_ok();
    let comes_to_reach = |from, to| {
        let begun = Instant::now();
        while !reaches(from, to) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{from} does not reach {to}");
        }
    };
    for (from, to) in [(0, 1), (0, 2), (1, 2), (2, 1), (1, 1)] {
        comes_to_reach(from, to);
    }
    assert!(TcpStream::connect_timeout(&Network::agent(1).parse().unwrap(), Duration::from_millis(300)).is_err());

    // In the middle of a connection: what is said is not heard, and then it is.
    let mut spoken = dial(0, 1, 300).unwrap();
    let (mut heard, mut word) = (None, [0; 4]);
    listening[&1].set_nonblocking(true).unwrap();
    while let Ok((stream, peer)) = listening[&1].accept() {
        heard = (peer == spoken.local_addr().unwrap()).then_some(stream).or(heard);
    }
    let mut heard = heard.unwrap();
    heard.set_nonblocking(false).unwrap();
    heard.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    network.pull(1);
    spoken.write_all(b"word").unwrap();
    assert!(heard.read_exact(&mut word).is_err() && !reaches(0, 1) && reaches(0, 2) && !reaches(2, 1));
    network.plug(1);
    heard.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    heard.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");
    comes_to_reach(0, 1);

    let is_cut = |cut: Cut, (from, to)| {
        assert!(!reaches(from, to) && reaches(0, 2), "{from} to {to}: {cut:?}");
        network.heal(cut);
        comes_to_reach(from, to);
    };
    is_cut(network.silence(1, Way::To), (0, 1));
    is_cut(network.silence(1, Way::From), (0, 1));
    is_cut(network.part(1, 2), (1, 2));
    is_cut(network.part(2, 1), (1, 2));
}
