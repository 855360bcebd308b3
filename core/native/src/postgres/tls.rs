//! TLS to a server: which certificate is believed, and what is made of a handshake. PostgreSQL's manual, "SSL Support" of
//! libpq: a mode means here what it means there.

mod end_point;

use std::error::Error as AnyError;
use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use sheetanchor_core::error::{Error, Result};
use sheetanchor_core::refusal::{Code, Refusal};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// How safe a connection must be, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Safety {
    /// No TLS.
    Disable,
    /// TLS if the server has it: no protection against anybody who can change what is sent.
    Prefer,
    /// TLS, with whomever.
    Require,
    /// TLS with a server whose certificate a known authority has signed.
    VerifyCa,
    /// And made out to the very name that was called.
    VerifyFull,
}

impl Safety {
    /// The mode's name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// What is asked of the server.
    pub(super) fn negotiated(self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            Self::Require | Self::VerifyCa | Self::VerifyFull => SslMode::Require,
        }
    }

    fn read(word: &str) -> Option<Self> {
        let all = [Self::Disable, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];
        all.into_iter().find(|safety| safety.word() == word)
    }
}

/// How safely a server is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    safety: Safety,
    /// The file with the certificates of the authorities that are believed.
    roots: Option<String>,
}

impl Tls {
    /// No TLS at all.
    pub(super) fn none() -> Self {
        Self { safety: Safety::Disable, roots: None }
    }

    /// Reads `sslmode` and `sslrootcert`.
    ///
    /// # Errors
    /// `SA101` for an unknown mode, and for one that verifies without saying by what.
    pub(super) fn read(mode: Option<&str>, roots: Option<String>) -> std::result::Result<Self, Refusal> {
        let invalid = |message: String| Refusal::new(Code::ConfigInvalid, message);
        let written = mode.map_or(Some(Safety::Prefer), Safety::read);
        let Some(written) = written else {
            let mode = mode.unwrap_or_default().escape_debug();
            return Err(invalid(format!(
                "`sslmode` is `{mode}`: write disable, prefer, require, verify-ca or verify-full"
            )));
        };
        if roots.as_deref() == Some("system") {
            return Err(invalid("`sslrootcert` is `system`: name a file with certificates".to_owned()));
        }
        if written > Safety::Require && roots.is_none() {
            let message = format!("`sslmode` {} needs `sslrootcert`, a file with certificates", written.word());
            return Err(invalid(message));
        }
        // As libpq has it: whoever names an authority means it.
        let safety = if written == Safety::Require && roots.is_some() { Safety::VerifyCa } else { written };
        Ok(Self { safety, roots })
    }

    /// How safe it must be.
    pub(super) fn safety(&self) -> Safety {
        self.safety
    }

    /// What makes handshakes; `None` without TLS. The file of authorities is read anew, so that it can be replaced.
    ///
    /// # Errors
    /// `SA101` if the file cannot be read, or holds no certificate.
    pub(super) fn connector(&self) -> Result<Option<Connector>> {
        if self.safety == Safety::Disable {
            return Ok(None);
        }
        let provider = Arc::new(ring::default_provider());
        let roots = self.roots.as_deref().map(read_roots).transpose()?;
        let verifier = Verifier { roots, by_name: self.safety == Safety::VerifyFull, provider: provider.clone() };
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Bug(format!("the versions of TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Some(Connector { client: Arc::new(client), state: Arc::default() }))
    }
}

fn read_roots(path: &str) -> Result<RootCertStore> {
    let invalid = |message: String| Refusal::new(Code::ConfigInvalid, message);
    let text = fs::read(path).map_err(|error| invalid(format!("cannot read `sslrootcert` {path}: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| invalid(format!("`sslrootcert` {path}: {error}")))?;
        roots.add(certificate).map_err(|error| invalid(format!("`sslrootcert` {path}: {error}")))?;
    }
    if roots.is_empty() {
        return Err(invalid(format!("`sslrootcert` {path} holds no certificate")).into());
    }
    Ok(roots)
}

/// Believes a server's certificate, or does not. Whoever has one must always prove that it is his.
#[derive(Debug)]
struct Verifier {
    /// Without authorities everybody is believed.
    roots: Option<RootCertStore>,
    by_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
            if self.by_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Makes handshakes.
#[derive(Clone)]
pub(super) struct Connector {
    client: Arc<ClientConfig>,
    state: Arc<State>,
}

/// How far the newest attempt to connect has come.
#[derive(Default)]
struct State {
    reached: AtomicBool,
    shaking: AtomicBool,
}

impl Connector {
    /// A handshake over `stream` with the server that was called `host`.
    ///
    /// # Errors
    /// `SA114` if it does not come about.
    pub(super) async fn secure<S>(&self, host: &str, stream: S) -> std::result::Result<Secured<S>, Broken>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Broken::Untrusted(format!("a certificate cannot be made out to `{host}`")))?;
        let shaken = TlsConnector::from(self.client.clone()).connect(name, stream).await;
        shaken.map(Secured).map_err(Broken::from)
    }

    /// Whether the newest attempt reached a server that has no TLS: no handshake was begun with it.
    pub(super) fn was_turned_down(&self) -> bool {
        self.state.reached.load(Ordering::SeqCst) && !self.state.shaking.load(Ordering::SeqCst)
    }
}

/// Why there is no handshake.
#[derive(Debug)]
pub(super) enum Broken {
    /// It is not as safe as it must be.
    Untrusted(String),
    /// The server was not heard any more.
    Io(io::Error),
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untrusted(said) => out.write_str(said),
            Self::Io(error) => error.fmt(out),
        }
    }
}

impl AnyError for Broken {}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        // What TLS itself has against it is wrapped in an error of the socket's kind.
        match error.get_ref().and_then(<dyn AnyError + Send + Sync>::downcast_ref::<rustls::Error>) {
            Some(said) => Self::Untrusted(said.to_string()),
            None => Self::Io(error),
        }
    }
}

/// What is said of a server that turns TLS down.
pub(super) const NO_TLS: &str = "the server has no TLS";

/// The refusal of a server that is not as safe as it must be.
pub(super) fn untrusted(safety: Safety, seen: impl fmt::Display) -> Error {
    let message = format!("no connection with `sslmode` {}: {seen}", safety.word());
    Refusal::new(Code::ServerUntrusted, message).into()
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Secured<S>;
    type TlsConnect = Handshake;
    type Error = Broken;

    fn make_tls_connect(&mut self, host: &str) -> std::result::Result<Handshake, Broken> {
        self.state.reached.store(true, Ordering::SeqCst);
        self.state.shaking.store(false, Ordering::SeqCst);
        Ok(Handshake { connector: self.clone(), host: host.to_owned() })
    }
}

/// A handshake that is to be made.
pub(super) struct Handshake {
    connector: Connector,
    host: String,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> TlsConnect<S> for Handshake {
    type Stream = Secured<S>;
    type Error = Broken;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Secured<S>, Broken>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        self.connector.state.shaking.store(true, Ordering::SeqCst);
        Box::pin(async move { self.connector.secure(&self.host, stream).await })
    }
}

/// A stream under TLS.
pub(super) struct Secured<S>(tokio_rustls::client::TlsStream<S>);

impl<S> Secured<S> {
    /// What a proof of who we are is bound to, so that nobody can pass it on: a hash of the server's certificate
    /// (RFC 5929, `tls-server-end-point`). `None` where its signature names no hash.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        let (_, session) = self.0.get_ref();
        end_point::end_point(session.peer_certificates()?.first()?)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Secured<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
