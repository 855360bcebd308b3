//! The commit fence: the extension `sheetanchor_fence`, closed and released over a session of its own.
//!
//! What the extension does, and why it does it so, stands at the top of its source
//! (`core/native/postgres/sheetanchor_fence/sheetanchor_fence.c`). Here is who may rely on it: a fence counts only after a
//! commit of another session was held back by it, once in every life of the server.

use std::sync::{Arc, Mutex as Flag, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::identity::{HoldId, LifeId, TimelineId};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::WallMillis;
use tokio::sync::Mutex;

use super::database::PostgresDatabase;
use super::look::end_of_wal;
use super::privileges;
use super::session::{Fields, QUERY_WAIT, Said, Session};

/// The library's version that this code speaks to.
const VERSION: &str = "1";

/// The lease of the fence that holds the canary back.
const CANARY_LEASE: Duration = Duration::from_millis(500);

/// How long the canary waits before it gives up: by then it has been held back.
const CANARY_WAIT_MS: u64 = 2;

/// A proof that failed is not tried again sooner.
const PROOF_PAUSE: Duration = Duration::from_secs(2);

/// How much longer than its lease an answer to a closing may take.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// What the server says when a lock was waited for in vain, and when somebody else has closed.
const LOCK_TIMEOUT: &str = "55P03";
const CLOSED_ALREADY: &str = "55006";

/// One server's fence.
#[derive(Default)]
pub(super) struct Fence {
    /// One closing at a time.
    turn: Mutex<()>,
    standing: Mutex<Option<Standing>>,
    /// For the next fence: connecting takes longer than a fence.
    ready: Mutex<Option<Seat>>,
    /// The newest cut: its timeline, record and end. It is read back once it is durable.
    newest: Mutex<Option<(TimelineId, String, Lsn)>>,
    /// One proof at a time: whoever asks meanwhile waits for it.
    proving: Mutex<()>,
    proof: Flag<Proof>,
}

/// A session that nothing but the fence uses, and what stays as it is while it lasts: each question less is a shorter wait
/// of the nodes that have closed already.
#[derive(Clone)]
struct Seat {
    session: Arc<Session>,
    /// The process that serves the session.
    backend: String,
    /// That of the server's WAL: it was asked of one that writes, and such a one leaves it only with its life.
    timeline: TimelineId,
}

/// A hold, from the moment in which its closing was asked for.
struct Standing {
    hold: HoldId,
    seat: Seat,
    /// When the server ends it.
    until: Instant,
    closed: bool,
    cut: Option<(String, Lsn)>,
}

/// Whether the server has shown that it holds commits back.
#[derive(Default)]
struct Proof {
    life: Option<LifeId>,
    tried: Option<(LifeId, Instant)>,
    missing: Option<String>,
}

/// What a server says once its commits have drained.
pub(super) struct Drained {
    /// The timeline of its WAL.
    pub timeline: TimelineId,
    /// The end of its WAL.
    pub end: Lsn,
    /// Its clock.
    pub wall: WallMillis,
}

impl Fence {
    /// Whether a commit was held back in the server's present life.
    pub(super) fn is_proven(&self) -> bool {
        self.proof().life.is_some()
    }

    /// What is missing, and what to do about it.
    pub(super) fn missing(&self) -> Option<String> {
        self.proof().missing.clone()
    }

    /// Proves the fence if this life of the server has not done so. It holds commits back for some milliseconds.
    pub(super) async fn prove(&self, database: &PostgresDatabase, life: LifeId) {
        if self.proof().life == Some(life) {
            return;
        }
        let _proving = self.proving.lock().await;
        {
            let mut proof = self.proof();
            let tried = proof.tried.is_some_and(|(tried, at)| tried == life && at.elapsed() < PROOF_PAUSE);
            if proof.life == Some(life) || tried {
                return;
            }
            *proof = Proof { life: None, tried: Some((life, Instant::now())), missing: proof.missing.take() };
        }
        let missing = match self.seek_proof(database).await {
            Ok(missing) => missing,
            Err(error) => Some(format!("its proof failed: {error}")),
        };
        let mut proof = self.proof();
        proof.life = missing.is_none().then_some(life);
        proof.missing = missing;
    }

    /// Holds new commits back, and returns once those in flight have finished: in the server's queue both are one wait.
    ///
    /// # Errors
    /// `0A000` if there is no fence, `SA205` while another hold stands, `SA206` if commits in flight take longer than half
    /// of the lease, `SA203` if the hold was released meanwhile.
    pub(super) async fn close(&self, database: &PostgresDatabase, hold: HoldId, lease: Duration) -> Result<()> {
        let _turn = self.turn.lock().await;
        {
            let mut standing = self.standing.lock().await;
            match &*standing {
                Some(found) if found.hold == hold && found.closed => return Ok(()),
                Some(found) if found.until > Instant::now() && !found.seat.session.is_closed() => {
                    return Err(Refusal::new(Code::Busy, format!("hold {} stands, not {hold}", found.hold)).into());
                }
                Some(_) | None => *standing = None,
            }
        }
        let seat = self.seat(database).await?;
        let until = Instant::now() + lease;
        let standing = Standing { hold, seat: seat.clone(), until, closed: false, cut: None };
        *self.standing.lock().await = Some(standing);
        let lease_ms = i32::try_from(lease.as_millis()).unwrap_or(i32::MAX);
        let sql = "SELECT sheetanchor_close($1, $2)::text";
        let said = seat.session.ask(lease + ANSWER_WAIT, sql, &[&hold.to_string(), &lease_ms]).await;
        let mut standing = self.standing.lock().await;
        let found = standing.as_mut().filter(|found| found.hold == hold);
        match (said, found) {
            (Ok(Ok(_)), Some(found)) => {
                found.closed = true;
                Ok(())
            }
            (Ok(Err(said)), _) => {
                *standing = None;
                *self.ready.lock().await = Some(seat);
                Err(refused(hold, &said))
            }
            (Ok(Ok(_)) | Err(_), None) => Err(lost(hold, "it was released while it closed")),
            (Err(error), Some(_)) => {
                *standing = None;
                Err(ended(hold, error))
            }
        }
    }

    /// What the server says under a hold that stands.
    ///
    /// # Errors
    /// `SA203` if it does not.
    pub(super) async fn drain(&self, hold: HoldId) -> Result<Drained> {
        let (session, timeline) = self.session_of(hold).await?;
        let sql =
            "SELECT sheetanchor_drain($1)::text, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint::text";
        let row = self.under(hold, &session, sql, &[&hold.to_string()]).await?;
        Ok(Drained { timeline, end: row.lsn(0)?, wall: WallMillis::new(row.parsed(1)?) })
    }

    /// Writes the record of a cut, under a hold that stands until it is written: the timeline, and the record's end.
    ///
    /// # Errors
    /// `SA203` if the hold does not stand, `SA209` if it has made another cut.
    pub(super) async fn cut(&self, hold: HoldId, scn: Scn, record: &str) -> Result<(TimelineId, Lsn)> {
        let (session, timeline) = self.session_of(hold).await?;
        if let Some((made, until)) = self.standing.lock().await.as_ref().and_then(|standing| standing.cut.clone()) {
            if made == record {
                return Ok((timeline, until));
            }
            return Err(Refusal::new(Code::OutOfOrder, format!("hold {hold} has cut as `{made}` already")).into());
        }
        let stamp = i64::try_from(scn.get())
            .map_err(|_| Refusal::new(Code::ClockDrift, format!("SCN {scn} is beyond what a server can note")))?;
        let sql = "SELECT sheetanchor_cut($1, $2, $3)::text";
        let until = self.under(hold, &session, sql, &[&record, &stamp, &hold.to_string()]).await?.lsn(0)?;
        if let Some(standing) = self.standing.lock().await.as_mut().filter(|standing| standing.hold == hold) {
            standing.cut = Some((record.to_owned(), until));
        }
        *self.newest.lock().await = Some((timeline, record.to_owned(), until));
        Ok((timeline, until))
    }

    /// The timeline and the record of the cut that ends at `until`, if that is the newest one.
    pub(super) async fn cut_at(&self, until: Lsn) -> Option<(TimelineId, String)> {
        let newest = self.newest.lock().await;
        newest.as_ref().filter(|(_, _, end)| *end == until).map(|(timeline, record, _)| (*timeline, record.clone()))
    }

    /// Lets commits flow again. One that does not stand is no error.
    ///
    /// # Errors
    /// `SA203` if a cut was made under the hold, and it had ended before this.
    pub(super) async fn release(&self, database: &PostgresDatabase, hold: HoldId) -> Result<()> {
        let Some(standing) = self.standing.lock().await.take_if(|standing| standing.hold == hold) else {
            return Ok(());
        };
        if !standing.closed {
            // Its session waits in the server's queue, and would have the fence for a moment yet.
            let shared = database.session().await?;
            shared.row("SELECT pg_terminate_backend($1::text::int)::text", &[&standing.seat.backend]).await?;
            return Ok(());
        }
        let sql = "SELECT sheetanchor_release($1)::text";
        let stood = match standing.seat.session.ask(QUERY_WAIT, sql, &[&hold.to_string()]).await {
            Ok(Ok(said)) => said.text(0)? == "true",
            Ok(Err(said)) => {
                tracing::warn!(%hold, %said, "the fence could not be released; its session is ended");
                false
            }
            Err(_) => false,
        };
        if stood {
            *self.ready.lock().await = Some(standing.seat);
            return Ok(());
        }
        if standing.cut.is_some() { Err(lost(hold, "it had ended when it was released")) } else { Ok(()) }
    }

    /// Drops all sessions; the server ends what they hold.
    pub(super) async fn abandon(&self) {
        *self.standing.lock().await = None;
        *self.ready.lock().await = None;
    }

    fn proof(&self) -> MutexGuard<'_, Proof> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session_of(&self, hold: HoldId) -> Result<(Arc<Session>, TimelineId)> {
        match &*self.standing.lock().await {
            Some(standing) if standing.hold == hold && standing.closed => {
                Ok((standing.seat.session.clone(), standing.seat.timeline))
            }
            Some(_) | None => Err(lost(hold, "it is not closed here")),
        }
    }

    /// Asks over the hold's session. Whatever goes wrong there ends the hold.
    async fn under(
        &self,
        hold: HoldId,
        session: &Session,
        sql: &str,
        values: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Fields> {
        match session.ask(QUERY_WAIT, sql, values).await {
            Ok(Ok(row)) => Ok(row),
            Ok(Err(said)) => Err(refused(hold, &said)),
            Err(error) => Err(ended(hold, error)),
        }
    }

    /// A session that nothing else uses, made ready for a fence.
    async fn seat(&self, database: &PostgresDatabase) -> Result<Seat> {
        if let Some(seat) = self.ready.lock().await.take().filter(|seat| !seat.session.is_closed()) {
            return Ok(seat);
        }
        let session = database.open_session().await?;
        let settings = "SET application_name = 'sheetanchor fence'; SET statement_timeout = 0; SET lock_timeout = 0; \
            SET idle_session_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
            SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed'";
        session.command(QUERY_WAIT, settings).await?;
        let sql = "SELECT set_config('search_path', quote_ident(nspname), false) \
            FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'sheetanchor_fence'";
        session.rows(sql, &[]).await?;
        let backend = session.row("SELECT pg_backend_pid()::text", &[]).await?.text(0)?;
        let (timeline, _) = end_of_wal(&session).await?;
        Ok(Seat { session: Arc::new(session), backend, timeline })
    }

    /// What is missing for the fence; `None` once a commit was held back.
    async fn seek_proof(&self, database: &PostgresDatabase) -> Result<Option<String>> {
        let shared = database.session().await?;
        let steps = steps(&shared).await?;
        if !steps.is_empty() {
            return Ok(Some(steps.join("; then ")));
        }
        let hold = HoldId::new(0);
        let canary = database.open_session().await?;
        canary.command(QUERY_WAIT, "SET application_name = 'sheetanchor canary'").await?;
        self.close(database, hold, CANARY_LEASE).await?;
        let held_back = self.hold_back(&canary).await;
        self.release(database, hold).await?;
        held_back
    }

    /// Whether the commit of `canary`, which has an id, waits.
    async fn hold_back(&self, canary: &Session) -> Result<Option<String>> {
        let sql = format!("BEGIN; SELECT pg_current_xact_id(); SET LOCAL lock_timeout = {CANARY_WAIT_MS}");
        canary.command(QUERY_WAIT, &sql).await?;
        match canary.run(QUERY_WAIT, "COMMIT").await? {
            Err(said) if said.state == LOCK_TIMEOUT => Ok(None),
            Err(said) => Ok(Some(format!("the canary's commit ended otherwise than by the fence: {said}"))),
            Ok(()) => Ok(Some("the fence was closed, and another session committed nevertheless".to_owned())),
        }
    }
}

/// What has to be done before there can be a fence, in order.
async fn steps(session: &Session) -> Result<Vec<String>> {
    let sql = "SELECT (SELECT count(*) FROM pg_available_extensions WHERE name = 'sheetanchor_fence')::text, \
        (SELECT count(*) FROM pg_extension WHERE extname = 'sheetanchor_fence')::text, \
        current_setting('shared_preload_libraries'), current_database()::text, current_setting('server_version_num')";
    let row = session.row(sql, &[]).await?;
    let (database, major) = (row.text(3)?, row.parsed::<u32>(4)? / 10_000);
    let mut steps = Vec::new();
    if row.text(0)? == "0" {
        steps.push(format!(
            "install the extension sheetanchor_fence for PostgreSQL {major}: `make install` with its `PG_CONFIG` in \
             core/native/postgres/sheetanchor_fence"
        ));
    }
    if !row.text(2)?.split(',').any(|library| library.trim().trim_matches('"') == "sheetanchor_fence") {
        steps.push("add sheetanchor_fence to shared_preload_libraries and restart the server".to_owned());
    }
    if row.text(1)? == "0" {
        steps.push(format!("run `CREATE EXTENSION sheetanchor_fence` in database `{database}`"));
    }
    if steps.is_empty()
        && let Some(statements) = privileges::of_fence(session).await?
    {
        steps.push(format!("run `{statements}` in database `{database}`"));
    }
    if steps.is_empty() {
        steps.extend(unfit(session, major).await?);
    }
    Ok(steps)
}

/// What keeps an extension that is there from being relied on.
async fn unfit(session: &Session, major: u32) -> Result<Option<String>> {
    let sql = "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace \
        WHERE extname = 'sheetanchor_fence'";
    let schema = session.row(sql, &[]).await?.text(0)?;
    let sql = format!("SELECT version::text, preloaded::text FROM {schema}.sheetanchor_fence_version()");
    let row = session.row(&sql, &[]).await?;
    let (version, preloaded) = (row.text(0)?, row.text(1)?);
    if version != VERSION {
        return Ok(Some(format!(
            "the server runs version {version} of sheetanchor_fence, and {VERSION} is needed: install that one, restart \
             the server, and run `ALTER EXTENSION sheetanchor_fence UPDATE`"
        )));
    }
    if preloaded != "true" {
        return Ok(Some("restart the server: sheetanchor_fence is loaded for single sessions only".to_owned()));
    }
    if major < 15 {
        return Ok(None);
    }
    let sql = "SELECT min(subname)::text FROM pg_subscription WHERE subenabled AND subtwophasestate <> 'd'";
    Ok(session.row(sql, &[]).await?.maybe(0)?.map(|name| {
        format!("disable subscription `{name}`, or its two_phase: it ends prepared transactions behind the fence")
    }))
}

/// What a server's words against a fenced step mean.
fn refused(hold: HoldId, said: &Said) -> Error {
    let code = match said.state.as_str() {
        LOCK_TIMEOUT => Code::DrainTimedOut,
        CLOSED_ALREADY => Code::Busy,
        // The function is not there, or may not be called.
        "42883" | "42501" | "3F000" => Code::NotSupported,
        // It does not stand, or has just ended with the transaction that failed.
        _ => Code::HoldLost,
    };
    Refusal::new(code, format!("hold {hold}: {said}")).into()
}

/// A session that ends takes its hold along.
fn ended(hold: HoldId, error: Error) -> Error {
    if error.is(FaultKind::Unreachable) { lost(hold, &error.to_string()) } else { error }
}

fn lost(hold: HoldId, seen: &str) -> Error {
    Refusal::new(Code::HoldLost, format!("hold {hold} does not stand: {seen}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_against_a_fence_has_a_code() {
        for (state, code) in [
            ("55P03", Code::DrainTimedOut),
            ("55006", Code::Busy),
            ("55000", Code::HoldLost),
            ("42883", Code::NotSupported),
            ("22023", Code::HoldLost),
        ] {
            let said = Said { state: state.to_owned(), message: "no".to_owned() };
            let error = refused(HoldId::new(7), &said);
            assert_eq!(error.refusal().unwrap().code, code, "{state}");
        }
    }
}
