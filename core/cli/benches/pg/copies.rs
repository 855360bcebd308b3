//! Full backups and restores of one data set, by every tool in turn.

use std::path::Path;

use crate::figures::{Goal, Group, median};
use crate::house::{House, Result, Took, bytes_in, remove, run, timed};
use crate::others::{Barman, PgBackRest, base_backup, copy, tar, untar};
use crate::ours::Cluster;
use crate::servers::{Source, open_restored};
use crate::{Asked, Filler};

const OURS: &str = "sheetanchor";
const OURS_UNREAD: &str = "sheetanchor, `--read-back presence`";
const PGBACKREST: &str = "pgBackRest";
const BARMAN: &str = "Barman, rsync, not packed";
const BASE_BACKUP: &str = "pg_basebackup, zstd -1";
const TAR: &str = "`tar` and `zstd -1`";
const COPY: &str = "`cp`";

/// What a backup and a restore of one data set are made of.
struct Bench<'a> {
    house: &'a House,
    name: String,
    source: Source,
    cluster: Cluster,
    pgbackrest: Option<PgBackRest>,
    barman: Option<Barman>,
    backup: Group,
    size: Group,
    restore: Group,
    open: Group,
    memory: Group,
}

/// Fills a server, and has every tool back it up and restore it, round by round.
pub async fn measure(house: &House, asked: &Asked, filler: Filler, left_out: &[String]) -> Result<Vec<Group>> {
    let name = match filler {
        Filler::Hex => "hex",
        Filler::Blank => "blank",
    };
    println!("{name}: a server is filled with pgbench's tables, scale {}", asked.scale);
    let source = Source::start(house, name, true, &[]).await?;
    source.fill(asked.scale, filler).await?;
    source.ready().await?;
    let has = |tool: &str| !left_out.iter().any(|missing| missing == tool);
    let cluster = Cluster::of(house, &format!("{name}-ours"), &[&source]).await?;
    let barman = if has("barman") { Some(Barman::new(house, name, &source).await?) } else { None };
    let pgbackrest = if has("pgbackrest") { Some(PgBackRest::new(house, name, &source).await?) } else { None };
    let megabytes = bytes_in(&Path::new(source.data()).join("base"))? / 1_000_000;
    let titled = |what: &str| format!("{what}: {name} filler, {megabytes} MB, checksums on");
    let mut bench = Bench {
        backup: Group::new(&titled("Full backup"), "s", PGBACKREST, &[OURS, OURS_UNREAD]),
        size: Group::new(&titled("Repository"), "MB", PGBACKREST, &[OURS]),
        restore: Group::new(&titled("Restore, files in place and synced"), "s", PGBACKREST, &[OURS]),
        open: Group::new(&titled("Restore, until commits are taken"), "s", PGBACKREST, &[OURS]),
        memory: Group::new(&titled("Peak memory of an agent"), "MiB", OURS, &[]),
        house,
        name: name.to_owned(),
        source,
        cluster,
        pgbackrest,
        barman,
    };
    let mut tools = vec![OURS, OURS_UNREAD, BASE_BACKUP, COPY];
    tools.extend(has("zstd").then_some(TAR));
    tools.extend(bench.pgbackrest.is_some().then_some(PGBACKREST));
    tools.extend(bench.barman.is_some().then_some(BARMAN));
    for round in 0..=asked.rounds {
        // Whoever follows whom finds what it has left: everybody follows everybody.
        tools.rotate_left(1);
        for tool in &tools {
            bench.back_up(round, tool).await?;
        }
    }
    bench.remember("while it is backed up")?;
    bench.cluster.kill_agents().await?;
    for round in 0..=asked.rounds {
        tools.rotate_left(1);
        for tool in &tools {
            bench.restore(round, tool).await?;
        }
    }
    bench.source.stop().await?;
    Ok(bench.judged())
}

impl Bench<'_> {
    fn kept(&self, what: &str) -> String {
        self.house.path(&format!("{}-{what}", self.name))
    }

    async fn back_up(&mut self, round: usize, tool: &str) -> Result<()> {
        let archiving = match (tool, &self.pgbackrest, &self.barman) {
            (PGBACKREST, Some(tool), _) => tool.archive_command(),
            (BARMAN, _, Some(tool)) => tool.archive_command(),
            _ => "true".to_owned(),
        };
        self.source.archive_by(&archiving).await?;
        self.source.ready().await?;
        let (time, stored) = match (tool, &self.pgbackrest, &self.barman) {
            (OURS, ..) => self.cluster.backup(&[]).await?,
            (OURS_UNREAD, ..) => self.cluster.backup(&["--read-back", "presence"]).await?,
            (PGBACKREST, Some(tool), _) => added(&mut tool.backup(), &tool.repository).await?,
            (BARMAN, _, Some(tool)) => {
                if round > 0 {
                    tool.forget().await?;
                }
                added(&mut tool.backup(), &tool.home).await?
            }
            (BASE_BACKUP, ..) => {
                let to = self.kept("base");
                let time = timed(&mut base_backup(&self.source, &to)?, &to).await?;
                let stored = bytes_in(Path::new(&to))?;
                remove(&to)?;
                (time, stored)
            }
            (TAR, ..) => {
                let to = self.kept("tar");
                (timed(&mut tar(self.source.data(), &to)?, &to).await?, bytes_in(Path::new(&to))?)
            }
            _ => {
                let to = self.kept("copy");
                (timed(&mut copy(self.source.data(), &to)?, &to).await?, bytes_in(Path::new(&to))?)
            }
        };
        self.source.archive_by("true").await?;
        let megabytes = stored as f64 / 1e6;
        note(round, &self.backup.title, tool, time);
        if round > 0 {
            push(&mut self.backup, tool, time);
            self.backup.row(tool).note = format!("{megabytes:.0} MB");
            if [OURS, PGBACKREST].contains(&tool) {
                self.size.row(tool).figures.push(megabytes);
            }
        }
        Ok(())
    }

    async fn restore(&mut self, round: usize, tool: &str) -> Result<()> {
        let to = self.kept("restored");
        remove(&to)?;
        run(&mut crate::house::program("sync", &[])).await?;
        let time = match (tool, &self.pgbackrest, &self.barman) {
            (OURS, ..) => {
                let restored = self.cluster.restore(self.house).await?;
                note(round, &self.open.title, tool, restored.open);
                if round > 0 {
                    push(&mut self.open, tool, restored.open);
                    self.memory.row("while it restores").figures.push(restored.peak_mib);
                }
                restored.staged
            }
            (PGBACKREST, Some(tool), _) => {
                let time = timed(&mut tool.restore(&to)?, &to).await?;
                let begun = std::time::Instant::now();
                open_restored(&self.source, self.house, &to).await?;
                let open = Took { wall: time.wall + begun.elapsed().as_secs_f64(), cpu: time.cpu };
                note(round, &self.open.title, PGBACKREST, open);
                if round > 0 {
                    push(&mut self.open, PGBACKREST, open);
                }
                time
            }
            (BARMAN, _, Some(tool)) => timed(&mut tool.restore(&to)?, &to).await?,
            (TAR, ..) => timed(&mut untar(&self.kept("tar"), &to)?, &to).await?,
            (COPY, ..) => timed(&mut copy(&self.kept("copy"), &to)?, &to).await?,
            // What it leaves is unpacked as any tar file, or is ours already.
            _ => return Ok(()),
        };
        remove(&to)?;
        note(round, &self.restore.title, tool, time);
        if round > 0 {
            push(&mut self.restore, tool, time);
        }
        Ok(())
    }

    fn remember(&mut self, when: &str) -> Result<()> {
        let peak = self.cluster.peak_mib()?;
        self.memory.row(when).figures.push(peak);
        Ok(())
    }

    /// The groups with what was to be reached.
    fn judged(mut self) -> Vec<Group> {
        let goal = |words: &str, row: &str, bound, of_ratio| {
            Some(Goal { words: words.to_owned(), row: row.to_owned(), bound, of_ratio })
        };
        self.backup.goal = goal("at most 0.6 times pgBackRest's time", OURS, 0.6, true);
        self.size.goal = goal("no larger than pgBackRest's", OURS, 1.0, true);
        self.restore.goal = goal("at most 0.8 times pgBackRest's time", OURS, 0.8, true);
        let peaks: Vec<f64> = self.memory.rows.iter().map(|row| median(&row.figures)).collect();
        let most = self.memory.rows.iter().zip(&peaks).max_by(|(_, one), (_, other)| one.total_cmp(other));
        let most = most.map(|(row, _)| row.who.clone()).unwrap_or_default();
        self.memory.goal = goal("under 128 MiB", &most, 128.0, false);
        self.memory.base = most;
        vec![self.backup, self.size, self.restore, self.open, self.memory]
    }
}

/// Runs a backup, and answers what it time and the bytes that it added.
async fn added(command: &mut tokio::process::Command, repository: &str) -> Result<(Took, u64)> {
    let before = bytes_in(Path::new(repository))?;
    let time = timed(command, repository).await?;
    Ok((time, bytes_in(Path::new(repository))?.saturating_sub(before)))
}

fn push(group: &mut Group, tool: &str, time: Took) {
    let row = group.row(tool);
    row.figures.push(time.wall);
    row.cpu.push(time.cpu);
}

fn note(round: usize, title: &str, tool: &str, time: Took) {
    let what = title.split(':').next().unwrap_or(title);
    let counted = if round == 0 { "warming up".to_owned() } else { format!("round {round}") };
    println!("{counted}: {what}: {tool}: {:.2} s, {:.2} s of processor", time.wall, time.cpu);
}
