//! The hosts that the run pretends to have, one a node and one for coordinators: each with a wall clock that can be set
//! ahead, and a way to the repository that can answer every call, or some of them, with an error (`EIO`, which is to a
//! folder what 500 is to an object store). A library between processes and their system does it, `host.c`, which the
//! machine's C compiler builds; agents, coordinators and servers are started with it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use sheetanchor_native::postgres::install::Install;

use super::site::Site;

/// The host that coordinators run on. Others have the numbers of their nodes.
pub const OPERATORS: u16 = 0;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nemesis/host.c");

/// The programs that are looked for where a server's are.
const PROGRAMS: [&str; 3] = ["initdb", "pg_controldata", "postgres"];

/// All of them.
pub struct Hosts {
    folder: String,
    library: String,
    /// What the names of the repository's files begin with.
    failing: String,
}

impl Hosts {
    /// Hosts for nodes `1..=nodes`, with everything right so far. The C compiler is the one that links Rust programs.
    pub fn new(site: &Site, nodes: u16) -> Self {
        let folder = site.path("hosts");
        fs::create_dir(&folder).unwrap();
        let library = format!("{folder}/host.so");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-o", &library, SOURCE, "-ldl"]).output();
        let built = built.unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let hosts = Self { folder, library, failing: format!("{}/", site.repository().display()) };
        for host in OPERATORS..=nodes {
            fs::write(hosts.file(host), [0; 16]).unwrap();
            // Servers run under an account of their own.
            fs::set_permissions(hosts.file(host), fs::Permissions::from_mode(0o644)).unwrap();
        }
        hosts
    }

    /// What a process of a host has in its environment.
    pub fn variables(&self, host: u16) -> Vec<(String, String)> {
        let named = [
            ("LD_PRELOAD", self.library.clone()),
            ("SHEETANCHOR_HOST", self.file(host)),
            ("SHEETANCHOR_HOST_FAILING", self.failing.clone()),
        ];
        named.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// A folder with a server's programs, which start those of the machine as processes of a host.
    pub async fn programs(&self, host: u16) -> String {
        let folder = format!("{}/bin-{host}", self.folder);
        fs::create_dir(&folder).unwrap();
        let install = Install::find(None, None).await.unwrap();
        let environment: Vec<String> =
            self.variables(host).iter().map(|(name, value)| format!("{name}='{value}'")).collect();
        for name in PROGRAMS {
            let path = format!("{folder}/{name}");
            let text =
                format!("#!/bin/sh\n{} exec '{}' \"$@\"\n", environment.join(" "), install.program(name).display());
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    /// Sets a host's wall clock ahead of what it is, or right again with 0.
    pub fn set_clock_ahead(&self, host: u16, seconds: i64) {
        self.tell(host, 0, &seconds.to_ne_bytes());
    }

    /// So many of a hundred calls for the repository fail, on all hosts.
    pub fn fail_repository(&self, nodes: &[u16], percent: u32) {
        for host in nodes.iter().copied().chain([OPERATORS]) {
            self.tell(host, 8, &percent.to_ne_bytes());
        }
    }

    fn tell(&self, host: u16, place: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(Path::new(&self.file(host))).unwrap();
        file.write_all_at(bytes, place).unwrap();
    }

    fn file(&self, host: u16) -> String {
        format!("{}/host-{host}", self.folder)
    }
}

/// Whoever relies on it sees that it works: a program of a host has another time, and does not get at a file.
#[test]
fn a_host_has_a_clock_of_its_own_and_is_kept_from_the_repository() {
    let site = Site::empty("nemesis-host");
    let hosts = Hosts::new(&site, 1);
    fs::create_dir(site.repository()).unwrap();
    let object = site.repository().join("object");
    fs::write(&object, "x").unwrap();
    let run = |host: u16, program: &str, argument: &str| {
        Command::new(program).arg(argument).envs(hosts.variables(host)).output().unwrap()
    };
    let seconds = |host| String::from_utf8(run(host, "date", "+%s").stdout).unwrap().trim().parse::<i64>().unwrap();
    let reads = |host| run(host, "cat", object.to_str().unwrap()).status.success();
    assert!((seconds(1) - seconds(OPERATORS)).abs() < 60 && reads(1) && reads(OPERATORS));
    hosts.set_clock_ahead(1, 7_200);
    assert!((7_140..7_260).contains(&(seconds(1) - seconds(OPERATORS))), "only one is ahead");
    hosts.fail_repository(&[1], 100);
    assert!(!reads(1) && !reads(OPERATORS));
    assert!(run(1, "cat", SOURCE).status.success(), "it is the repository alone that fails");
    hosts.set_clock_ahead(1, 0);
    hosts.fail_repository(&[1], 0);
    assert!((seconds(1) - seconds(OPERATORS)).abs() < 60 && reads(1) && reads(OPERATORS));
}
