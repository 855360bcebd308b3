//! A node of the database: listens from its start, and serves once there is something to serve.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sheetanchor_core::error::{Fault, FaultKind, Result};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::env::{Env, Task, TaskGroup};

use crate::config::Config;
use crate::control::{Control, Folder, NodeControl, Phase, load};
use crate::redo;
use crate::running::Running;
use crate::serve::accept_forever;

/// One node's process, as far as the database goes. Its agent drives it through
/// [`Database`](sheetanchor_engine::database::Database). Dropping it ends its tasks and does no I/O, as a crash does.
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    address: String,
    acceptor: tokio::sync::Mutex<Box<dyn Task>>,
}

/// What the node and its connections share.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) folder: Folder,
    /// Whoever holds it starts or ends a life.
    pub(crate) changing: tokio::sync::Mutex<()>,
    serving: Mutex<Option<Serving>>,
}

/// A life and its tasks.
struct Serving {
    running: Arc<Running>,
    tasks: TaskGroup,
}

impl Serving {
    /// Ends the life and its tasks, so that another may begin.
    async fn end(&mut self, why: Fault) {
        self.running.fail(why);
        self.tasks.stop().await;
        self.running.unlock();
    }
}

impl Node {
    /// Starts a node. If its folder holds a database that was opened, it recovers from whatever ended its last life, and
    /// serves; otherwise, and where a file `closed` lies beside it, it waits to be told.
    ///
    /// # Errors
    /// `SA107` if another process runs this node, `SA504` and `SA404` if its WAL is damaged, `SA007` for a damaged page,
    /// `SA105` if `config` names other nodes than the database has, and faults.
    pub async fn start(env: Env, config: Config) -> Result<Arc<Self>> {
        let listener = env.net.listen(&config.listen).await?;
        let address = listener.address();
        let folder = Folder::new(&config.data);
        let shared = Arc::new(Shared {
            env,
            config,
            folder,
            changing: tokio::sync::Mutex::default(),
            serving: Mutex::default(),
        });
        {
            let _turn = shared.changing.lock().await;
            if shared.was_opened().await? && !shared.is_closed().await? {
                shared.serve().await?;
            }
        }
        let acceptor = Box::pin(accept_forever(Arc::clone(&shared), listener));
        let acceptor = tokio::sync::Mutex::new(shared.env.tasks.spawn("refdb acceptor", acceptor));
        Ok(Arc::new(Self { shared, address, acceptor }))
    }

    /// Where clients and peers reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends the node in order: its tasks have ended when this returns, and another process may start it. What was not
    /// durable is lost, as in a crash.
    pub async fn shutdown(&self) {
        self.shared.stop().await;
        let mut acceptor = self.acceptor.lock().await;
        acceptor.cancel();
        acceptor.join().await;
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Node")
            .field("node", &self.shared.config.node)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The life that serves, or that has failed and not been ended.
    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.as_ref().map(|serving| Arc::clone(&serving.running))
    }

    /// The life that serves.
    ///
    /// # Errors
    /// `SA112` if there is none.
    pub(crate) fn open(&self) -> Result<Arc<Running>> {
        let Some(running) = self.running() else {
            let message = format!("the database of node {} is not open", self.config.node);
            return Err(Refusal::new(Code::DatabaseDown, message).into());
        };
        let failed = running.state().failed.clone();
        match failed {
            None => Ok(running),
            Some(fault) => Err(Refusal::new(Code::DatabaseDown, format!("the node has stopped: {fault}")).into()),
        }
    }

    pub(crate) async fn control(&self) -> Result<Option<Control>> {
        load(&*self.env.disk, &self.folder.control()).await
    }

    pub(crate) async fn node_control(&self) -> Result<Option<NodeControl>> {
        load(&*self.env.disk, &self.folder.node_control(self.config.node)).await
    }

    /// Whether the folder holds a database in which this node was opened.
    pub(crate) async fn was_opened(&self) -> Result<bool> {
        if self.control().await?.is_none() {
            return Ok(false);
        }
        Ok(self.node_control().await?.is_some_and(|own| own.phase == Phase::Open))
    }

    async fn is_closed(&self) -> Result<bool> {
        Ok(self.env.disk.metadata(&self.folder.closed()).await?.is_some())
    }

    /// Starts a life. The caller holds the turn to change.
    pub(crate) async fn serve(&self) -> Result<()> {
        let Some(control) = self.control().await? else {
            return Err(Refusal::new(Code::DatabaseDown, format!("nothing is in {}", self.folder.data())).into());
        };
        if control.nodes != self.config.nodes() {
            let message =
                format!("the database has nodes {:?}, this node knows {:?}", control.nodes, self.config.nodes());
            return Err(Refusal::new(Code::OtherMembership, message).into());
        }
        let running = redo::start(&self.env, &self.config, &control).await?;
        let tasks = redo::tasks(&running);
        let in_doubt = running.control.lock().await.in_doubt.clone();
        if let Err(error) = running.settle(in_doubt).await {
            let mut serving = Serving { running, tasks };
            serving.end(Fault::new(FaultKind::Other, "settle what was in doubt", error.to_string())).await;
            return Err(error);
        }
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(Serving { running, tasks });
        Ok(())
    }

    /// Starts a life, unless there is one.
    ///
    /// # Errors
    /// Those of [`Shared::serve`], and `SA112` if the life that there is has failed: the process has to be restarted.
    pub(crate) async fn serve_unless_open(&self) -> Result<()> {
        match self.running() {
            None => self.serve().await,
            Some(_) => self.open().map(drop),
        }
    }

    /// Ends the life, if there is one.
    pub(crate) async fn stop(&self) {
        let _turn = self.changing.lock().await;
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut serving) = serving {
            serving.end(Fault::new(FaultKind::Other, "serve", "the node was stopped")).await;
        }
    }
}
