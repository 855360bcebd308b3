//! What may be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use sheetanchor_core::compression::Compression;
use sheetanchor_core::format::catalog::Method;
use sheetanchor_core::identity::Incarnation;
use sheetanchor_core::plan::{Aim, Target};
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::throttle::Rate;
use sheetanchor_core::time::WallMillis;

/// Where options that fit every command are listed.
const EVERYWHERE: &str = "Options of every command";

/// Cluster-consistent backup, restore and point-in-time recovery.
#[derive(Debug, Parser)]
#[command(name = "sheetanchor", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 done, 1 a fault or a bug, 2 wrong usage, 3 a refusal.")]
pub struct Arguments {
    /// The cluster file
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FILE", default_value = "cluster.toml")]
    pub cluster: PathBuf,

    /// Print results and errors as JSON
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,

    /// What to log on standard error: off, error, warn, info, debug or trace
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "LEVEL", default_value = "warn")]
    #[arg(hide_possible_values = true)]
    pub log: LogLevel,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// What failed
    Error,
    /// What needs somebody's eye
    Warn,
    /// Milestones too
    Info,
    /// Details too
    Debug,
    /// Everything
    Trace,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the repository of a new cluster, once, with every agent running
    Init,
    /// Serve one node until SIGTERM or Ctrl-C
    Agent(AgentArguments),
    /// Take one backup of all nodes, and seal it or leave nothing
    Backup(BackupArguments),
    /// Name a cut of the whole cluster, or show the names
    #[command(subcommand)]
    RestorePoint(PointCommand),
    /// Restore all nodes, into empty folders or over older copies, and open them as a new incarnation
    Restore(RestoreArguments),
    /// Show nodes, backups, restore points, incarnations and what is under way
    Status,
    /// Say what each node lacks for points and backups of the whole cluster, and what to run
    Doctor,
    /// Show every backup that was ever begun, and what became of it
    History,
    /// Show every restore point, and whether it can be restored to
    RestorePoints,
    /// Show what the cluster can be restored to, what is missing, and how far each archive is behind
    PitrStatus,
    /// Show every incarnation, and where it branched off
    Incarnations,
    /// Show or drop what keeps WAL on the nodes
    #[command(subcommand)]
    Pins(PinsCommand),
    /// What a server runs by itself while it recovers
    #[command(subcommand, hide = true)]
    Wal(WalCommand),
    /// End an operation whose coordinator is gone
    Abort {
        /// The operation, as `status` shows it
        id: String,
    },
    /// Remove old backups, what failed ones left, and WAL that no kept backup needs
    Expire(ExpireArguments),
    /// Read a backup again and check every hash
    Verify {
        /// The backup, as `status` shows it
        id: String,
    },
    /// Back up, crash, restore and compare a cluster made for it, on this machine
    Demo(DemoArguments),
}

/// Of `wal`.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Take over a segment that the node's agent delivers: a `restore_command`, run in the data folder. Status 0 if it is
    /// there, 1 if the restore needs no such file, 200 if that is not known
    Fetch {
        /// The segment's name (%f)
        name: String,
        /// Where to put it (%p)
        path: String,
    },
}

/// Of `agent`.
#[derive(Debug, Args)]
pub struct AgentArguments {
    /// The id of the node in the cluster file
    #[arg(long, value_name = "N")]
    pub node: u16,
}

/// Of `backup`.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// A name for it, to be seen in lists
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,

    /// Copy what has changed since the newest backup, where that can be told; else all, saying why
    #[arg(long, conflicts_with = "full")]
    pub incremental: bool,

    /// Copy all of it, which is also what happens if nothing is said
    #[arg(long)]
    pub full: bool,

    /// Read each node's files no faster than this: `50MB/s`, `800KiB/s`
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,

    /// How what is copied is packed; a restore needs to know nothing of it
    #[arg(long, value_name = "HOW", default_value = "zstd")]
    pub compression: CompressionArgument,

    /// How the nodes are cut
    #[arg(long, value_name = "HOW", default_value = "fence")]
    pub cut: CutArgument,

    /// What is read again before the seal
    #[arg(long, value_name = "WHAT", default_value = "contents")]
    pub read_back: ReadBackArgument,
}

/// How what a backup copies is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompressionArgument {
    /// By zstd, level 1: the smaller repository
    Zstd,
    /// By LZ4: less work for the processor, and a larger repository
    Lz4,
}

impl CompressionArgument {
    /// The kind that it names.
    pub const fn compression(self) -> Compression {
        match self {
            Self::Zstd => Compression::Zstd,
            Self::Lz4 => Compression::Lz4,
        }
    }
}

/// What is read again before a backup is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReadBackArgument {
    /// Everything that was stored: what is sealed hashes to what was captured
    Contents,
    /// That, and what an incremental backup goes on using of earlier ones
    All,
    /// Lists, and whether the rest is there: cheap, and damage on the way is found by `verify` only
    Presence,
}

/// How the nodes are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CutArgument {
    /// All at once, under a fence that holds commits back: one state of the whole cluster
    Fence,
    /// Each node by itself: nothing is said about the nodes together
    PerNode,
    /// All at one SCN, on engines that stamp their WAL: no commit waits
    Scn,
}

/// How the nodes of a restore point are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodArgument {
    /// Under a fence that holds commits back
    Fence,
    /// At one SCN, on engines that stamp their WAL: no commit waits, and sessions that carry no SCN are not covered
    Scn,
}

impl MethodArgument {
    /// The method that it names.
    pub const fn method(self) -> Method {
        match self {
            Self::Fence => Method::Fence,
            Self::Scn => Method::Scn,
        }
    }
}

/// Of `restore-point`.
#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// Name a cut of the whole cluster, now
    Create {
        /// A name that was never used in this cluster
        name: String,

        /// How the nodes are cut
        #[arg(long, value_name = "HOW", default_value = "fence")]
        method: MethodArgument,
    },
    /// Name cuts at an interval until Ctrl-C; one that is late makes the next be skipped
    Every {
        /// The time between two points, as in `60s`, `500ms`, `15m` or `1h`
        #[arg(value_name = "TIME", value_parser = interval)]
        interval: Duration,

        /// How the nodes are cut
        #[arg(long, value_name = "HOW", default_value = "fence")]
        method: MethodArgument,

        /// What the names begin with; the time of each point follows
        #[arg(long, value_name = "NAME", default_value = "auto")]
        prefix: String,

        /// End after so many points
        #[arg(long, value_name = "N")]
        points: Option<u64>,
    },
    /// Show every restore point, as `restore-points` does
    List,
}

/// A time as it was typed: a number above zero and its unit.
fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let millis: Option<u64> = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok().filter(|number| *number > 0);
    let length = number.zip(millis).and_then(|(number, millis)| number.checked_mul(millis));
    length.map(Duration::from_millis).ok_or_else(|| "write a number and `ms`, `s`, `m` or `h`, as in `60s`".to_owned())
}

/// Of `restore`.
#[derive(Debug, Default, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag that may be typed")]
pub struct RestoreArguments {
    /// Where to: `latest` (if nothing is said), `backup:ID` or `name:NAME`
    #[arg(long, value_name = "TARGET", value_parser = target)]
    pub to: Option<To>,

    /// To the newest cut that the archive reaches
    #[arg(long)]
    pub latest: bool,

    /// To the cut of this backup
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,

    /// To this restore point
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// To everything stamped at or below this SCN, on engines that stamp their WAL
    #[arg(long, value_name = "SCN")]
    pub scn: Option<String>,

    /// With `--scn`: only what is stamped below it
    #[arg(long)]
    pub exclusive: bool,

    /// To the last state stamped at or before this time, RFC 3339: `2026-07-01T12:30:00Z`
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,

    /// The incarnation that the target lies in or before; the one in force if nothing is said
    #[arg(long, value_name = "N")]
    pub incarnation: Option<u32>,

    /// Take the newest restore point at or before the target, on engines that reach restore points only
    #[arg(long)]
    pub nearest_before: bool,

    /// Show what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Stop on arrival: all nodes stand at the cut, proven and closed, until `--resume` opens them or `abort` removes them
    #[arg(long, conflicts_with = "dry_run")]
    pub stop: bool,

    /// Make a clone: a cluster of its own, in an empty repository of its own, from the `source` that the cluster file names
    #[arg(long, conflicts_with_all = ["resume", "anew"])]
    pub clone: bool,

    /// Restore over older or damaged copies of the nodes' databases, all stopped: what hashes right stays, all else is
    /// replaced or removed, and with it WAL that was not archived
    #[arg(long, conflicts_with_all = ["clone", "resume"])]
    pub delta: bool,

    /// Put each node's files in place no faster than this: `50MB/s`, `800KiB/s`
    #[arg(long, value_name = "RATE", conflicts_with = "dry_run")]
    pub rate: Option<Rate>,

    /// With `--clone`: do not register at the source, which then may expire what is being restored
    #[arg(long, requires = "clone")]
    pub unheld: bool,

    /// Begin although an earlier restore has not opened every node; what its nodes wrote since stays behind
    #[arg(long)]
    pub anew: bool,

    /// Take up a restore whose coordinator is gone, that stopped on arrival, or that lost a node before it opened it
    #[arg(long, value_name = "ID", conflicts_with_all = ["to", "latest", "backup", "name", "scn", "time", "dry_run"])]
    #[arg(conflicts_with_all = ["stop", "anew"])]
    pub resume: Option<String>,
}

impl RestoreArguments {
    /// What is aimed at.
    ///
    /// # Errors
    /// `SA304` for two targets at once and for one that is malformed, `SA106` for what is no id or name.
    pub fn aim(&self) -> Result<Aim, Refusal> {
        let mut targets = Vec::new();
        match &self.to {
            Some(To::Latest) => targets.push(Target::Latest),
            Some(To::Backup(id)) => targets.push(Target::Backup(id.parse()?)),
            Some(To::Name(name)) => targets.push(Target::Name(name.parse()?)),
            None => {}
        }
        targets.extend(self.latest.then_some(Target::Latest));
        targets.extend(self.backup.as_deref().map(str::parse).transpose()?.map(Target::Backup));
        targets.extend(self.name.as_deref().map(str::parse).transpose()?.map(Target::Name));
        if let Some(text) = &self.scn {
            let scn: Scn = text.parse().map_err(|()| bad(&format!("`{}` is no SCN", text.escape_debug())))?;
            targets.push(if self.exclusive { Target::Below(scn) } else { Target::Scn(scn) });
        } else if self.exclusive {
            return Err(bad("`--exclusive` goes with `--scn`"));
        }
        if let Some(text) = &self.time {
            let time: Option<Timestamp> = text.parse().ok();
            let millis = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
            let millis = millis.ok_or_else(|| bad(&format!("`{}` is no time in RFC 3339", text.escape_debug())))?;
            targets.push(Target::Time(WallMillis::new(millis)));
        }
        if targets.len() > 1 {
            let all: Vec<String> = targets.iter().map(ToString::to_string).collect();
            return Err(bad(&format!("these are {} targets: {}", all.len(), all.join("; "))));
        }
        let target = targets.pop().unwrap_or(Target::Latest);
        Ok(Aim { target, incarnation: self.incarnation.map(Incarnation::new), nearest_before: self.nearest_before })
    }
}

fn bad(what: &str) -> Refusal {
    Refusal::new(Code::BadTarget, what)
}

/// A target as it was typed after `--to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// The newest cut that the archive reaches.
    Latest,
    /// The cut of a backup.
    Backup(String),
    /// A restore point.
    Name(String),
}

fn target(text: &str) -> Result<To, String> {
    match text.split_once(':') {
        None if text == "latest" => Ok(To::Latest),
        Some(("backup", id)) => Ok(To::Backup(id.to_owned())),
        Some(("name", name)) => Ok(To::Name(name.to_owned())),
        Some(_) | None => Err("write `latest`, `backup:ID` or `name:NAME`".to_owned()),
    }
}

/// Of `expire`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("keep").required(true)))]
pub struct ExpireArguments {
    /// Keep so many backups, the newest ones
    #[arg(long, value_name = "N", group = "keep", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_backups: Option<u32>,

    /// Keep all that it takes to restore to any cut after this time, such as `2026-01-31T12:00:00Z`
    #[arg(long, value_name = "TIME", group = "keep")]
    pub before: Option<jiff::Timestamp>,

    /// Show what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Of `pins`.
#[derive(Debug, Subcommand)]
pub enum PinsCommand {
    /// Show which WAL each node keeps, and for whom
    List,
    /// Let go of a pin on every node that has it
    Drop {
        /// The pin, as `pins list` shows it
        name: String,
    },
}

/// Of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// On PostgreSQL servers of its own instead of the embedded database
    #[arg(long)]
    pub postgres: bool,

    /// Leave the folder with all files and logs behind
    #[arg(long)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_interval_is_a_number_above_zero_and_its_unit() {
        for (text, millis) in [("60s", 60_000), ("500ms", 500), ("15m", 900_000), ("1h", 3_600_000)] {
            assert_eq!(interval(text), Ok(Duration::from_millis(millis)));
        }
        for bad in ["", "60", "s", "0s", "-1s", "1.5s", "1 s", "99999999999999999999h", "1d"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_has_three_spellings() {
        assert_eq!(target("latest"), Ok(To::Latest));
        assert_eq!(target("name:a:b"), Ok(To::Name("a:b".to_owned())));
        assert_eq!(target("backup:x"), Ok(To::Backup("x".to_owned())));
        for bad in ["", "Latest", "time:now", "latest:", "name"] {
            assert!(target(bad).is_err(), "{bad}");
        }
        let colon = RestoreArguments { to: Some(To::Name("a:b".to_owned())), ..RestoreArguments::default() };
        assert!(colon.aim().is_err(), "a name holds no colon");
    }

    #[test]
    fn one_target_is_aimed_at_and_no_other_is_guessed() {
        let none = RestoreArguments::default;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(none().aim(), Ok(Aim::from(Target::Latest)));
        let scn = Scn::new((1_700 << 16) + 3);
        let aimed = RestoreArguments { scn: text("1700.3"), incarnation: Some(2), ..none() }.aim();
        assert_eq!(aimed, Ok(Aim::from(Target::Scn(scn)).of_incarnation(Incarnation::new(2))));
        let below = RestoreArguments { scn: text("1700.3"), exclusive: true, ..none() }.aim();
        assert_eq!(below, Ok(Aim::from(Target::Below(scn))));
        let time = RestoreArguments { time: text("1970-01-01T01:00:02.5+01:00"), ..none() }.aim();
        assert_eq!(time, Ok(Aim::from(Target::Time(WallMillis::new(2_500)))));
        for (arguments, code) in [
            (RestoreArguments { latest: true, scn: text("1.0"), ..none() }, Code::BadTarget),
            (RestoreArguments { to: Some(To::Latest), name: text("a"), ..none() }, Code::BadTarget),
            (RestoreArguments { scn: text("yesterday"), ..none() }, Code::BadTarget),
            (RestoreArguments { time: text("yesterday"), ..none() }, Code::BadTarget),
            (RestoreArguments { time: text("1969-12-31T23:59:59Z"), ..none() }, Code::BadTarget),
            (RestoreArguments { exclusive: true, ..none() }, Code::BadTarget),
            (RestoreArguments { name: text("a/b"), ..none() }, Code::BadName),
            (RestoreArguments { backup: text("b"), ..none() }, Code::BadName),
        ] {
            assert_eq!(arguments.aim().unwrap_err().code, code, "{arguments:?}");
        }
    }
}
