//! TCP of a madsim node.

use std::io;

use async_trait::async_trait;
use madsim::net::{TcpListener, TcpStream};
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_engine::env::{Listener, Net, Stream};

/// The network of one host. Hosts are dialled by name.
pub(crate) struct HostNet {
    host: String,
}

impl HostNet {
    pub(crate) fn new(host: String) -> Self {
        Self { host }
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
        match TcpStream::connect((host, port)).await {
            Ok(stream) => Ok(Box::new(stream)),
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
        Ok(Box::new(HostListener { inner, address: format!("{host}:{port}") }))
    }
}

struct HostListener {
    inner: TcpListener,
    address: String,
}

#[async_trait]
impl Listener for HostListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault> {
        match self.inner.accept().await {
            Ok((stream, _peer)) => Ok(Box::new(stream)),
            Err(error) => Err(fault("accept on", &self.address, &error)),
        }
    }
}
