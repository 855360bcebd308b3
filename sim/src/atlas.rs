//! The atlas of silent damage: where bits may rot and writes may get lost or go astray such that an honest answer stays
//! possible, which is the right one or a refusal. Damage that nobody could ever notice proves nothing, and damage to the
//! last good copy leaves nothing to be right about; so a story charts what it gives up, and damage strikes there only.

use crate::bucket::VOLUME;
use crate::gate::{Operation, Volume};
use crate::plan::Damage;

/// What may be damaged. Without a word of the story's, nothing may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Atlas {
    given_up: Vec<(String, Vec<Damage>)>,
    copies: Vec<Vec<String>>,
}

/// Damage that has struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm {
    /// Which kind.
    pub damage: Damage,
    /// The path of the file, or `bucket:` and the key of the object, by the name that it had then.
    pub place: String,
}

impl Atlas {
    /// An atlas in which everything stays whole.
    pub fn closed() -> Self {
        Self::default()
    }

    /// What lies under a prefix may meet damage of these kinds: somebody reads and checks it before anybody relies on it.
    #[must_use]
    pub fn give_up(mut self, under: &str, damage: &[Damage]) -> Self {
        self.given_up.push((under.into(), damage.to_vec()));
        self
    }

    /// Each of these prefixes holds the same truth: one of them stays whole, whatever else is given up.
    #[must_use]
    pub fn keep_one_of(mut self, prefixes: &[String]) -> Self {
        self.copies.push(prefixes.to_vec());
        self
    }

    /// Whether damage may strike a place, after what has struck before.
    pub fn allows(&self, damage: Damage, place: &str, before: &[Harm]) -> bool {
        let given_up = |(under, kinds): &(String, Vec<Damage>)| place.starts_with(under) && kinds.contains(&damage);
        self.given_up.iter().any(given_up) && self.copies.iter().all(|copies| keeps_one(copies, place, before))
    }
}

/// Whether one of several copies is whole after a place is damaged, too.
fn keeps_one(copies: &[String], place: &str, before: &[Harm]) -> bool {
    let is_last = |copy: &String| !place.starts_with(copy) && !before.iter().any(|harm| harm.place.starts_with(copy));
    !copies.iter().any(|copy| place.starts_with(copy)) || copies.iter().any(is_last)
}

/// The place that an operation is about, as an atlas names it.
pub(crate) fn place_of(operation: &Operation<'_>) -> String {
    match operation.volume {
        Volume::Named(VOLUME) => format!("{VOLUME}{}", operation.said.subject),
        Volume::Own | Volume::Named(_) | Volume::Elsewhere => operation.said.subject.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_up_unless_somebody_says_so() {
        for damage in Damage::ALL {
            assert!(!Atlas::closed().allows(damage, "/repo/packs/1", &[]), "{damage:?}");
        }
        let atlas = Atlas::closed().give_up("/repo/", &[Damage::Rot]);
        assert!(atlas.allows(Damage::Rot, "/repo/packs/1", &[]));
        assert!(!atlas.allows(Damage::Lost, "/repo/packs/1", &[]));
        assert!(!atlas.allows(Damage::Rot, "/repository", &[]));
        assert!(!atlas.allows(Damage::Rot, "/shared/db/pages", &[]));
    }

    #[test]
    fn the_last_good_copy_is_refused() {
        let [one, other] = ["/repo/packs/a-", "/repo/packs/b-"].map(String::from);
        let atlas = Atlas::closed().give_up("/repo/", &Damage::ALL).keep_one_of(&[one, other]);
        let harm = |place: &str| Harm { damage: Damage::Rot, place: place.into() };
        let allows = |place: &str, before: &[Harm]| atlas.allows(Damage::Lost, place, before);
        assert!(allows("/repo/packs/a-1", &[]) && allows("/repo/packs/b-1", &[]));
        let first = [harm("/repo/packs/a-1")];
        assert!(allows("/repo/packs/a-1", &first) && allows("/repo/packs/a-2", &first), "what is harmed may be again");
        assert!(!allows("/repo/packs/b-1", &first), "the last one");
        assert!(allows("/repo/wal/1", &first), "a place that is no copy");
        assert!(allows("/repo/packs/b-1", &[harm("/repo/wal/1")]), "damage elsewhere takes no copy");
    }
}
