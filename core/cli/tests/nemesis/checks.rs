//! Which cuts are restored beside the running cluster, in which of all ways, and what must be there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use super::aims::Aim;
use super::beside::{Beside, Judged, Known, Reads};
use super::catalog::{self, Listed};
use super::makers::words;
use super::rounds::Run;
use super::town::Town;

/// How many cuts are restored beside each other in peace.
const TOGETHER: usize = 2;

/// A cut that is to be restored.
pub type Target = (Aim, Known);

/// Restores one after the other while the cluster works, until that is over; at least one, if there is any.
pub async fn restored_beside(town: Arc<Town>, targets: Vec<Target>, over: Arc<AtomicBool>) -> Vec<(Target, Judged)> {
    let mut judged = Vec::new();
    for (aim, known) in targets {
        if over.load(Ordering::SeqCst) && !judged.is_empty() {
            break;
        }
        let beside = Beside::new(&town, Reads::Source).await;
        let one = beside.check(aim.clone(), known.clone()).await;
        judged.push(((aim, known), one));
    }
    judged
}

impl Run {
    /// What the program lists, all of it as good as was declared, and with SCNs in order.
    pub fn listed(&self) -> Vec<Listed> {
        let (points, history) = (&["--json", "restore-points"], &["--json", "history"]);
        let all = catalog::listed(&self.town.operator(points).json(), &self.town.operator(history).json(), &self.made);
        if let Some(cut) = all.iter().find(|cut| cut.guarantee != "atomic") {
            self.fail(&format!("two-phase commit is declared, and not every cut is atomic: {cut:?}"));
        }
        if let Err(wrong) = catalog::scns_ascend(&all) {
            self.fail(&wrong);
        }
        all
    }

    /// Every cut that can be restored to.
    pub fn reachable(&self) -> Vec<Listed> {
        let mut all = self.listed();
        all.retain(|cut| cut.state == "reachable");
        all
    }

    /// Draws cuts: one of the incarnation in force first, the others of any. In peace nothing more is published until they
    /// are restored.
    pub fn draw(&mut self, cuts: usize, in_peace: bool) -> Vec<Target> {
        let reachable = self.reachable();
        let published = catalog::published(&self.town.operator(&["--json", "restore-points"]).json());
        let mut drawn = reachable.clone();
        self.chance.shuffle(&mut drawn);
        drawn.sort_by_key(|cut| cut.incarnation != self.current);
        let mut others = drawn.split_off(1);
        self.chance.shuffle(&mut others);
        let sent = Arc::new(self.journal.all());
        let mut targets = Vec::new();
        for cut in drawn.into_iter().chain(others).take(cuts) {
            let published = in_peace.then_some(published.as_slice());
            let aim = Aim::drawn(&cut, self.current, &mut self.chance, &reachable, published);
            let base = self.bases[&aim.cut.incarnation].clone();
            targets.push((aim, Known { sent: sent.clone(), base }));
        }
        targets
    }

    /// Restores cuts in peace, some together, each of which must be as it was.
    pub async fn check(&mut self, targets: Vec<Target>) {
        let (mut waiting, mut running) = (targets.into_iter(), JoinSet::new());
        loop {
            while running.len() < TOGETHER
                && let Some((aim, known)) = waiting.next()
            {
                let beside = Beside::new(&self.town, Reads::Copy).await;
                running.spawn(async move { (aim.clone(), beside.check(aim, known).await) });
            }
            let Some(done) = running.join_next().await else { return };
            let (aim, judged) = done.unwrap();
            if let Judged::Refused(why) = self.judge(&aim, judged, "beside") {
                self.fail(&format!("{aim:?} cannot be restored: {why}"));
            }
        }
    }

    /// Holds what was restored while the cluster worked against each other, and answers what is to be restored once more:
    /// if the repository could not be written to, a clone was refused perhaps.
    pub fn judge_clones(&mut self, cloned: Vec<(Target, Judged)>, hindered: bool) -> Vec<Target> {
        let mut again = Vec::new();
        for ((aim, known), judged) in cloned {
            if let Judged::Refused(why) = self.judge(&aim, judged, "beside, while the cluster works") {
                if !hindered {
                    self.fail(&format!("{aim:?} cannot be cloned: {why}"));
                }
                eprintln!("  a clone: {}", words(&why));
                again.push((aim, known));
            }
        }
        again
    }

    fn judge(&mut self, aim: &Aim, judged: Judged, where_to: &'static str) -> Judged {
        match &judged {
            Judged::Right(found, in_doubt) => {
                let seen = self.seen.entry(aim.cut.incarnation).or_default();
                if let Err(wrong) = seen.add(aim.cut.window, found.clone()) {
                    self.fail(&format!("{aim:?}: {wrong}"));
                }
                self.row.in_doubt += in_doubt;
                let what =
                    format!("{} of incarnation {} by {} {where_to}", aim.cut.target, aim.cut.incarnation, aim.kind);
                self.row.restore([aim.kind, where_to], what);
            }
            Judged::Wrong(wrong) => self.fail(&format!("{aim:?}: {wrong}")),
            Judged::Refused(_) => {}
        }
        judged
    }
}
