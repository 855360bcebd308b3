//! What an agent must remember: the cluster its node is part of, the WAL that it let go of, and the restore it is in the
//! middle of.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use sheetanchor_core::agent::Belonging;
use sheetanchor_core::error::Result;
use sheetanchor_core::format::hole::Hole;
use sheetanchor_core::format::{self, Object};
use sheetanchor_core::identity::{ClusterId, ContentHash, Incarnation, Membership, NodeId, OperationId};
use sheetanchor_core::refusal::{Code, Refusal};

use super::Config;
use crate::env::Env;

/// The cluster that a node is part of, and declared holes that the repository does not show yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// None before the node is part of one: then there are no holes.
    pub belonging: Option<Belonging>,
    /// In the order in which they were declared.
    pub holes: Vec<Hole>,
}

/// The same as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    cluster: ClusterId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    holes: Vec<Hole>,
    incarnation: Incarnation,
    membership: Membership,
    node: NodeId,
}

impl Object for Remembered {
    const KIND: &'static str = "agent";
}

/// The restore that a node is in the middle of, so that a crash at any point resumes or starts over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// Which restore.
    pub operation: OperationId,
    /// How far it has come.
    pub phase: MarkerPhase,
    /// Its plan.
    pub plan: ContentHash,
}

/// How far a node's restore has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkerPhase {
    /// Files are being put in place.
    Staging,
    /// All files are in place, verified and durable.
    Staged,
    /// The database has begun to recover what was staged.
    Recovering,
    /// It has reached the cut.
    Reached,
}

impl Object for Marker {
    const KIND: &'static str = "marker";
}

fn agent_path(config: &Config) -> String {
    format!("{}/agent.json", config.state)
}

fn marker_path(config: &Config) -> String {
    format!("{}/restore.json", config.state)
}

/// Reads the cluster that the node is part of, if it is part of one, and what it has declared.
///
/// # Errors
/// `SA002` if the file is damaged, `SA113` if it is another node's.
pub async fn load(env: &Env, config: &Config) -> Result<Memory> {
    // Durable from the start: what is remembered in it must not vanish with its name.
    env.disk.create_durable_folder(&config.state).await?;
    let path = agent_path(config);
    if env.disk.metadata(&path).await?.is_none() {
        return Ok(Memory::default());
    }
    let remembered: Remembered = format::read(&path, &env.disk.read(&path).await?)?;
    if remembered.node != config.node {
        let message = format!("{path} is of node {}, this is node {}", remembered.node, config.node);
        return Err(Refusal::new(Code::OtherNode, message).into());
    }
    let Remembered { cluster, holes, membership, incarnation, node: _ } = remembered;
    let holes = holes.into_iter().map(|hole| hole.checked(&path)).collect::<Result<_, _>>()?;
    Ok(Memory { belonging: Some(Belonging { cluster, membership, incarnation }), holes })
}

/// Remembers it; durable once it returns. A node that is part of no cluster has nothing to remember.
///
/// # Errors
/// Faults only.
pub async fn remember(env: &Env, config: &Config, memory: &Memory) -> Result<()> {
    let Some(Belonging { cluster, membership, incarnation }) = memory.belonging else { return Ok(()) };
    let remembered = Remembered { cluster, holes: memory.holes.clone(), incarnation, membership, node: config.node };
    Ok(env.disk.replace(&agent_path(config), format::write(&remembered)).await?)
}

/// Reads the restore that the node is in the middle of.
///
/// # Errors
/// `SA002` if the file is damaged.
pub async fn marker(env: &Env, config: &Config) -> Result<Option<Marker>> {
    let path = marker_path(config);
    if env.disk.metadata(&path).await?.is_none() {
        return Ok(None);
    }
    Ok(Some(format::read(&path, &env.disk.read(&path).await?)?))
}

/// Sets how far the restore has come; durable once it returns.
///
/// # Errors
/// Faults only.
pub async fn mark(env: &Env, config: &Config, marker: &Marker) -> Result<()> {
    Ok(env.disk.replace(&marker_path(config), format::write(marker)).await?)
}

/// Forgets the restore: it is open, or gone.
///
/// # Errors
/// Faults only.
pub async fn unmark(env: &Env, config: &Config) -> Result<()> {
    let path = marker_path(config);
    if env.disk.metadata(&path).await?.is_some() {
        env.disk.remove(&path).await?;
        env.disk.sync_dir(&config.state).await?;
    }
    Ok(())
}
