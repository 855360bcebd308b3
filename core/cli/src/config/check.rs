//! What a cluster file must hold to before anything is done with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use sheetanchor_core::identity::{ByteCount, NodeId, PointName};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_native::net::loopback;
use sheetanchor_native::postgres::WalRoad;
use toml::Spanned;

use super::{ClusterFile, EngineSetup, NodeSetup, Written, WrittenNode, Wrong};

/// How much WAL a restore puts into a server's folder before it starts, unless the file says.
const WAL_IN_PLACE: ByteCount = ByteCount::new(1 << 30);

/// The most that it may say: a pebibyte.
const WAL_IN_PLACE_MIB_MAX: u64 = 1 << 30;

/// The least WAL that must be allowed to wait for the archive: four segments as servers have them, or refdb.
const WAL_KEPT_MIB_MIN_POSTGRES: u64 = 64;
const WAL_KEPT_MIB_MIN_REFDB: u64 = 4;

/// The most that may be named: a pebibyte.
const WAL_KEPT_MIB_MAX: u64 = 1 << 30;

/// Checks all of it.
pub(super) fn checked(written: &Written) -> Result<ClusterFile, Wrong> {
    let cluster = written.cluster.get_ref();
    let name: PointName = cluster.name.get_ref().parse().map_err(|refusal| at(&cluster.name, refusal))?;
    let own = repository(&cluster.repository)?;
    let source = cluster.source.as_ref().map(|given| Ok((given, repository(given)?))).transpose()?;
    if written.node.is_empty() {
        return Err(wrong(&written.cluster, Code::ConfigInvalid, "the file lists no [[node]]"));
    }
    let mut seen = Seen { two_phase: cluster.two_phase.clone(), ..Seen::default() };
    let mut nodes = BTreeMap::new();
    for node in &written.node {
        let (id, setup) = seen.node(node)?;
        for (what, folder) in folders(node.get_ref()) {
            let folder = folder.get_ref();
            check_apart(&cluster.repository, &own, folder, &format!("repository and {what} folder of node {id}"))?;
            if let Some((given, source)) = &source {
                check_apart(given, source, folder, &format!("source and {what} folder of node {id}"))?;
            }
        }
        nodes.insert(id, setup);
    }
    if let Some((given, source)) = &source {
        check_apart(given, source, &own, "source and repository")?;
    }
    check_folders(&written.node)?;
    let limits = written.limits.checked()?;
    let source = source.map(|(_, folder)| folder);
    Ok(ClusterFile { name: name.as_str().to_owned(), repository: own, source, nodes, limits })
}

fn check_apart(place: &Spanned<String>, one: &str, other: &str, what: &str) -> Result<(), Wrong> {
    if lies_in(one, other) || lies_in(other, one) {
        return Err(wrong(place, Code::ConfigInvalid, format!("{what} lie in one another")));
    }
    Ok(())
}

fn at<T>(place: &Spanned<T>, refusal: Refusal) -> Wrong {
    Wrong { code: refusal.code, message: refusal.message, span: place.span() }
}

fn wrong<T>(place: &Spanned<T>, code: Code, message: impl Into<String>) -> Wrong {
    Wrong { code, message: message.into(), span: place.span() }
}

fn repository(given: &Spanned<String>) -> Result<String, Wrong> {
    let Some(path) = given.get_ref().strip_prefix("file://") else {
        let message = format!("the repository `{}` is not of the form file:///absolute/path", given.get_ref());
        return Err(wrong(given, Code::ConfigInvalid, message));
    };
    if !is_plain_folder(path) {
        let message = format!("the repository's folder `{path}` is not an absolute path in its plain form");
        return Err(wrong(given, Code::ConfigInvalid, message));
    }
    Ok(path.to_owned())
}

/// Absolute, and written in the one way that can be compared: no empty, `.` or `..` parts, no `/` at the end.
fn is_plain_folder(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

fn lies_in(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What nodes must not share, and who has it.
#[derive(Default)]
struct Seen {
    ids: BTreeSet<NodeId>,
    addresses: BTreeMap<SocketAddr, String>,
    engine: Option<String>,
    shared_data: Option<String>,
    two_phase: Option<Spanned<bool>>,
}

impl Seen {
    fn node(&mut self, written: &Spanned<WrittenNode>) -> Result<(NodeId, NodeSetup), Wrong> {
        let node = written.get_ref();
        let id = NodeId::new(*node.id.get_ref());
        if id.get() == 0 {
            return Err(wrong(&node.id, Code::ConfigInvalid, "node ids start at 1"));
        }
        if !self.ids.insert(id) {
            return Err(wrong(&node.id, Code::DuplicateIdentity, format!("two nodes have the id {id}")));
        }
        let engine = node.engine.get_ref();
        if self.engine.get_or_insert_with(|| engine.clone()) != engine {
            let first = self.engine.as_deref().unwrap_or_default();
            let message = format!("node {id} runs `{engine}`, the nodes before it `{first}`");
            return Err(wrong(&node.engine, Code::ConfigInvalid, message));
        }
        self.address(&node.agent, &format!("the agent of node {id}"))?;
        check_capture(id, node)?;
        for (what, folder) in own_folders(node) {
            if !is_plain_folder(folder.get_ref()) {
                let message = format!(
                    "the {what} folder `{}` of node {id} is not an absolute path in its plain form",
                    folder.get_ref()
                );
                return Err(wrong(folder, Code::ConfigInvalid, message));
            }
        }
        let engine = self.engine(id, node)?;
        let plain = |given: &Spanned<String>| given.get_ref().clone();
        let wal_kept_max = wal_kept_max(node, &engine)?;
        let (agent, state, data) = (plain(&node.agent), plain(&node.state), node.data.as_ref().map(plain));
        Ok((id, NodeSetup { agent, state, data, wal_kept_max, engine }))
    }

    fn engine(&mut self, id: NodeId, node: &WrittenNode) -> Result<EngineSetup, Wrong> {
        match node.engine.get_ref().as_str() {
            "postgres" => Ok(EngineSetup::Postgres {
                connection: node.connection.get_ref().clone(),
                bin: node.bin.as_ref().map(|bin| bin.get_ref().clone()),
                run_as: node.run_as.as_ref().map(|user| user.get_ref().clone()),
                wal: wal_road(id, node)?,
                wal_in_place: wal_in_place(node)?,
                tablespaces: tablespaces(node)?,
                two_phase: self.two_phase.as_ref().is_some_and(|declared| *declared.get_ref()),
            }),
            "refdb" => {
                if let Some(declared) = &self.two_phase {
                    let message =
                        "`two_phase` means nothing to refdb, whose nodes share one commit record a transaction";
                    return Err(wrong(declared, Code::ConfigInvalid, message));
                }
                let odd = node.bin.as_ref().or(node.run_as.as_ref()).or(node.wal.as_ref()).map(Spanned::span);
                let odd = odd.or(node.rpo_s.as_ref().or(node.wal_in_place_mib.as_ref()).map(Spanned::span));
                if let Some(span) = odd.or(node.tablespaces.values().next().map(Spanned::span)) {
                    let message = format!(
                        "`bin`, `run_as`, `wal`, `rpo_s`, `wal_in_place_mib` and `tablespaces` of node {id} mean nothing to refdb"
                    );
                    return Err(Wrong { code: Code::ConfigInvalid, message, span });
                }
                self.address(&node.connection, &format!("the database of node {id}"))?;
                if let Some(data) = &node.data
                    && self.shared_data.get_or_insert_with(|| data.get_ref().clone()) != data.get_ref()
                {
                    let message = format!("nodes of refdb share one data folder; node {id} names another");
                    return Err(wrong(data, Code::ConfigInvalid, message));
                }
                Ok(EngineSetup::Refdb { address: node.connection.get_ref().clone() })
            }
            other => {
                let message = format!("there is no engine `{}`: write `postgres` or `refdb`", other.escape_debug());
                Err(wrong(&node.engine, Code::ConfigInvalid, message))
            }
        }
    }

    fn address(&mut self, given: &Spanned<String>, whose: &str) -> Result<(), Wrong> {
        let address = loopback(given.get_ref()).map_err(|refusal| at(given, refusal))?;
        if address.port() == 0 {
            return Err(wrong(given, Code::ConfigInvalid, format!("`{}` names no port", given.get_ref())));
        }
        match self.addresses.insert(address, whose.to_owned()) {
            None => Ok(()),
            Some(other) => {
                let message = format!("{other} and {whose} have one address, {}", given.get_ref());
                Err(wrong(given, Code::DuplicateIdentity, message))
            }
        }
    }
}

/// Whether a node's files are read from its folder, or sent by its server: what is said of the one must not be said with the
/// other.
fn check_capture(id: NodeId, node: &WrittenNode) -> Result<(), Wrong> {
    let Some(given) = node.capture.as_ref().filter(|given| given.get_ref() != "folder") else {
        let message =
            format!("node {id} names no `data` folder; a PostgreSQL server elsewhere has `capture = \"base_backup\"`");
        return node.data.as_ref().map(|_| ()).ok_or_else(|| wrong(&node.id, Code::ConfigInvalid, message));
    };
    if given.get_ref() != "base_backup" {
        let message =
            format!("`{}` is no way to capture: write `folder` or `base_backup`", given.get_ref().escape_debug());
        return Err(wrong(given, Code::ConfigInvalid, message));
    }
    if node.engine.get_ref() != "postgres" {
        return Err(wrong(given, Code::ConfigInvalid, format!("`capture` of node {id} means nothing to refdb")));
    }
    let of_folder = [&node.data, &node.bin, &node.run_as].into_iter().flatten().chain(node.tablespaces.values());
    let odd = of_folder.map(Spanned::span).next().or(node.wal_in_place_mib.as_ref().map(Spanned::span));
    let wal = node.wal.as_ref().filter(|wal| wal.get_ref() == "folder").map(Spanned::span);
    match odd.or(wal) {
        Some(span) => {
            let message = format!(
                "`data`, `bin`, `run_as`, `tablespaces`, `wal_in_place_mib` and `wal = \"folder\"` mean nothing to node {id}, \
                 whose server sends its files: nothing is restored there"
            );
            Err(Wrong { code: Code::ConfigInvalid, message, span })
        }
        None => Ok(()),
    }
}

/// How a server's WAL comes into the archive.
fn wal_road(id: NodeId, node: &WrittenNode) -> Result<WalRoad, Wrong> {
    let every = match &node.rpo_s {
        None => None,
        Some(seconds) if (1..=3600).contains(seconds.get_ref()) => Some(Duration::from_secs(*seconds.get_ref())),
        Some(seconds) => {
            let message = format!("rpo_s is {}, and must be between 1 and 3600", seconds.get_ref());
            return Err(wrong(seconds, Code::ConfigInvalid, message));
        }
    };
    let Some(given) = &node.wal else {
        return Ok(every.map_or_else(WalRoad::default, |every| WalRoad::Stream { every }));
    };
    match (given.get_ref().as_str(), every) {
        ("stream", Some(every)) => Ok(WalRoad::Stream { every }),
        ("stream", None) => Ok(WalRoad::default()),
        ("folder", None) => Ok(WalRoad::Folder),
        ("folder", Some(_)) => {
            let message = format!("`rpo_s` of node {id} means nothing where WAL is read from its folder");
            Err(wrong(given, Code::ConfigInvalid, message))
        }
        (other, _) => {
            let message = format!("`{}` is no way for WAL: write `stream` or `folder`", other.escape_debug());
            Err(wrong(given, Code::ConfigInvalid, message))
        }
    }
}

/// How much WAL a restore puts into the server's folder before it starts.
fn wal_in_place(node: &WrittenNode) -> Result<ByteCount, Wrong> {
    let Some(given) = &node.wal_in_place_mib else { return Ok(WAL_IN_PLACE) };
    if (1..=WAL_IN_PLACE_MIB_MAX).contains(given.get_ref()) {
        return Ok(ByteCount::new(given.get_ref().saturating_mul(1 << 20)));
    }
    let message = format!("wal_in_place_mib is {}, and must be between 1 and {WAL_IN_PLACE_MIB_MAX}", given.get_ref());
    Err(wrong(given, Code::ConfigInvalid, message))
}

/// How much WAL may wait for the archive: a few segments at least, since only whole ones are let go of.
fn wal_kept_max(node: &WrittenNode, engine: &EngineSetup) -> Result<Option<ByteCount>, Wrong> {
    let least = match engine {
        EngineSetup::Postgres { .. } => WAL_KEPT_MIB_MIN_POSTGRES,
        EngineSetup::Refdb { .. } => WAL_KEPT_MIB_MIN_REFDB,
    };
    let Some(given) = &node.wal_kept_max_mib else { return Ok(None) };
    if (least..=WAL_KEPT_MIB_MAX).contains(given.get_ref()) {
        return Ok(Some(ByteCount::new(given.get_ref().saturating_mul(1 << 20))));
    }
    let message =
        format!("wal_kept_max_mib is {}, and must be between {least} and {WAL_KEPT_MIB_MAX}", given.get_ref());
    Err(wrong(given, Code::ConfigInvalid, message))
}

/// Where a restore puts tablespaces.
fn tablespaces(node: &WrittenNode) -> Result<BTreeMap<String, String>, Wrong> {
    let mut map = BTreeMap::new();
    for (from, to) in &node.tablespaces {
        if !is_plain_folder(from) || !is_plain_folder(to.get_ref()) {
            let message = format!("the tablespace `{from}` = `{}`: both must be absolute, in plain form", to.get_ref());
            return Err(wrong(to, Code::ConfigInvalid, message));
        }
        map.insert(from.clone(), to.get_ref().clone());
    }
    Ok(map)
}

fn own_folders(node: &WrittenNode) -> impl Iterator<Item = (&'static str, &Spanned<String>)> {
    [("state", Some(&node.state)), ("data", node.data.as_ref())]
        .into_iter()
        .filter_map(|(what, folder)| Some((what, folder?)))
}

/// What one node writes to: its state, its data, and where a restore puts its tablespaces.
fn folders(node: &WrittenNode) -> impl Iterator<Item = (&'static str, &Spanned<String>)> {
    own_folders(node).chain(node.tablespaces.values().map(|folder| ("tablespace", folder)))
}

/// No folder that one node writes to may lie in one of another, or of its own: a restore empties and fills them.
fn check_folders(nodes: &[Spanned<WrittenNode>]) -> Result<(), Wrong> {
    let mut seen: Vec<(String, &Spanned<String>)> = Vec::new();
    for node in nodes {
        let node = node.get_ref();
        let id = node.id.get_ref();
        // One folder for all nodes of an engine on shared storage: that they agree was checked before.
        let shared = node.engine.get_ref() == "refdb" && !seen.is_empty();
        for (what, folder) in folders(node).filter(|(what, _)| *what != "data" || !shared) {
            let what = format!("{what} of node {id}");
            for (other, taken) in &seen {
                if lies_in(folder.get_ref(), taken.get_ref()) || lies_in(taken.get_ref(), folder.get_ref()) {
                    let message = format!(
                        "`{other}` and `{what}` are one folder, or one lies in the other: {}",
                        folder.get_ref()
                    );
                    return Err(wrong(folder, Code::DuplicateIdentity, message));
                }
            }
            seen.push((what, folder));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Trouble;

    const POSTGRES: &str = r#"[cluster]
name = "ledger"
repository = "file:///srv/sheetanchor"
[[node]]
id = 1
agent = "127.0.0.1:7001"
state = "/var/lib/sheetanchor/1"
engine = "postgres"
data = "/srv/pg/1"
connection = "host=/run/postgresql port=5432 user=sheetanchor"
[[node]]
id = 2
agent = "127.0.0.1:7002"
state = "/var/lib/sheetanchor/2"
engine = "postgres"
data = "/srv/pg/2"
connection = "host=/run/postgresql port=5433 user=sheetanchor"
"#;

    const REFDB: &str = r#"[cluster]
name = "ledger"
repository = "file:///srv/sheetanchor"
[[node]]
id = 1
agent = "127.0.0.1:7001"
state = "/var/lib/sheetanchor/1"
engine = "refdb"
data = "/srv/shared"
connection = "127.0.0.1:7101"
[[node]]
id = 2
agent = "127.0.0.1:7002"
state = "/var/lib/sheetanchor/2"
engine = "refdb"
data = "/srv/shared"
connection = "127.0.0.1:7102"
[limits]
lease_ms = 3000
drain_ms = 500
"#;

    fn refused(text: &str) -> (Code, String) {
        let trouble: Trouble = ClusterFile::parse("cluster.toml", text).expect_err(text);
        let refusal = trouble.error().refusal().expect("a refusal").clone();
        (refusal.code, refusal.message)
    }

    fn replaced(text: &str, from: &str, to: &str) -> String {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    }

    #[test]
    fn both_engines_are_read() {
        let postgres = ClusterFile::parse("cluster.toml", POSTGRES).unwrap();
        assert_eq!(postgres.repository, "/srv/sheetanchor");
        assert_eq!(postgres.nodes.len(), 2);
        for (line, road) in [
            ("", WalRoad::default()),
            ("wal = \"stream\"\nrpo_s = 2\n", WalRoad::Stream { every: Duration::from_secs(2) }),
            ("rpo_s = 60\n", WalRoad::Stream { every: Duration::from_mins(1) }),
            ("wal = \"folder\"\n", WalRoad::Folder),
        ] {
            let text = replaced(POSTGRES, "engine = ", &format!("{line}engine = "));
            let file = ClusterFile::parse("cluster.toml", &text).unwrap();
            let EngineSetup::Postgres { wal, .. } = &file.nodes[&NodeId::new(1)].engine else { panic!("{file:?}") };
            assert_eq!(*wal, road, "{line}");
        }
        for (line, declared) in [("", false), ("two_phase = false\n", false), ("two_phase = true\n", true)] {
            let text = replaced(POSTGRES, "name = ", &format!("{line}name = "));
            let file = ClusterFile::parse("cluster.toml", &text).unwrap();
            let is_as_declared = |node: &NodeSetup| matches!(node.engine, EngineSetup::Postgres { two_phase, .. } if two_phase == declared);
            assert!(file.nodes.values().all(is_as_declared), "{line}");
        }
        for (text, mib) in [(POSTGRES, 64), (REFDB, 4)] {
            let bounded = replaced(text, "engine = ", &format!("wal_kept_max_mib = {mib}\nengine = "));
            let nodes = ClusterFile::parse("cluster.toml", &bounded).unwrap().nodes;
            let bounds: Vec<_> = nodes.values().map(|node| node.wal_kept_max).collect();
            assert_eq!(bounds, [Some(ByteCount::new(mib << 20)), None], "of the node that it was said of");
        }
        let afar = replaced(POSTGRES, "data = \"/srv/pg/1\"", "capture = \"base_backup\"");
        let file = ClusterFile::parse("cluster.toml", &afar).unwrap();
        assert_eq!(file.nodes[&NodeId::new(1)].data, None);
        assert_eq!(file.check_restorable().unwrap_err().code, Code::NoDataFolder);
        postgres.check_restorable().unwrap();
        let refdb = ClusterFile::parse("cluster.toml", REFDB).unwrap();
        assert_eq!(refdb.limits.point.lease.as_millis(), 3000);
        assert_eq!(refdb.limits.point.drain.as_millis(), 500);
        let second = refdb.nodes.get(&NodeId::new(2)).unwrap();
        assert_eq!(second.engine, EngineSetup::Refdb { address: "127.0.0.1:7102".to_owned() });
    }

    #[test]
    fn what_two_nodes_must_not_share_is_refused() {
        for (from, to) in [
            ("id = 2", "id = 1"),
            ("127.0.0.1:7002", "127.0.0.1:7001"),
            ("127.0.0.1:7002", "localhost:7001"),
            ("/var/lib/sheetanchor/2", "/var/lib/sheetanchor/1"),
            ("/var/lib/sheetanchor/2", "/srv/pg/1/state"),
            ("data = \"/srv/pg/2\"", "data = \"/srv/pg/1\""),
            ("data = \"/srv/pg/2\"", "data = \"/srv/pg/1/2\""),
            ("data = \"/srv/pg/1\"", "data = \"/srv/pg/1\"\ntablespaces = { \"/a\" = \"/srv/pg/1/a\" }"),
            ("data = \"/srv/pg/1\"", "data = \"/srv/pg/1\"\ntablespaces = { \"/a\" = \"/srv/pg/2/a\" }"),
            ("data = \"/srv/pg/1\"", "data = \"/srv/pg/1\"\ntablespaces = { \"/a\" = \"/var/lib/sheetanchor\" }"),
            ("data = \"/srv/pg/1\"", "data = \"/srv/pg/1\"\ntablespaces = { \"/a\" = \"/t\", \"/b\" = \"/t/b\" }"),
        ] {
            assert_eq!(refused(&replaced(POSTGRES, from, to)).0, Code::DuplicateIdentity, "{from} -> {to}");
        }
        let both = ["1", "2"].iter().fold(POSTGRES.to_owned(), |text, id| {
            let data = format!("data = \"/srv/pg/{id}\"");
            replaced(&text, &data, &format!("{data}\ntablespaces = {{ \"/a\" = \"/t/{id}\" }}"))
        });
        ClusterFile::parse("cluster.toml", &both).unwrap();
        assert_eq!(refused(&replaced(&both, "/t/2", "/t/1")).0, Code::DuplicateIdentity);
        for (from, to) in [
            ("connection = \"127.0.0.1:7102\"", "connection = \"127.0.0.1:7101\""),
            ("connection = \"127.0.0.1:7102\"", "connection = \"127.0.0.1:7001\""),
            ("/var/lib/sheetanchor/2", "/srv/shared/2"),
        ] {
            assert_eq!(refused(&replaced(REFDB, from, to)).0, Code::DuplicateIdentity, "{from} -> {to}");
        }
    }

    #[test]
    fn what_is_not_valid_is_refused_with_its_line() {
        for (from, to, line) in [
            ("engine = \"postgres\"", "engine = \"oracle\"", 8),
            ("id = 1", "id = 0", 5),
            ("id = 1", "id = 70000", 5),
            ("id = 1", "id = 1\ncolour = \"red\"", 6),
            ("name = \"ledger\"", "name = \"led ger\"", 2),
            ("engine = \"postgres\"", "wal = \"carrier pigeon\"\nengine = \"postgres\"", 8),
            ("engine = \"postgres\"", "rpo_s = 0\nengine = \"postgres\"", 8),
            ("engine = \"postgres\"", "wal_in_place_mib = 0\nengine = \"postgres\"", 8),
            ("engine = \"postgres\"", "wal_kept_max_mib = 63\nengine = \"postgres\"", 8),
            ("engine = \"postgres\"", "wal_kept_max_mib = 2000000000\nengine = \"postgres\"", 8),
            ("engine = \"postgres\"", "rpo_s = 5\nwal = \"folder\"\nengine = \"postgres\"", 9),
            ("engine = \"postgres\"", "tablespaces = { \"/a\" = \"b\" }\nengine = \"postgres\"", 8),
            ("file:///srv/sheetanchor", "s3://srv/sheetanchor", 3),
            ("file:///srv/sheetanchor", "file://srv/sheetanchor", 3),
            ("file:///srv/sheetanchor", "file:///srv/../sheetanchor", 3),
            ("file:///srv/sheetanchor", "file:///srv/pg", 3),
            (
                "file:///srv/sheetanchor\"\n[[node]]",
                "file:///srv/sheetanchor\"\n[[node]]\ntablespaces = { \"/a\" = \"/srv/sheetanchor/a\" }",
                3,
            ),
            ("/var/lib/sheetanchor/1", "var/lib/sheetanchor/1", 7),
            ("data = \"/srv/pg/1\"\n", "", 5),
            ("data = \"/srv/pg/1\"", "capture = \"folder\"", 5),
            ("data = \"/srv/pg/1\"", "capture = \"photo\"", 9),
            ("data = \"/srv/pg/1\"", "data = \"/srv/pg/1\"\ncapture = \"base_backup\"", 9),
            ("data = \"/srv/pg/1\"", "capture = \"base_backup\"\nwal = \"folder\"", 10),
            ("data = \"/srv/pg/1\"", "capture = \"base_backup\"\nwal_in_place_mib = 5", 10),
            ("data = \"/srv/pg/1\"", "capture = \"base_backup\"\ntablespaces = { \"/a\" = \"/b\" }", 10),
            ("127.0.0.1:7001", "127.0.0.1", 6),
            ("127.0.0.1:7001", "127.0.0.1:0", 6),
        ] {
            let (code, message) = refused(&replaced(POSTGRES, from, to));
            let expected = if to.contains("led ger") { Code::BadName } else { Code::ConfigInvalid };
            assert_eq!(code, expected, "{to}: {message}");
            assert!(message.starts_with(&format!("cluster.toml, line {line}: ")), "{to}: {message}");
        }
        for (from, to) in [
            (
                "data = \"/srv/shared\"\nconnection = \"127.0.0.1:7102\"",
                "data = \"/srv/b\"\nconnection = \"127.0.0.1:7102\"",
            ),
            ("engine = \"refdb\"", "engine = \"postgres\""),
            ("connection = \"127.0.0.1:7102\"", "connection = \"127.0.0.1:7102\"\nbin = \"/usr\""),
            ("connection = \"127.0.0.1:7102\"", "connection = \"127.0.0.1:7102\"\nrpo_s = 5"),
            ("data = \"/srv/shared\"", "capture = \"base_backup\""),
            ("connection = \"127.0.0.1:7102\"", "connection = \"127.0.0.1:7102\"\nwal_in_place_mib = 5"),
            ("connection = \"127.0.0.1:7102\"", "connection = \"127.0.0.1:7102\"\nwal_kept_max_mib = 3"),
            ("name = \"ledger\"", "name = \"ledger\"\ntwo_phase = true"),
            ("lease_ms = 3000", "lease_ms = 0"),
            ("drain_ms = 500", "drain_ms = 3001"),
            ("drain_ms = 500", "drain_ms = -1"),
        ] {
            assert_eq!(refused(&replaced(REFDB, from, to)).0, Code::ConfigInvalid, "{to}");
        }
        assert_eq!(refused("").0, Code::ConfigInvalid);
        assert_eq!(refused("[cluster]\nname = \"a\"\nrepository = \"file:///r\"\n").0, Code::ConfigInvalid);
        assert_eq!(refused("not toml").0, Code::ConfigInvalid);
    }

    #[test]
    fn addresses_elsewhere_are_refused() {
        for other in ["0.0.0.0:7001", "10.0.0.1:7001", "example.org:7001", "[::]:7001"] {
            assert_eq!(refused(&replaced(POSTGRES, "127.0.0.1:7001", other)).0, Code::NotLoopback, "{other}");
            assert_eq!(refused(&replaced(REFDB, "127.0.0.1:7101", other)).0, Code::NotLoopback, "{other}");
        }
    }
}
