//! Creating a database on an empty shared folder. The lowest node does it; the control file comes last, and with it the
//! database exists, for all nodes at once.

use std::collections::BTreeMap;

use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::planted::{self, Bug};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::Joining;
use sheetanchor_engine::env::OpenMode;

use crate::control::{Control, NodeControl, Phase, Pins, load, seal};
use crate::node::Shared;

/// The pin that keeps WAL until it is archived. Every node has it, always.
pub(crate) const ARCHIVE_PIN: &str = "archive";

/// Makes this node part of a cluster, and creates the database if there is none.
///
/// # Errors
/// `SA104` for another cluster, `SA105` for other nodes, `SA209` on staged data, `SA401` on a folder with something else.
pub(crate) async fn join(shared: &Shared, joining: &Joining) -> Result<()> {
    let nodes = shared.config.nodes();
    let joining = &Joining { nodes: shared.config.sharing(&joining.nodes), ..joining.clone() };
    if joining.nodes != nodes {
        let message = format!("the cluster has nodes {:?}, this node knows {nodes:?}", joining.nodes);
        return Err(Refusal::new(Code::OtherMembership, message).into());
    }
    let _turn = shared.changing.lock().await;
    let found = match shared.control().await? {
        Some(control) => control,
        None if nodes.first() == Some(&shared.config.node) => create(shared, joining).await?,
        None => wait_for_control(shared).await?,
    };
    if found.cluster != joining.cluster {
        let message = format!("the folder belongs to cluster {}, not to {}", found.cluster, joining.cluster);
        return Err(Refusal::new(Code::OtherCluster, message).into());
    }
    if found.nodes != joining.nodes {
        let message = format!("the database has nodes {:?}, the cluster {:?}", found.nodes, joining.nodes);
        return Err(Refusal::new(Code::OtherMembership, message).into());
    }
    if !shared.was_opened().await? {
        let message = format!("{} holds staged data: it has to be recovered and opened", shared.folder.data());
        return Err(Refusal::new(Code::OutOfOrder, message).into());
    }
    shared.serve_unless_open().await
}

async fn create(shared: &Shared, joining: &Joining) -> Result<Control> {
    let (disk, folder) = (&*shared.env.disk, &shared.folder);
    disk.create_folder(folder.data()).await?;
    let pages = folder.pages();
    match disk.metadata(&pages).await? {
        Some(found) if found.length.get() > 0 => {
            let message = format!("{} has pages and no control file", folder.data());
            return Err(Refusal::new(Code::FolderNotEmpty, message).into());
        }
        Some(_) => {}
        None => disk.open(&pages, OpenMode::CreateNew).await?.sync().await?,
    }
    for node in &joining.nodes {
        create_node(shared, joining, *node).await?;
    }
    disk.sync_dir(&folder.nodes()).await?;
    disk.sync_dir(folder.data()).await?;
    disk.sync_dir(sheetanchor_engine::env::disk::parent(folder.data())).await?;
    let control = Control {
        cluster: joining.cluster,
        nodes: joining.nodes.clone(),
        incarnation: joining.incarnation,
        data_pages: shared.config.data_pages.max(1),
    };
    disk.replace(&folder.control(), seal(&control)).await?;
    tracing::info!(target: "sheetanchor::refdb", node = %shared.config.node, cluster = %joining.cluster, "created");
    Ok(control)
}

async fn create_node(shared: &Shared, joining: &Joining, node: NodeId) -> Result<(), Error> {
    let control = NodeControl {
        cluster: joining.cluster,
        node,
        incarnation: joining.incarnation,
        life: 0,
        start: Lsn::default(),
        redo: Lsn::default(),
        durable: Lsn::default(),
        ceiling: Scn::ZERO,
        offset_ms: 0,
        phase: Phase::Open,
        in_doubt: Vec::new(),
    };
    write_node(shared, &control).await
}

/// Writes a node's part of an opened database: its folders, a pin for the archive at its thread's start, and its control
/// file last.
pub(crate) async fn write_node(shared: &Shared, control: &NodeControl) -> Result<(), Error> {
    let (disk, folder, node) = (&*shared.env.disk, &shared.folder, control.node);
    let wal = folder.wal(node, control.incarnation);
    disk.create_folder(&wal).await?;
    for entry in disk.list(&wal).await? {
        // Left by an attempt that was cut short: nothing was opened here in this incarnation.
        disk.remove(&format!("{wal}/{}", entry.name)).await?;
    }
    disk.sync_dir(&wal).await?;
    disk.sync_dir(sheetanchor_engine::env::disk::parent(&wal)).await?;
    let mut kept = BTreeMap::from([(ARCHIVE_PIN.into(), control.start)]);
    if planted::is(Bug::PinsCaptured)
        && let Some(found) = load::<Pins>(disk, &folder.pins(node)).await?
    {
        kept.extend(found.kept.into_iter().filter(|(name, _)| name != ARCHIVE_PIN));
    }
    let pins = Pins { cluster: control.cluster, incarnation: control.incarnation, kept };
    disk.replace(&folder.pins(node), seal(&pins)).await?;
    disk.replace(&folder.node_control(node), seal(control)).await?;
    Ok(())
}

async fn wait_for_control(shared: &Shared) -> Result<Control> {
    let clock = &shared.env.clock;
    let until = clock.now().after(shared.config.join_timeout);
    loop {
        if let Some(control) = shared.control().await? {
            return Ok(control);
        }
        if clock.now() >= until {
            let cause = "the lowest node has not created it";
            return Err(Fault::new(FaultKind::TimedOut, "join the database", cause).into());
        }
        clock.sleep(shared.config.join_timeout / 200).await;
    }
}
