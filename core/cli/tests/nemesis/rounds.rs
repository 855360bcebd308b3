//! A run, round by round: work under the nemesis, with restores beside it, peace, more restores, and now and then the loss
//! of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sheetanchor_native::postgres::install::Account;
use tokio::task::JoinSet;

use super::catalog::{self, Listed};
use super::chance::Chance;
use super::checks::restored_beside;
use super::faults::{Coordinators, Deck, Means, strike};
use super::hosts;
use super::ledger::{Clients, Journal};
use super::makers::{Attempt, Ends, Made, Maker, words};
use super::network::Network;
use super::oracle::Seen;
use super::report::{Report, Row};
use super::town::{Town, without_network};

const CLIENTS: u32 = 5;

/// How long anything may take once there is peace.
pub const PEACE: Duration = Duration::from_mins(2);

/// How far ahead a clock is once, before everything else, in seconds.
const AHEAD_S: i64 = 3_600;

/// How much happens in one round.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// How long the nemesis is about.
    pub strife: Duration,
    /// How many deeds the nemesis does.
    pub deeds: usize,
    /// How many cuts are restored beside the cluster while it works, at most.
    pub clones: usize,
    /// How many are in peace.
    pub cuts: usize,
}

pub struct Run {
    pub town: Arc<Town>,
    pub journal: Arc<Journal>,
    pub chance: Chance,
    deck: Deck,
    report: Report,
    pub made: catalog::Made,
    pub current: u32,
    /// What each incarnation began with.
    pub bases: BTreeMap<u32, Arc<BTreeSet<i64>>>,
    pub seen: BTreeMap<u32, Seen>,
    coordinators: Coordinators,
    names: u32,
    pub row: Row,
}

impl Run {
    pub async fn begin(nodes: u16, mut chance: Chance, report: Report) -> Self {
        let town = Arc::new(Town::new(nodes).await);
        town.operator(&["init"]).done();
        let means = Means {
            own_file_systems: town.repository.is_some() && town.third_disk.is_some(),
            network: town.network.is_ok(),
            slow_links: town.network.as_ref().is_ok_and(Network::has_slow_links),
        };
        match &town.network {
            Ok(network) if !network.has_slow_links() => eprintln!("links cannot be made slow here: that is left out"),
            Ok(_) => {}
            Err(why) => without_network(why),
        }
        if !means.own_file_systems {
            let is_root = Account::to_run_as(None).await.unwrap().is_some();
            let may_do_without = super::setting("WITHOUT_MOUNTS").is_some();
            assert!(!is_root || may_do_without, "root cannot mount here; SHEETANCHOR_NEMESIS_WITHOUT_MOUNTS=1 goes on");
            eprintln!("file systems of their own cannot be mounted here: full and read-only ones are left out");
        }
        let journal = Arc::new(Journal::default());
        journal.incarnation.store(1, Ordering::SeqCst);
        let deck = Deck::new(chance.branch(), &town.nodes, means);
        let mut run = Self {
            town,
            journal,
            chance,
            deck,
            report,
            made: catalog::Made::new(),
            current: 1,
            bases: BTreeMap::from([(1, Arc::default())]),
            seen: BTreeMap::new(),
            coordinators: Coordinators::default(),
            names: 0,
            row: Row::default(),
        };
        run.insist(Made::Backup);
        run.set_clocks_back();
        run
    }

    /// Clocks that were far ahead for a moment are no hindrance later, though all that agents have seen is forgotten, and the
    /// catalog has a point of a day to come.
    fn set_clocks_back(&mut self) {
        for (host, seconds) in [(hosts::OPERATORS, 24 * AHEAD_S), (1, AHEAD_S)] {
            self.town.hosts.set_clock_ahead(host, seconds);
            self.insist(Made::Point);
            self.town.hosts.set_clock_ahead(host, 0);
        }
        self.town.kill_agents();
        self.town.start_agents();
        self.insist(Made::Point);
    }

    /// One round.
    pub async fn round(&mut self, number: u32, measure: Measure) {
        let begun = Instant::now();
        self.row = Row { round: number, ..Row::default() };
        let plan = self.deck.deal(measure.deeds, measure.strife);
        let planned: Vec<String> = plan.iter().map(ToString::to_string).collect();
        eprintln!("round {number}: {}", planned.join("; "));
        let targets = self.draw(measure.clones, false);
        let clients = Clients::start(&self.journal, &self.town.connections(), &mut self.chance, CLIENTS);
        let over = Arc::new(AtomicBool::new(false));
        let ends = Ends(over.clone());
        let (mut makers, mut copiers) = (JoinSet::new(), JoinSet::new());
        let what = if self.chance.below(2) == 0 { Made::Backup } else { Made::Incremental };
        let (points, backups) = (self.maker(Made::Point, &over), self.maker(what, &over));
        let delay = self.chance.millis(100, 4_000);
        makers.spawn_blocking(move || points.points());
        makers.spawn_blocking(move || backups.backup(delay));
        copiers.spawn(restored_beside(self.town.clone(), targets, over));
        for (planned, struck) in strike(&self.town, &self.coordinators, &plan).await {
            self.row.deed(planned, struck);
        }
        drop(ends);
        let Ok(made) = tokio::time::timeout(PEACE, makers.join_all()).await else {
            self.fail("a backup or a restore point has not ended in peace")
        };
        self.note(made.into_iter().flatten().collect());
        let Ok(cloned) = tokio::time::timeout(PEACE, copiers.join_all()).await else {
            self.fail("a restore beside the cluster has not ended in peace")
        };
        self.make_peace().await;
        clients.stop().await;
        let hindered = plan.iter().any(|planned| planned.deed.hinders_clones());
        let again = self.judge_clones(cloned.into_iter().flatten().collect(), hindered);
        let drawn = self.draw(measure.cuts.saturating_sub(again.len()), true);
        self.check(again.into_iter().chain(drawn).collect()).await;
        if number.is_multiple_of(2) {
            self.lose_everything().await;
        }
        self.row.entries = self.journal.all().len();
        self.row.pairs = self.journal.committed_pairs();
        self.row.took = begun.elapsed();
        self.report.add(self.row.clone());
    }

    pub fn restored(&self) -> usize {
        self.report.restored()
    }

    pub fn end(self) {
        assert!(self.report.restored() > 0, "nothing was restored");
        assert!(self.journal.committed_pairs() > 0, "nothing was committed in two phases");
    }

    fn maker(&mut self, what: Made, over: &Arc<AtomicBool>) -> Maker {
        self.names += 1;
        Maker {
            town: self.town.clone(),
            what,
            prefix: format!("{}-{}", what.word(), self.names),
            over: over.clone(),
            coordinators: self.coordinators.clone(),
        }
    }

    fn note(&mut self, attempts: Vec<Attempt>) {
        for Attempt { name, window, done, said } in attempts {
            let row = &mut self.row;
            let count = match (name.starts_with("backup"), done) {
                (true, true) => &mut row.backups,
                (true, false) => &mut row.backups_failed,
                (false, true) => &mut row.points,
                (false, false) => &mut row.points_failed,
            };
            *count += 1;
            if !done {
                eprintln!("  {name}: {}", words(&said));
            }
            self.made.insert(name, window);
        }
    }

    /// Once there is peace: servers and agents run, commits flow, and whatever was published can be restored to.
    async fn make_peace(&mut self) {
        let healed = Instant::now();
        self.town.start_agents();
        for node in &self.town.nodes {
            if let Err(error) = self.town.start_server(*node).await {
                self.fail(&format!("server {node} does not start: {error}"));
            }
        }
        let flows = || self.town.nodes.iter().all(|node| self.journal.acknowledged_since(*node, healed) > 0);
        while !flows() {
            if healed.elapsed() > PEACE {
                self.fail("commits do not flow again");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let unfinished = self.town.operator(&["--json", "status"]).json()["unfinished"].clone();
        for operation in unfinished.as_array().unwrap() {
            self.town.operator(&["abort", operation.as_str().unwrap()]).done();
        }
        self.insist(Made::Point);
        let begun = Instant::now();
        loop {
            let all = self.listed();
            let waiting: Vec<&Listed> =
                all.iter().filter(|cut| cut.incarnation == self.current && cut.state != "reachable").collect();
            if waiting.is_empty() {
                return;
            }
            if begun.elapsed() > PEACE {
                self.fail(&format!("published, and not reachable: {waiting:?}"));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// In peace an operation is done, if not at once.
    pub fn insist(&mut self, what: Made) {
        let begun = Instant::now();
        loop {
            let over = Arc::new(AtomicBool::new(true));
            let maker = self.maker(what, &over);
            let attempt = maker.attempt(&maker.prefix);
            let (done, said) = (attempt.done, attempt.said.clone());
            self.note(vec![attempt]);
            if done {
                return;
            }
            if begun.elapsed() > PEACE {
                self.fail(&format!("no {} can be made in peace: {said}", what.word()));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Keeps the logs, and ends the run.
    pub fn fail(&self, wrong: &str) -> ! {
        for (name, text) in self.town.logs() {
            match &self.report.folder {
                Some(folder) => {
                    fs::create_dir_all(folder).unwrap();
                    fs::write(format!("{folder}/{}", name.replace('/', "-")), text).unwrap();
                }
                None => eprintln!("--- {name}\n{}", String::from_utf8_lossy(&text)),
            }
        }
        self.report.write(wrong);
        panic!("round {}: {wrong}", self.row.round);
    }
}
