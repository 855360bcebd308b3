//! Pins: physical replication slots. The server keeps WAL from a slot's restart position on, durably, whoever dies.

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio_postgres::types::ToSql;

use super::session::{Fields, QUERY_WAIT, Session};

/// What the names of our slots start with.
const PREFIX: &str = "sheetanchor_";

/// What a server says of a slot that a connection uses.
const IN_USE: &str = "55006";

/// Bytes in the longest name of a slot.
const SLOT_NAME_MAX: usize = 63;

/// The slot of a pin. Slots are named by lower-case letters, digits and `_`, pins by lower-case letters, digits and `-`:
/// so each has one spelling in the other's.
///
/// # Errors
/// `SA106` for a name that has no slot's spelling.
pub(super) fn slot(pin: &str) -> Result<String> {
    let plain = pin.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let slot = format!("{PREFIX}{}", pin.replace('-', "_"));
    if pin.is_empty() || !plain || slot.len() > SLOT_NAME_MAX {
        return Err(Refusal::new(Code::BadName, format!("`{}` cannot name a pin", pin.escape_debug())).into());
    }
    Ok(slot)
}

/// Makes the slot of a pin if it is not there; answers what it keeps.
///
/// # Errors
/// `SA106`, `SA210` if the slot is there and lost what it kept.
pub(super) async fn pin(session: &Session, name: &str) -> Result<Lsn> {
    let slot = slot(name)?;
    if let Some(kept) = kept(session, &slot).await? {
        return Ok(kept);
    }
    let made = session.row("SELECT slot_name::text FROM pg_create_physical_replication_slot($1, true)", &[&slot]).await;
    match made {
        Ok(_) => {}
        // Somebody was faster, or an answer was lost.
        Err(error) if error.is(FaultKind::Exists) => {}
        Err(error) => return Err(error),
    }
    kept(session, &slot).await?.ok_or_else(|| lost(&slot, "it is gone"))
}

/// Drops the slot of a pin.
///
/// # Errors
/// `SA106`, and faults. A slot that is not there is none.
pub(super) async fn unpin(session: &Session, name: &str) -> Result<()> {
    let slot = slot(name)?;
    match session.row("SELECT pg_drop_replication_slot($1)::text", &[&slot]).await {
        Ok(_) => Ok(()),
        Err(error) if error.is(FaultKind::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// All pins and what they keep, sorted by name.
///
/// # Errors
/// Faults.
pub(super) async fn all(session: &Session) -> Result<Vec<(String, Lsn)>> {
    let sql = "SELECT slot_name::text, restart_lsn::text FROM pg_replication_slots \
        WHERE slot_type = 'physical' AND starts_with(slot_name::text, $1) AND restart_lsn IS NOT NULL";
    let mut pins = Vec::new();
    for row in session.rows(sql, &[&PREFIX]).await? {
        let slot = row.text(0)?;
        if let Some(pin) = slot.strip_prefix(PREFIX) {
            pins.push((pin.replace('_', "-"), row.lsn(1)?));
        }
    }
    pins.sort();
    Ok(pins)
}

/// Moves a pin forward, never back.
///
/// # Errors
/// `SA210` if there is no such pin, or it lost what it kept.
pub(super) async fn advance(session: &Session, name: &str, from: Lsn) -> Result<()> {
    if from <= standing(session, name).await? {
        return Ok(());
    }
    let slot = slot(name)?;
    let sql = "SELECT end_lsn::text FROM pg_replication_slot_advance($1, $2::text::pg_lsn)";
    session.row(sql, &[&slot, &from.to_string()]).await.map(|_| ())
}

/// Moves a pin to `until`, past WAL that it kept; makes it anew if it is gone or lost what it kept. Answers what it keeps
/// then, which may be later than `until`. An operator must have been told before.
///
/// # Errors
/// `SA106`; [`FaultKind::Exists`] while a connection uses the slot, and other faults.
pub(super) async fn skip(session: &Session, name: &str, until: Lsn) -> Result<Lsn> {
    let slot = slot(name)?;
    match kept(session, &slot).await {
        Ok(_) => {}
        Err(error) if error.refusal().is_some_and(|refusal| refusal.code == Code::PinLost) => {
            in_turn(session, "SELECT pg_drop_replication_slot($1)::text", &[&slot]).await?;
        }
        Err(error) => return Err(error),
    }
    // A new one keeps what crash recovery needs, and perhaps more than is wanted.
    if pin(session, name).await? < until {
        let sql = "SELECT end_lsn::text FROM pg_replication_slot_advance($1, $2::text::pg_lsn)";
        in_turn(session, sql, &[&slot, &until.to_string()]).await?;
    }
    standing(session, name).await
}

/// Runs what needs a slot that no connection uses.
async fn in_turn(session: &Session, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<()> {
    match session.ask(QUERY_WAIT, sql, values).await? {
        Ok(_) => Ok(()),
        Err(said) => {
            let kind = if said.state == IN_USE { FaultKind::Exists } else { FaultKind::Other };
            Err(Fault::new(kind, "move a replication slot", said.to_string()).into())
        }
    }
}

/// What a pin keeps that must be there.
///
/// # Errors
/// `SA210` if there is no such pin, or it lost what it kept.
pub(super) async fn standing(session: &Session, name: &str) -> Result<Lsn> {
    let slot = slot(name)?;
    kept(session, &slot).await?.ok_or_else(|| lost(&slot, "it is gone"))
}

/// Where a slot keeps WAL from; `None` if there is no such slot.
async fn kept(session: &Session, slot: &str) -> Result<Option<Lsn>> {
    let sql = "SELECT restart_lsn::text, wal_status FROM pg_replication_slots \
        WHERE slot_name = $1::text::name AND slot_type = 'physical'";
    let Some(row) = session.rows(sql, &[&slot]).await?.into_iter().next() else { return Ok(None) };
    kept_by(slot, &row).map(Some)
}

fn kept_by(slot: &str, row: &Fields) -> Result<Lsn> {
    let status = row.maybe(1)?.unwrap_or_else(|| "unset".to_owned());
    // `unreserved` is lost at the next checkpoint: what it kept can go at any moment.
    if row.maybe(0)?.is_none() || !["reserved", "extended"].contains(&status.as_str()) {
        return Err(lost(slot, &format!("its WAL is {status}")));
    }
    row.lsn(0)
}

fn lost(slot: &str, seen: &str) -> Error {
    Refusal::new(Code::PinLost, format!("replication slot {slot}: {seen}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_has_one_slot_and_a_slot_one_pin() {
        assert_eq!(slot("archive").unwrap(), "sheetanchor_archive");
        assert_eq!(slot("backup-0190f3a2c4d5-9f31a2b7").unwrap(), "sheetanchor_backup_0190f3a2c4d5_9f31a2b7");
        for bad in ["", "Archive", "a_b", "a.b", "a b", "ü", &"x".repeat(60)] {
            assert_eq!(slot(bad).unwrap_err().refusal().unwrap().code, Code::BadName, "{bad}");
        }
    }
}
