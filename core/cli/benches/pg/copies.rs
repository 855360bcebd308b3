//! Full backups and restores of one data set, by every tool in turn.

use std::path::{Path, PathBuf};

use crate::figures::{Goal, Group, median};
use crate::house::{self, House, Result, Took, bytes_in, remove, run, timed};
use crate::others::{Barman, PgBackRest, base_backup, copy, tar, untar};
use crate::ours::Cluster;
use crate::servers::{Source, open_restored};
use crate::{Asked, Filler, lz4};

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
    unchanged: Group,
    updated: Group,
    updated_size: Group,
    same: Group,
    damaged: Group,
}

/// Rows that are updated before an incremental backup.
const UPDATES: u32 = 1_000;

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
        unchanged: Group::new(&titled("Incremental backup, nothing changed"), "s", PGBACKREST, &[OURS]),
        updated: Group::new(&titled("Incremental backup after 1,000 random updates"), "s", PGBACKREST, &[OURS]),
        updated_size: Group::new(&titled("What that added to the repository"), "MB", PGBACKREST, &[OURS]),
        same: Group::new(&titled("Restore over the same files, synced"), "s", PGBACKREST, &[OURS]),
        damaged: Group::new(&titled("Restore over them, the largest file overwritten"), "s", PGBACKREST, &[OURS]),
        house,
        name: name.to_owned(),
        source,
        cluster,
        pgbackrest,
        barman,
    };
    // First, so that what is restored below is packed as usual.
    let title = titled("Full backup, LZ4");
    let by_lz4 = lz4::measure(house, asked, &title, (&bench.source, &bench.cluster), has("pgbackrest")).await?;
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
    bench.changes(asked).await?;
    bench.over(asked).await?;
    let mut groups = bench.judged();
    groups.insert(1, by_lz4);
    Ok(groups)
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
            (PGBACKREST, Some(tool), _) => added(&mut tool.backup(), &tool.backups).await?,
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
        house::settle().await?;
        let time = match (tool, &self.pgbackrest, &self.barman) {
            (OURS, ..) => {
                let restored = self.cluster.restore(self.house, "").await?;
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

    /// Incremental backups by the tools that take them, of nothing and of a few updates since a full one.
    async fn changes(&mut self, asked: &Asked) -> Result<()> {
        self.cluster.start_agents().await?;
        let mut tools = vec![OURS];
        tools.extend(self.pgbackrest.is_some().then_some(PGBACKREST));
        for round in 0..=asked.rounds {
            self.all_again().await?;
            for is_updated in [false, true] {
                if is_updated {
                    let rows = asked.scale * 100_000;
                    let update = format!(
                        "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN \
                         (SELECT 1 + floor(random() * {rows})::int FROM generate_series(1, {UPDATES}))"
                    );
                    self.source.sql(&update).await?;
                }
                tools.rotate_left(1);
                for tool in &tools {
                    self.change(round, tool, is_updated).await?;
                }
            }
        }
        self.remember("while it is backed up, all and then changes")
    }

    /// Full backups by those tools, that count for nothing; the id of ours.
    async fn all_again(&mut self) -> Result<String> {
        self.source.ready().await?;
        let id = self.cluster.run(&["backup"]).await?["backup"].as_str().unwrap_or_default().to_owned();
        if let Some(tool) = &self.pgbackrest {
            self.source.archive_by(&tool.archive_command()).await?;
            run(&mut tool.backup()).await?;
            self.source.archive_by("true").await?;
        }
        Ok(id)
    }

    async fn change(&mut self, round: usize, tool: &str, is_updated: bool) -> Result<()> {
        let archiving = self.pgbackrest.as_ref().filter(|_| tool == PGBACKREST).map(PgBackRest::archive_command);
        self.source.archive_by(archiving.as_deref().unwrap_or("true")).await?;
        self.source.ready().await?;
        let (time, stored) = match (tool, &self.pgbackrest) {
            (PGBACKREST, Some(tool)) => added(&mut tool.incremental(), &tool.backups).await?,
            _ => self.cluster.backup(&["--incremental"]).await?,
        };
        self.source.archive_by("true").await?;
        let group = if is_updated { &mut self.updated } else { &mut self.unchanged };
        let megabytes = stored as f64 / 1e6;
        note(round, &group.title, tool, time);
        if round > 0 {
            push(group, tool, time);
            group.row(tool).note = format!("{megabytes:.1} MB");
            if is_updated {
                self.updated_size.row(tool).figures.push(megabytes);
            }
        }
        Ok(())
    }

    /// Restores over folders that hold nearly or wholly what they should. The server is not started again.
    async fn over(&mut self, asked: &Asked) -> Result<()> {
        let id = self.all_again().await?;
        let to = self.kept("restored-over");
        if let Some(tool) = &self.pgbackrest {
            tool.rests().await?;
            run(&mut tool.restore(&to)?).await?;
        }
        self.source.stop().await?;
        let own = self.source.data().to_owned();
        let mut tools = vec![(OURS, own)];
        tools.extend(self.pgbackrest.is_some().then_some((PGBACKREST, to)));
        for round in 0..=asked.rounds {
            for is_damaged in [false, true] {
                tools.rotate_left(1);
                for (tool, data) in &tools {
                    if is_damaged {
                        overwrite(&largest(Path::new(&format!("{data}/base")))?).await?;
                    }
                    house::settle().await?;
                    house::read_all(data).await?;
                    let time = match (*tool, &self.pgbackrest) {
                        (PGBACKREST, Some(tool)) => timed(&mut tool.restore_over(data), data).await?,
                        _ => self.cluster.restore_over(&id).await?.staged,
                    };
                    let group = if is_damaged { &mut self.damaged } else { &mut self.same };
                    note(round, &group.title, tool, time);
                    if round > 0 {
                        push(group, tool, time);
                    }
                }
            }
        }
        self.remember("while it restores over files")
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
        self.unchanged.goal = goal("at most 0.5 s", OURS, 0.5, false);
        self.updated.goal = goal("at most 1.2 s", OURS, 1.2, false);
        self.updated_size.goal = goal("at most 12 MB", OURS, 12.0, false);
        for group in [&mut self.same, &mut self.damaged] {
            group.goal = goal("no slower than pgBackRest", OURS, 1.0, true);
        }
        let changes = [self.unchanged, self.updated, self.updated_size, self.same, self.damaged];
        [self.backup, self.size, self.restore, self.open].into_iter().chain(changes).chain([self.memory]).collect()
    }
}

/// Runs a backup, and answers what it time and the bytes that it added.
pub async fn added(command: &mut tokio::process::Command, repository: &str) -> Result<(Took, u64)> {
    let before = bytes_in(Path::new(repository))?;
    let time = timed(command, repository).await?;
    Ok((time, bytes_in(Path::new(repository))?.saturating_sub(before)))
}

/// The largest file below a folder: with pgbench's tables a gigabyte of accounts, once there are as many.
fn largest(folder: &Path) -> Result<PathBuf> {
    let mut most = (0, PathBuf::new());
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() { largest(&path)? } else { path };
        let bytes = if found.as_os_str().is_empty() { 0 } else { std::fs::metadata(&found)?.len() };
        if bytes > most.0 {
            most = (bytes, found);
        }
    }
    Ok(most.1)
}

/// Makes every page of a file another one.
async fn overwrite(file: &Path) -> Result<()> {
    let megabytes = std::fs::metadata(file)?.len() >> 20;
    let file = file.display();
    run(&mut house::shell(&format!("dd if=/dev/urandom of={file} bs=1M count={megabytes} conv=notrunc status=none")))
        .await
        .map(drop)
}

pub fn push(group: &mut Group, tool: &str, time: Took) {
    let row = group.row(tool);
    row.figures.push(time.wall);
    row.cpu.push(time.cpu);
}

pub fn note(round: usize, title: &str, tool: &str, time: Took) {
    let what = title.split(':').next().unwrap_or(title);
    let counted = if round == 0 { "warming up".to_owned() } else { format!("round {round}") };
    println!("{counted}: {what}: {tool}: {:.2} s, {:.2} s of processor", time.wall, time.cpu);
}
