//! How fast a server that recovers gets its WAL out of the archive: placed by an agent or fetched through it, fetched through
//! pgBackRest, or copied. The WAL is cheap to replay, so that what is timed is its way.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::Asked;
use crate::figures::{Goal, Group};
use crate::house::{House, Result, remove, run, settle};
use crate::others::PgBackRest;
use crate::ours::Cluster;
use crate::servers::{Source, open_restored};

const FETCHED: &str = "sheetanchor, fetched by the server";
const PLACED: &str = "sheetanchor, all placed before it starts";
const PGBACKREST: &str = "pgBackRest, a queue of 1 GiB";
const COPY: &str = "`cp`";

/// Bytes in a message that nothing is done with but to read it.
const MESSAGE_BYTES: u32 = 1 << 20;
/// Messages in a segment.
const MESSAGES: u32 = 16;

/// In each round and for each way: a copy of a small server recovers through all WAL, from the moment that its files are in
/// place until it takes commits.
pub async fn measure(house: &House, asked: &Asked, left_out: &[String]) -> Result<Group> {
    let source = Source::start(house, "out", true, &[("max_slot_wal_keep_size", "-1")]).await?;
    let mut cluster = Cluster::of(house, "out-ours", &[&source]).await?;
    let title = format!("WAL out, {} segments of 16 MiB that a recovery reads", asked.segments);
    let mut group = Group::new(&title, "segments a second", PGBACKREST, &[FETCHED, PLACED, PGBACKREST, COPY]);
    group.less_is_better = false;
    let words = "at least 1.3 times pgBackRest's".to_owned();
    group.goal = Some(Goal { words, row: FETCHED.to_owned(), bound: 1.3, of_ratio: true });
    let has_pgbackrest = !left_out.iter().any(|missing| missing == "pgbackrest");
    let pgbackrest = if has_pgbackrest { Some(PgBackRest::new(house, "out", &source).await?) } else { None };
    let plain = house.fresh("out-copied")?;
    cluster.run(&["backup"]).await?;
    let copy = format!("cp %p {plain}/%f");
    match &pgbackrest {
        Some(tool) => {
            source.archive_by(&format!("{copy} && {}", tool.archive_command())).await?;
            run(&mut tool.backup()).await?;
        }
        None => source.archive_by(&copy).await?,
    }
    for _ in 0..asked.segments {
        let fill = format!(
            "SELECT count(pg_logical_emit_message(false, 'fill', repeat('x', {MESSAGE_BYTES}))) \
             FROM generate_series(1, {MESSAGES})"
        );
        source.sql(&fill).await?;
    }
    cluster.run(&["restore-point", "create", "end"]).await?;
    source.sql("SELECT pg_switch_wal()").await?;
    source.nothing_waits().await?;
    source.stop().await?;
    cluster.kill_agents().await?;
    let mut ways = vec![FETCHED, PLACED];
    if pgbackrest.is_some() {
        ways.extend([PGBACKREST, COPY]);
    }
    for round in 0..=asked.rounds {
        ways.rotate_left(1);
        for way in &ways {
            settle().await?;
            let seconds = match (*way, &pgbackrest) {
                (PGBACKREST, Some(tool)) => recovered(house, &source, tool, None).await?,
                (COPY, Some(tool)) => recovered(house, &source, tool, Some(&plain)).await?,
                _ => {
                    let mebibytes = if *way == FETCHED { 64 } else { 1 << 16 };
                    let restored = cluster.restore(house, &format!("wal_in_place_mib = {mebibytes}")).await?;
                    restored.open.wall - restored.staged.wall
                }
            };
            let rate = f64::from(asked.segments) / seconds;
            println!("round {round}: {way}: {rate:.1} segments a second");
            if round > 0 {
                group.row(way).figures.push(rate);
            }
        }
    }
    Ok(group)
}

/// Restores by pgBackRest, and times the recovery, by its own command or from a folder of plain segments.
async fn recovered(house: &House, source: &Source, tool: &PgBackRest, plain: Option<&str>) -> Result<f64> {
    let data = house.path("out-restored");
    run(&mut tool.restore_to_end(&data)?).await?;
    if let Some(plain) = plain {
        let settings = Path::new(&data).join("postgresql.auto.conf");
        let text = fs::read_to_string(&settings)? + &format!("\nrestore_command = 'cp {plain}/%f %p'\n");
        fs::write(settings, text)?;
    }
    settle().await?;
    let begun = Instant::now();
    open_restored(source, house, &data).await?;
    let seconds = begun.elapsed().as_secs_f64();
    remove(&data)?;
    Ok(seconds)
}
