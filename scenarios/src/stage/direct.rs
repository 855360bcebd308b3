//! Verbs for what no well-behaved operator does: single requests, other lists of members, crashes of everything.

use std::collections::BTreeMap;
use std::time::Duration;

use sheetanchor_core::error::Result as Outcome;
use sheetanchor_core::identity::{Epoch, NodeId, OperationId, PointName};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::request::{Answer, Header, PinSeen, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::caller::Caller;
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::plan::CrashPolicy;
use sheetanchor_sim::world::{Failure, World};

use super::{BOUND, Begun, Stage};
use crate::cluster::{NODES, agent_address, host, operator_of};

/// An agent that knows better answers a single request within this.
const PROMPTLY: Duration = Duration::from_secs(1);

impl Stage {
    /// A header that every node of the cluster would take, for its node 1.
    pub fn a_good_header(&mut self, operation: Option<OperationId>) -> Result<Header, Failure> {
        let status = self.status()?;
        Ok(Header {
            cluster: status.cluster.id,
            membership: status.members.membership,
            incarnation: status.incarnation,
            node: NodeId::new(1),
            operation,
            epoch: Epoch::new(1),
        })
    }

    /// Somebody asks the agent of node 1 a single question, and is answered at once.
    pub fn ask(&mut self, header: Header, request: Request) -> Result<Outcome<Answer>, Failure> {
        self.operators += 1;
        let word = request.word();
        let promise = self.world.launch(&format!("operator{}", self.operators), move |env| {
            let (header, request) = (header.clone(), request.clone());
            let addresses = BTreeMap::from([(header.node, agent_address(1))]);
            async move { Caller::new(env, addresses).ask(&header, &request).await }
        });
        match self.world.finish(&promise, PROMPTLY) {
            Err(Failure::Stuck { .. }) => {
                let violation = Violation::new("every request is answered", format!("`{word}` was not"));
                self.fails(violation)
            }
            outcome => outcome,
        }
    }

    /// The same, and the answer is a refusal of this kind.
    pub fn asked_is_refused(&mut self, header: Header, request: Request, code: Code) -> Result<(), Failure> {
        let word = request.word();
        let outcome = self.ask(header, request)?;
        let refused = outcome.as_ref().err().and_then(|error| error.refusal()).is_some_and(|why| why.code == code);
        let violation = Violation::new("a request that does not fit is refused", format!("`{word}`: {outcome:?}"));
        self.holds(refused, violation)
    }

    /// An operator whose cluster file lists these nodes begins a restore point.
    pub fn begin_point_over(&mut self, nodes: &'static [u16], name: &str) -> Begun<()> {
        let name: Result<PointName, _> = name.parse();
        let operator = move |env| operator_of(env, nodes);
        self.operate_as(operator, move |operator| {
            let name = name.clone();
            async move { operator.create_point(name?).await.map(|_| ()) }
        })
    }

    /// The one operation without an outcome.
    pub fn the_unfinished_operation(&mut self) -> Result<OperationId, Failure> {
        let unfinished = self.status()?.unfinished;
        let [operation] = unfinished.as_slice() else {
            let violation = Violation::new("one operation has no outcome yet", format!("{unfinished:?}"));
            return self.fails(violation);
        };
        Ok(*operation)
    }

    /// The operations that have a pin, node by node.
    pub fn pinned(&mut self) -> Result<BTreeMap<NodeId, Vec<OperationId>>, Failure> {
        let pins = self.operate(|operator| async move { operator.pins().await });
        let pins = self.succeeds("pins are listed", &pins)?;
        let operations =
            |pins: Vec<PinSeen>| -> Vec<OperationId> { pins.iter().filter_map(|pin| pin.name.parse().ok()).collect() };
        Ok(pins.into_iter().map(|(node, pins)| (node, operations(pins))).collect())
    }

    /// No operation has a pin on any node.
    pub fn nothing_is_pinned(&mut self, invariant: &'static str) -> Result<(), Failure> {
        let pinned = self.pinned()?;
        self.holds(pinned.values().all(Vec::is_empty), Violation::new(invariant, format!("{pinned:?}")))
    }

    /// An operator ends an operation.
    pub fn is_aborted(&mut self, operation: OperationId) -> Result<(), Failure> {
        let aborted = self.operate(move |operator| async move { operator.abort(operation).await });
        self.succeeds("an unfinished operation is aborted", &aborted).map(|_| ())
    }

    /// When: all power is lost at once, and comes back; what was not durable is gone. Clients have stopped before.
    pub fn power_fails_everywhere(&mut self, policy: CrashPolicy) -> Result<(), Failure> {
        self.world.power_off_all(policy);
        self.start_nodes()
    }

    /// An operator takes many restore points, one after the other; the timeline leaves them out.
    pub fn many_points_are_taken(&mut self, count: u32) -> Result<Vec<(PointName, Scn)>, Failure> {
        self.world.hush(true);
        let begun = self.operate(move |operator| async move {
            let mut taken = Vec::new();
            for number in 0..count {
                let name: PointName = format!("point-{number:04}").parse()?;
                taken.push((name.clone(), operator.create_point(name).await?.1.cut.scn));
            }
            Ok(taken)
        });
        let outcome = self.world.finish(&begun.promise, BOUND * 2)?;
        self.world.hush(false);
        self.expect("many restore points are taken", outcome)
    }

    /// Syncs of a node fail until one of them was its database's: the database stops, and says so. Its agent lives.
    pub fn the_database_stops_for_its_disk(&mut self, node: u16) -> Result<(), Failure> {
        for _ in 0..50 {
            if self.world.has_reached(&host(node), "refdb stopped") {
                return Ok(());
            }
            self.world.fail_next_sync(&host(node));
            self.world.run_for(Duration::from_millis(50))?;
        }
        self.holds(false, Violation::new("a database whose sync fails stops", host(node)))
    }

    /// Time passes until each node has said that a pin expired, and no operation has one.
    pub fn orphaned_pins_expire(&mut self, within: Duration) -> Result<(), Failure> {
        let said = |world: &World| NODES.iter().all(|node| world.has_reached(&host(*node), "pin expired"));
        match self.world.run_until(said, within) {
            Err(Failure::Stuck { .. }) => {
                let detail = format!("not every node has said so within {within:?}");
                self.holds(false, Violation::new("an orphaned pin expires and says so", detail))?;
            }
            ended => ended?,
        }
        self.world.run_for(Duration::from_millis(200))?;
        self.nothing_is_pinned("an orphaned pin expires on every node")
    }
}
