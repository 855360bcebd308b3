//! A connection in replication mode, to one server: PostgreSQL's manual, "Streaming Replication Protocol". The crates that
//! speak SQL do not speak this.

mod copy;
mod log_in;

use std::io;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

pub(super) use self::copy::{Copied, CopyPlan, Tablespace};
use super::session::{Said, down, is_down};
use super::target::{Called, Target};
use super::tls::{Broken, Connector, NO_TLS, Safety, untrusted};

/// How long a connection may take to be made, and an ordinary answer to come.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long the server may take to accept what is written to it.
const WRITE_WAIT: Duration = Duration::from_secs(30);

/// Bytes in the longest message that is believed. A server sends WAL in pieces of 128 KiB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of a message's tag and length.
const HEAD_BYTES: usize = 5;

/// Where PostgreSQL's count of microseconds begins, in seconds of Unix.
const EPOCH_S: u64 = 946_684_800;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection in replication mode.
pub(super) struct Replication {
    socket: Box<dyn Socket>,
    input: BytesMut,
    /// What a proof of who we are can be bound to; only under TLS.
    end_point: Option<Vec<u8>>,
}

/// What a stream brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Streamed {
    /// WAL from this address on.
    Wal(Lsn, Bytes),
    /// Word that the server lives; whether it wants to be told how far we are.
    Alive(bool),
    /// The stream is over: the server ends, or its timeline does.
    Over,
}

impl Replication {
    /// Connects to the first server of `target` that lets us in.
    ///
    /// # Errors
    /// `SA112` if none answers, `SA114` if it is not as safe as it must be, `SA101` if it does not let us replicate; faults.
    pub(super) async fn connect(target: &Target) -> Result<Self> {
        let connecting = tokio::time::timeout(ANSWER_WAIT, Self::dial(target)).await;
        connecting.map_err(|_| down(format!("no answer within {} s", ANSWER_WAIT.as_secs())))?
    }

    async fn dial(target: &Target) -> Result<Self> {
        let connector = target.tls().connector()?;
        let mut seen = down("the connection names no host");
        for place in target.places() {
            let tried = match Self::begin(target, place, connector.as_ref()).await {
                // Its handshake failed, or pg_hba.conf has no line for TLS.
                Err(error) if target.tls().safety() == Safety::Prefer && !is_down(&error) => {
                    Self::begin(target, place, None).await
                }
                tried => tried,
            };
            match tried {
                Ok(link) => return Ok(link),
                Err(error) => seen = error,
            }
        }
        Err(seen)
    }

    async fn begin(target: &Target, place: Called<'_>, connector: Option<&Connector>) -> Result<Self> {
        let mut link = Self::reach(target, place, connector).await?;
        link.log_in(target.config()).await?;
        Ok(link)
    }

    /// A connection to one place, under TLS if that is asked for and the server has it.
    async fn reach(target: &Target, place: Called<'_>, connector: Option<&Connector>) -> Result<Self> {
        let safety = target.tls().safety();
        let plain = |socket| Self { socket, input: BytesMut::new(), end_point: None };
        let name = match place.host {
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", place.port));
                return Ok(plain(Box::new(UnixStream::connect(path).await.map_err(down)?)));
            }
            Host::Tcp(name) => name,
        };
        let called = place.address.map_or_else(|| name.clone(), |address| address.to_string());
        let mut socket = TcpStream::connect((called, place.port)).await.map_err(down)?;
        target.watch().begin(&socket).map_err(down)?;
        let Some(connector) = connector else { return Ok(plain(Box::new(socket))) };
        let mut question = BytesMut::new();
        frontend::ssl_request(&mut question);
        socket.write_all(&question).await.map_err(down)?;
        // One byte and no more: what an intruder puts after it must not pass for what is said under TLS.
        match socket.read_u8().await.map_err(down)? {
            b'S' => {}
            b'N' if safety == Safety::Prefer => return Ok(plain(Box::new(socket))),
            b'N' => return Err(untrusted(safety, NO_TLS)),
            other => return Err(unexpected("ask for TLS", other)),
        }
        match connector.secure(name, socket).await {
            Ok(secured) => {
                let end_point = secured.end_point();
                Ok(Self { socket: Box::new(secured), input: BytesMut::new(), end_point })
            }
            Err(Broken::Untrusted(seen)) => Err(untrusted(safety, seen)),
            Err(Broken::Io(error)) => Err(down(error)),
        }
    }

    /// Refuses any server but the one of this system identifier.
    ///
    /// # Errors
    /// `SA113` if it is another one; faults.
    pub(super) async fn check_system(&mut self, expected: u64) -> Result<()> {
        let system = self.system().await?;
        if system == expected {
            return Ok(());
        }
        let message = format!("the server that streams has the system identifier {system}, not {expected}");
        Err(Refusal::new(Code::OtherNode, message).into())
    }

    async fn system(&mut self) -> Result<u64> {
        const STEP: &str = "identify the system";
        self.send(|out| frontend::query("IDENTIFY_SYSTEM", out)).await?;
        let mut system = None;
        loop {
            let (tag, body) = self.answer().await?;
            match tag {
                b'D' => system = first_column(&body).and_then(|text| text.parse().ok()),
                b'E' => return Err(Fault::new(FaultKind::Other, STEP, said(&body).to_string()).into()),
                b'Z' => return system.ok_or_else(|| unexpected(STEP, b'D')),
                b'T' | b'C' | b'N' => {}
                other => return Err(unexpected(STEP, other)),
            }
        }
    }

    /// Begins to stream WAL of `timeline` from exactly `from` on, for `slot` if one is named.
    ///
    /// # Errors
    /// `SA501` if the server has it no more, `SA210` if the slot is gone or lost; [`FaultKind::Exists`] if another
    /// connection uses the slot, and other faults.
    pub(super) async fn start(&mut self, slot: Option<&str>, timeline: TimelineId, from: Lsn) -> Result<()> {
        let slot = slot.map_or_else(String::new, |slot| format!("SLOT \"{slot}\" "));
        let command = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}");
        self.send(|out| frontend::query(&command, out)).await?;
        loop {
            let (tag, body) = self.answer().await?;
            match tag {
                b'W' => return Ok(()),
                b'E' => return Err(stream_error(&said(&body))),
                b'N' => {}
                other => return Err(unexpected("start to stream WAL", other)),
            }
        }
    }

    /// What the stream brings next. May be dropped while it waits; nothing is lost then.
    ///
    /// # Errors
    /// `SA501`, `SA210` as for [`Replication::start`]: WAL can be removed while it is streamed.
    pub(super) async fn next(&mut self) -> Result<Streamed> {
        loop {
            let (tag, mut body) = self.message().await?;
            match tag {
                b'd' => return copy_data(&mut body),
                b'c' | b'C' => return Ok(Streamed::Over),
                b'E' => return Err(stream_error(&said(&body))),
                b'N' | b'S' => {}
                other => return Err(unexpected("stream WAL", other)),
            }
        }
    }

    /// Tells the server what has arrived, and up to where it need not keep WAL for us.
    ///
    /// # Errors
    /// Faults.
    pub(super) async fn confirm(&mut self, received: Lsn, kept_from: Lsn) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros =
            u64::try_from(now.as_micros()).unwrap_or(u64::MAX).saturating_sub(EPOCH_S.saturating_mul(1_000_000));
        let mut update = Vec::with_capacity(34);
        update.push(b'r');
        for word in [received.get(), kept_from.get(), kept_from.get(), micros] {
            update.extend_from_slice(&word.to_be_bytes());
        }
        update.push(0);
        self.send(|out| {
            frontend::CopyData::new(Bytes::from(update))?.write(out);
            Ok(())
        })
        .await
    }

    /// Ends the connection in order, if the server still listens. Without that a server notes each end in its log.
    pub(super) async fn goodbye(mut self) {
        let said = self.send(|out| {
            frontend::terminate(out);
            Ok(())
        });
        if let Err(error) = said.await {
            tracing::debug!(%error, "a connection in replication mode had ended before it was closed");
        }
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        let mut out = BytesMut::new();
        write(&mut out).map_err(|error| link_error(&error))?;
        let writing = async {
            self.socket.write_all(&out).await?;
            self.socket.flush().await
        };
        let written = tokio::time::timeout(WRITE_WAIT, writing).await;
        let late = |_| Fault::new(FaultKind::TimedOut, LINK, "it takes nothing that is written to it");
        Ok(written.map_err(late)?.map_err(|error| link_error(&error))?)
    }

    /// The answer to what was just sent.
    async fn answer(&mut self) -> Result<(u8, Bytes)> {
        let answered = tokio::time::timeout(ANSWER_WAIT, self.message()).await;
        let late = |_| Fault::new(FaultKind::TimedOut, LINK, format!("no answer within {} s", ANSWER_WAIT.as_secs()));
        answered.map_err(late)?
    }

    /// The next message: its tag and what it holds.
    async fn message(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some((tag, _)) = self.input.split_first()
                && let Some(length) = self.input.get(1..HEAD_BYTES).and_then(|bytes| bytes.first_chunk())
            {
                let (tag, length) = (*tag, usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX));
                if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
                    return Err(Fault::new(FaultKind::Other, LINK, format!("a message of {length} bytes")).into());
                }
                if self.input.len() > length {
                    let mut whole = self.input.split_to(length.saturating_add(1)).freeze();
                    return Ok((tag, whole.split_off(HEAD_BYTES)));
                }
                self.input.reserve(length);
            }
            let read = self.socket.read_buf(&mut self.input).await.map_err(|error| link_error(&error))?;
            if read == 0 {
                return Err(Fault::new(FaultKind::Unreachable, LINK, "the server has closed the connection").into());
            }
        }
    }
}

const LINK: &str = "speak to the server about its WAL";

fn copy_data(body: &mut Bytes) -> Result<Streamed> {
    let broken = |_| unexpected("stream WAL", b'd');
    match body.try_get_u8().map_err(broken)? {
        b'w' => {
            let start = body.try_get_u64().map_err(broken)?;
            // The end of the server's WAL, and its clock.
            body.try_get_u64().map_err(broken)?;
            body.try_get_u64().map_err(broken)?;
            Ok(Streamed::Wal(Lsn::new(start), body.clone()))
        }
        b'k' => {
            body.try_get_u64().map_err(broken)?;
            body.try_get_u64().map_err(broken)?;
            Ok(Streamed::Alive(body.try_get_u8().map_err(broken)? != 0))
        }
        other => Err(unexpected("stream WAL", other)),
    }
}

/// The first column of a row.
fn first_column(body: &Bytes) -> Option<String> {
    let (_, rest) = body.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

/// What the server says against something: fields of a letter and words, each ended by a zero.
fn said(body: &Bytes) -> Said {
    let field = |wanted: u8| {
        let fields = body.split(|byte| *byte == 0);
        let found = fields.filter_map(<[u8]>::split_first).find(|(letter, _)| **letter == wanted);
        found.map(|(_, words)| String::from_utf8_lossy(words).into_owned()).unwrap_or_default()
    };
    Said { state: field(b'C'), message: field(b'M') }
}

fn stream_error(said: &Said) -> Error {
    match said.state.as_str() {
        // The file is gone, and does not come back: a gap for ever.
        "58P01" => Refusal::new(Code::WalGap, format!("the server has the WAL no more: {said}")).into(),
        // No such slot, or one that was invalidated.
        "42704" | "55000" => Refusal::new(Code::PinLost, format!("the archive's slot does not serve: {said}")).into(),
        _ if said.is_going() => {
            Fault::new(FaultKind::Unreachable, "stream WAL", format!("the server ends: {said}")).into()
        }
        // Another connection has it, perhaps one that has just been given up.
        "55006" => Fault::new(FaultKind::Exists, "stream WAL", said.to_string()).into(),
        _ => Fault::new(FaultKind::Other, "stream WAL", said.to_string()).into(),
    }
}

fn unexpected(step: &str, tag: u8) -> Error {
    Fault::new(FaultKind::Other, step, format!("a message `{}` that is not understood", tag.escape_ascii())).into()
}

fn link_error(error: &io::Error) -> Fault {
    Fault::new(FaultKind::Unreachable, LINK, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_told_by_its_state() {
        let body = |state: &str| Bytes::from(format!("SERROR\0C{state}\0Mno more\0\0"));
        assert_eq!(said(&body("58P01")), Said { state: "58P01".to_owned(), message: "no more".to_owned() });
        for (state, code) in [("58P01", Code::WalGap), ("42704", Code::PinLost), ("55000", Code::PinLost)] {
            assert_eq!(stream_error(&said(&body(state))).refusal().map(|refusal| refusal.code), Some(code));
        }
        assert!(stream_error(&said(&body("57P01"))).is(FaultKind::Unreachable));
        assert!(stream_error(&said(&body("55006"))).refusal().is_none(), "in use: it may come free");
    }

    #[test]
    fn what_is_cut_short_is_no_message() {
        let mut whole = vec![b'w'];
        whole.extend_from_slice(&7_u64.to_be_bytes());
        whole.extend_from_slice(&[0; 16]);
        whole.extend_from_slice(b"wal");
        let wal = copy_data(&mut Bytes::from(whole.clone())).unwrap();
        assert_eq!(wal, Streamed::Wal(Lsn::new(7), Bytes::from_static(b"wal")));
        for length in 0..25 {
            assert!(copy_data(&mut Bytes::from(whole[..length].to_vec())).is_err(), "{length} bytes");
        }
        let mut alive = vec![b'k'];
        alive.extend_from_slice(&[0; 16]);
        assert!(copy_data(&mut Bytes::from(alive.clone())).is_err());
        alive.push(1);
        assert_eq!(copy_data(&mut Bytes::from(alive)).unwrap(), Streamed::Alive(true));
    }
}
