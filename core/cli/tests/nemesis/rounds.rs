//! A run, round by round: work under the nemesis, peace, restores, and now and then the loss of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sheetanchor_native::postgres::postmaster::StopMode;
use tokio::task::JoinSet;

use super::beside;
use super::catalog::{Listed, Made, listed};
use super::chance::Chance;
use super::faults::{Coordinators, Deck, strike};
use super::ledger::{self, Clients, Contents, Journal};
use super::oracle::{Case, Seen, Window};
use super::report::{Report, Row};
use super::site::Said;
use super::town::{NODES, Town};

const CLIENTS: u32 = 5;

/// How long the nemesis is about in one round, and how much it does.
const STRIFE: Duration = Duration::from_secs(9);
const DEEDS: usize = 4;

/// How long anything may take once there is peace.
const PEACE: Duration = Duration::from_mins(2);

/// What one command came to.
struct Attempt {
    name: String,
    window: Window,
    done: bool,
    said: String,
}

pub struct Run {
    town: Arc<Town>,
    journal: Arc<Journal>,
    chance: Chance,
    deck: Deck,
    report: Report,
    made: Made,
    current: u32,
    /// What each incarnation began with.
    bases: BTreeMap<u32, BTreeSet<i64>>,
    seen: BTreeMap<u32, Seen>,
    coordinators: Coordinators,
    names: u32,
    row: Row,
}

impl Run {
    pub async fn begin(mut chance: Chance, report: Report) -> Self {
        let town = Arc::new(Town::new().await);
        town.operator(&["init"]).done();
        let own_file_systems = town.repository.is_some() && town.third_disk.is_some();
        if !own_file_systems {
            eprintln!("file systems of their own cannot be mounted here: full and read-only ones are left out");
        }
        let journal = Arc::new(Journal::default());
        journal.incarnation.store(1, Ordering::SeqCst);
        let deck = Deck::new(chance.branch(), own_file_systems);
        let mut run = Self {
            town,
            journal,
            chance,
            deck,
            report,
            made: Made::new(),
            current: 1,
            bases: BTreeMap::from([(1, BTreeSet::new())]),
            seen: BTreeMap::new(),
            coordinators: Coordinators::default(),
            names: 0,
            row: Row::default(),
        };
        run.back_up();
        run
    }

    /// One round; `cuts` of them are restored beside at its end.
    pub async fn round(&mut self, number: u32, cuts: usize) {
        let begun = Instant::now();
        self.row = Row { round: number, ..Row::default() };
        let plan = self.deck.deal(DEEDS, STRIFE);
        let planned: Vec<String> = plan.iter().map(ToString::to_string).collect();
        eprintln!("round {number}: {}", planned.join("; "));
        let clients = Clients::start(&self.journal, &self.town.connections(), &mut self.chance, CLIENTS);
        let over = Arc::new(AtomicBool::new(false));
        let ends = Ends(over.clone());
        let mut makers = JoinSet::new();
        let (points, backups) = (self.maker("point", &over), self.maker("backup", &over));
        let delay = self.chance.millis(100, 4_000);
        makers.spawn_blocking(move || points.points());
        makers.spawn_blocking(move || backups.backup(delay));
        self.row.deeds = strike(&self.town, &self.coordinators, &plan).await;
        drop(ends);
        let made = tokio::time::timeout(PEACE, makers.join_all()).await;
        let Ok(made) = made else { self.fail("a backup or a restore point has not ended in peace") };
        self.note(made.into_iter().flatten().collect());
        self.make_peace().await;
        clients.stop().await;
        self.check_some(cuts).await;
        if number.is_multiple_of(2) {
            self.lose_everything().await;
        }
        self.row.entries = self.journal.all().len();
        self.row.pairs = self.journal.committed_pairs();
        self.row.took = begun.elapsed();
        self.report.add(self.row.clone());
    }

    pub fn end(self) {
        assert!(self.report.restored() > 0, "nothing was restored");
        assert!(self.journal.committed_pairs() > 0, "nothing was committed in two phases");
    }

    fn maker(&mut self, what: &'static str, over: &Arc<AtomicBool>) -> Maker {
        self.names += 1;
        Maker {
            town: self.town.clone(),
            what,
            prefix: format!("{what}-{}", self.names),
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
        for node in NODES {
            self.town.start_agent(node);
            if let Err(error) = self.town.servers[&node].start().await {
                self.fail(&format!("server {node} does not start: {error}"));
            }
        }
        let flows = || NODES.iter().all(|node| self.journal.acknowledged_since(*node, healed) > 0);
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
        self.insist("point");
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

    /// A backup that must be possible.
    fn back_up(&mut self) {
        self.insist("backup");
    }

    /// In peace an operation is done, if not at once.
    fn insist(&mut self, what: &'static str) {
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
                self.fail(&format!("no {what} can be made in peace: {said}"));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn listed(&self) -> Vec<Listed> {
        let (points, history) = (&["--json", "restore-points"], &["--json", "history"]);
        let all = listed(&self.town.operator(points).json(), &self.town.operator(history).json(), &self.made);
        if let Some(cut) = all.iter().find(|cut| cut.guarantee != "atomic") {
            self.fail(&format!("two-phase commit is declared, and not every cut is atomic: {cut:?}"));
        }
        all
    }

    async fn check_some(&mut self, cuts: usize) {
        let mut all = self.listed();
        all.retain(|cut| cut.state == "reachable");
        self.chance.shuffle(&mut all);
        // One of the incarnation in force, at least; the others of any.
        all.sort_by_key(|cut| cut.incarnation != self.current);
        let (first, mut others) = (all.remove(0), all);
        self.chance.shuffle(&mut others);
        for cut in [first].into_iter().chain(others).take(cuts) {
            let sent = self.journal.all();
            let base = &self.bases[&cut.incarnation];
            let judged = beside::check(&self.town, &cut, self.current, &sent, base).await;
            let judged = judged.and_then(|(found, in_doubt)| {
                self.seen.entry(cut.incarnation).or_default().add(cut.window, found).map(|()| in_doubt)
            });
            match judged {
                Ok(in_doubt) => self.row.in_doubt += in_doubt,
                Err(wrong) => self.fail(&format!("{cut:?}: {wrong}")),
            }
            self.row.restored.push(format!("{} of incarnation {}", cut.target, cut.incarnation));
        }
    }

    /// Everything is lost, and restored in its place, while agents and the coordinator are killed.
    async fn lose_everything(&mut self) {
        let mut all = self.listed();
        all.retain(|cut| cut.state == "reachable");
        let cut = self.chance.one_of(&all).clone();
        for node in NODES {
            self.town.servers[&node].stop(StopMode::Kill).await.unwrap();
        }
        self.town.kill_agents();
        self.town.site.wipe();
        self.town.start_agents();
        self.restore(&cut);
        let (opened, before) = (self.incarnation(), self.current);
        if opened == before {
            self.fail(&format!("{cut:?} was restored, and incarnation {before} is in force still"));
        }
        let mut contents: BTreeMap<u16, Contents> = BTreeMap::new();
        for (node, connection) in self.town.connections() {
            contents.insert(node, ledger::read(&connection).await);
            if let Err(wrong) = beside::amcheck(&connection).await {
                self.fail(&format!("{cut:?} in its place, node {node}: {wrong}"));
            }
        }
        let (sent, base) = (self.journal.all(), &self.bases[&cut.incarnation]);
        let found = match (Case { sent: &sent, listed: &cut, base, contents: &contents }).judge() {
            Ok(found) => found,
            Err(wrong) => self.fail(&format!("{cut:?} in its place: {wrong}")),
        };
        self.row.restored.push(format!("{} of incarnation {} in its place", cut.target, cut.incarnation));
        self.bases.insert(opened, found);
        self.current = opened;
        self.journal.incarnation.store(opened, Ordering::SeqCst);
        self.back_up();
    }

    fn incarnation(&self) -> u32 {
        self.town.operator(&["--json", "status"]).json()["incarnation"].as_u64().unwrap().try_into().unwrap()
    }

    /// Restores in place; whoever is killed on the way, it can be taken up again or begun anew.
    fn restore(&mut self, cut: &Listed) {
        let incarnation = cut.incarnation.to_string();
        let mut whole = vec!["restore", "--to", &cut.target];
        if cut.incarnation != self.current {
            whole.extend(["--incarnation", &incarnation]);
        }
        let known = self.restores();
        let mut said = self.restore_struck(&whole);
        let begun = Instant::now();
        while let Err(error) = &said {
            eprintln!("  the restore in its place: {}", words(error));
            if begun.elapsed() > PEACE {
                self.fail(&format!("cannot be restored in its place: {cut:?}: {error}"));
            }
            self.town.start_agents();
            let again = match self.restores().difference(&known).max() {
                Some(newest) => self.resume(newest),
                None => None,
            };
            let again = again.unwrap_or_else(|| self.town.operator(&whole));
            said = if again.status == 0 { Ok(()) } else { Err(again.err) };
        }
    }

    /// Takes a restore up; `None` if it can only be begun anew: it was aborted, or killed before it had a plan.
    fn resume(&self, operation: &str) -> Option<Said> {
        let again = self.town.operator(&["restore", "--resume", operation]);
        if again.err.contains("(SA209)") {
            self.town.operator(&["abort", operation]);
        }
        let over = ["(SA207)", "(SA209)", "(SA003)"].iter().any(|code| again.err.contains(code));
        if over { None } else { Some(again) }
    }

    /// Every restore that was ever begun, by the catalog.
    fn restores(&self) -> BTreeSet<String> {
        let folder = self.town.site.repository().join("operations");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("restore-")).collect()
    }

    fn restore_struck(&mut self, arguments: &[&str]) -> Result<(), String> {
        let child = self.town.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(self.chance.millis(100, 3_000));
        match self.chance.below(4) {
            0 => super::town::signal("-KILL", child.id()),
            1 => {
                let node = *self.chance.one_of(&NODES);
                self.town.kill_agent(node);
                std::thread::sleep(self.chance.millis(10, 1_000));
                self.town.start_agent(node);
            }
            _ => {}
        }
        let ended = child.wait_with_output().unwrap();
        if ended.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ended.stderr).into_owned()) }
    }

    /// Keeps the logs, and ends the run.
    fn fail(&self, wrong: &str) -> ! {
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

/// Why a command failed, from its error output.
fn words(said: &str) -> &str {
    said.lines().find(|line| line.starts_with("error: ")).unwrap_or("killed")
}

/// Whoever works until this is set ends with it, however the round ends.
struct Ends(Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Makes points or backups, each by a process of its own.
struct Maker {
    town: Arc<Town>,
    what: &'static str,
    prefix: String,
    over: Arc<AtomicBool>,
    coordinators: Coordinators,
}

impl Maker {
    /// One point a second.
    fn points(&self) -> Vec<Attempt> {
        let mut made = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let begun = Instant::now();
            made.push(self.attempt(&format!("{}-{}", self.prefix, made.len())));
            std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        }
        made
    }

    fn backup(&self, delay: Duration) -> Vec<Attempt> {
        std::thread::sleep(delay);
        vec![self.attempt(&self.prefix)]
    }

    fn attempt(&self, name: &str) -> Attempt {
        let arguments: &[&str] =
            if self.what == "backup" { &["backup", "--label", name] } else { &["restore-point", "create", name] };
        let begun = Instant::now();
        let mut command = self.town.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        self.coordinators.lock().unwrap().insert(self.what, child.id());
        let ended = child.wait_with_output().unwrap();
        self.coordinators.lock().unwrap().remove(self.what);
        let window = Window { begun, ended: Instant::now() };
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        Attempt { name: name.to_owned(), window, done: ended.status.success(), said }
    }
}
