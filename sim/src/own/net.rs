//! The `Net` port of a host of the own executor.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_engine::env::{Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;
use super::agenda::Agenda;
use super::wire::{EndId, HostIndex, LifeNumber, Wire};
use crate::host::locked;

/// The network of one life of one host. Hosts are dialled by name.
pub(super) struct HostNet {
    shared: Arc<Shared>,
    name: String,
    host: HostIndex,
    life: LifeNumber,
}

impl HostNet {
    pub(super) fn new(shared: Arc<Shared>, name: &str, host: HostIndex, life: LifeNumber) -> Self {
        Self { shared, name: name.into(), host, life }
    }
}

/// Host and port of an address.
fn parts(address: &str) -> Result<(&str, u16), Fault> {
    let parsed = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parsed.ok_or_else(|| Fault::new(FaultKind::Other, format!("use address {address}"), "it is not host:port"))
}

fn on_wire<T>(shared: &Shared, act: impl FnOnce(&mut Wire, &mut Agenda) -> T) -> T {
    act(&mut locked(&shared.wire), &mut locked(&shared.agenda))
}

#[async_trait]
impl Net for HostNet {
    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>, Fault> {
        let (name, port) = parts(address)?;
        let unreachable = |cause: String| Fault::new(FaultKind::Unreachable, format!("connect to {address}"), cause);
        let Some(to) = locked(&self.shared.wire).host(name) else {
            return Err(unreachable("no host has that name".into()));
        };
        let end = on_wire(&self.shared, |wire, agenda| wire.dial((self.host, self.life), (to, port), agenda));
        // Made before the wait: a call that is cancelled is hung up.
        let stream = HostStream { shared: self.shared.clone(), end };
        let connected =
            std::future::poll_fn(|context| match locked(&self.shared.wire).has_connected(end, context.waker()) {
                Some(connected) => Poll::Ready(connected),
                None => Poll::Pending,
            });
        match connected.await {
            Ok(()) => Ok(Box::new(stream)),
            Err(error) => Err(unreachable(error.kind().to_string())),
        }
    }

    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>, Fault> {
        let (name, port) = parts(address)?;
        let operation = format!("listen on {address}");
        if name != self.name {
            return Err(Fault::new(FaultKind::Other, operation, format!("this host is {}", self.name)));
        }
        match locked(&self.shared.wire).listen(self.host, port) {
            Some(port) => {
                let (shared, host, life) = (self.shared.clone(), self.host, self.life);
                Ok(Box::new(HostListener { shared, host, life, port, address: format!("{name}:{port}") }))
            }
            None => Err(Fault::new(FaultKind::Exists, operation, "the address is taken")),
        }
    }
}

struct HostListener {
    shared: Arc<Shared>,
    host: HostIndex,
    life: LifeNumber,
    port: u16,
    address: String,
}

#[async_trait]
impl Listener for HostListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault> {
        let accepted = std::future::poll_fn(|context| {
            match locked(&self.shared.wire).accept(self.host, self.port, context.waker()) {
                Some(end) => Poll::Ready(end),
                None => Poll::Pending,
            }
        });
        let end = accepted.await;
        Ok(Box::new(HostStream { shared: self.shared.clone(), end }))
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        on_wire(&self.shared, |wire, agenda| {
            // The port of a later life is not ours.
            if wire.lives(self.host, self.life) {
                wire.stop_listening(self.host, self.port, agenda);
            }
        });
    }
}

/// One end of a connection. Dropping it hangs up.
struct HostStream {
    shared: Arc<Shared>,
    end: EndId,
}

impl AsyncRead for HostStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        match on_wire(&self.shared, |wire, agenda| wire.read(self.end, room, context.waker(), agenda)) {
            Some(read) => Poll::Ready(read.map(|bytes| buffer.put_slice(&bytes))),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match on_wire(&self.shared, |wire, agenda| wire.write(self.end, bytes, context.waker(), agenda)) {
            Some(written) => Poll::Ready(written),
            None => Poll::Pending,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is under way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire(&self.shared, |wire, agenda| wire.shut(self.end, agenda));
        Poll::Ready(Ok(()))
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        on_wire(&self.shared, |wire, agenda| wire.drop_end(self.end, agenda));
    }
}
