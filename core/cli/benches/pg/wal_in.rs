//! How fast WAL that waits comes into the archive: streamed by an agent, pushed by pgBackRest, or copied.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Asked;
use crate::figures::{Goal, Group};
use crate::house::{self, House, Result, settle, sync_tree};
use crate::others::PgBackRest;
use crate::ours::Cluster;
use crate::servers::Source;

const OURS: &str = "sheetanchor, streamed by the agent";
const PGBACKREST: &str = "pgBackRest, pushed asynchronously";
const COPY: &str = "`cp` and `sync` of each file";

/// Bytes of a segment.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Rows that fill about half a segment.
const ROWS: u32 = 60_000;

/// In each round and for each way: WAL is written while nobody takes it, and then taken.
pub async fn measure(house: &House, asked: &Asked, left_out: &[String]) -> Result<Group> {
    let settings = [("max_slot_wal_keep_size", "-1"), ("wal_keep_size", "0")];
    let source = Source::start(house, "wal", true, &settings).await?;
    source.sql("CREATE TABLE load (n int, text text)").await?;
    let mut cluster = Cluster::of(house, "wal-ours", &[&source]).await?;
    let pgbackrest = if left_out.iter().any(|missing| missing == "pgbackrest") {
        None
    } else {
        Some(PgBackRest::new(house, "wal", &source).await?)
    };
    let title = format!("WAL in, {} segments of 16 MiB that wait", asked.segments);
    let mut group = Group::new(&title, "segments a second", PGBACKREST, &[OURS, PGBACKREST, COPY]);
    group.less_is_better = false;
    let words = "at least twice pgBackRest's".to_owned();
    group.goal = Some(Goal { words, row: OURS.to_owned(), bound: 2.0, of_ratio: true });
    let mut ways = vec![OURS, COPY];
    ways.extend(pgbackrest.is_some().then_some(PGBACKREST));
    for round in 0..=asked.rounds {
        ways.rotate_left(1);
        for way in &ways {
            cluster.kill_agents().await?;
            // It succeeds at nothing: what fails is tried again when the configuration is read again.
            source.archive_by("").await?;
            write(&source, asked.segments).await?;
            settle().await?;
            let seconds = match (*way, &pgbackrest) {
                (OURS, _) => streamed(&source, &mut cluster).await?,
                (PGBACKREST, Some(tool)) => pushed(&source, &tool.archive_command(), &tool.archive).await?,
                _ => {
                    let to = house.fresh("wal-copied")?;
                    pushed(&source, &format!("cp %p {to}/%f && sync {to}/%f"), &to).await?
                }
            };
            let rate = f64::from(asked.segments) / seconds;
            println!("round {round}: {way}: {rate:.1} segments a second");
            if round > 0 {
                group.row(way).figures.push(rate);
            }
            // Nothing may wait for the next.
            if *way == OURS {
                source.archive_by("true").await?;
                source.nothing_waits().await?;
            } else {
                cluster.start_agents().await?;
            }
            caught_up(&source).await?;
            source.sql("TRUNCATE load").await?;
            source.sql("CHECKPOINT").await?;
        }
    }
    cluster.kill_agents().await?;
    source.stop().await?;
    Ok(group)
}

/// Writes whole segments of rows.
async fn write(source: &Source, segments: u32) -> Result<()> {
    source.sql("SELECT pg_switch_wal()").await?;
    let begun = position(source).await?;
    while position(source).await? < begun + SEGMENT_BYTES * u64::from(segments) {
        let insert =
            format!("INSERT INTO load SELECT g, md5('m' || g) || md5('n' || g) FROM generate_series(1, {ROWS}) g");
        source.sql(&insert).await?;
    }
    source.sql("SELECT pg_switch_wal()").await.map(drop)
}

async fn position(source: &Source) -> Result<u64> {
    Ok(source.sql("SELECT pg_current_wal_flush_lsn() - '0/0'").await?.parse()?)
}

/// From the start of the agent until the last segment is in its repository, durable: there names appear only then.
async fn streamed(source: &Source, cluster: &mut Cluster) -> Result<f64> {
    // What the server itself writes now and then is in a segment that is open, and waits for the archive's interval.
    let last = position(source).await? / SEGMENT_BYTES * SEGMENT_BYTES - SEGMENT_BYTES;
    let begun = Instant::now();
    cluster.start_agents().await?;
    let folder = format!("{}/wal", cluster.repository());
    house::until("the agent keeps all segments", async || Ok(newest(Path::new(&folder))? >= last)).await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The highest first byte of a piece of WAL, each of which is named by it.
fn newest(folder: &Path) -> Result<u64> {
    let mut found = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        let piece = if path.is_dir() { newest(&path)? } else { u64::from_str_radix(name, 16)? };
        found = found.max(piece);
    }
    Ok(found)
}

/// Until the server, too, has been told what is kept, which it is every few seconds.
async fn caught_up(source: &Source) -> Result<()> {
    let until = position(source).await?;
    house::until("the agent keeps all WAL", async || {
        let kept = "SELECT coalesce(min(restart_lsn) - '0/0', 0) FROM pg_replication_slots WHERE slot_name LIKE 'sheetanchor%'";
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(source.sql(kept).await?.parse::<u64>()? >= until)
    })
    .await
}

/// From the moment that a command is set until it has taken every segment, and what it wrote is synced.
async fn pushed(source: &Source, command: &str, left: &str) -> Result<f64> {
    let begun = Instant::now();
    source.archive_by(command).await?;
    source.nothing_waits().await?;
    sync_tree(Path::new(left))?;
    Ok(begun.elapsed().as_secs_f64())
}
