//! Verbs for runs in which faults strike by plan, whenever it pleases them: operations end somehow, and in the end everything works.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use sheetanchor_core::error::{Error, Result as Outcome};
use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::OperationKind;
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_engine::coordinator::{Coordinator, Restored, Sealed};
use sheetanchor_engine::database::Storage;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::check_restored;
use sheetanchor_sim::plan::{CrashPolicy, Plan};
use sheetanchor_sim::world::Failure;

use super::{BOUND, Begun, CLIENTS, Check, Stage};
use crate::cluster::{NODES, host};
use crate::workload::{read_back, read_separate};

/// How often something is tried, once nothing new goes wrong, and how long between.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(700);

impl Stage {
    /// When: from here on faults strike. Those of the run's plan, or a few that are drawn if none was given.
    pub fn faults_begin(&mut self) {
        self.swept_from = self.world.all_passes();
        // Drawn in any case: what comes after is the same run, whether its plan was drawn or written down.
        let drawn = self.any_plan();
        self.arm_if_drawn(drawn);
    }

    /// When: whoever stages what was lost loses power while it does, in some of the runs that draw any faults.
    pub fn staging_may_be_struck(&mut self) {
        let struck = self.amid.one_in(3);
        let crash = self.any_crash_amid_staging();
        if struck {
            self.arm_if_drawn(Plan::peaceful().and(crash));
        }
    }

    /// How often each host had passed the gate when faults began.
    pub fn swept_from(&self) -> &BTreeMap<String, u64> {
        &self.swept_from
    }

    /// Waits for the end of an operation, whatever it is. A node or an operator that stopped is started again.
    pub fn ends_amid_faults<T>(&mut self, begun: &Begun<T>) -> Result<Outcome<T>, Failure> {
        let until = self.world.elapsed() + BOUND;
        loop {
            match self.world.finish(&begun.promise, PAUSE) {
                Ok(Err(Error::Bug(what))) => {
                    self.holds(false, Violation::new("no invariant of ours breaks", what.clone()))?;
                    return Ok(Err(Error::Bug(what)));
                }
                Err(Failure::Stuck { .. }) if self.world.elapsed() < until => self.what_stopped_is_started(),
                Err(failure) => return Err(failure),
                Ok(outcome) => return Ok(outcome),
            }
        }
    }

    /// Nodes whose process has ended, for whatever reason, are started again, as a supervisor does.
    pub(super) fn what_stopped_is_started(&mut self) {
        for name in NODES.map(host) {
            if self.world.has_ended(&name) {
                self.world.crash(&name, CrashPolicy::ProcessOnly);
            }
            self.world.restart(&name);
        }
    }

    /// A database whose disk failed has stopped and says so, while its agent lives: somebody starts both anew.
    pub(super) fn all_is_started_anew(&mut self) -> Result<(), Failure> {
        for name in NODES.map(host) {
            self.world.crash(&name, CrashPolicy::ProcessOnly);
            self.world.restart(&name);
        }
        self.world.run_for(PAUSE)
    }

    /// Then: what is asked for works in the end, though not at once.
    pub fn works_in_the_end<T, F>(
        &mut self,
        what: &str,
        act: impl Fn(Coordinator) -> F + Clone + Send + Sync + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        for attempt in 1..ATTEMPTS {
            let begun = self.operate(act.clone());
            if let Ok(value) = self.ends_amid_faults(&begun)? {
                return Ok(value);
            }
            self.world.run_for(PAUSE)?;
            self.what_stopped_is_started();
            if attempt.is_multiple_of(3) {
                self.all_is_started_anew()?;
            }
        }
        let begun = self.operate(act);
        let outcome = self.ends_amid_faults(&begun)?;
        self.expect(what, outcome)
    }

    /// Then: once what failed is aborted, a backup is taken; or it was taken at once.
    pub fn is_backed_up_in_the_end(&mut self, first: Outcome<Sealed>) -> Result<Sealed, Failure> {
        let Err(_) = first else { return self.expect("a backup", first) };
        self.what_was_begun_is_aborted()?;
        self.works_in_the_end("a backup once the faults are over", |operator| async move {
            operator.backup(None, Method::Fence).await
        })
    }

    /// Then: the cluster is restored in the end, by whoever takes the restore up, and holds exactly what was committed.
    pub fn is_restored_in_the_end(&mut self, target: &Target) -> Result<Restored, Failure> {
        self.is_restored_in_the_end_by(&Aim::from(target), check_restored)
    }

    /// The same, to what was aimed at, as `check` judges it.
    pub fn is_restored_in_the_end_by(&mut self, aim: &Aim, check: Check) -> Result<Restored, Failure> {
        let mut begun = self.begin_restore(aim.clone());
        for attempt in 1..=ATTEMPTS {
            if let Ok(restored) = self.ends_amid_faults(&begun)? {
                self.is_read_in_the_end(&restored, check)?;
                return Ok(restored);
            }
            self.world.run_for(PAUSE)?;
            self.what_stopped_is_started();
            if attempt.is_multiple_of(3) {
                self.all_is_started_anew()?;
            }
            if let Some(restored) = self.a_restore_is_taken_up()? {
                self.is_read_in_the_end(&restored, check)?;
                return Ok(restored);
            }
            begun = self.begin_restore(aim.clone());
        }
        let outcome = self.ends_amid_faults(&begun)?;
        let restored = self.expect("a restore once the faults are over", outcome)?;
        self.is_read_in_the_end(&restored, check)?;
        Ok(restored)
    }

    fn is_read_in_the_end(&mut self, restored: &Restored, check: Check) -> Result<(), Failure> {
        let cut = restored.plan.cut.scn;
        for _ in 0..ATTEMPTS {
            self.what_stopped_is_started();
            let mut states = Vec::new();
            let separate = self.storage == Storage::PerNode;
            if separate {
                let state = self.world.launch(CLIENTS, read_separate);
                states.extend(self.world.finish(&state, BOUND)?.ok());
            }
            for node in NODES.into_iter().filter(|_| !separate) {
                let state = self.world.launch(CLIENTS, move |env| read_back(env, node));
                states.extend(self.world.finish(&state, BOUND)?.ok());
            }
            if states.len() == if separate { 1 } else { NODES.len() } {
                let history = self.history();
                states.iter().try_for_each(|state| self.world.judge(check(&history, cut, state)))?;
                self.read = states.pop().map(|state| (cut, state));
                self.restored.insert(restored.plan.operation);
                return Ok(());
            }
            self.all_is_started_anew()?;
        }
        self.holds(false, Violation::new("a restored database is read in the end", format!("cut {cut}")))
    }

    /// Whichever restore can be resumed is; the others are aborted.
    fn a_restore_is_taken_up(&mut self) -> Result<Option<Restored>, Failure> {
        let list =
            |operator: Coordinator| async move { operator.repository().operations(OperationKind::Restore).await };
        for operation in self.works_in_the_end("restores are listed", list)? {
            if self.restored.contains(&operation) {
                continue;
            }
            let resumed = self.operate(move |operator| async move { operator.resume(operation).await });
            if let Ok(restored) = self.ends_amid_faults(&resumed)? {
                return Ok(Some(restored));
            }
            let aborted = self.operate(move |operator| async move { operator.abort(operation).await });
            drop(self.ends_amid_faults(&aborted)?);
        }
        Ok(None)
    }
}
