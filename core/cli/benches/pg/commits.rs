//! What commits pay for the fence: its hook in every commit, and the wait while a restore point is taken.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::Asked;
use crate::figures::{Goal, Group, at_percent, median};
use crate::house::{House, Result, run};
use crate::ours::Cluster;
use crate::servers::Source;

const WITHOUT: &str = "without the extension";
const WITH: &str = "with it";

/// Workers of the three nodes, eight in all.
const WORKERS: [u32; 3] = [3, 3, 2];

/// The pause between two points: as long a window without one is looked at in it.
const PAUSE: Duration = Duration::from_millis(150);

/// One small row a commit: little hides what the hook costs.
const INSERT: &str = "INSERT INTO load VALUES (1);\n";

/// Seconds of one run of pgbench. Several short runs in turn say more than long ones: the machine changes.
const SECONDS: &str = "2";

/// How often pgbench is run on each side, for each round that is asked for.
const TURNS: usize = 4;

/// Commits a second on two servers in turn, one of them with the extension. Nothing is fenced.
pub async fn hook(house: &House, asked: &Asked) -> Result<Group> {
    let settings = [("synchronous_commit", "off"), ("fsync", "off")];
    let plain = Source::start(house, "hook-plain", false, &settings).await?;
    let fenced = Source::start(house, "hook-fenced", true, &settings).await?;
    let script = house.path("insert.sql");
    fs::write(&script, INSERT)?;
    for source in [&plain, &fenced] {
        source.sql("CREATE UNLOGGED TABLE load (n int)").await?;
    }
    let mut group = Group::new("Commits under no fence", "a second", WITHOUT, &[WITHOUT, WITH]);
    group.less_is_better = false;
    let words = "less than 1 % fewer".to_owned();
    group.goal = Some(Goal { words, row: WITH.to_owned(), bound: 0.99, of_ratio: true });
    for turn in 0..=asked.rounds * TURNS {
        let mut sides = [(WITHOUT, &plain), (WITH, &fenced)];
        if turn % 2 == 1 {
            sides.reverse();
        }
        for (who, source) in sides {
            source.sql("TRUNCATE load").await?;
            let arguments = ["-n", "-M", "prepared", "-c", "2", "-j", "1", "-T", SECONDS, "-f", &script];
            let said = run(&mut source.program("pgbench", &arguments)).await?;
            let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
            let tps: f64 = tps.ok_or("pgbench said no tps")?;
            if turn > 0 {
                group.row(who).figures.push(tps);
            }
        }
    }
    if let Some(ratio) = group.find(WITH).and_then(|row| group.ratio(row)) {
        println!("commits with the hook: {ratio:.3} of those without it");
    }
    plain.stop().await?;
    fenced.stop().await?;
    Ok(group)
}

/// The longest commit that each of many points met, on three servers with eight workers.
pub async fn stall(house: &House, asked: &Asked) -> Result<Group> {
    let mut sources = Vec::new();
    for node in 1..=3 {
        let source = Source::start(house, &format!("stall-{node}"), true, &[]).await?;
        source.sql("CREATE TABLE load (n int)").await?;
        sources.push(source);
    }
    let mut cluster = Cluster::of(house, "stall-ours", &sources.iter().collect::<Vec<_>>()).await?;
    let (script, logs) = (house.path("insert.sql"), house.fresh("stall-logs")?);
    fs::write(&script, INSERT)?;
    let mut workers = Vec::new();
    for (node, (source, count)) in sources.iter().zip(WORKERS).enumerate() {
        let (count, prefix) = (count.to_string(), format!("{logs}/{node}"));
        let arguments =
            ["-n", "-M", "prepared", "-c", &count, "-T", "3600", "-l", "--log-prefix", &prefix, "-f", &script];
        let mut command = source.program("pgbench", &arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        workers.push(command.spawn()?);
    }
    let (mut windows, mut quiet) = (Vec::new(), Vec::new());
    for point in 0..asked.points {
        let begun = micros();
        tokio::time::sleep(PAUSE).await;
        let from = micros();
        cluster.run(&["restore-point", "create", &format!("p{point}")]).await?;
        let until = micros();
        windows.push((from, until));
        // The window before it has no point in it, and is as long at most.
        quiet.push((begun.max(from - (until - from)), from));
    }
    for worker in &mut workers {
        // It writes what it has in its buffers when it is asked to end.
        run(&mut crate::house::program("kill", &["-INT", &worker.id().unwrap_or_default().to_string()])).await?;
        worker.wait().await?;
    }
    cluster.kill_agents().await?;
    for source in &sources {
        source.stop().await?;
    }
    let commits = commits(&logs)?;
    let met = longest(&commits, &windows);
    let title = format!(
        "Longest commit during a restore point, of the whole command: {} points, 3 nodes, 8 workers, {} commits",
        asked.points,
        commits.len()
    );
    let mut group = Group::new(&title, "ms", "as long a time before it, without one", &[]);
    let words = format!("p50 at most 3 ms, p99 at most 20 ms; p99 here {:.1} ms, p50", at_percent(&met, 99));
    group.goal = Some(Goal { words, row: "a point".to_owned(), bound: 3.0, of_ratio: false });
    for (who, figures) in [("a point", met), ("as long a time before it, without one", longest(&commits, &quiet))] {
        println!("longest commit, {who}: p50 {:.2} ms, p99 {:.2} ms", median(&figures), at_percent(&figures, 99));
        let row = group.row(who);
        row.note = format!("p99 {:.1}", at_percent(&figures, 99));
        row.figures = figures;
    }
    Ok(group)
}

/// Begin and end of every commit that pgbench has logged, in microseconds of the wall clock.
fn commits(logs: &str) -> Result<Vec<(i64, i64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(logs)? {
        for line in fs::read_to_string(entry?.path())?.lines() {
            // Client, transaction, microseconds that it took, script, and when it ended: seconds and microseconds.
            let fields: Vec<i64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
            if let [_, _, took, _, seconds, micros, ..] = fields.as_slice() {
                let end = seconds * 1_000_000 + micros;
                found.push((end - took, end));
            }
        }
    }
    Ok(found)
}

/// The longest commit in milliseconds that meets each window.
fn longest(commits: &[(i64, i64)], windows: &[(i64, i64)]) -> Vec<f64> {
    let met = |(from, until): &(i64, i64)| {
        let met = commits.iter().filter(|(begun, ended)| begun < until && ended > from);
        met.map(|(begun, ended)| (ended - begun) as f64 / 1000.0).fold(0.0, f64::max)
    };
    windows.iter().map(met).collect()
}

/// The wall clock, as pgbench's log has it.
fn micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
