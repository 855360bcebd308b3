//! TCP, on the loopback interface only: until transport security lands, nothing else may carry the cluster's messages.
//!
//! A host that is gone says no goodbye. Every connection has the kernel ask whether the other side is still there, so that
//! whoever waits for it learns within 20 s that it is not, and nobody holds a dead connection for ever.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::sockopt;
use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_engine::env::{Listener, Net, Stream};
use tokio::net::{TcpListener, TcpStream};

use crate::faults::fault;

/// Parses `host:port`, where host is `localhost` or a literal address of the loopback interface.
///
/// # Errors
/// `SA111` for an address elsewhere, `SA101` for what is no address.
pub fn loopback(address: &str) -> Result<SocketAddr, Refusal> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(Refusal::new(
            Code::ConfigInvalid,
            format!("`{}` is not of the form host:port", address.escape_debug()),
        ));
    };
    let Ok(port) = port.parse::<u16>() else {
        return Err(Refusal::new(Code::ConfigInvalid, format!("`{}` has no port", address.escape_debug())));
    };
    if host == "localhost" {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    // A name other than localhost is not resolved: what it leads to could change after the check.
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match literal.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => Ok(SocketAddr::new(ip, port)),
        Ok(_) | Err(_) => Err(Refusal::new(
            Code::NotLoopback,
            format!("`{}` is not on the loopback interface", address.escape_debug()),
        )),
    }
}

/// How the kernel watches over the other side of a connection: RFC 9293, 3.8.4, and RFC 5482.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    /// After so long without a word it is asked whether it is there; `None`: never.
    pub ask_after: Option<Duration>,
    /// If it does not answer, again after this.
    pub ask_every: Duration,
    /// So many unanswered questions are the end of the connection.
    pub asks_max: u32,
    /// So is anything that was sent and is not acknowledged in this time; zero: in the system's own.
    pub unheard_max: Duration,
}

impl Watch {
    /// The end comes after 20 s, whatever was under way: longer than a switch or a moved virtual machine takes.
    pub(crate) const USUAL: Self = Self {
        ask_after: Some(Duration::from_secs(5)),
        ask_every: Duration::from_secs(5),
        asks_max: 3,
        unheard_max: Duration::from_secs(20),
    };

    /// Has it begin on a connection.
    ///
    /// # Errors
    /// What the kernel says against it.
    pub(crate) fn begin(self, socket: &TcpStream) -> io::Result<()> {
        sockopt::set_socket_keepalive(socket, self.ask_after.is_some())?;
        if let Some(after) = self.ask_after {
            sockopt::set_tcp_keepidle(socket, after)?;
            sockopt::set_tcp_keepintvl(socket, self.ask_every)?;
            sockopt::set_tcp_keepcnt(socket, self.asks_max)?;
        }
        let unheard_ms = u32::try_from(self.unheard_max.as_millis()).unwrap_or(u32::MAX);
        Ok(sockopt::set_tcp_user_timeout(socket, unheard_ms)?)
    }
}

/// As a connection of ours is: nothing waits for more, and the other side is watched over.
fn prepared(socket: TcpStream) -> io::Result<Box<dyn Stream>> {
    socket.set_nodelay(true)?;
    Watch::USUAL.begin(&socket)?;
    Ok(Box::new(socket))
}

/// TCP on the loopback interface.
#[derive(Clone, Copy, Debug)]
pub struct TcpNet;

#[async_trait]
impl Net for TcpNet {
    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>, Fault> {
        let operation = || format!("connect to {address}");
        let place = checked(address, operation)?;
        // Whatever the reason, there is no connection: that is all a caller needs to know.
        let unreachable = |error: std::io::Error| Fault::new(FaultKind::Unreachable, operation(), error.to_string());
        prepared(TcpStream::connect(place).await.map_err(unreachable)?).map_err(unreachable)
    }

    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>, Fault> {
        let operation = || format!("listen on {address}");
        let place = checked(address, operation)?;
        let listener = TcpListener::bind(place).await.map_err(|error| fault(operation(), &error))?;
        let address = listener.local_addr().map_err(|error| fault(operation(), &error))?;
        Ok(Box::new(Accepting { listener, address }))
    }
}

fn checked(address: &str, operation: impl Fn() -> String) -> Result<SocketAddr, Fault> {
    loopback(address).map_err(|refusal| Fault::new(FaultKind::Other, operation(), refusal.to_string()))
}

struct Accepting {
    listener: TcpListener,
    address: SocketAddr,
}

#[async_trait]
impl Listener for Accepting {
    fn address(&self) -> String {
        self.address.to_string()
    }

    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault> {
        let operation = || format!("accept a connection on {}", self.address);
        let (stream, _) = self.listener.accept().await.map_err(|error| fault(operation(), &error))?;
        prepared(stream).map_err(|error| fault(operation(), &error))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_loopback_addresses_are_taken() {
        for good in ["127.0.0.1:7001", "127.9.9.9:1", "[::1]:7001", "::1:7001", "localhost:0"] {
            assert!(loopback(good).is_ok(), "{good}");
        }
        for (bad, code) in [
            ("0.0.0.0:7001", Code::NotLoopback),
            ("192.168.1.4:7001", Code::NotLoopback),
            ("[::]:7001", Code::NotLoopback),
            ("example.org:7001", Code::NotLoopback),
            ("localhost.example.org:7001", Code::NotLoopback),
            ("127.0.0.1", Code::ConfigInvalid),
            ("127.0.0.1:x", Code::ConfigInvalid),
            ("127.0.0.1:70000", Code::ConfigInvalid),
        ] {
            assert_eq!(loopback(bad).unwrap_err().code, code, "{bad}");
        }
    }

    #[tokio::test]
    async fn bytes_pass_in_order_and_an_address_is_taken_once() {
        let mut listener = TcpNet.listen("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        assert_eq!(TcpNet.listen(&address).await.err().unwrap().kind, FaultKind::Exists);
        let (dialled, accepted) = tokio::join!(TcpNet.connect(&address), listener.accept());
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        dialled.write_all(b"sheet anchor").await.unwrap();
        let mut heard = [0; 12];
        accepted.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"sheet anchor");
    }

    /// That the kernel then does what it says is seen where cables are pulled, by the tests of the command line.
    #[tokio::test]
    async fn the_other_side_of_a_connection_is_watched_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let says = || {
            let asks = sockopt::socket_keepalive(&socket).unwrap();
            Watch {
                ask_after: asks.then(|| sockopt::tcp_keepidle(&socket).unwrap()),
                ask_every: sockopt::tcp_keepintvl(&socket).unwrap(),
                asks_max: sockopt::tcp_keepcnt(&socket).unwrap(),
                unheard_max: Duration::from_millis(sockopt::tcp_user_timeout(&socket).unwrap().into()),
            }
        };
        assert_eq!(says().ask_after, None);
        Watch::USUAL.begin(&socket).unwrap();
        assert_eq!(says(), Watch::USUAL);
        Watch { ask_after: None, ..Watch::USUAL }.begin(&socket).unwrap();
        assert_eq!(says().ask_after, None);
    }

    #[tokio::test]
    async fn elsewhere_is_refused_before_any_packet() {
        let fault = TcpNet.connect("192.0.2.1:7001").await.err().unwrap();
        assert!(fault.cause.contains("SA111"), "{fault}");
        assert!(TcpNet.listen("0.0.0.0:0").await.is_err());
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable() {
        let address = TcpNet.listen("127.0.0.1:0").await.unwrap().address();
        assert_eq!(TcpNet.connect(&address).await.err().unwrap().kind, FaultKind::Unreachable);
    }
}
