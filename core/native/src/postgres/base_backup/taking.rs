//! Archives of a server's files on their way to whoever captures them: names put where they belong in the data folder, what
//! is left out left out, pages checked, and nothing taken for a backup that is not all of one.

use std::collections::{BTreeSet, VecDeque};
use std::mem;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::ByteCount;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::database::{FilePart, PageVerdict, SourceFile, SourceKind};

use super::super::control::CONTROL_FILE;
use super::super::files::{TABLESPACES, is_left_out_with_its_folders};
use super::super::pages::{self, PAGE_BYTES};
use super::super::replication::{CopyPlan, Tablespace};
use super::super::tar::{Part, TarEntry, TarKind, TarReader};
use super::LABEL;

/// Pages that are checked, and handed on, together.
const PAGES_AT_ONCE: usize = 32;

/// Bytes in the longest label that is believed.
const LABEL_BYTES_MAX: u64 = 65_536;

/// The permissions that every link has.
const LINK_MODE: u32 = 0o777;

/// Archives on their way into files.
pub(super) struct Taking {
    tablespaces: Vec<Tablespace>,
    start: Lsn,
    checksums: bool,
    /// Archives that have begun: none is the data folder's.
    opened: BTreeSet<Option<u32>>,
    tar: TarReader,
    files: Files,
    /// What is to be handed on.
    pub(super) ready: VecDeque<FilePart>,
}

/// What the entries of one archive become.
#[derive(Default)]
struct Files {
    /// What stands before the names of the archive, which begins with an entry of its own.
    prefix: String,
    /// The file whose bytes come.
    open: Option<Open>,
    label: Option<Vec<u8>>,
    has_control: bool,
}

/// A file whose bytes come.
struct Open {
    name: String,
    /// Nobody captures it.
    is_left_out: bool,
    /// Where in it `bytes` begin.
    offset: u64,
    bytes: Vec<u8>,
}

impl Taking {
    /// What is to become of a backup of the server whose data folder is `data`.
    ///
    /// # Errors
    /// `SA407` for tablespaces that lie in it.
    pub(super) fn new(plan: CopyPlan, data: &str, checksums: bool) -> Result<Self> {
        for Tablespace { oid, location } in &plan.tablespaces {
            let inside = location.strip_prefix(data).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if inside || !location.starts_with('/') {
                let name = format!("{TABLESPACES}/{oid}");
                let message = format!("{name} is a tablespace in the data folder, at {location}: move it elsewhere");
                return Err(Refusal::new(Code::UnsafePath, message).into());
            }
        }
        let (start, tablespaces) = (plan.start, plan.tablespaces);
        let (opened, tar, files, ready) = (BTreeSet::new(), TarReader::default(), Files::default(), VecDeque::new());
        Ok(Self { tablespaces, start, checksums, opened, tar, files, ready })
    }

    /// Begins with the archive of a tablespace, or of the data folder.
    ///
    /// # Errors
    /// Faults for one that does not belong there.
    pub(super) fn open(&mut self, archive: Option<u32>) -> Result<()> {
        self.check_whole()?;
        self.tar = TarReader::default();
        self.files.prefix = String::new();
        if let Some(oid) = archive {
            let Some(tablespace) = self.tablespaces.iter().find(|tablespace| tablespace.oid == oid) else {
                return Err(broken(&format!("an archive of tablespace {oid}, which was not listed")));
            };
            let name = format!("{TABLESPACES}/{oid}");
            self.files.prefix = format!("{name}/");
            let kind = SourceKind::Link { target: tablespace.location.clone() };
            self.ready.push_back(FilePart::Entry(SourceFile { name, kind, mode: LINK_MODE }));
        }
        if self.opened.insert(archive) { Ok(()) } else { Err(broken("an archive that came before")) }
    }

    /// Takes bytes of the archive.
    ///
    /// # Errors
    /// `SA004`, `SA007`, `SA407`, and faults. Nothing can be taken after that.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if self.opened.is_empty() {
            return Err(broken("bytes before any archive"));
        }
        let Self { tar, files, ready, start, checksums, .. } = self;
        tar.feed(bytes, &mut |part| match part {
            Part::Entry(entry) => files.begin(&entry, ready),
            Part::Bytes(bytes) => files.take(bytes, ready, *start, *checksums),
            Part::End => files.end(ready, *start, *checksums),
        })
    }

    fn check_whole(&self) -> Result<()> {
        if self.tar.is_whole() && self.files.open.is_none() {
            Ok(())
        } else {
            Err(broken("an archive that is cut short"))
        }
    }

    /// Everything that was announced has come. The label of the backup.
    ///
    /// # Errors
    /// Faults if not.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>> {
        self.check_whole()?;
        let listed = self.tablespaces.iter().map(|tablespace| Some(tablespace.oid));
        let expected: BTreeSet<Option<u32>> = listed.chain([None]).collect();
        if self.opened != expected {
            return Err(broken("fewer archives than were listed"));
        }
        if !self.files.has_control {
            return Err(broken("no control file"));
        }
        self.files.label.take().ok_or_else(|| broken("no label"))
    }
}

impl Files {
    fn begin(&mut self, entry: &TarEntry, ready: &mut VecDeque<FilePart>) -> Result<()> {
        let name = format!("{}{}", self.prefix, entry.name);
        let kind = match entry.kind {
            TarKind::File(size) if name == LABEL && size > LABEL_BYTES_MAX => {
                return Err(broken(&format!("a label of {size} bytes")));
            }
            TarKind::File(size) => SourceKind::File { length: ByteCount::new(size) },
            TarKind::Folder => SourceKind::Folder,
            // Tablespaces are listed, and WAL comes another way.
            TarKind::Link => {
                let message = format!("{name} is a symbolic link, which the server was not asked to send");
                return Err(Refusal::new(Code::UnsafePath, message).into());
            }
        };
        let is_left_out = is_left_out_with_its_folders(&name);
        if let TarKind::File(_) = entry.kind {
            self.open = Some(Open { name: name.clone(), is_left_out, offset: 0, bytes: Vec::new() });
        }
        if !is_left_out {
            ready.push_back(FilePart::Entry(SourceFile { name, kind, mode: entry.mode }));
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], ready: &mut VecDeque<FilePart>, start: Lsn, checksums: bool) -> Result<()> {
        let Some(open) = &mut self.open else { return Err(Error::Bug("bytes of no file".to_owned())) };
        if open.name == LABEL {
            open.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        if open.is_left_out {
            return Ok(());
        }
        open.bytes.extend_from_slice(bytes);
        if open.bytes.len() >= PAGES_AT_ONCE * PAGE_BYTES {
            let whole = open.bytes.len() - open.bytes.len() % PAGE_BYTES;
            let rest = open.bytes.split_off(whole);
            open.hand_on(rest, ready, start, checksums)?;
        }
        Ok(())
    }

    fn end(&mut self, ready: &mut VecDeque<FilePart>, start: Lsn, checksums: bool) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Err(Error::Bug("the end of no file".to_owned())) };
        if open.name == LABEL {
            self.label = Some(open.bytes);
            return Ok(());
        }
        if open.is_left_out {
            return Ok(());
        }
        self.has_control |= open.name == CONTROL_FILE;
        if open.bytes.is_empty() { Ok(()) } else { open.hand_on(Vec::new(), ready, start, checksums) }
    }
}

impl Open {
    /// Checks the bytes that have come, and goes on with `rest`.
    fn hand_on(&mut self, rest: Vec<u8>, ready: &mut VecDeque<FilePart>, start: Lsn, checksums: bool) -> Result<()> {
        let bytes = mem::replace(&mut self.bytes, rest);
        // The server has read a page that fails a second time: it is not read again here.
        if let PageVerdict::Fails(at) = pages::check_sent(&self.name, self.offset, &bytes, checksums, start) {
            let message = format!("the page at byte {at} of {}, as the server sent it, fails its checksum", self.name);
            return Err(Refusal::new(Code::PageDamaged, message).into());
        }
        self.offset = self.offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        ready.push_back(FilePart::Bytes(bytes));
        Ok(())
    }
}

/// What a server sent that cannot be a backup.
fn broken(what: &str) -> Error {
    Fault::new(FaultKind::Other, "take a backup that the server sends", what).into()
}
