//! Verbs for transactions over two databases that share nothing.

use std::collections::BTreeMap;

use sheetanchor_core::in_doubt::Verdict;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::coordinator::Restored;
use sheetanchor_engine::database::Storage;
use sheetanchor_refdb::{Client, ClientError, Session, Transfer};
use sheetanchor_sim::oracle::Violation;
use sheetanchor_sim::oracle::ledger::{LedgerState, join_halves};
use sheetanchor_sim::world::Failure;

use super::{BOUND, CLIENTS, Check, Stage};
use crate::cluster::database_address;
use crate::workload::{Load, across, homes_of, prepared, read_each, recorded};

/// How far a client comes with its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// Both halves are prepared; the client never says what becomes of them.
    Prepared,
    /// The paying half has committed.
    HalfWay,
    /// Both have.
    Through,
}

impl Stage {
    /// Given: databases that share nothing, and clients that commit what spans two of them by two-phase commit.
    pub fn given_two_phase_databases(&mut self, load: Load) -> Result<(), Failure> {
        self.two_phase = true;
        self.storage = Storage::PerNode;
        self.given_a_cluster(load)
    }

    /// A client moves money from an account on node 1 to one on node 2, under `gid`, and comes so far.
    pub fn a_client_comes(&mut self, comes: Comes, id: u64, gid: &'static str) -> Result<(), Failure> {
        self.a_transfer_comes(comes, Transfer { id, from: 6, to: 7, amount: 5 }, gid)
    }

    /// The same, from an account on node 3 to another one on node 2.
    pub fn a_client_comes_elsewhere(&mut self, comes: Comes, id: u64, gid: &'static str) -> Result<(), Failure> {
        self.a_transfer_comes(comes, Transfer { id, from: 8, to: 10, amount: 3 }, gid)
    }

    fn a_transfer_comes(&mut self, comes: Comes, transfer: Transfer, gid: &'static str) -> Result<(), Failure> {
        let id = transfer.id;
        self.recorder.began(recorded(&transfer));
        let done = self.world.launch(CLIENTS, move |env| async move {
            let mut session = across(&env, &transfer);
            session.prepare(transfer, gid).await?;
            let paid = if comes == Comes::Prepared { None } else { session.commit_payer(gid).await? };
            if comes == Comes::Through {
                session.commit_payee(gid).await?;
            }
            Ok::<Option<Scn>, ClientError>(paid)
        });
        let paid = self.world.finish(&done, BOUND)?;
        match (comes, self.expect("a transaction over two databases is prepared", paid)?) {
            // It was never told to commit.
            (Comes::Prepared, _) => self.recorder.failed(id),
            (Comes::HalfWay | Comes::Through, Some(scn)) => self.recorder.acknowledged(id, scn),
            // It did commit, and nobody was told where.
            (Comes::HalfWay | Comes::Through, None) => {}
        }
        Ok(())
    }

    /// What each node has prepared.
    pub fn what_is_prepared(&mut self) -> Result<BTreeMap<u16, Vec<String>>, Failure> {
        let asked = self.world.launch(CLIENTS, prepared);
        let prepared = self.world.finish(&asked, BOUND)?;
        self.expect("every node says what it has prepared", prepared)
    }

    /// When: an operator, or whoever may, rolls back what is prepared under `gid` on these nodes.
    pub fn is_rolled_back_by_hand(&mut self, nodes: &'static [u16], gid: &'static str) -> Result<(), Failure> {
        let ended = self.world.launch(CLIENTS, move |env| async move {
            for node in nodes {
                let mut client = Client::connect(&env, &database_address(*node), Session::Plain, Scn::ZERO).await?;
                client.rollback_prepared(gid).await?;
            }
            Ok::<(), ClientError>(())
        });
        let ended = self.world.finish(&ended, BOUND)?;
        self.expect("what is left in doubt is rolled back by hand", ended)
    }

    /// Then: every transaction that was in doubt was decided, and none is left prepared on any node.
    pub fn nothing_is_left_in_doubt(&mut self, restored: &Restored) -> Result<(), Failure> {
        let left = restored.in_doubt.iter().any(|half| matches!(half.verdict, Verdict::Left(_)));
        let prepared = self.what_is_prepared()?;
        let detail = format!("{:?}, still prepared: {prepared:?}", restored.in_doubt);
        let good = !left && prepared.values().all(Vec::is_empty);
        self.holds(good, Violation::new("what is in doubt at a cut is resolved", detail))
    }

    /// Read on every database, each transfer is on both that it touches or on none; together they are the committed
    /// history up to the cut.
    pub(super) fn halves_hold_the_history(&mut self, cut: Scn, check: Check) -> Result<(), Failure> {
        let read = self.world.launch(CLIENTS, read_each);
        let read = self.world.finish(&read, BOUND)?;
        let (balances, found) = self.expect("the restored databases are read", read)?;
        let verdict = join_halves(&found, homes_of).and_then(|transfers| {
            let state = LedgerState { balances, transfers };
            check(&self.history(), cut, &state).map(|()| state)
        });
        match verdict {
            Ok(state) => {
                self.world.note(format!("all nodes hold {} transfers at cut {cut}", state.transfers.len()));
                self.read = Some((cut, state));
                Ok(())
            }
            Err(violation) => self.world.judge(Err(violation)),
        }
    }
}
