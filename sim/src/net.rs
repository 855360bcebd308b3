//! The network of one host, through the gate: a wrapper around the backend's. What is written reaches the backend at a
//! flush, cut into pieces at random, so that a reader which relies on message boundaries fails.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use sheetanchor_core::error::Fault;
use sheetanchor_engine::env::{Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::chance::Chance;
use crate::gate::{Kind, Life, Operation, Outcome, Said, Volume};

mod link;

use link::Link;

/// A backend's network, gated.
pub struct GatedNet {
    inner: Arc<dyn Net>,
    life: Life,
    chance: Chance,
}

impl GatedNet {
    /// The network as `life` sees it.
    pub fn new(inner: Arc<dyn Net>, life: Life, chance: Chance) -> Self {
        Self { inner, life, chance }
    }
}

impl core::fmt::Debug for GatedNet {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("GatedNet").field("life", &self.life).finish_non_exhaustive()
    }
}

/// The host in an address.
fn host_of(address: &str) -> &str {
    address.split_once(':').map_or(address, |(host, _)| host)
}

const fn operation(said: Said<'_>) -> Operation<'_> {
    Operation { kind: Kind::Net, volume: Volume::Elsewhere, said }
}

#[async_trait]
impl Net for GatedNet {
    async fn connect(&self, address: &str) -> Result<Box<dyn Stream>, Fault> {
        let operation = operation(Said::of("connect", address));
        if self.life.before(&operation, &[]).is_none() {
            return pending().await;
        }
        let result = self.inner.connect(address).await;
        if !self.life.after(&operation, Outcome::of(&result), &[]) {
            return pending().await;
        }
        let inner = result?;
        let gate = self.life.gate();
        let link = Link::dialled(gate.wires().join(&gate.name(self.life.host()), host_of(address)));
        let stream = GatedStream::new(inner, self.life.clone(), self.chance.clone(), Way::To(address.into()), link);
        Ok(Box::new(stream))
    }

    async fn listen(&self, address: &str) -> Result<Box<dyn Listener>, Fault> {
        let operation = operation(Said::of("listen", address));
        if self.life.before(&operation, &[]).is_none() {
            return pending().await;
        }
        let result = self.inner.listen(address).await;
        if !self.life.after(&operation, Outcome::of(&result), &[]) {
            return pending().await;
        }
        Ok(Box::new(GatedListener { inner: result?, life: self.life.clone(), chance: self.chance.clone() }))
    }
}

struct GatedListener {
    inner: Box<dyn Listener>,
    life: Life,
    chance: Chance,
}

#[async_trait]
impl Listener for GatedListener {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn accept(&mut self) -> Result<Box<dyn Stream>, Fault> {
        let result = self.inner.accept().await;
        // No wait between the two: a cancelled accept loses no connection.
        let address = self.inner.address();
        if !self.life.after(&operation(Said::of("accept", &address)), Outcome::of(&result), &[]) {
            return pending().await;
        }
        let way = Way::At(address);
        let stream = GatedStream::new(result?, self.life.clone(), self.chance.clone(), way, Link::accepted());
        Ok(Box::new(stream))
    }
}

/// Which end of a connection it is: one that was dialled there, or one that was accepted there.
enum Way {
    To(String),
    At(String),
}

impl Way {
    fn sends(&self, length: usize) -> Said<'_> {
        match self {
            Self::To(address) => Said::of("send to", address).count(length),
            Self::At(address) => Said::of("send at", address).count(length),
        }
    }

    const fn receives(&self) -> Said<'_> {
        match self {
            Self::To(address) => Said::of("receive to", address.as_str()),
            Self::At(address) => Said::of("receive at", address.as_str()),
        }
    }
}

/// A stream whose owner passes the gate at each read that brought bytes and at each flush that takes some away.
struct GatedStream {
    /// Taken when dropped only.
    inner: Option<Box<dyn Stream>>,
    life: Life,
    chance: Chance,
    way: Way,
    /// Written and not flushed.
    unsent: Vec<u8>,
    /// On its way into the backend, in pieces.
    pieces: VecDeque<Vec<u8>>,
    link: Link,
}

/// Writes beyond this go out without waiting for a flush: the bound of a stream's buffer.
const UNSENT_MAX: usize = 64 * 1024;

impl GatedStream {
    fn new(inner: Box<dyn Stream>, life: Life, chance: Chance, way: Way, link: Link) -> Self {
        Self { inner: Some(inner), life, chance, way, unsent: Vec::new(), pieces: VecDeque::new(), link }
    }

    fn inner(&mut self) -> io::Result<Pin<&mut Box<dyn Stream>>> {
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Moves all bytes into the backend. The gate is passed when the first one leaves.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(number) = self.link.number() {
            self.life.gate().wires().check(number)?;
        }
        if !self.unsent.is_empty() {
            let operation = operation(self.way.sends(self.unsent.len()));
            let flow = self.link.sends(self.unsent.len());
            if !self.life.carry(&operation, None, flow) {
                return Poll::Pending;
            }
            let mut first = core::mem::take(&mut self.unsent);
            let rest = self.chance.one_in(4).then(|| {
                let length = u64::try_from(first.len()).unwrap_or(u64::MAX);
                first.split_off(usize::try_from(self.chance.below(length)).unwrap_or(0))
            });
            self.pieces.extend([first, rest.unwrap_or_default()].into_iter().filter(|piece| !piece.is_empty()));
            // Ahead of a piece that leaves anyway: what is drawn and how much is sent when does not depend on it.
            if let Some(piece) = self.pieces.front_mut() {
                piece.splice(..0, self.link.take_heading());
            }
        }
        while let Some(mut piece) = self.pieces.pop_front() {
            match self.inner()?.poll_write(context, &piece) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    let rest = piece.split_off(written.min(piece.len()));
                    if !rest.is_empty() {
                        self.pieces.push_front(rest);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.pieces.push_front(piece);
                    return Poll::Pending;
                }
            }
        }
        self.inner()?.poll_flush(context)
    }

    /// Reads what the peer wrote; at an end that accepted, first which connection this is.
    fn poll_receive(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.link.awaits_heading() {
            let mut rest = self.link.room();
            let mut heading = ReadBuf::new(&mut rest);
            ready!(self.inner()?.poll_read(context, &mut heading))?;
            let part = heading.filled();
            if part.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.link.hears(part);
        }
        if let Some(number) = self.link.number() {
            ready!(self.life.gate().wires().poll_arrives(number, self.link.end(), context))?;
        }
        self.inner()?.poll_read(context, buffer)
    }
}

impl AsyncRead for GatedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.life.is_over() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let result = ready!(this.poll_receive(context, buffer));
        let read = buffer.filled().len().saturating_sub(before);
        let outcome = Outcome::of_read(&result, read);
        let flow = this.link.received(read);
        if this.life.carry(&operation(this.way.receives()), Some(outcome), flow) {
            return Poll::Ready(result);
        }
        // The bytes are gone, and so is the one who would have read them.
        buffer.set_filled(before);
        Poll::Pending
    }
}

impl AsyncWrite for GatedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.life.is_over() {
            return Poll::Pending;
        }
        if this.unsent.len() >= UNSENT_MAX || !this.pieces.is_empty() {
            ready!(this.poll_send(context))?;
        }
        this.unsent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.life.is_over() {
            return Poll::Pending;
        }
        this.poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.life.is_over() {
            return Poll::Pending;
        }
        ready!(this.poll_send(context))?;
        this.inner()?.poll_shutdown(context)
    }
}

impl Drop for GatedStream {
    fn drop(&mut self) {
        if let Some(number) = self.link.number() {
            self.life.gate().wires().part(number, self.link.end());
        }
        if let Some(inner) = self.inner.take() {
            drop(self.life.gate().silence(&self.life, inner));
        }
    }
}
