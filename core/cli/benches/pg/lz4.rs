//! Full backups packed by LZ4, by the two tools that pack by it: the least work for the processor.

use crate::Asked;
use crate::copies::{added, note, push};
use crate::figures::{Goal, Group};
use crate::house::{House, Result};
use crate::others::PgBackRest;
use crate::ours::Cluster;
use crate::servers::Source;

const OURS: &str = "sheetanchor, lz4";
const PGBACKREST: &str = "pgBackRest, lz4";

/// Both back one server up in turn, round by round; pgBackRest, if it is there, into a repository of its own.
pub async fn measure(
    house: &House,
    asked: &Asked,
    title: &str,
    (source, cluster): (&Source, &Cluster),
    is_other_there: bool,
) -> Result<Group> {
    let other = if is_other_there { Some(PgBackRest::new(house, "lz4", source).await?.by_lz4()?) } else { None };
    let mut group = Group::new(title, "s", PGBACKREST, &[OURS]);
    let mut tools = vec![OURS];
    tools.extend(other.is_some().then_some(PGBACKREST));
    for round in 0..=asked.rounds {
        tools.rotate_left(1);
        for tool in &tools {
            let other = other.as_ref().filter(|_| *tool == PGBACKREST);
            source.archive_by(&other.map_or_else(|| "true".to_owned(), PgBackRest::archive_command)).await?;
            source.ready().await?;
            let (time, stored) = match other {
                Some(other) => added(&mut other.backup(), &other.backups).await?,
                None => cluster.backup(&["--compression", "lz4"]).await?,
            };
            source.archive_by("true").await?;
            note(round, title, tool, time);
            if round > 0 {
                push(&mut group, tool, time);
                group.row(tool).note = format!("{:.0} MB", stored as f64 / 1e6);
            }
        }
    }
    let words = "at most 0.6 times pgBackRest's time".to_owned();
    group.goal = Some(Goal { words, row: OURS.to_owned(), bound: 0.6, of_ratio: true });
    Ok(group)
}
