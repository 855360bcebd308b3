//! TCP of a madsim node. Traffic is held here, at the end that would hear it: madsim's own clogged links refuse new calls at
//! once, and deliver what waited up to twice as late, since it tries again ever more seldom.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use madsim::net::{TcpListener, TcpStream};
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_engine::env::{Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Which hosts there are, and between which of them traffic is held. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Links {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<IpAddr, String>,
    held: Vec<(String, String)>,
    /// Whoever waits for some release, in the order of waiting.
    waiting: Vec<Waker>,
}

impl Links {
    pub(crate) fn add(&self, host: &str, address: IpAddr) {
        self.state().names.insert(address, host.into());
    }

    pub(crate) fn hold(&self, one: &str, other: &str) {
        self.state().held.push((one.into(), other.into()));
    }

    /// Ends the hold, and has everybody look again who waits for one. To be called inside of the runtime.
    pub(crate) fn release(&self, one: &str, other: &str) {
        let waiting = {
            let mut state = self.state();
            state.held.retain(|pair| !joins(pair, one, other));
            core::mem::take(&mut state.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    fn name(&self, address: IpAddr) -> String {
        self.state().names.get(&address).cloned().unwrap_or_default()
    }

    fn poll_open(&self, one: &str, other: &str, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.held.iter().any(|pair| joins(pair, one, other)) {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn joins((first, second): &(String, String), one: &str, other: &str) -> bool {
    (first == one && second == other) || (first == other && second == one)
}

/// The network of one host. Hosts are dialled by name.
pub(crate) struct HostNet {
    host: String,
    links: Links,
}

impl HostNet {
    pub(crate) fn new(host: String, links: Links) -> Self {
        Self { host, links }
    }
}

fn fault(operation: &str, address: &str, error: &io::Error) -> Fault {
    let kind = if error.kind() == io::ErrorKind::AddrInUse { FaultKind::Exists } else { FaultKind::Unreachable };
    Fault::new(kind, format!("{operation} {address}"), error.kind().to_string())
}

/// Host and port of an address.
fn parts(address: &str) -> Result<(String, u16), Fault> {
    let parsed = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_string(), port.parse().ok()?)));
    parsed.ok_or_else(|| Fault::new(FaultKind::Other, format!("use address {address}"), "it is not host:port"))
}

#[async_trait]
impl Net for HostNet {
    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>, Fault> {
        let (host, port) = parts(address)?;
        poll_fn(|context| self.links.poll_open(&self.host, &host, context)).await;
        match TcpStream::connect((host.clone(), port)).await {
            Ok(inner) => {
                Ok(Box::new(HostStream { inner, host: self.host.clone(), peer: host, links: self.links.clone() }))
            }
            Err(error) => Err(fault("connect to", address, &error)),
        }
    }

    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>, Fault> {
        let (host, port) = parts(address)?;
        if host != self.host {
            let cause = format!("this host is {}", self.host);
            return Err(Fault::new(FaultKind::Other, format!("listen on {address}"), cause));
        }
        let inner = TcpListener::bind(("0.0.0.0", port)).await.map_err(|error| fault("listen on", address, &error))?;
        let port = inner.local_addr().map_err(|error| fault("listen on", address, &error))?.port();
        let address = format!("{host}:{port}");
        Ok(Box::new(HostListener { inner, address, host, links: self.links.clone() }))
    }
}

struct HostListener {
    inner: TcpListener,
    address: String,
    host: String,
    links: Links,
}

#[async_trait]
impl Listener for HostListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault> {
        match self.inner.accept().await {
            Ok((inner, peer)) => {
                let (peer, links) = (self.links.name(peer.ip()), self.links.clone());
                Ok(Box::new(HostStream { inner, host: self.host.clone(), peer, links }))
            }
            Err(error) => Err(fault("accept on", &self.address, &error)),
        }
    }
}

/// A stream whose reader hears nothing while its link is held: neither bytes, nor that the peer is gone.
struct HostStream {
    inner: TcpStream,
    host: String,
    peer: String,
    links: Links,
}

impl AsyncRead for HostStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.links.poll_open(&this.host, &this.peer, context));
        Pin::new(&mut this.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
