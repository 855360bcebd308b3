//! Copies a node's files into the repository as its database streams them: cut into the same pieces as if they were opened
//! here, so that equal files are equal chunks, and what restores them cannot tell how they came.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use sheetanchor_core::compression::Compression;
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::files::{FileContent, FileEntry, check_name};
use sheetanchor_core::identity::{ContentHash, OperationId};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Captured, Progress};
use tokio::sync::watch;

use super::Agent;
use super::capture::{PIECES_AT_ONCE, Packed, Packer, Piece};
use crate::database::{FilePart, FileStream, SourceFile, SourceKind};
use crate::env::run_work;
use crate::packing;

/// What has come and is not packed yet.
struct Coming<'a> {
    packer: Packer<'a>,
    /// Pieces that are being packed.
    running: FuturesOrdered<BoxFuture<'a, Result<Packed>>>,
    names: BTreeSet<String>,
    /// The file that comes: its place in the list.
    place: Option<usize>,
    /// The beginning of its next piece.
    piece: Vec<u8>,
    compression: Compression,
}

impl Agent {
    /// Copies all that the stream brings. It is read no faster than it is packed and stored: the database waits.
    pub(super) async fn capture_stream(
        &self,
        operation: OperationId,
        mut stream: Box<dyn FileStream>,
        compression: Compression,
        progress: watch::Sender<Progress>,
    ) -> Result<Captured> {
        let total = stream.total();
        progress.send_modify(|progress| progress.total = total);
        let (packer, running) = (Packer::new(self, operation, progress), FuturesOrdered::new());
        let names = BTreeSet::new();
        let mut coming = Coming { packer, running, names, place: None, piece: Vec::new(), compression };
        let piece_bytes = usize::try_from(self.config.piece.get()).unwrap_or(usize::MAX).max(1);
        while let Some(part) = coming.packer.meanwhile(stream.next()).await?? {
            match part {
                FilePart::Entry(file) => {
                    self.pack_piece(&mut coming).await?;
                    coming.list(file)?;
                }
                FilePart::Bytes(bytes) => {
                    let turn = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    coming.packer.meanwhile(self.await_turn(operation, turn)).await??;
                    let mut rest = bytes.as_slice();
                    while !rest.is_empty() {
                        let room = piece_bytes.saturating_sub(coming.piece.len()).min(rest.len());
                        let (now, after) = rest.split_at_checked(room).unwrap_or((rest, &[]));
                        coming.piece.extend_from_slice(now);
                        rest = after;
                        if coming.piece.len() >= piece_bytes {
                            self.pack_piece(&mut coming).await?;
                        }
                    }
                }
            }
        }
        self.pack_piece(&mut coming).await?;
        coming.finish().await
    }

    /// Begins to pack the piece that has come, and waits for the oldest of those before it if they are many.
    async fn pack_piece<'a>(&'a self, coming: &mut Coming<'a>) -> Result<()> {
        if coming.piece.is_empty() {
            return Ok(());
        }
        let (bytes, compression) = (mem::take(&mut coming.piece), coming.compression);
        let place = coming.place.ok_or_else(|| Error::Bug("bytes came before any file".to_string()))?;
        let packing = async move {
            let packed = run_work(&self.env.work, move || {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                Piece::Whole(ContentHash::of(&bytes), length, packing::pack(compression, &bytes))
            });
            let piece = packed.await.ok_or_else(|| Error::Bug("packing a piece panicked".to_string()))?;
            Ok(Packed { place, piece })
        };
        coming.running.push_back(packing.boxed());
        while coming.running.len() >= PIECES_AT_ONCE
            && let Some(packed) = coming.packer.meanwhile(coming.running.next()).await?
        {
            coming.packer.add(packed?).await?;
        }
        Ok(())
    }
}

impl Coming<'_> {
    fn list(&mut self, file: SourceFile) -> Result<()> {
        check_name(&file.name)?;
        if !self.names.insert(file.name.clone()) {
            return Err(Refusal::new(Code::FileChanged, format!("{} came twice", file.name)).into());
        }
        let (content, is_file) = match file.kind {
            SourceKind::Folder => (FileContent::Folder, false),
            SourceKind::Link { target } => (FileContent::Link(target), false),
            SourceKind::File { .. } => (FileContent::File(Vec::new()), true),
        };
        let entries = &mut self.packer.list.entries;
        self.place = is_file.then_some(entries.len());
        entries.push(FileEntry { content, mode: file.mode, name: file.name });
        Ok(())
    }

    async fn finish(mut self) -> Result<Captured> {
        while let Some(packed) = self.packer.meanwhile(self.running.next()).await? {
            self.packer.add(packed?).await?;
        }
        // A list is sorted, and a database streams in an order of its own.
        self.packer.list.entries.sort_by(|one, other| one.name.cmp(&other.name));
        self.packer.finish().await
    }
}
