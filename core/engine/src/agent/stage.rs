//! Puts a backup's files into a folder, empty or with an older copy (`delta`): each chunk verified, each file synced,
//! the folders after the files, the control file last. May be done again from any point; what is there and whole is kept.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use futures_util::{TryStreamExt, stream};
use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::format::catalog::{IncarnationObject, IncarnationState};
use sheetanchor_core::format::files::{Chunk, FileContent, FileEntry, FileList, Patch, check_name};
use sheetanchor_core::format::manifest::{ListRef, Plan, Unit};
use sheetanchor_core::format::{self, keys};
use sheetanchor_core::identity::{ByteCount, ContentHash};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Progress;
use tokio::sync::watch;

use super::Agent;
use super::put::Putting;
use super::state::{self, Marker, MarkerPhase};
use crate::database::State;
use crate::env::disk::parent;
use crate::env::{EntryKind, Env, run_work};
use crate::repository::Repository;
use crate::{packing, zstd};

/// Files that are written at once. Most files of a database are small, and take a sync each: syncs that wait together are
/// one for the disk.
const FILES_AT_ONCE: usize = 16;

/// Bytes in the longest list of files, uncompressed: some ten million names.
const LIST_BYTES_MAX: u64 = 4 << 30;

/// One file of a unit, and the packs that its chunks lie in.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Name, mode and chunks.
    pub entry: FileEntry,
    /// What [`Chunk::pack`] counts in.
    pub packs: Arc<[String]>,
}

/// Every name of a unit, sorted: of two lists that name the same file the later wins.
///
/// # Errors
/// `SA002`, `SA003`, `SA407`.
pub async fn entries(repository: &Repository, unit: &Unit) -> Result<Vec<Staged>> {
    let mut names = BTreeMap::new();
    for list in &unit.lists {
        let FileList { entries, packs } = read_list(repository, list).await?;
        let packs: Arc<[String]> = packs.into();
        for entry in entries {
            check_name(&entry.name)?;
            names.insert(entry.name.clone(), Staged { entry, packs: packs.clone() });
        }
    }
    Ok(names.into_values().collect())
}

/// Reads a list of files.
///
/// # Errors
/// `SA002`, `SA003`.
pub async fn read_list(repository: &Repository, list: &ListRef) -> Result<FileList> {
    let frame = repository.get(&list.key).await?;
    if ContentHash::of(&frame) != list.hash {
        return Err(Refusal::new(Code::Damaged, format!("{} does not hash to {}", list.key, list.hash)).into());
    }
    let body = zstd::decompress_up_to(&list.key, &frame, LIST_BYTES_MAX, Code::Damaged)?;
    Ok(format::read(&list.key, &body)?)
}

/// Reads one chunk and verifies it, and the patch that it has.
///
/// # Errors
/// `SA003` if its pack is not there, `SA006` if it is not what was captured.
pub async fn read_chunk(env: &Env, repository: &Repository, packs: &[String], chunk: &Chunk) -> Result<Vec<u8>> {
    let place = Place { pack: chunk.pack, offset: chunk.offset, stored: chunk.stored };
    let mut bytes = read_frame(env, repository, packs, place, chunk.length.get(), chunk.hash).await?;
    if let Some(patch) = &chunk.patch {
        let blocks = read_patch(env, repository, packs, chunk.length, patch).await?;
        patch.apply(&mut bytes, &blocks)?;
    }
    Ok(bytes)
}

/// Reads the patch of a chunk of `length` bytes, and verifies it.
///
/// # Errors
/// Those of [`read_chunk`].
pub async fn read_patch(
    env: &Env,
    repository: &Repository,
    packs: &[String],
    length: ByteCount,
    patch: &Patch,
) -> Result<Vec<u8>> {
    let bytes: usize = patch.places(length)?.iter().map(ExactSizeIterator::len).sum();
    let place = Place { pack: patch.pack, offset: patch.offset, stored: patch.stored };
    read_frame(env, repository, packs, place, u64::try_from(bytes).unwrap_or(u64::MAX), patch.hash).await
}

/// Where a frame lies.
#[derive(Clone, Copy)]
struct Place {
    pack: u32,
    offset: u64,
    stored: ByteCount,
}

async fn read_frame(
    env: &Env,
    repository: &Repository,
    packs: &[String],
    place: Place,
    length: u64,
    hash: ContentHash,
) -> Result<Vec<u8>> {
    let damaged = |what: &str| Refusal::new(Code::ChunkDamaged, format!("chunk {hash} {what}"));
    let pack = usize::try_from(place.pack)
        .ok()
        .and_then(|place| packs.get(place))
        .ok_or_else(|| damaged("is in no listed pack"))?;
    let frame = match repository.bucket().get_range(pack, place.offset, place.stored.get()).await {
        Ok(frame) => frame,
        Err(fault) if fault.kind == crate::env::FaultKind::NotFound => {
            return Err(Refusal::new(Code::Missing, format!("there is no {pack}")).into());
        }
        Err(fault) => return Err(fault.into()),
    };
    let name = pack.clone();
    let unpacked = run_work(&env.work, move || {
        let bytes = packing::unpack(&name, &frame, length, Code::ChunkDamaged)?;
        let found = ContentHash::of(&bytes);
        if found == hash || planted::is(Bug::ChunkUnchecked) {
            return Ok(bytes);
        }
        Err(Refusal::new(Code::ChunkDamaged, format!("a chunk in {name} hashes to {found}, not {hash}")))
    });
    Ok(unpacked.await.ok_or_else(|| Error::Bug("unpacking a chunk panicked".into()))??)
}

impl Agent {
    /// Stages this node's unit of the plan.
    pub(super) async fn stage(&self, plan: &Plan, hash: ContentHash, progress: &watch::Sender<Progress>) -> Result<()> {
        let Some(unit) = plan.units.get(&self.config.node) else {
            return Err(
                Refusal::new(Code::OutOfOrder, format!("the plan has no unit of node {}", self.config.node)).into()
            );
        };
        if !self.is_to_be_staged(plan, hash).await? {
            return Ok(());
        }
        if plan.delta {
            self.close_folder().await?;
        }
        let folder = self.database.data_folder();
        progress.send_modify(|progress| progress.total = unit.bytes);
        let origin = self.origin(plan).await?;
        let entries = entries(origin, unit).await?;
        let targets = self.link_targets(&entries)?;
        self.env.disk.create_folder(folder).await?;
        if plan.delta {
            self.make_way(&entries, &targets).await?;
        }
        let (control, others): (Vec<Staged>, Vec<Staged>) =
            entries.into_iter().partition(|staged| staged.entry.name == self.database.control_file());
        if control.is_empty() {
            return Err(
                Refusal::new(Code::Damaged, format!("the backup has no {}", self.database.control_file())).into()
            );
        }
        let others = others.into_iter().filter(|staged| !matches!(staged.entry.content, FileContent::Link(_)));
        let (folders, files): (Vec<Staged>, Vec<Staged>) =
            others.partition(|staged| staged.entry.content == FileContent::Folder);
        // What lies behind a link is reached through it.
        for (name, target) in &targets {
            self.stage_link(&format!("{folder}/{name}"), target).await?;
        }
        for staged in &folders {
            self.env.disk.create_folder(&format!("{folder}/{}", staged.entry.name)).await?;
        }
        let putting = Putting::new(self, origin, folder, progress);
        stream::iter(files.iter().map(Ok)).try_for_each_concurrent(FILES_AT_ONCE, |staged| putting.put(staged)).await?;
        for staged in &folders {
            self.env.disk.set_mode(&format!("{folder}/{}", staged.entry.name), staged.entry.mode).await?;
        }
        let mut synced: BTreeSet<String> =
            folders.iter().map(|staged| format!("{folder}/{}", staged.entry.name)).collect();
        synced.extend(files.iter().map(|staged| String::from(parent(&format!("{folder}/{}", staged.entry.name)))));
        synced.insert(String::from(folder));
        synced.extend(targets.iter().map(|(name, _)| String::from(parent(&format!("{folder}/{name}")))));
        synced.extend(targets.iter().flat_map(|(_, target)| [target.clone(), String::from(parent(target))]));
        for path in synced.iter().rev() {
            self.env.disk.sync_dir(path).await?;
        }
        for staged in control {
            putting.put_control(staged).await?;
        }
        self.env.disk.sync_dir(parent(folder)).await?;
        self.mark(plan, hash, MarkerPhase::Staged).await
    }

    /// Whether anything is left to be staged: not where it was done, or where the restore is decided and something is
    /// there, which has to prove itself.
    async fn is_to_be_staged(&self, plan: &Plan, hash: ContentHash) -> Result<bool> {
        let is_empty = self.database.status().await?.state == State::Empty;
        match state::marker(&self.env, &self.config).await? {
            Some(marker) if marker.operation != plan.operation && !planted::is(Bug::OtherRestoreIgnored) => {
                return Err(other_restore(&marker));
            }
            Some(marker) if marker.phase == MarkerPhase::Staging => return Ok(true),
            Some(_) if !is_empty => return Ok(false),
            // Its disk was lost since.
            Some(_) => self.check_never_opened(plan).await?,
            None if self.is_decided(plan).await? => {
                if !is_empty || planted::is(Bug::LostIsNotStaged) {
                    return Ok(false);
                }
                self.check_never_opened(plan).await?;
            }
            None => {}
        }
        if plan.delta {
            self.check_replaceable(plan).await?;
        } else {
            self.check_empty(self.database.data_folder()).await?;
        }
        self.mark(plan, hash, MarkerPhase::Staging).await?;
        Ok(true)
    }

    /// The repository that a plan's backup and WAL lie in: a clone's is another cluster's.
    pub(super) async fn origin(&self, plan: &Plan) -> Result<&Repository> {
        let Some(cluster) = plan.source else { return Ok(&self.repository) };
        let Some(source) = &self.source else {
            let message = format!("node {} has no source to stage {} from", self.config.node, plan.operation);
            return Err(Refusal::new(Code::SourceUnnamed, message).into());
        };
        let found = source.cluster().await?.id;
        if found == cluster {
            return Ok(source);
        }
        let message = format!("the source of node {} is of cluster {found}, the plan's of {cluster}", self.config.node);
        Err(Refusal::new(Code::OtherCluster, message).into())
    }

    /// Each link of a unit and where it is to lead.
    pub(super) fn link_targets(&self, entries: &[Staged]) -> Result<Vec<(String, String)>> {
        let mut targets = Vec::new();
        for staged in entries {
            if let FileContent::Link(target) = &staged.entry.content {
                let name = staged.entry.name.clone();
                let target = self.database.link_target(&name, target)?;
                targets.push((name, target));
            }
        }
        check_apart(&targets)?;
        Ok(targets)
    }

    /// Makes a link and the folder that it leads to, which must be empty. A link that is there durably says that it was: what
    /// lies behind it is this restore's.
    async fn stage_link(&self, path: &str, target: &str) -> Result<()> {
        if self.env.disk.metadata(path).await?.is_some_and(|metadata| metadata.kind == EntryKind::Link)
            && self.env.disk.read_link(path).await? == target
        {
            return Ok(());
        }
        self.check_empty(target).await?;
        self.env.disk.create_folder(target).await?;
        self.env.disk.create_folder(parent(path)).await?;
        self.env.disk.symlink(target, path).await?;
        Ok(self.env.disk.sync_dir(parent(path)).await?)
    }

    /// Whether the incarnation of a plan is its restore's already.
    pub(super) async fn is_decided(&self, plan: &Plan) -> Result<bool> {
        let object: Option<IncarnationObject> = self.repository.find(&keys::incarnation(plan.opens)).await?;
        Ok(object.is_some_and(|object| {
            object.restore == Some(plan.operation) && matches!(object.state, IncarnationState::Opened(_))
        }))
    }

    /// What a node wrote after it had opened is nowhere else: it must not be put back behind that in silence. On shared
    /// storage one node's writes are in the files of all.
    async fn check_never_opened(&self, plan: &Plan) -> Result<()> {
        let opened = self.repository.opened_by(plan.operation).await?;
        let mut affected = opened.iter().filter(|node| plan.shared || **node == self.config.node);
        match affected.next() {
            Some(node) if !planted::is(Bug::OpenedStagedAgain) => {
                let (folder, by) = (self.database.data_folder(), plan.operation);
                let message = format!("node {node} was opened by {by}, and nothing is in {folder} any more");
                Err(Refusal::new(Code::LostAfterOpening, message).into())
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) async fn mark(&self, plan: &Plan, hash: ContentHash, phase: MarkerPhase) -> Result<()> {
        let marker = Marker { operation: plan.operation, phase, plan: hash };
        tracing::info!(target: "sheetanchor::restore", node = %self.config.node, operation = %plan.operation, phase = ?phase, "marked");
        state::mark(&self.env, &self.config, &marker).await
    }

    pub(super) async fn check_empty(&self, folder: &str) -> Result<()> {
        if self.env.disk.metadata(folder).await?.is_none() {
            return Ok(());
        }
        let entries = self.env.disk.list(folder).await?;
        match entries.first() {
            None => Ok(()),
            Some(entry) => Err(Refusal::new(Code::FolderNotEmpty, format!("{folder} holds `{}`", entry.name)).into()),
        }
    }

    /// Removes what a restore has staged: what lies behind the links that it has made, then everything below the data folder.
    /// In this order, since the links say what is left to whoever goes on after a crash.
    pub(super) async fn clear_staged(&self, plan: &Plan) -> Result<()> {
        let root = self.database.data_folder();
        let found = self.below(root).await?;
        if let Some(unit) = plan.units.get(&self.config.node)
            && found.iter().any(|(_, kind)| *kind == EntryKind::Link)
        {
            for (name, target) in self.link_targets(&entries(self.origin(plan).await?, unit).await?)? {
                let link = (format!("{root}/{name}"), EntryKind::Link);
                if found.contains(&link) && self.env.disk.read_link(&link.0).await? == target {
                    self.clear(&target, self.below(&target).await?).await?;
                }
            }
        }
        self.clear(root, found).await
    }

    /// Removes what was found below a folder.
    async fn clear(&self, root: &str, found: Vec<(String, EntryKind)>) -> Result<()> {
        for (path, kind) in found.iter().rev() {
            match kind {
                EntryKind::Folder => self.env.disk.remove_folder(path).await?,
                EntryKind::File | EntryKind::Link | EntryKind::Other => self.env.disk.remove(path).await?,
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        Ok(self.env.disk.sync_dir(root).await?)
    }

    /// Everything below a folder, if it is there, each folder before what it holds. Links are not followed.
    pub(super) async fn below(&self, root: &str) -> Result<Vec<(String, EntryKind)>> {
        let mut found = Vec::new();
        if self.env.disk.metadata(root).await?.is_none() {
            return Ok(found);
        }
        let mut folders = Vec::from([String::from(root)]);
        while let Some(folder) = folders.pop() {
            for entry in self.env.disk.list(&folder).await? {
                let path = format!("{folder}/{}", entry.name);
                if entry.kind == EntryKind::Folder {
                    folders.push(path.clone());
                }
                found.push((path, entry.kind));
            }
        }
        Ok(found)
    }
}

pub(super) fn other_restore(marker: &Marker) -> Error {
    Refusal::new(Code::OtherRestore, format!("the folder is being restored by {}", marker.operation)).into()
}

/// No link may lead to, or into, where another one leads: two would fill one folder.
fn check_apart(targets: &[(String, String)]) -> Result<()> {
    let within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for (index, (name, target)) in targets.iter().enumerate() {
        let mut others = targets.iter().skip(index.saturating_add(1));
        if let Some((other, taken)) = others.find(|(_, taken)| within(target, taken) || within(taken, target)) {
            let message =
                format!("{name} would lead to {target}, and {other} to {taken}: each needs a folder of its own");
            return Err(Refusal::new(Code::UnsafePath, message).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_links_lead_to_one_folder() {
        let links = |targets: &[&str]| -> Vec<(String, String)> {
            targets.iter().map(|target| (format!("link to {target}"), String::from(*target))).collect()
        };
        check_apart(&links(&["/srv/a", "/srv/ab", "/srv/b"])).unwrap();
        for targets in [["/srv/a", "/srv/b", "/srv/a"], ["/srv/b", "/srv/a/b", "/srv/a"], ["/a", "/b", "/b/c/d"]] {
            let refused = check_apart(&links(&targets)).unwrap_err();
            assert_eq!(refused.refusal().unwrap().code, Code::UnsafePath, "{targets:?}");
        }
    }
}
