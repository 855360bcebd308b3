//! A restore over an older copy: what may be overwritten, and what has to go before it is. Nothing is changed before every
//! node has said yes. From then on the folder has no control file until all else is right and durable: whatever crashes in
//! between, nothing starts there.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sheetanchor_core::error::Result;
use sheetanchor_core::format::files::FileContent;
use sheetanchor_core::format::manifest::Plan;
use sheetanchor_core::identity::{ContentHash, OperationId};
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::Answer;

use super::Agent;
use super::perform::state_word;
use super::put::BESIDE;
use super::stage::{Staged, entries, other_restore};
use super::state::{self, MarkerPhase};
use crate::database::State;
use crate::env::EntryKind;
use crate::env::disk::parent;

/// What the backup has, by name.
type Wanted<'a> = BTreeMap<&'a str, &'a FileContent>;

/// What lies somewhere, and is not in the backup: its name there, relative to the data folder, and its kind.
type Extra = Vec<(String, EntryKind)>;

impl Agent {
    /// Says whether the plan's files may be put over what is in the data folder.
    pub(super) async fn inspect(&self, operation: OperationId, hash: ContentHash) -> Result<Answer> {
        let plan = self.plan(operation, hash).await?;
        let _folder = self.folder.lock().await;
        match state::marker(&self.env, &self.config).await? {
            Some(marker) if marker.operation != operation => return Err(other_restore(&marker)),
            // It has begun: what is there is this restore's.
            Some(_) => return Ok(Answer::Done),
            None => {}
        }
        self.check_replaceable(&plan).await?;
        Ok(Answer::Done)
    }

    /// Checks that nobody uses what lies in the folder, that it is this node's database, and that no link in it leads
    /// elsewhere than the restored one would. Changes nothing.
    ///
    /// # Errors
    /// `SA413`, `SA414`, `SA407`; `SA401` for a folder behind a link that is not there yet; `0A000`.
    pub(super) async fn check_replaceable(&self, plan: &Plan) -> Result<()> {
        let folder = self.database.data_folder();
        let is_there = self.env.disk.metadata(folder).await?.is_some();
        let (state, unit) = (self.database.status().await?.state, plan.units.get(&self.config.node));
        if state == State::Open {
            let message = format!("node {} is `{}` in {folder}", self.config.node, state_word(state));
            return Err(Refusal::new(Code::FolderInUse, message).into());
        }
        if is_there && !self.env.disk.list(folder).await?.is_empty() {
            if unit.is_some() {
                self.database.check_unused().await?;
            }
            let system = plan.nodes.get(&self.config.node).map(String::as_str).unwrap_or_default();
            self.database.check_own(plan.cluster, system).await?;
        }
        // On shared storage one node's agent stages for all.
        let Some(unit) = unit else { return Ok(()) };
        let entries = entries(self.origin(plan).await?, unit).await?;
        let targets = self.link_targets(&entries)?;
        let known: Wanted<'_> = wanted(&entries);
        for (path, kind) in self.below(folder).await? {
            let name = path.strip_prefix(&format!("{folder}/")).unwrap_or_default();
            let planned = targets.iter().find(|(link, _)| link == name).map(|(_, target)| target);
            if kind != EntryKind::Link || (planned.is_none() && known.contains_key(name)) {
                continue;
            }
            let leads = self.env.disk.read_link(&path).await?;
            if planned != Some(&leads) {
                let planned = planned.map_or_else(|| "nowhere: it has no such link".to_string(), ToString::to_string);
                let message = format!("{path} leads to {leads}, and of the backup to {planned}");
                return Err(Refusal::new(Code::UnsafePath, message).into());
            }
        }
        for (name, target) in &targets {
            if self.env.disk.metadata(&format!("{folder}/{name}")).await?.is_none() {
                self.check_empty(target).await?;
            }
        }
        Ok(())
    }

    /// Takes the control file away, durably, before anything else: from now on nothing starts there.
    ///
    /// # Errors
    /// `SA413`.
    pub(super) async fn close_folder(&self) -> Result<()> {
        self.database.check_unused().await?;
        self.remove_control().await?;
        // Who started in the same moment has found no control file, or is found here.
        self.database.check_unused().await
    }

    /// Takes every name away that the backup does not have. Durable once the folders are synced.
    pub(super) async fn make_way(&self, entries: &[Staged], targets: &[(String, String)]) -> Result<()> {
        let folder = self.database.data_folder();
        let known = wanted(entries);
        let mut extra = self.extra(folder, "", &known).await?;
        for (name, target) in targets {
            let link = format!("{folder}/{name}");
            let is_link = self.env.disk.metadata(&link).await?.is_some_and(|found| found.kind == EntryKind::Link);
            if is_link && self.env.disk.read_link(&link).await? == *target {
                extra.extend(self.extra(target, name, &known).await?);
            }
        }
        for (name, kind) in extra.iter().rev() {
            let path = format!("{folder}/{name}");
            match kind {
                EntryKind::Folder => self.env.disk.remove_folder(&path).await?,
                EntryKind::File if planted::is(Bug::DeltaKeepsExtraFiles) => {}
                EntryKind::File | EntryKind::Link | EntryKind::Other => self.env.disk.remove(&path).await?,
            }
        }
        tracing::info!(target: "sheetanchor::restore", node = %self.config.node, removed = extra.len(), "made way");
        Ok(())
    }

    /// Ends a restore over an older copy. What is right of it may serve the next one, and without a control file it is no
    /// database.
    ///
    /// # Errors
    /// `SA413`: while files are put in place no server of ours runs there. Another's is not stopped, and keeps what it has.
    pub(super) async fn leave_closed(&self, phase: MarkerPhase) -> Result<()> {
        if phase == MarkerPhase::Staging {
            self.database.check_unused().await?;
        }
        self.database.stop().await?;
        self.remove_control().await
    }

    async fn remove_control(&self) -> Result<()> {
        let path = format!("{}/{}", self.database.data_folder(), self.database.control_file());
        if planted::is(Bug::DeltaKeepsControl) || self.env.disk.metadata(parent(&path)).await?.is_none() {
            return Ok(());
        }
        for path in [format!("{path}{BESIDE}"), path.clone()] {
            if self.env.disk.metadata(&path).await?.is_some() {
                self.env.disk.remove(&path).await?;
            }
        }
        // Whether or not it was there: an earlier attempt may have been cut off before this.
        Ok(self.env.disk.sync_dir(parent(&path)).await?)
    }

    /// What lies below `root` under names that begin with `prefix`, and is not in the backup, each folder before what it
    /// holds. Beside the backup's own folders behind a link others may have theirs: those are left alone.
    async fn extra(&self, root: &str, prefix: &str, known: &Wanted<'_>) -> Result<Extra> {
        let mut extra = Vec::new();
        let mut folders = Vec::from([String::new()]);
        while let Some(folder) = folders.pop() {
            for entry in self.env.disk.list(&format!("{root}{folder}")).await? {
                let place = format!("{folder}/{}", entry.name);
                let name = format!("{prefix}{place}");
                let name = name.strip_prefix('/').unwrap_or(&name);
                let is_known = known.get(name).is_some_and(|content| kind_of(content) == entry.kind);
                if !is_known && folder.is_empty() && !prefix.is_empty() {
                    continue;
                }
                if entry.kind == EntryKind::Folder {
                    folders.push(place);
                }
                if !is_known {
                    extra.push((String::from(name), entry.kind));
                }
            }
        }
        Ok(extra)
    }
}

fn wanted(entries: &[Staged]) -> Wanted<'_> {
    entries.iter().map(|staged| (staged.entry.name.as_str(), &staged.entry.content)).collect()
}

fn kind_of(content: &FileContent) -> EntryKind {
    match content {
        FileContent::File(_) => EntryKind::File,
        FileContent::Folder => EntryKind::Folder,
        FileContent::Link(_) => EntryKind::Link,
    }
}
