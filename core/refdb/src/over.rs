//! What a restore may write over: a copy of this database that nobody uses.

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::identity::ClusterId;
use sheetanchor_core::refusal::{Code, Refusal};

use crate::node::Shared;

/// # Errors
/// `SA413` while this node serves, or another has its part of the folder.
pub(crate) async fn check_unused(shared: &Shared) -> Result<()> {
    let in_use = |by: &str| Refusal::new(Code::FolderInUse, format!("{by} uses {}", shared.folder.data()));
    if shared.running().is_some() {
        return Err(in_use(&format!("node {}", shared.config.node)).into());
    }
    let (disk, nodes) = (&shared.env.disk, shared.folder.nodes());
    if disk.metadata(&nodes).await?.is_none() {
        return Ok(());
    }
    for entry in disk.list(&nodes).await? {
        let lock = format!("{nodes}/{}/lock", entry.name);
        // Looked at only where it is: to take a lock makes its file.
        if disk.metadata(&lock).await?.is_some() && disk.lock(&lock).await?.is_none() {
            return Err(in_use(&format!("node {}", entry.name)).into());
        }
    }
    Ok(())
}

/// # Errors
/// `SA414` for a folder that is no database, is another's, or has a control file that cannot be read.
pub(crate) async fn check_own(shared: &Shared, cluster: ClusterId) -> Result<()> {
    let data = shared.folder.data();
    let foreign = |message: String| Err(Refusal::new(Code::ForeignFolder, message).into());
    match shared.control().await {
        Ok(Some(control)) if control.cluster == cluster => Ok(()),
        Ok(Some(control)) => foreign(format!("{data} is of cluster {}, not {cluster}", control.cluster)),
        Ok(None) if shared.env.disk.metadata(&shared.folder.pages()).await?.is_some() => Ok(()),
        Ok(None) => foreign(format!("{data} holds neither a control file nor pages")),
        Err(Error::Refusal(refusal)) => foreign(format!("what {data} holds cannot be told: {refusal}")),
        Err(error) => Err(error),
    }
}
