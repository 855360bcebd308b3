//! The ways to say which cut is wanted: by its name, its SCN, an SCN behind it, or a time. Each must end at the very cut
//! that is meant.

use sheetanchor_core::time::WallMillis;

use super::catalog::{Listed, Published};
use super::chance::Chance;

/// A cut, and what is said to be restored to it.
#[derive(Clone, Debug)]
pub struct Aim {
    pub cut: Listed,
    /// What it is called where the restores of a run are counted.
    pub kind: &'static str,
    /// Arguments of `restore`.
    pub arguments: Vec<String>,
}

impl Aim {
    /// By its name.
    pub fn named(cut: &Listed, current: u32) -> Self {
        let kind = if cut.target.starts_with("backup:") { "backup" } else { "name" };
        Self::of(cut, kind, current, &["--to", &cut.target])
    }

    /// In one of all ways. By what lies behind a cut only from all that is published, and if nothing more is until it is
    /// restored to.
    pub fn drawn(
        cut: &Listed,
        current: u32,
        chance: &mut Chance,
        all: &[Listed],
        published: Option<&[Published]>,
    ) -> Self {
        match (chance.below(6), published) {
            (0, _) => Self::of(cut, "SCN", current, &["--scn", &cut.scn.to_string()]),
            // The next cut may have the very next SCN, where a clock was ahead.
            (1, Some(published)) if published.iter().all(|point| point.scn != cut.scn.next()) => {
                let behind = cut.scn.next().to_string();
                Self::of(cut, "SCN behind a cut", current, &["--scn", &behind, "--nearest-before"])
            }
            (2 | 3, Some(published)) => {
                Self::by_time(cut, current, all, published).unwrap_or_else(|| Self::named(cut, current))
            }
            _ => Self::named(cut, current),
        }
    }

    /// By the time at which a cut was made, as its coordinator's clock had it: that clock may have been ahead, and then
    /// another cut is meant, the newest that claims no later time.
    fn by_time(cut: &Listed, current: u32, all: &[Listed], published: &[Published]) -> Option<Self> {
        let own = published.iter().find(|point| point.scn == cut.scn)?;
        let claims = |point: &&Published| {
            point.is_target && point.incarnation == cut.incarnation && point.ended_ms <= own.ended_ms
        };
        let meant = published.iter().filter(claims).max_by_key(|point| point.scn)?;
        // The cut of a backup that was not sealed is a target, too, but we do not know when it was made.
        let meant = all.iter().find(|listed| listed.scn == meant.scn)?;
        let time = WallMillis::new(own.ended_ms).to_string();
        Some(Self::of(meant, "time", current, &["--time", &time, "--nearest-before"]))
    }

    fn of(cut: &Listed, kind: &'static str, current: u32, arguments: &[&str]) -> Self {
        let mut arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        if cut.incarnation != current {
            arguments.extend(["--incarnation".to_owned(), cut.incarnation.to_string()]);
        }
        Self { cut: cut.clone(), kind, arguments }
    }
}
