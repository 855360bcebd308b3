//! Pins: durable promises to keep WAL.

use std::collections::BTreeMap;

use sheetanchor_core::error::{Error, FaultKind, Result};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::State as DatabaseState;

use crate::control::{Pins, load, seal};
use crate::node::Shared;
use crate::running::Running;

/// Pins on one node.
const PINS_MAX: usize = 1024;

/// Keeps WAL from its end on; answers where that is. A pin that is there stays where it is.
///
/// # Errors
/// `SA106` for a name that is empty or too long, `SA205` if there are too many pins.
pub(crate) async fn pin(running: &Running, name: &str) -> Result<Position> {
    if name.is_empty() || name.len() > 255 {
        return Err(Refusal::new(Code::BadName, format!("a pin's name of {} bytes", name.len())).into());
    }
    let _turn = running.pins_writer.lock().await;
    let (mut pins, from) = {
        let mut state = running.state();
        state.check().map_err(Error::from)?;
        if let Some(from) = state.pins.get(name) {
            return Ok(running.position(*from));
        }
        if state.pins.len() >= PINS_MAX {
            return Err(Refusal::new(Code::Busy, format!("there are {PINS_MAX} pins on this node")).into());
        }
        let from = state.log.end();
        let pins = state.pins.clone();
        // In force at once, so that nothing is recycled meanwhile; promised once it is durable.
        state.pins.insert(name.into(), from);
        (pins, from)
    };
    pins.insert(name.into(), from);
    if !planted::is(Bug::PinUnwritten) {
        write(running, pins).await?;
    }
    Ok(running.position(from))
}

/// Moves a pin forward.
///
/// # Errors
/// `SA210` if there is no such pin, `SA501` beyond the end of the WAL.
pub(crate) async fn advance(running: &Running, name: &str, from: Lsn) -> Result<()> {
    let _turn = running.pins_writer.lock().await;
    let pins = {
        let state = running.state();
        state.check().map_err(Error::from)?;
        let Some(standing) = state.pins.get(name) else {
            return Err(Refusal::new(Code::PinLost, format!("there is no pin `{name}`")).into());
        };
        if from <= *standing {
            return Ok(());
        }
        if from > state.log.durable() {
            let message = format!("the WAL is durable up to {}, not to {from}", state.log.durable());
            return Err(Refusal::new(Code::WalGap, message).into());
        }
        let mut pins = state.pins.clone();
        pins.insert(name.into(), from);
        pins
    };
    write(running, pins.clone()).await?;
    running.state().pins = pins;
    Ok(())
}

/// Moves a pin forward, past WAL that was let go of, or makes it there; answers from where on WAL is kept.
///
/// # Errors
/// `SA501` beyond the end of the WAL.
pub(crate) async fn skip(running: &Running, name: &str, until: Lsn) -> Result<Position> {
    let _turn = running.pins_writer.lock().await;
    let (pins, kept) = {
        let mut state = running.state();
        state.check().map_err(Error::from)?;
        if until > state.log.durable() {
            let message = format!("the WAL is durable up to {}, not to {until}", state.log.durable());
            return Err(Refusal::new(Code::WalGap, message).into());
        }
        let standing = state.pins.get(name).copied();
        let kept = standing.map_or(until, |standing| standing.max(until));
        // One that is new is in force at once, as in `pin`; one that moves keeps what it kept until the move is durable.
        state.pins.entry(name.into()).or_insert(kept);
        let mut pins = state.pins.clone();
        pins.insert(name.into(), kept);
        (pins, kept)
    };
    write(running, pins.clone()).await?;
    let mut state = running.state();
    state.pins = pins;
    let first = state.log.first();
    drop(state);
    Ok(running.position(kept.max(first)))
}

/// Lets go of a pin, in every state that has pins.
pub(crate) async fn unpin(shared: &Shared, name: &str) -> Result<()> {
    if let Ok(running) = shared.open() {
        let _turn = running.pins_writer.lock().await;
        let mut pins = running.state().pins.clone();
        if pins.remove(name).is_none() {
            return Ok(());
        }
        write(&running, pins.clone()).await?;
        running.state().pins = pins;
        return Ok(());
    }
    let _turn = shared.changing.lock().await;
    if shared.control().await?.is_none() {
        let message = format!("node {} is {:?}", shared.config.node, DatabaseState::Empty);
        return Err(Refusal::new(Code::DatabaseDown, message).into());
    }
    let path = shared.folder.pins(shared.config.node);
    let Some(mut pins) = load::<Pins>(&*shared.env.disk, &path).await? else { return Ok(()) };
    if pins.kept.remove(name).is_some() {
        shared.env.disk.replace(&path, seal(&pins)).await?;
    }
    Ok(())
}

async fn write(running: &Running, kept: BTreeMap<String, Lsn>) -> Result<()> {
    let file = Pins { cluster: running.cluster, incarnation: running.incarnation, kept };
    let written = running.env.disk.replace(&running.folder.pins(running.node()), seal(&file)).await;
    if let Err(fault) = &written
        && fault.kind == FaultKind::SyncFailed
    {
        running.fail(fault.clone());
    }
    Ok(written?)
}
