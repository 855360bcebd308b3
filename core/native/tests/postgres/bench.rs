//! A folder of servers for one test. All of it, and every server in it, is gone when the test ends, however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{ByteCount, ClusterId, Incarnation, NodeId, ThreadId, TimelineId};
use sheetanchor_core::position::{Lsn, Position};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::scn::Scn;
use sheetanchor_engine::database::{
    Begun, CutMade, Database, Ended, Joining, Opening, Recovery, SourceFile, SourceKind, Span, ThreadRange, WalPiece,
    WalSource,
};
use sheetanchor_native::postgres::install::{Account, Install};
use sheetanchor_native::postgres::postmaster::Postmaster;
use sheetanchor_native::postgres::server::{Server, ServerPlan};
use sheetanchor_native::postgres::{PostgresConfig, PostgresDatabase, WalBack, WalRoad};

const PORT: u16 = 5432;

pub struct Bench {
    folder: PathBuf,
    /// Where restored nodes have tablespaces that were elsewhere.
    pub tablespaces: BTreeMap<String, String>,
    /// Whether clients commit in two phases what spans nodes.
    pub two_phase: bool,
    /// How much WAL may wait for the archive on each node.
    pub wal_kept_max: Option<ByteCount>,
    /// The folders of servers that are reached over their connections only.
    pub afar: BTreeSet<String>,
    /// Whom agents connect as: the superuser, unless it is said otherwise.
    pub role: &'static str,
}

/// The role that may do just what `docs/postgres.md` lists.
pub const LEAST: &str = "humble";

/// What makes it, for servers with an agent beside them; in the manual's words.
pub const LEAST_GRANTS: &str = "CREATE ROLE humble LOGIN REPLICATION; \
    GRANT pg_read_all_settings, pg_read_all_stats TO humble; \
    GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO humble; \
    GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO humble";

/// What it is granted of the extension.
pub const LEAST_GRANTS_OF_FENCE: &str = "GRANT EXECUTE ON FUNCTION sheetanchor_close(text, int), \
    sheetanchor_drain(text), sheetanchor_cut(text, bigint, text), sheetanchor_release(text) TO humble";

impl Bench {
    pub fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sa-pg-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // The account that servers run under must get through.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let (tablespaces, afar) = (BTreeMap::new(), BTreeSet::new());
        Self { folder, tablespaces, two_phase: false, wal_kept_max: None, afar, role: "postgres" }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    pub fn client(&self, name: &str) -> Client {
        Client {
            connection: format!("host={} port={PORT} user=postgres dbname=postgres", self.path(&format!("{name}.s"))),
        }
    }

    pub async fn server(&self, name: &str, settings: &[(&str, &str)]) -> Running {
        let settings = settings.iter().chain(&[("shared_buffers", "16MB"), ("autovacuum_naptime", "1s")]);
        let plan = ServerPlan {
            data: self.path(name),
            socket_folder: self.path(&format!("{name}.s")),
            port: PORT,
            log: self.path(&format!("{name}.log")),
            bin: None,
            run_as: None,
            settings: settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let server = Server::init(plan).await.unwrap();
        server.start().await.expect("it starts; `cargo xtask pg` installs the fence");
        Running { client: self.client(name), server }
    }

    /// A server with the commit fence.
    pub async fn fenced(&self, name: &str, settings: &[(&str, &str)]) -> Running {
        let preload = [("shared_preload_libraries", "sheetanchor_fence"), ("max_prepared_transactions", "8")];
        let server = self.server(name, &[settings, &preload].concat()).await;
        server.sql("CREATE EXTENSION sheetanchor_fence").await;
        if self.role == LEAST {
            server.sql(LEAST_GRANTS).await;
            server.sql(LEAST_GRANTS_OF_FENCE).await;
        }
        server
    }

    /// The bridge to the server in folder `name`.
    pub fn node(&self, name: &str, node: NodeId) -> PostgresDatabase {
        self.node_at(name, name, node)
    }

    /// The same, with a road of its own for WAL.
    pub fn node_by(&self, name: &str, node: NodeId, wal: WalRoad) -> PostgresDatabase {
        PostgresDatabase::new(PostgresConfig { wal, ..self.config(name, name, node) }).unwrap()
    }

    /// The bridge to the server in folder `name`, whose connection is that of `connected`.
    pub fn node_at(&self, name: &str, connected: &str, node: NodeId) -> PostgresDatabase {
        PostgresDatabase::new(self.config(name, connected, node)).unwrap()
    }

    pub fn config(&self, name: &str, connected: &str, node: NodeId) -> PostgresConfig {
        PostgresConfig {
            node,
            data: (!self.afar.contains(name)).then(|| self.path(name)),
            connection: self.client(connected).connection.replace("user=postgres", &format!("user={}", self.role)),
            bin: None,
            run_as: None,
            log: self.path(&format!("{name}.log")),
            wal: WalRoad::default(),
            wal_back: WalBack::default(),
            tablespaces: self.tablespaces.clone(),
            two_phase: self.two_phase,
        }
    }

    /// Stages a copy into folder `name`, as whoever runs the test, and answers the bridge to what will run there.
    pub async fn restored(&self, name: &str, copy: &Copy, node: NodeId) -> PostgresDatabase {
        let data = self.folder.join(name);
        fs::create_dir(&data).unwrap();
        let labels = copy.ended.files.iter().map(|(name, bytes)| (name.clone(), Some(bytes.clone())));
        for (name, content) in copy.files.iter().cloned().chain(labels) {
            match content {
                Some(bytes) => fs::write(data.join(name), bytes).unwrap(),
                None => fs::create_dir(data.join(name)).unwrap(),
            }
        }
        self.own_folder(&format!("{name}.s")).await;
        self.node(name, node)
    }

    /// A folder that servers may write to.
    pub async fn own_folder(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        let account = Account::to_run_as(None).await.unwrap();
        if let Some(account) = account {
            chown(&path, Some(account.uid), Some(account.gid)).unwrap();
        }
        path
    }

    /// Every table and index holds, by `pg_amcheck`.
    pub async fn amcheck(&self, name: &str) {
        let client = self.client(name);
        client.program("pg_amcheck", &["--install-missing", "--heapallindexed", "postgres"]).await;
    }

    /// Every page holds, by `pg_checksums`, which does not share our code.
    pub async fn page_checksums(&self, name: &str) {
        let said =
            Command::new(program("pg_checksums").await).args(["--check", "-D", &self.path(name)]).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if let Some(postmaster) = entry.path().to_str().and_then(|path| Postmaster::of(path).ok()?) {
                let pid = postmaster.pid().to_string();
                Command::new("kill").args(["-QUIT", &pid]).status().ok();
                let start = Instant::now();
                while postmaster.is_running() && start.elapsed() < Duration::from_secs(20) {
                    std::thread::yield_now();
                }
            }
        }
        if std::thread::panicking() {
            for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    eprintln!("--- {}\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default());
                }
            }
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

pub struct Running {
    pub server: Server,
    pub client: Client,
}

impl Running {
    pub async fn start(&self) {
        self.server.start().await.unwrap();
    }

    pub async fn sql(&self, sql: &str) {
        self.client.sql(sql).await;
    }

    /// Statements that go to the server at once, in one session.
    pub async fn batch(&self, sql: &str) {
        self.client.program("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]).await;
    }

    pub async fn pgbench(&self, arguments: &[&str]) {
        self.client.program("pgbench", &[arguments, &["postgres"]].concat()).await;
    }

    /// Transfers on two connections until it is stopped.
    pub async fn load(&self) -> Load {
        let mut command = self.client.command("pgbench", &["-n", "-c", "2", "-T", "300", "postgres"]).await;
        Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    pub async fn kill_a_backend(&self) {
        let (client, connection) =
            tokio_postgres::connect(&self.client.connection, tokio_postgres::NoTls).await.unwrap();
        let driver = tokio::spawn(connection);
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        driver.await.unwrap().ok();
    }
}

pub struct Load(Child);

impl Load {
    pub fn stop(mut self) {
        assert_eq!(self.0.try_wait().unwrap(), None, "the load ran all the while");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub struct Client {
    pub connection: String,
}

impl Client {
    pub async fn sql(&self, sql: &str) {
        let (client, connection) = tokio_postgres::connect(&self.connection, tokio_postgres::NoTls).await.unwrap();
        let driver = tokio::spawn(connection);
        // One statement at a time: some of them take no transaction around them.
        for statement in sql.split(';') {
            client.batch_execute(statement).await.unwrap();
        }
        drop(client);
        driver.await.unwrap().unwrap();
    }

    pub async fn column(&self, sql: &str) -> Vec<String> {
        let (client, connection) = tokio_postgres::connect(&self.connection, tokio_postgres::NoTls).await.unwrap();
        let driver = tokio::spawn(connection);
        let rows = client.query(sql, &[]).await.unwrap();
        drop(client);
        driver.await.unwrap().unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program(name).await);
        for pair in self.connection.split(' ') {
            let (key, value) = pair.split_once('=').unwrap();
            let variable = match key {
                "host" => "PGHOST",
                "port" => "PGPORT",
                "user" => "PGUSER",
                _ => continue,
            };
            command.env(variable, value);
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    pub async fn program(&self, name: &str, arguments: &[&str]) {
        let said = self.command(name, arguments).await.output().unwrap();
        assert!(said.status.success(), "{name}: {}", String::from_utf8_lossy(&said.stderr));
    }
}

/// What a program prints that needs no server.
pub async fn said(name: &str, arguments: &[&str]) -> String {
    let said = Command::new(program(name).await).args(arguments).output().unwrap();
    assert!(said.status.success(), "{name}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap()
}

pub async fn program(name: &str) -> PathBuf {
    Install::find(None, None).await.unwrap().program(name)
}

/// A copy of a data folder, made as a capture makes it: files that go away meanwhile are left out. `None` is a folder.
pub struct Copy {
    pub pinned: Position,
    pub begun: Begun,
    pub ended: Ended,
    files: Vec<(String, Option<Vec<u8>>)>,
}

impl Copy {
    pub async fn take(node: &PostgresDatabase, label: &str) -> Self {
        let pinned = node.pin(label).await.unwrap();
        let begun = node.begin_backup(label).await.unwrap();
        assert!(pinned.lsn <= begun.start.lsn);
        let mut files = Vec::new();
        for SourceFile { name, kind, .. } in node.files().await.unwrap() {
            let path = format!("{}/{name}", node.data_folder());
            match kind {
                SourceKind::Folder => files.push((name, None)),
                SourceKind::File { .. } => {
                    if let Ok(bytes) = fs::read(path) {
                        files.push((name, Some(bytes)));
                    }
                }
                SourceKind::Link { target } => panic!("{name} leads to {target}"),
            }
        }
        let ended = node.end_backup(label).await.unwrap();
        Self { pinned, begun, ended, files }
    }
}

/// WAL pieces by their start.
pub struct Segments(pub BTreeMap<Lsn, WalPiece>);

impl Segments {
    /// Changes the bytes of one of them.
    pub fn damage(&mut self, piece: Lsn, harm: impl FnOnce(&mut [u8])) {
        let piece = self.0.get_mut(&piece).unwrap();
        let mut bytes = piece.bytes.to_vec();
        harm(&mut bytes);
        piece.bytes = bytes.into();
    }
}

impl Segments {
    pub async fn read(node: &PostgresDatabase, from: Position, proof: Lsn) -> Self {
        node.pin("archive").await.unwrap();
        let mut pieces = BTreeMap::new();
        let mut next = from;
        while next.lsn < proof {
            let piece = eventually(async || node.durable_wal(next, ByteCount::new(1 << 20)).await.unwrap()).await;
            next.lsn = piece.until;
            node.advance_pin("archive", next.lsn).await.unwrap();
            pieces.insert(piece.from.lsn, piece);
        }
        Self(pieces)
    }
}

#[async_trait::async_trait]
impl WalSource for Segments {
    async fn piece(&self, from: Position) -> Result<Option<WalPiece>> {
        Ok(self.0.get(&from.lsn).cloned())
    }
}

/// What `look` answers once it answers something.
pub async fn eventually<T>(look: impl AsyncFn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        // Far away: a machine that also builds something takes a minute where an idle one takes seconds.
        assert!(start.elapsed() < Duration::from_mins(2), "nothing came of it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn code<T: std::fmt::Debug>(outcome: Result<T>) -> Code {
    let error = outcome.expect_err("a refusal");
    error.refusal().unwrap_or_else(|| panic!("no refusal: {error}")).code
}

pub fn number(text: &str) -> i64 {
    text.parse().unwrap()
}

pub fn nowhere() -> Position {
    Position { thread: ThreadId::new(9), timeline: TimelineId::new(1), lsn: Lsn::new(0) }
}

pub fn joining() -> Joining {
    Joining { cluster: ClusterId::new(1), nodes: vec![NodeId::new(1)], incarnation: Incarnation::new(1) }
}

pub fn opening() -> Opening {
    Opening {
        cluster: ClusterId::new(1),
        nodes: vec![NodeId::new(1)],
        incarnation: Incarnation::new(2),
        scn_floor: Scn::ZERO,
        scn_offset_ms: 0,
    }
}

pub fn recovery(copy: &Copy, cut: &CutMade, record: &str) -> Recovery {
    let start = copy.begun.start;
    let span = Span { timeline: start.timeline, from: start.lsn, until: cut.proof, scn: Scn::ZERO };
    let range = ThreadRange { spans: vec![span], until: cut.until.lsn, proof: cut.proof };
    let threads = BTreeMap::from([(cut.until.thread, range)]);
    Recovery { record: record.to_owned(), scn: Scn::ZERO, sought: false, begun_scn: Scn::ZERO, threads }
}
