//! `backup`.

use std::path::Path;

use serde_json::json;
use sheetanchor_core::format::catalog::{Guarantee, Method};
use sheetanchor_core::format::manifest::Manifest;
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::incremental::Extent;
use sheetanchor_engine::coordinator::{ReadBack, Sealed};

use crate::args::{BackupArguments, CutArgument, ReadBackArgument};
use crate::connect::Connected;
use crate::report::Result;
use crate::screen::{Screen, Table, bytes, lines, time};

/// Takes a backup and shows what was sealed.
///
/// # Errors
/// The backup's own.
pub async fn run(file: &Path, screen: &Screen, arguments: &BackupArguments) -> Result<()> {
    let label = arguments.label.as_deref().map(str::parse).transpose()?;
    let method = match arguments.cut {
        CutArgument::Fence => Method::Fence,
        CutArgument::PerNode => Method::Alone,
        CutArgument::Scn => Method::Scn,
    };
    let read_back = match arguments.read_back {
        ReadBackArgument::Contents => ReadBack::Contents,
        ReadBackArgument::All => ReadBack::All,
        ReadBackArgument::Presence => ReadBack::Presence,
    };
    let connected = Connected::new(file, screen)?;
    let compression = arguments.compression.compression();
    let coordinator = connected.coordinator.clone().reading_back(read_back).at_rate(arguments.rate);
    let coordinator = coordinator.packing_by(compression);
    let extent = if arguments.incremental { Extent::Incremental } else { Extent::Full };
    let sealed = connected.watched(coordinator.backup_of(extent, label, method)).await?;
    let value = json!({
        "backup": sealed.operation, "seal": sealed.seal, "method": sealed.manifest.method,
        "kind": kind_word(sealed.seal.base.is_some()), "compression": compression.word(),
        "units": sealed.manifest.units, "threads": sealed.manifest.threads, "label": sealed.manifest.label,
    });
    screen.result(&describe(&sealed), &value)
}

/// What was sealed, in words.
pub fn describe(sealed: &Sealed) -> String {
    let (seal, manifest) = (&sealed.seal, &sealed.manifest);
    let mut units = Table::new(["captured by", "kind", "files", "bytes", "stored"]);
    for (node, unit) in &manifest.units {
        let who = if manifest.shared { format!("node {node}, for all") } else { format!("node {node}") };
        let kind = kind_word(unit.base.is_some()).to_owned();
        units.row([who, kind, unit.entries.to_string(), bytes(unit.bytes), bytes(unit.stored)]);
    }
    let mut threads = Table::new(["thread", "start", "stop", "cut", "proof"]);
    for (thread, span) in &manifest.threads {
        let cut = seal.cut.threads.get(thread).copied();
        threads.row([
            thread.to_string(),
            span.start.to_string(),
            span.stop.to_string(),
            cut.map_or_else(|| "-".to_owned(), |cut| cut.until.to_string()),
            cut.map_or_else(|| "-".to_owned(), |cut| cut.proof.to_string()),
        ]);
    }
    let took = seal.ended_ms.get().saturating_sub(manifest.started_ms.get());
    let copied = ByteCount::new(manifest.units.values().map(|unit| unit.bytes.get()).sum());
    format!(
        "{} is sealed: {} of {} nodes in {}.{:03} s, {}\n{}\n{}{units}\n{threads}",
        sealed.operation,
        bytes(copied),
        manifest.nodes.len(),
        took / 1000,
        took % 1000,
        time(seal.ended_ms),
        promise(manifest.method, seal.guarantee),
        extent_lines(manifest),
    )
}

/// What an incremental backup goes on from, and where it is full all the same, and why.
fn extent_lines(manifest: &Manifest) -> String {
    let base = manifest.base().map(|base| format!("incremental on {base}"));
    let full = manifest
        .units
        .iter()
        .filter_map(|(node, unit)| Some(format!("FULL, NOT INCREMENTAL, of node {node}: {}", unit.why_full.as_ref()?)));
    lines(base.into_iter().chain(full))
}

/// The word for how much of the data a backup has stored.
pub const fn kind_word(is_incremental: bool) -> &'static str {
    if is_incremental { "incremental" } else { "full" }
}

/// What a cut is worth, in words.
pub fn promise(method: Method, guarantee: Guarantee) -> String {
    let covered = match method {
        Method::Scn => "; what sessions that carry no SCN tie together outside of the database is not covered",
        Method::Fence | Method::Alone => "",
    };
    format!("method {}, guarantee {}: {}{covered}", method_word(method), guarantee.word(), meaning(guarantee))
}

/// What a guarantee is, in words.
pub const fn meaning(guarantee: Guarantee) -> &'static str {
    match guarantee {
        Guarantee::Node => "each node by itself is consistent; nothing is said about the nodes together",
        Guarantee::Causal => "no effect without its cause on any node",
        Guarantee::Atomic => "no effect without its cause, and each transaction on all nodes or on none",
    }
}

/// The word for a method on the screen: the one that is typed.
pub const fn method_word(method: Method) -> &'static str {
    match method {
        Method::Fence => "fence",
        Method::Alone => "per-node",
        Method::Scn => "scn",
    }
}
