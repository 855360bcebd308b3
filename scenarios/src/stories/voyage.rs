//! The general story: whatever an operator may do, in an order drawn from the seed, over several incarnations, while faults
//! strike. The bugs that it claims to see are samples; the swarm tells it to meet those that nobody thought of.

use std::collections::BTreeSet;
use std::time::Duration;

use sheetanchor_core::expiry::Keep;
use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::{Incarnation, PointName};
use sheetanchor_core::incremental::Extent;
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::scn::Scn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{History, check_cut, check_restored, check_restored_by_scn};
use sheetanchor_sim::world::Failure;

use crate::cluster::{NODES, PIN_LEASE, host};
use crate::stage::Stage;
use crate::workload::{Load, SPARE};

/// A cut that was published, and that a restore may ask for.
#[derive(Clone, Debug)]
struct Mark {
    name: PointName,
    scn: Scn,
    method: Method,
    era: usize,
    /// Where in the history it was begun, and published.
    begun: u64,
    published: u64,
}

/// What was written in one incarnation.
#[derive(Clone, Debug)]
struct Era {
    incarnation: Incarnation,
    history: History,
}

/// All that happened so far.
#[derive(Debug)]
struct Voyage {
    load: Load,
    marks: Vec<Mark>,
    eras: Vec<Era>,
    incarnation: Incarnation,
    /// How many names were given to points.
    names: u32,
}

/// Clients of the kinds that see different things: few rows that all nodes write; sessions that go from node to node and
/// carry what they have seen, or nothing. At leisure, since a page of rows holds few of them.
const LOADS: [Load; 4] = [
    Load { pause_ms_max: 160, ..Load::BRIEF },
    Load { accounts: 3, roaming: 3, pause_ms_max: 200, ..Load::BRIEF },
    Load { spare: SPARE, pause_ms_max: 80, ..Load::CARRYING },
    Load { spare: SPARE, hopping: 2, pause_ms_max: 120, ..Load::HOPPING },
];

/// Operations of every kind run, alone, beside each other, aborted by somebody else, in incarnation after incarnation,
/// while clocks are off and faults strike. What was published is reachable; whichever of it is restored is exactly the
/// committed history up to its cut; nothing stays pinned; no SCN is issued twice.
pub fn keeps_every_history(stage: &mut Stage) -> Result<(), Failure> {
    let load = stage.any_of(&LOADS).unwrap_or(Load::BRIEF);
    let mut voyage = Voyage { load, marks: Vec::new(), eras: Vec::new(), incarnation: Incarnation::new(1), names: 0 };
    clocks_are_off(stage, 250);
    stage.given_a_cluster(load)?;
    let eras = stage.chance().between(1, 4);
    for era in 0..eras {
        voyage.era(stage, era == 0)?;
        stage.everything_is_lost()?;
        // A history may have run ahead of the clocks that come after it.
        if stage.chance().one_in(3) {
            clocks_are_off(stage, 5_000);
        }
        voyage.is_restored(stage)?;
    }
    stage.transfers_begin();
    stage.meanwhile(100, 300)?;
    stage.commits_flow_in_the_end()?;
    stage.transfers_end()?;
    stage.nobody_told_of_damage()
}

/// Every node's wall clock jumps.
fn clocks_are_off(stage: &mut Stage, bound_ms: u64) {
    for node in NODES {
        let skew = i64::try_from(stage.chance().below(2 * bound_ms)).unwrap_or(0);
        stage.world().set_wall_clock(&host(node), skew.saturating_sub_unsigned(bound_ms));
    }
}

impl Voyage {
    /// One incarnation, from its first commit to its last.
    fn era(&mut self, stage: &mut Stage, first: bool) -> Result<(), Failure> {
        let before: BTreeSet<Scn> = stage.history().acknowledged_scns().into_iter().collect();
        let used = self.eras.iter().filter_map(|era| era.history.last_scn()).max().unwrap_or_default();
        stage.transfers_begin();
        stage.meanwhile(40, 200)?;
        if first {
            stage.faults_begin();
            let backup = stage.begin_backup();
            let ended = stage.ends_amid_faults(&backup)?;
            stage.is_backed_up_in_the_end(ended)?;
        } else {
            stage.more_faults();
        }
        for _ in 0..stage.chance().between(1, 5) {
            self.something_happens(stage)?;
            stage.meanwhile(0, 200)?;
        }
        stage.what_was_begun_is_aborted()?;
        self.a_point_is_taken_in_the_end(stage, Method::Fence)?;
        if stage.chance().one_in(2) {
            self.a_point_is_taken_in_the_end(stage, Method::Scn)?;
        }
        stage.transfers_end()?;
        self.every_mark_is_reachable(stage)?;
        stage.nothing_stays_pinned(PIN_LEASE)?;
        let history = stage.history();
        let again = history.acknowledged_scns().into_iter().find(|scn| !before.contains(scn) && *scn <= used);
        let detail = format!("{again:?} was issued again; an incarnation before used {used}");
        stage.holds(again.is_none(), Violation::new("no two incarnations share an SCN", detail))?;
        self.eras.push(Era { incarnation: self.incarnation, history });
        Ok(())
    }

    fn something_happens(&mut self, stage: &mut Stage) -> Result<(), Failure> {
        match stage.chance().below(9) {
            0 => self.a_point_is_tried(stage, Method::Fence),
            1 => self.a_point_is_tried(stage, Method::Scn),
            2 => {
                let method = if stage.chance().one_in(2) { Method::Fence } else { Method::Scn };
                // Of draws that nothing else here moves.
                let extent = stage.damage_of(&[Extent::Full, Extent::Incremental]).unwrap_or_default();
                let backup =
                    stage.operate(move |operator| async move { operator.backup_of(extent, None, method).await });
                stage.ends_amid_faults(&backup).map(drop)
            }
            3 => self.all_but_the_newest_backup_expire(stage),
            4 => {
                // Two at once: a point in the middle of a backup.
                let backup = stage.begin_backup();
                stage.meanwhile(0, 200)?;
                self.a_point_is_tried(stage, Method::Fence)?;
                stage.ends_amid_faults(&backup).map(drop)
            }
            5 => {
                // Two backups, of which one may end within the other.
                let first = stage.begin_backup();
                stage.meanwhile(0, 150)?;
                let second = stage.begin_backup();
                drop(stage.ends_amid_faults(&second)?);
                stage.meanwhile(0, 300)?;
                stage.ends_amid_faults(&first).map(drop)
            }
            6 => {
                // Somebody else takes it over, while its own coordinator may be cut off.
                let backup = stage.begin_backup();
                stage.meanwhile(0, 150)?;
                let node = stage.any_node();
                let (operator, node) = (backup.operator.clone(), host(node));
                stage.world().hold(&operator, &node);
                stage.meanwhile(0, 1_000)?;
                stage.what_was_begun_is_aborted()?;
                stage.world().release(&operator, &node);
                stage.ends_amid_faults(&backup).map(drop)
            }
            7 => {
                // The coordinator is gone for good.
                let point = stage.begin_point(&self.next_name());
                stage.meanwhile(0, 120)?;
                let policy = stage.any_policy();
                stage.world().crash(&point.operator, policy);
                stage.meanwhile(0, 400)
            }
            _ => {
                for node in NODES {
                    stage.crash_node(node);
                }
                stage.meanwhile(0, 300)?;
                for node in NODES {
                    stage.restart_node(node);
                }
                stage.meanwhile(0, 300)
            }
        }
    }

    fn next_name(&mut self) -> String {
        self.names += 1;
        format!("mark-{}", self.names)
    }

    fn a_point_is_tried(&mut self, stage: &mut Stage, method: Method) -> Result<(), Failure> {
        let (name, begun) = (self.next_name(), stage.history().now());
        let point = match method {
            Method::Scn => stage.begin_point_by_scn(&name),
            Method::Fence | Method::Alone => stage.begin_point(&name),
        };
        if let (Ok((_, point)), Ok(name)) = (stage.ends_amid_faults(&point)?, name.parse()) {
            let (scn, era, published) = (point.cut.scn, self.eras.len(), stage.history().now());
            self.marks.push(Mark { name, scn, method, era, begun, published });
        }
        Ok(())
    }

    fn a_point_is_taken_in_the_end(&mut self, stage: &mut Stage, method: Method) -> Result<(), Failure> {
        let before = self.marks.len();
        for attempt in 1..=8 {
            self.a_point_is_tried(stage, method)?;
            if self.marks.len() > before {
                return Ok(());
            }
            stage.meanwhile(600, 800)?;
            stage.what_stopped_is_started_anew(attempt % 3 == 0)?;
        }
        let detail = format!("{method:?}: eight attempts failed");
        stage.holds(false, Violation::new("a point is taken once the faults are over", detail))
    }

    /// Restore points before the newest backup may go with the others.
    fn all_but_the_newest_backup_expire(&mut self, stage: &mut Stage) -> Result<(), Failure> {
        let expiry = stage.operate(|operator| async move { operator.expire(Keep::Newest(1), false).await });
        // Also if it failed: it may have come far enough.
        drop(stage.ends_amid_faults(&expiry)?);
        let newest = stage.newest_backup_in_the_end()?;
        let era = self.eras.len();
        match newest {
            Some(cut) => self.marks.retain(|mark| mark.era == era && mark.scn >= cut),
            // None is of this incarnation: an ancestor's is kept, and which one does not matter here.
            None => self.marks.retain(|mark| mark.era == era),
        }
        Ok(())
    }

    fn every_mark_is_reachable(&self, stage: &mut Stage) -> Result<(), Failure> {
        for mark in self.marks.iter().filter(|mark| mark.era == self.eras.len()) {
            let fenced = mark.method == Method::Fence;
            let verdict = check_cut(&stage.history(), mark.scn, mark.begun, mark.published, fenced);
            stage.world().judge(verdict)?;
            stage.is_reachable_in_the_end(&mark.name, mark.scn)?;
        }
        Ok(())
    }

    /// To any mark of any incarnation, or to the newest; the history goes on from there.
    fn is_restored(&mut self, stage: &mut Stage) -> Result<(), Failure> {
        let place = usize::try_from(stage.chance().below(64)).unwrap_or(0) % self.marks.len().max(1);
        // The newest one most often: what is younger than any other test of its cut.
        let drawn = if stage.chance().one_in(3) { self.marks.get(place) } else { self.marks.last() };
        let Some((mark, era)) = drawn.and_then(|mark| Some((mark.clone(), self.eras.get(mark.era)?.clone()))) else {
            return stage.holds(false, Violation::new("there is a point to restore to", format!("{self:?}")));
        };
        let target = match stage.chance().below(4) {
            0 => Target::Scn(mark.scn),
            _ => Target::Name(mark.name.clone()),
        };
        stage.history_is(era.history);
        // What nothing but time ties together is cut apart without a fence.
        let carries = self.load.hopping_carries;
        let fenced = mark.method == Method::Fence && matches!(target, Target::Name(_));
        let check = if fenced || carries { check_restored } else { check_restored_by_scn };
        let aim = Aim::from(target).of_incarnation(era.incarnation);
        let restored = stage.is_restored_in_the_end_by(&aim, check)?;
        let cut = restored.plan.cut.scn;
        let detail = format!("asked for {}, restored to {cut}", mark.scn);
        stage.holds(cut == mark.scn, Violation::new("a target is never rounded", detail))?;
        self.incarnation = restored.plan.opens;
        stage.history_goes_on();
        stage.meanwhile(0, 200)?;
        stage.nothing_stays_pinned(Duration::ZERO)
    }
}
