//! `init`, `abort`, `expire` and `verify`.

use std::path::Path;

use serde_json::json;
use sheetanchor_core::expiry::Keep;
use sheetanchor_core::identity::{ByteCount, OperationId};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::time::WallMillis;

use crate::args::ExpireArguments;
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, bytes, lines};

/// Makes the repository of a new cluster.
///
/// # Errors
/// Those of [`sheetanchor_engine::coordinator::Coordinator::init`].
pub async fn init(file: &Path, screen: &Screen) -> Result<()> {
    let connected = Connected::new(file, screen)?;
    let cluster = connected.coordinator.init().await?;
    screen.result(&format!("cluster {cluster} is ready\n"), &json!({ "cluster": cluster }))
}

/// Ends an operation whose coordinator is gone.
///
/// # Errors
/// `SA106` if `id` is none; `SA208`, `SA207`.
pub async fn abort(file: &Path, screen: &Screen, id: &str) -> Result<()> {
    let operation: OperationId = id.parse()?;
    let said = Connected::new(file, screen)?.coordinator.abort(operation).await?;
    screen.result(&format!("{said}\n"), &json!({ "operation": operation, "said": said }))
}

/// Reads a backup again and checks every hash.
///
/// # Errors
/// `SA106` if `id` is none; `SA301`; what is wrong with the backup.
pub async fn verify(file: &Path, screen: &Screen, id: &str) -> Result<()> {
    let backup: OperationId = id.parse()?;
    let connected = Connected::new(file, screen)?;
    let progress = connected.progress();
    let tell = |done: ByteCount, total: ByteCount| progress.works("verifying", done, total);
    let verified = connected.coordinator.verify(backup, &tell).await;
    progress.clear();
    let verified = verified?;
    let text = format!(
        "{backup} holds: {} files, {} chunks of {} hash to what was captured; {} pieces of WAL are whole and without a gap\n",
        verified.entries,
        verified.chunks,
        bytes(ByteCount::new(verified.bytes)),
        verified.wal_pieces,
    );
    let value = json!({
        "backup": backup, "entries": verified.entries, "chunks": verified.chunks, "bytes": verified.bytes,
        "wal_pieces": verified.wal_pieces,
    });
    screen.result(&text, &value)
}

/// Removes old backups, what failed ones left, and WAL that no kept backup needs.
///
/// # Errors
/// `SA214` if operations that began before do not end in time; those of the catalog.
pub async fn expire(file: &Path, screen: &Screen, arguments: &ExpireArguments) -> Result<()> {
    let keep = match (arguments.keep_backups, arguments.before) {
        (Some(count), _) => Keep::Newest(count),
        (None, Some(time)) => Keep::Since(WallMillis::new(u64::try_from(time.as_millisecond()).unwrap_or(0))),
        (None, None) => return Err(Refusal::new(Code::ConfigInvalid, "it is not said what to keep").into()),
    };
    let expired = Connected::new(file, screen)?.coordinator.expire(keep, arguments.dry_run).await?;
    let (would, is) = if arguments.dry_run { ("would be ", "would be") } else { ("", "is") };
    let list = |ids: &[OperationId]| lines(ids.iter().map(|id| format!("  {id}")));
    let backups = match expired.condemned.len() {
        0 => format!("no backup {is} removed; {} kept\n", expired.kept.len()),
        count => format!("{count} backups {would}removed, {} kept\n{}", expired.kept.len(), list(&expired.condemned)),
    };
    let (objects, wal) = (expired.objects.len(), expired.wal.len());
    let text = format!("{backups}{objects} objects of backups and {wal} pieces of WAL {would}removed\n");
    let value = json!({
        "dry_run": arguments.dry_run, "condemned": expired.condemned, "kept": expired.kept,
        "objects": expired.objects, "wal": expired.wal,
    });
    screen.result(&text, &value)
}
