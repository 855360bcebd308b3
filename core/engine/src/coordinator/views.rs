//! Gathers what the views show: everything of the repository, and what the nodes say now.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use futures_util::future::join_all;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::catalog::{IncarnationState, Registered};
use sheetanchor_core::identity::{Epoch, NodeId, OperationId, OperationKind, ThreadId};
use sheetanchor_core::lineage::Lineage;
use sheetanchor_core::refusal::Code;
use sheetanchor_core::request::{Answer, PinSeen, Request};
use sheetanchor_core::views::Scene;
use sheetanchor_core::views::archive::runs_of;
use sheetanchor_core::views::points::{PointRow, restore_points};

use super::{Coordinator, Footing};

impl Coordinator {
    /// What the views of [`sheetanchor_core::views`] are made of. A node that does not answer leaves its columns empty.
    ///
    /// # Errors
    /// `SA102`, `SA104`, `SA105`; `SA002`, `SA504` if the catalog or the archive is damaged.
    pub async fn scene(&self) -> Result<Scene> {
        let footing = self.footing().await?;
        let nodes = self.describe_all().await.into_iter();
        Ok(Scene {
            nodes: nodes.map(|(node, seen)| (node, seen.map_err(|error| error.to_string()))).collect(),
            pins: self.pins_where_told(&footing).await,
            ..self.stored(&footing).await?
        })
    }

    /// The restore points of the incarnation in force, and whether each is a target.
    ///
    /// # Errors
    /// `SA102`, `SA104`, `SA105`; `SA002`, `SA504` if the catalog or the archive is damaged.
    pub async fn points(&self) -> Result<Vec<PointRow>> {
        let footing = self.footing().await?;
        let mut points = restore_points(&self.stored(&footing).await?);
        points.retain(|point| point.incarnation == footing.incarnation);
        Ok(points)
    }

    /// The part of a scene that lies in the repository.
    async fn stored(&self, footing: &Footing) -> Result<Scene> {
        let incarnations = self.repository.incarnations().await?;
        let backups = self.repository.ended_as_listed(OperationKind::Backup).await?;
        let points = self.repository.ended_as_listed(OperationKind::Point).await?;
        let begun = self.begun(backups.registered).await?;
        let (mut archive, mut holes) = (BTreeMap::new(), BTreeMap::new());
        for object in &incarnations {
            if let IncarnationState::Opened(opened) = &object.state {
                let members = self.repository.membership(opened.membership).await?;
                for thread in members.nodes.keys().copied().map(ThreadId::of) {
                    // A damaged piece is shown as a gap; `verify` says what is wrong with it.
                    let headers = self.repository.wal_headers(object.incarnation, thread).await?;
                    let pieces = headers.sound.into_iter().map(|(_, header)| header);
                    archive.insert((object.incarnation, thread), runs_of(pieces.collect()));
                    if !headers.holes.is_empty() {
                        holes.insert((object.incarnation, thread), headers.holes);
                    }
                }
            }
        }
        Ok(Scene {
            current: footing.incarnation,
            now: self.env.clock.wall(),
            lineage: Lineage::of(&incarnations)?,
            incarnations,
            begun,
            backups: backups.outcomes.into_values().collect(),
            points: points.outcomes.into_values().collect(),
            condemned: self.repository.condemned().await?,
            archive,
            holes,
            ..Scene::default()
        })
    }

    /// Every backup that was begun, with its term; that of one that a digest has as `known` is not looked up, since it has
    /// ended.
    async fn begun(&self, mut known: BTreeMap<OperationId, Registered>) -> Result<Vec<(Registered, Epoch)>> {
        let mut begun = Vec::new();
        for operation in self.repository.operations(OperationKind::Backup).await? {
            if let Some(registered) = known.remove(&operation) {
                begun.push((registered, Epoch::default()));
                continue;
            }
            match self.repository.registered(operation).await {
                Ok(registered) => begun.push((registered, self.repository.epoch(operation).await?)),
                // Whoever meant to begin it came no further.
                Err(error) if error.refusal().is_some_and(|why| why.code == Code::NotRegistered) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(begun)
    }

    async fn pins_where_told(&self, footing: &Footing) -> BTreeMap<NodeId, Vec<PinSeen>> {
        let asked = self.setup.addresses.keys().map(|node| {
            let header = footing.header(*node, None);
            async move {
                match self.caller.ask_within(self.limits.point.patience, &header, &Request::Pins).await {
                    Ok(Answer::Pins(pins)) => Some((*node, pins)),
                    Ok(_) | Err(_) => None,
                }
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }
}
