//! The loss of everything: all servers and agents at once, and what they had on their disks, or that it is whole. Then a
//! restore in their place, while agents and the coordinator are killed, and nodes cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sheetanchor_native::postgres::postmaster::StopMode;

use super::aims::Aim;
use super::beside;
use super::ledger::{self, Contents};
use super::makers::{Made, words};
use super::oracle::Case;
use super::rounds::{PEACE, Run};
use super::site::Said;

/// How many files of each server rot where folders are left behind.
const ROTTEN: usize = 6;

impl Run {
    /// Everything is lost, and restored in its place: into empty folders, or over what is left of the old ones.
    pub async fn lose_everything(&mut self) {
        let all = self.reachable();
        let cut = self.chance.one_of(&all).clone();
        for server in self.town.servers.values() {
            server.stop(StopMode::Kill).await.unwrap();
        }
        self.town.kill_agents();
        let is_delta = self.chance.below(2) == 0;
        if is_delta {
            self.rot();
        } else {
            self.town.site.wipe();
        }
        self.town.start_agents();
        let mut arguments = Aim::named(&cut, self.current).arguments;
        arguments.extend(is_delta.then(|| "--delta".to_owned()));
        self.restore(&arguments);
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
        let (sent, base): (_, &BTreeSet<i64>) = (self.journal.all(), &self.bases[&cut.incarnation]);
        let found = match (Case { sent: &sent, listed: &cut, base, contents: &contents }).judge() {
            Ok(found) => found,
            Err(wrong) => self.fail(&format!("{cut:?} in its place: {wrong}")),
        };
        let how = if is_delta { "in its place, over what was left" } else { "in its place" };
        self.row.restore([how], format!("{} of incarnation {} {how}", cut.target, cut.incarnation));
        self.bases.insert(opened, Arc::new(found));
        self.current = opened;
        self.journal.incarnation.store(opened, Ordering::SeqCst);
        self.insist(Made::Backup);
    }

    /// Spoils some files of relations on every server: a page in their middle, or their end.
    fn rot(&mut self) {
        for server in self.town.servers.values() {
            let mut files = Vec::new();
            let mut waiting = vec![PathBuf::from(&server.plan().data).join("base")];
            while let Some(folder) = waiting.pop() {
                for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                    let (path, length) = (entry.path(), entry.metadata().unwrap().len());
                    if path.is_dir() {
                        waiting.push(path);
                    } else if length > 8_192 {
                        files.push((path, length));
                    }
                }
            }
            files.sort();
            for _ in 0..ROTTEN {
                let (path, length) = self.chance.one_of(&files);
                let file = fs::File::options().write(true).open(path).unwrap();
                if self.chance.below(3) == 0 {
                    file.set_len(length - 8_192).unwrap();
                } else {
                    file.write_all_at(&[0xA5; 512], length / 2).unwrap();
                }
            }
        }
    }

    fn incarnation(&self) -> u32 {
        self.town.operator(&["--json", "status"]).json()["incarnation"].as_u64().unwrap().try_into().unwrap()
    }

    /// Restores in place; whoever is killed on the way, it can be taken up again or begun anew.
    fn restore(&mut self, arguments: &[String]) {
        let whole: Vec<&str> = ["restore"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let known = self.restores();
        let mut said = self.restore_struck(&whole);
        let begun = Instant::now();
        while let Err(error) = &said {
            eprintln!("  the restore in its place: {}", words(error));
            if begun.elapsed() > PEACE {
                self.fail(&format!("cannot be restored in its place: {arguments:?}: {error}"));
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
        let mut child = self.town.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(self.chance.millis(100, 3_000));
        let node = *self.chance.one_of(&self.town.nodes);
        let (kind, lasts) = (self.chance.below(6), self.chance.millis(10, 1_000));
        match (kind, &self.town.network) {
            (0, _) => super::town::signal("-KILL", child.id()),
            (1, _) => {
                self.town.kill_agent(node);
                std::thread::sleep(lasts);
                self.town.start_agent(node);
            }
            // Those who wait for its agent are not told that it is gone.
            (2, Ok(network)) => {
                network.pull(node);
                self.town.kill_agent(node);
                std::thread::sleep(lasts * 3);
                network.plug(node);
                self.town.start_agent(node);
            }
            (3, Ok(network)) => {
                network.pull(node);
                std::thread::sleep(lasts * 3);
                network.plug(node);
            }
            _ => {}
        }
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > PEACE {
                super::town::signal("-KILL", child.id());
                self.fail(&format!("a restore in its place has not ended in peace: {arguments:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = child.wait_with_output().unwrap();
        if ended.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&ended.stderr).into_owned()) }
    }
}
