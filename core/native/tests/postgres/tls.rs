//! Connections under TLS to real servers, whose certificates test authorities have signed: both links are as safe as the
//! connection string says, or refused.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sheetanchor_core::identity::{ByteCount, NodeId};
use sheetanchor_core::refusal::Code;
use sheetanchor_engine::database::Database;
use sheetanchor_native::postgres::install::Account;
use sheetanchor_native::postgres::server::{Server, ServerPlan};
use sheetanchor_native::postgres::{PostgresConfig, PostgresDatabase, WalRoad};

use crate::bench::{Bench, Client, code, eventually, joining};

const NODE: NodeId = NodeId::new(1);

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The file with its own.
    file: String,
}

impl Authority {
    fn new(bench: &Bench, name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let file = bench.path(&format!("{name}.crt"));
        fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), file }
    }
}

/// A server that listens on the loopback interface, too.
struct Safe {
    bench: Bench,
    /// Over its Unix socket.
    client: Client,
    port: u16,
    own: Authority,
    other: Authority,
    _server: Server,
}

impl Safe {
    /// Its certificate is made out to `localhost`.
    async fn new(test: &str) -> Self {
        let bench = Bench::new(test);
        bench.own_folder("keys").await;
        let (own, other) = (Authority::new(&bench, "own"), Authority::new(&bench, "other"));
        sign(&bench, &own, "localhost").await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (certificate, key) = (bench.path("keys/server.crt"), bench.path("keys/server.key"));
        let settings = [
            ("listen_addresses", "127.0.0.1"),
            ("shared_buffers", "16MB"),
            ("fsync", "off"),
            ("ssl", "on"),
            ("ssl_cert_file", &certificate),
            ("ssl_key_file", &key),
        ];
        let server = Server::init(ServerPlan {
            data: bench.path("source"),
            socket_folder: bench.path("source.s"),
            port,
            log: bench.path("source.log"),
            bin: None,
            run_as: None,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        });
        let server = server.await.unwrap();
        server.start().await.unwrap();
        let client = Client { connection: server.connection() };
        Self { bench, client, port, own, other, _server: server }
    }

    /// The bridge to it over TCP; `how` ends the connection string.
    fn node(&self, host: &str, how: &str) -> PostgresDatabase {
        let connection = format!("host={host} port={} user=postgres dbname=postgres {how}", self.port);
        let wal = WalRoad::Stream { every: Duration::ZERO };
        PostgresDatabase::new(PostgresConfig { connection, wal, ..self.bench.config("source", "source", NODE) })
            .unwrap()
    }

    /// Whether each link over TCP is under TLS, as the server sees it.
    async fn links(&self) -> Vec<String> {
        let sql = "SELECT backend_type || ' ' || ssl::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
            WHERE client_addr IS NOT NULL ORDER BY 1";
        self.client.column(sql).await
    }

    /// Changes a setting, and returns once it is in force for whoever connects.
    async fn set(&self, name: &str, value: &str) {
        self.client.sql(&format!("ALTER SYSTEM SET {name} = '{value}'; SELECT pg_reload_conf()")).await;
        let sql = format!("SHOW {name}");
        eventually(async || (self.client.column(&sql).await == [value]).then_some(())).await;
    }

    async fn reload(&self) {
        let sql = "SELECT pg_conf_load_time()::text";
        let before = self.client.column(sql).await;
        self.client.sql("SELECT pg_reload_conf()").await;
        eventually(async || (self.client.column(sql).await != before).then_some(())).await;
    }
}

/// Gives the server a certificate that is made out to `name`.
async fn sign(bench: &Bench, authority: &Authority, name: &str) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let account = Account::to_run_as(None).await.unwrap();
    for (file, text) in [("keys/server.crt", certificate.pem()), ("keys/server.key", key.serialize_pem())] {
        let path = bench.path(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(Account { uid, gid }) = account {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
    }
}

/// Some WAL of it, over the link for replication.
async fn streams(node: &PostgresDatabase) {
    let from = node.pin("archive").await.unwrap();
    eventually(async || node.durable_wal(from, ByteCount::new(1)).await.unwrap()).await;
}

#[tokio::test]
async fn both_links_are_as_safe_as_the_connection_says() {
    let safe = Safe::new("tls").await;
    let (own, other) = (format!("sslrootcert={}", safe.own.file), format!("sslrootcert={}", safe.other.file));
    let own = own.as_str();
    for (host, how, under_tls) in [
        ("localhost", &format!("sslmode=verify-full {own}"), true),
        ("127.0.0.1", &format!("sslmode=verify-ca {own}"), true),
        ("db.example hostaddr=127.0.0.1", &format!("sslmode=verify-ca {own}"), true),
        ("127.0.0.1", &"sslmode=require".to_owned(), true),
        ("127.0.0.1", &String::new(), true),
        // Whoever prefers it does without, in the end.
        ("localhost", &format!("sslmode=prefer {other}"), false),
        ("localhost", &"sslmode=disable".to_owned(), false),
    ] {
        let node = safe.node(host, how);
        node.join(&joining()).await.unwrap_or_else(|error| panic!("{host} {how}: {error}"));
        streams(&node).await;
        let expected = [format!("client backend {under_tls}"), format!("walsender {under_tls}")];
        assert_eq!(safe.links().await, expected, "{host} {how}");
        drop(node);
        eventually(async || safe.links().await.is_empty().then_some(())).await;
    }
    // Lines of pg_hba.conf that take no TLS are no trouble for whoever only prefers it.
    let lines = "local all all trust\nlocal replication all trust\nhostnossl all all 127.0.0.1/32 trust\n\
        hostnossl replication all 127.0.0.1/32 trust\n";
    fs::write(safe.bench.path("source/pg_hba.conf"), lines).unwrap();
    safe.reload().await;
    let node = safe.node("localhost", "");
    node.join(&joining()).await.unwrap();
    streams(&node).await;
    assert_eq!(safe.links().await, ["client backend false", "walsender false"]);
}

#[tokio::test]
async fn a_server_that_is_not_as_safe_as_it_must_be_is_refused() {
    let safe = Safe::new("tls-refused").await;
    let (own, other) = (format!("sslrootcert={}", safe.own.file), format!("sslrootcert={}", safe.other.file));
    let refused = async |host: &str, how: &str, why: &str| {
        let error = safe.node(host, how).join(&joining()).await.unwrap_err();
        assert_eq!(error.refusal().unwrap_or_else(|| panic!("{error}")).code, Code::ServerUntrusted, "{host} {how}");
        assert!(error.to_string().contains(why), "{host} {how}: {error}");
    };
    refused("localhost", &format!("sslmode=verify-full {other}"), "UnknownIssuer").await;
    refused("localhost", &format!("sslmode=verify-ca {other}"), "UnknownIssuer").await;
    refused("localhost", &format!("sslmode=require {other}"), "UnknownIssuer").await;
    refused("127.0.0.1", &format!("sslmode=verify-full {own}"), "not valid for name").await;
    let (missing, empty) = (safe.bench.path("nobody.crt"), safe.bench.path("empty.crt"));
    fs::write(&empty, "no certificate\n").unwrap();
    for file in [missing, empty] {
        let how = format!("sslmode=verify-full sslrootcert={file}");
        assert_eq!(code(safe.node("localhost", &how).join(&joining()).await), Code::ConfigInvalid, "{file}");
    }

    // A session stands; the link for replication meets another certificate, and then no TLS at all.
    let verified = format!("sslmode=verify-full {own}");
    let node = safe.node("localhost", &verified);
    node.join(&joining()).await.unwrap();
    let from = node.pin("archive").await.unwrap();
    let streamed = async || node.durable_wal(from, ByteCount::new(1)).await;
    sign(&safe.bench, &safe.other, "localhost").await;
    safe.reload().await;
    eventually(async || streamed().await.is_err().then_some(())).await;
    assert_eq!(code(streamed().await), Code::ServerUntrusted, "another authority");
    sign(&safe.bench, &safe.own, "elsewhere.example").await;
    safe.reload().await;
    eventually(async || streamed().await.unwrap_err().to_string().contains("elsewhere.example").then_some(())).await;
    assert_eq!(code(streamed().await), Code::ServerUntrusted, "another name");
    safe.set("ssl", "off").await;
    eventually(async || streamed().await.unwrap_err().to_string().contains("no TLS").then_some(())).await;
    assert_eq!(code(streamed().await), Code::ServerUntrusted);
    refused("localhost", "sslmode=require", "the server has no TLS").await;
    refused("localhost", &verified, "the server has no TLS").await;
    safe.node("localhost", "sslmode=prefer").join(&joining()).await.expect("it only prefers it");
    // Once it is as safe as it must be it goes on.
    sign(&safe.bench, &safe.own, "localhost").await;
    safe.set("ssl", "on").await;
    eventually(async || streamed().await.ok().flatten()).await;
}

#[tokio::test]
async fn a_password_is_proven_to_the_very_server_that_was_called() {
    let safe = Safe::new("tls-bound").await;
    safe.client.sql("CREATE ROLE archivist SUPERUSER LOGIN PASSWORD 'anchor'").await;
    let how = format!("sslmode=verify-full sslrootcert={} channel_binding=require password=anchor", safe.own.file);
    let hba_of = async |replication: &str| {
        let lines = format!(
            "local all postgres trust\nhostssl all archivist 127.0.0.1/32 scram-sha-256\n\
             hostssl replication archivist 127.0.0.1/32 {replication}\n"
        );
        fs::write(safe.bench.path("source/pg_hba.conf"), lines).unwrap();
        safe.reload().await;
    };
    let connect = || safe.node("localhost", &format!("{how} user=archivist"));
    hba_of("scram-sha-256").await;
    let node = connect();
    node.join(&joining()).await.unwrap();
    streams(&node).await;
    assert_eq!(safe.links().await, ["client backend true", "walsender true"]);
    for method in ["trust", "password"] {
        hba_of(method).await;
        let error = connect().join(&joining()).await.unwrap_err();
        assert!(error.to_string().contains("does not bind our proof"), "{method}: {error}");
        assert_eq!(error.refusal().unwrap().code, Code::ConfigInvalid, "{method}");
    }
}
