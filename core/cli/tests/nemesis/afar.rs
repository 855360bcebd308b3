//! A server and the agent that reaches it over the network, each on a host of its own, with operators on a third. Hosts that
//! are gone without a word are noticed, and once they are back all goes on without help.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sheetanchor_native::postgres::server::{Server, ServerPlan};
use tokio_postgres::NoTls;

use super::hosts::OPERATORS;
use super::network::Network;
use super::site::{NodeText, Said, Site, said};
use super::town::{start, without_network};

const AGENT: u16 = 1;
const SERVER: u16 = 2;

/// The port of the server, and that of the agent.
const PORTS: [u16; 2] = [5432, 7001];

/// After 20 s without an answer a host counts as gone; it is asked, or sent something, every 5 s.
const NOTICED: Duration = Duration::from_secs(30);

/// Connections of the agent's host that are taken to be there, to the server and from operators.
fn connections(network: &Network) -> [usize; 2] {
    // Local and remote address as `ADDRESS:PORT` in hexadecimal digits, then the state: 1 is established.
    let table = network.within(AGENT, || fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let count = |place: usize, port: u16| {
        let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[3] == "01" && row[place].ends_with(&format!(":{port:04X}"))).count()
    };
    [count(2, PORTS[0]), count(1, PORTS[1])]
}

fn operator(network: &Network, site: &Site, arguments: &[&str]) -> Said {
    said(&mut site.command_after(&network.entering(OPERATORS), arguments))
}

async fn write(server: &Server, sql: &str) {
    let (client, connection) = tokio_postgres::connect(&server.connection(), NoTls).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    client.batch_execute(sql).await.unwrap();
}

async fn server(network: &Network, site: &Site) -> Server {
    let address = Network::address(SERVER);
    let settings = [("listen_addresses", address.as_str()), ("shared_buffers", "16MB"), ("wal_sender_timeout", "10s")];
    let server = Server::init(ServerPlan {
        data: site.path("pg"),
        socket_folder: site.path("s"),
        port: PORTS[0],
        log: site.path("pg.log"),
        bin: None,
        run_as: None,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    });
    let server = server.await.unwrap();
    let access = site.path("pg/pg_hba.conf");
    let lines = fs::read_to_string(&access).unwrap();
    let more = "host all all 127.77.0.0/16 trust\nhost replication all 127.77.0.0/16 trust\n";
    fs::write(&access, lines + more).unwrap();
    start(&server, SERVER, Some(network)).await.unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_are_gone_are_noticed_and_all_goes_on_once_they_are_back() {
    let network = match Network::new(&[AGENT, SERVER]) {
        Ok(network) => network,
        Err(why) => return without_network(&why),
    };
    let mut site = Site::empty("nemesis-afar");
    let server = server(&network, &site).await;
    site.entering.insert(AGENT, network.entering(AGENT));
    site.nodes.push(NodeText {
        id: AGENT,
        agent: Network::agent(AGENT),
        state: site.path("state"),
        engine: "postgres",
        data: String::new(),
        connection: format!("host={} port={} user=postgres dbname=postgres", Network::address(SERVER), PORTS[0]),
    });
    site.write_cluster_file();
    site.start_agents();
    operator(&network, &site, &["init"]).done();
    write(&server, "CREATE TABLE rows AS SELECT generate_series(1, 1000) AS n").await;
    operator(&network, &site, &["backup", "--cut", "per-node"]).done();

    // An operator's machine that is gone in the middle, and a server's.
    let address: SocketAddr = Network::agent(AGENT).parse().unwrap();
    let held = network.within(OPERATORS, || TcpStream::connect(address).unwrap());
    let [to_server, from_operators] = connections(&network);
    assert!(to_server >= 2 && from_operators >= 1, "a session, a stream; and ours: {to_server}, {from_operators}");
    network.pull(OPERATORS);
    let parted = [network.part(AGENT, SERVER), network.part(SERVER, AGENT)];
    let begun = Instant::now();
    write(&server, "INSERT INTO rows SELECT generate_series(1, 100000)").await;
    while connections(&network) != [0, 0] {
        let left = connections(&network);
        assert!(
            begun.elapsed() < NOTICED,
            "connections with hosts that are gone, to the server and from operators: {left:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eprintln!("noticed after {:.1} s", begun.elapsed().as_secs_f32());

    network.plug(OPERATORS);
    for cut in parted {
        network.heal(cut);
    }
    drop(held);
    let healed = Instant::now();
    loop {
        let said = operator(&network, &site, &["backup", "--cut", "per-node"]);
        if said.status == 0 {
            break;
        }
        assert!(healed.elapsed() < Duration::from_mins(1), "no backup once all are back: {}", said.err);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eprintln!("a backup was done {:.1} s after they were back", healed.elapsed().as_secs_f32());
    site.kill_all();
}
