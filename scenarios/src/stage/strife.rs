//! Verbs for nodes that fail one by one, again and again, while the others go on: troubles aimed at the moments that matter,
//! and a look at what all of them hold in between.

use std::time::Duration;

use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{LedgerState, check_restored};
use sheetanchor_sim::place::place;
use sheetanchor_sim::plan::{CrashPolicy, Fault, Plan, Trigger, When};
use sheetanchor_sim::world::Failure;

use super::{BOUND, CLIENTS, Stage};
use crate::cluster::{DATA, NODES, host};
use crate::workload::read_back;

/// How often it is tried to read a database through all of its nodes.
const LOOKS: u32 = 8;
const BETWEEN: Duration = Duration::from_millis(700);

/// How often a node makes its log or its pages durable in a tenth of a second, roughly.
const SYNCS: u64 = 12;

/// How often a node passes the gate while it recovers, roughly.
const RECOVERY: u64 = 60;

/// Refusals that say that something is damaged, or missing where it must be.
const TELL_OF_DAMAGE: [Code; 9] = [
    Code::Damaged,
    Code::Missing,
    Code::ChunkDamaged,
    Code::PageDamaged,
    Code::NotWritten,
    Code::CutMissed,
    Code::ChainBroken,
    Code::WalConflict,
    Code::WalDamaged,
];

impl Stage {
    /// Then: nobody has refused anything for being damaged, since nothing was, whatever else went wrong: a later attempt that
    /// went well must not hide it.
    pub fn nobody_told_of_damage(&mut self) -> Result<(), Failure> {
        let operators = (1..=self.operators).map(|number| format!("operator{number}"));
        let hosts: Vec<String> = NODES.map(host).into_iter().chain(operators).collect();
        let told = hosts.iter().find_map(|host| {
            let milestones = self.world.milestones(host);
            let of_damage = |what: &str| TELL_OF_DAMAGE.iter().any(|code| what.contains(&format!("({code})")));
            milestones.into_iter().find(|event| of_damage(&event.what)).map(|event| format!("{host}: {}", event.what))
        });
        let violation =
            Violation::new("where nothing is damaged nobody tells of damage", told.clone().unwrap_or_default());
        self.holds(told.is_none(), violation)
    }

    /// When: a node fails in some way, at a moment that is bad for it, and is started again.
    pub fn a_node_is_struck(&mut self) -> Result<(), Failure> {
        let node = self.any_node();
        match self.chance.below(8) {
            0 => self.its_disks_stall_and_it_loses_power(node),
            1 | 2 => self.it_loses_power_amid_a_sync(node),
            3 => self.it_is_killed_and_then_loses_power(node),
            4 => self.it_crashes_while_it_recovers(node),
            5 => self.all_lose_power_right_after_an_acknowledgement(),
            6 => self.it_is_cut_off_and_restarted(node),
            _ => self.two_crash(node),
        }
    }

    /// What it was about to make durable is in memory, and others may have seen it.
    fn its_disks_stall_and_it_loses_power(&mut self, node: u16) -> Result<(), Failure> {
        self.world.stall(&host(node), Duration::from_millis(200));
        self.meanwhile(2, 90)?;
        self.loses_power(node);
        self.meanwhile(0, 60)?;
        self.restart_node(node);
        self.meanwhile(20, 120)
    }

    /// Half of a page or of a record is on the disk, and half is not.
    fn it_loses_power_amid_a_sync(&mut self, node: u16) -> Result<(), Failure> {
        let what = match self.chance.below(3) {
            0 => format!("disk sync {DATA}/pages"),
            _ => format!("disk sync {DATA}/nodes/{node}/wal/00000001/0000000000000000"),
        };
        let nth = u32::try_from(self.chance.between(1, SYNCS)).unwrap_or(1);
        let event = Trigger::Place { what: place(&what, false), nth, since: None };
        self.will_crash(node, event);
        self.meanwhile(60, 250)
    }

    /// A process that starts after another was killed reads what is not durable.
    fn it_is_killed_and_then_loses_power(&mut self, node: u16) -> Result<(), Failure> {
        self.world.crash(&host(node), CrashPolicy::ProcessOnly);
        self.meanwhile(0, 30)?;
        self.restart_node(node);
        self.meanwhile(1, 30)?;
        self.loses_power(node);
        self.meanwhile(0, 60)?;
        self.restart_node(node);
        self.meanwhile(20, 120)
    }

    fn it_crashes_while_it_recovers(&mut self, node: u16) -> Result<(), Failure> {
        self.crash_node(node);
        self.meanwhile(0, 60)?;
        let passed = self.world.passes(&host(node));
        self.will_crash(node, Trigger::Pass(passed + 1 + self.chance.below(RECOVERY)));
        self.restart_node(node);
        self.meanwhile(40, 200)
    }

    /// Whoever was told that it has committed relies on nothing but disks.
    fn all_lose_power_right_after_an_acknowledgement(&mut self) -> Result<(), Failure> {
        let (recorder, before) = (self.recorder.clone(), self.history().acknowledged_count());
        let told = self.world.run_until(move |_| recorder.history().acknowledged_count() > before, BETWEEN);
        if !matches!(told, Err(Failure::Stuck { .. })) {
            told?;
        }
        for node in NODES {
            self.loses_power(node);
        }
        self.meanwhile(0, 60)?;
        for node in NODES {
            self.restart_node(node);
        }
        self.meanwhile(40, 200)
    }

    /// What was said to one of its lives reaches the next.
    fn it_is_cut_off_and_restarted(&mut self, node: u16) -> Result<(), Failure> {
        let other = NODES.into_iter().find(|other| *other != node && self.chance.one_in(2)).unwrap_or(2);
        self.world.hold(&host(node), &host(other));
        self.meanwhile(1, 60)?;
        self.crash_node(node);
        self.meanwhile(0, 30)?;
        self.restart_node(node);
        self.meanwhile(0, 60)?;
        self.world.release(&host(node), &host(other));
        self.meanwhile(20, 120)
    }

    fn two_crash(&mut self, node: u16) -> Result<(), Failure> {
        let other = self.any_node();
        self.crash_node(node);
        self.meanwhile(0, 40)?;
        self.crash_node(other);
        self.meanwhile(0, 60)?;
        self.restart_node(node);
        self.meanwhile(0, 40)?;
        self.restart_node(other);
        self.meanwhile(20, 120)
    }

    fn loses_power(&mut self, node: u16) {
        let policy = self.any_of(&CrashPolicy::POWER_LOSS).unwrap_or(CrashPolicy::DropAll);
        self.world.crash(&host(node), policy);
    }

    fn will_crash(&mut self, node: u16, event: Trigger) {
        let policy = self.any_of(&CrashPolicy::POWER_LOSS).unwrap_or(CrashPolicy::AnySectors);
        let (restart_after_ms, silent) = (Some(self.chance.between(1, 120)), self.chance.one_in(2));
        let at = When { host: host(node), event };
        self.world.arm(Plan::peaceful().and(Fault::Crash { at, policy, restart_after_ms, silent }));
    }

    /// When: an operation is struck in some phase, or was over before it came to that: its operator stands still, or hears
    /// nothing from a node, which may restart meanwhile.
    pub fn an_operation_is_struck(&mut self, operator: &str, phases: &[&str]) -> Result<(), Failure> {
        let phase = self.any_of(phases).unwrap_or("phase=enlisting");
        let reached = self.world.run_until_milestone(operator, phase, BETWEEN);
        if !matches!(reached, Err(Failure::Stuck { .. })) {
            reached?;
        }
        let node = self.any_node();
        match self.chance.below(6) {
            0 => {
                let length = Duration::from_millis(self.chance.between(20, 600));
                self.world.pause(operator, length);
                self.meanwhile(0, 200)
            }
            1..=3 => {
                self.world.hold(operator, &host(node));
                self.meanwhile(20, 600)?;
                self.world.release(operator, &host(node));
                Ok(())
            }
            4 => {
                self.world.hold(operator, &host(node));
                self.loses_power(node);
                self.restart_node(node);
                self.meanwhile(20, 400)?;
                self.world.release(operator, &host(node));
                Ok(())
            }
            _ => {
                self.meanwhile(0, 6)?;
                self.loses_power(node);
                self.restart_node(node);
                self.meanwhile(0, 100)
            }
        }
    }

    /// When: the node that stages a backup of shared files loses power while it does.
    pub fn whoever_stages_will_lose_power(&mut self) {
        let crash = self.any_crash_amid_staging();
        self.world.arm(Plan::peaceful().and(crash));
    }

    /// Then: once clients are at rest, all nodes show the same database, which has all that was ever acknowledged.
    pub fn all_nodes_hold_what_was_acknowledged(&mut self) -> Result<(), Failure> {
        let mut seen: Vec<LedgerState> = Vec::new();
        for look in 1..=LOOKS {
            seen.clear();
            for node in NODES {
                let state = self.world.launch(CLIENTS, move |env| read_back(env, node));
                seen.extend(self.world.finish(&state, BOUND)?.ok());
            }
            if seen.len() == NODES.len() {
                let history = self.history();
                seen.iter()
                    .try_for_each(|state| self.world.judge(check_restored(&history, Scn::new(u64::MAX), state)))?;
                // What no client was told of may end between one look and the next.
                if seen.windows(2).all(|pair| matches!(pair, [one, other] if one == other)) {
                    return Ok(());
                }
            }
            self.world.run_for(BETWEEN)?;
            self.what_stopped_is_started_anew(seen.len() < NODES.len() && look.is_multiple_of(3))?;
        }
        let counts: Vec<usize> = seen.iter().map(|state| state.transfers.len()).collect();
        let detail = format!("after {LOOKS} looks nodes show {counts:?} transfers");
        self.holds(false, Violation::new("all nodes show the same database", detail))
    }
}
