//! What of the data folder belongs to a backup.

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{PageVerdict, SourceFile, SourceKind};
use sheetanchor_engine::env::EntryKind;

use crate::control::{Control, unseal};
use crate::fields;
use crate::layout::PageNo;
use crate::page::{PAGE_BYTES, Page};
use crate::running::Running;

/// The file of all pages.
pub(crate) const PAGES: &str = "pages";

/// The control file.
pub(crate) const CONTROL: &str = "control";

/// Checks the pages in `bytes`, which start at `offset` of the file `name`.
pub(crate) fn check(name: &str, offset: u64, bytes: &[u8]) -> PageVerdict {
    if name == CONTROL {
        // Nothing else tells a damaged one from a good one before it is restored.
        return if unseal::<Control>(bytes).is_some() { PageVerdict::Sound } else { PageVerdict::Fails(0) };
    }
    if name != PAGES {
        return PageVerdict::Sound;
    }
    let first = offset / fields::count(PAGE_BYTES);
    let mut pages = (first..).map(PageNo::new).zip(bytes.chunks(PAGE_BYTES));
    match pages.find(|(number, bytes)| Page::decode(*number, bytes).is_err()) {
        Some((number, _)) => PageVerdict::Fails(Page::offset(number)),
        None => PageVerdict::Sound,
    }
}

/// Everything to capture, sorted by name: the control file, the pages, and a folder for each node. WAL goes another way.
///
/// # Errors
/// `SA407` for a symbolic link: where it leads is not captured, and a copy without it would lack that in silence. Faults.
pub(crate) async fn list(running: &Running) -> Result<Vec<SourceFile>> {
    let data = running.folder.data();
    for folder in [data.to_owned(), format!("{data}/nodes")] {
        for entry in running.env.disk.list(&folder).await? {
            if entry.kind == EntryKind::Link && !planted::is(Bug::LinksDropped) {
                return Err(leads_out(running, &format!("{folder}/{}", entry.name)).await);
            }
        }
    }
    let mut names = vec![(CONTROL.to_owned(), true), ("nodes".to_owned(), false), (PAGES.to_owned(), true)];
    names.extend(running.layout.nodes.iter().map(|node| (format!("nodes/{node}"), false)));
    if planted::is(Bug::PinsCaptured) {
        names.extend(running.layout.nodes.iter().map(|node| (format!("nodes/{node}/pins"), true)));
    }
    names.sort_unstable();
    let mut files = Vec::new();
    for (name, is_file) in names {
        let path = format!("{data}/{name}");
        let found = running.env.disk.metadata(&path).await?;
        let gone = || Fault::new(FaultKind::NotFound, format!("list {path}"), "it is gone");
        let found = found.ok_or_else(gone)?;
        let kind = if is_file { SourceKind::File { length: found.length } } else { SourceKind::Folder };
        files.push(SourceFile { name, kind, mode: found.mode });
    }
    Ok(files)
}

async fn leads_out(running: &Running, path: &str) -> Error {
    let target = running.env.disk.read_link(path).await.unwrap_or_else(|_| "somewhere".to_owned());
    Refusal::new(Code::UnsafePath, format!("{path} is a symbolic link: it leads to {target}")).into()
}
