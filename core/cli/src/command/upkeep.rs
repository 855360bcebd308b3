//! `init`, `abort` and `verify`.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sheetanchor_core::identity::{ByteCount, OperationId};

use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, bytes};

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
    let bar = screen.bars().add(ProgressBar::new(0));
    let style = ProgressStyle::with_template("  verify {bar:30} {bytes} of {total_bytes}  {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let shown = bar.clone();
    let progress = move |done: ByteCount, total: ByteCount| {
        shown.set_length(total.get());
        shown.set_position(done.get());
    };
    let verified = connected.coordinator.verify(backup, &progress).await;
    bar.finish_and_clear();
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
