//! Silent damage in store for the operations of hosts.

use super::{Met, Operation};
use crate::atlas::{Atlas, Harm, place_of};
use crate::plan::Damage;

/// What is in store, where it may strike, and what has struck.
#[derive(Debug, Default)]
pub(super) struct Silent {
    /// By host, in the order in which they were armed: each meets one operation.
    armed: Vec<(String, Damage, u64)>,
    atlas: Atlas,
    harm: Vec<Harm>,
}

impl Silent {
    pub(super) fn arm(&mut self, host: String, damage: Damage, draw: u64) {
        self.armed.push((host, damage, draw));
    }

    pub(super) fn chart(&mut self, atlas: Atlas) {
        self.atlas = atlas;
    }

    pub(super) fn struck(&mut self, harm: Harm) {
        self.harm.push(harm);
    }

    pub(super) fn harm(&self) -> &[Harm] {
        &self.harm
    }

    pub(super) fn meets(&mut self, host: &str, operation: &Operation<'_>) -> Option<Met> {
        if self.armed.is_empty() {
            return None;
        }
        let place = place_of(operation);
        let strikes = |(whose, damage, _): &(String, Damage, u64)| {
            whose == host && fits(*damage, operation) && self.atlas.allows(*damage, &place, &self.harm)
        };
        let found = self.armed.iter().position(strikes)?;
        let (_, damage, draw) = self.armed.remove(found);
        Some(Met::Silent(damage, draw))
    }
}

/// Whether an operation is one that damage waits for.
fn fits(damage: Damage, operation: &Operation<'_>) -> bool {
    match damage {
        Damage::Rot => matches!(operation.said.verb, "disk read" | "bucket get"),
        Damage::Lost => matches!(operation.said.verb, "disk write" | "bucket put"),
        Damage::Astray => operation.said.verb == "disk write",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::VOLUME;
    use crate::gate::{Kind, Said, Volume};

    fn operation(verb: &'static str, path: &'static str) -> Operation<'static> {
        let volume = if verb.starts_with("bucket") { Volume::Named(VOLUME) } else { Volume::Own };
        Operation { kind: Kind::Read, volume, said: Said::of(verb, path) }
    }

    #[test]
    fn damage_waits_for_an_operation_of_its_host_that_it_fits_and_the_atlas_allows() {
        let (read, write) = (operation("disk read", "/a/1"), operation("disk write", "/a/1"));
        for (damage, fits, passes_by) in
            [(Damage::Rot, read, write), (Damage::Lost, write, read), (Damage::Astray, write, read)]
        {
            let mut silent = Silent::default();
            silent.arm("n1".into(), damage, 7);
            assert_eq!(silent.meets("n1", &fits), None, "nothing is charted");
            silent.chart(Atlas::closed().give_up("/a/", &Damage::ALL));
            assert_eq!((silent.meets("n2", &fits), silent.meets("n1", &passes_by)), (None, None), "{damage:?}");
            assert_eq!(silent.meets("n1", &operation(fits.said.verb, "/b/1")), None, "elsewhere");
            assert_eq!(silent.meets("n1", &fits), Some(Met::Silent(damage, 7)));
            assert_eq!(silent.meets("n1", &fits), None, "once");
        }
    }

    #[test]
    fn objects_of_a_store_are_charted_by_their_keys() {
        let mut silent = Silent::default();
        silent.chart(Atlas::closed().give_up("bucket:packs/", &Damage::ALL));
        for (damage, verb) in [(Damage::Rot, "bucket get"), (Damage::Lost, "bucket put")] {
            silent.arm("n1".into(), damage, 0);
            assert_eq!(silent.meets("n1", &operation(verb, "wal/1")), None);
            assert_eq!(silent.meets("n1", &operation(verb, "packs/1")), Some(Met::Silent(damage, 0)));
        }
        silent.arm("n1".into(), Damage::Astray, 0);
        assert_eq!(silent.meets("n1", &operation("bucket put", "packs/1")), None, "no store misdirects");
    }

    #[test]
    fn what_has_struck_stands_in_the_way_of_the_last_copy() {
        let mut silent = Silent::default();
        let copies = ["/a/1".to_owned(), "/a/2".to_owned()];
        silent.chart(Atlas::closed().give_up("/a/", &Damage::ALL).keep_one_of(&copies));
        silent.struck(Harm { damage: Damage::Rot, place: "/a/1".into() });
        silent.arm("n1".into(), Damage::Rot, 0);
        assert_eq!(silent.meets("n1", &operation("disk read", "/a/2")), None);
        assert!(silent.meets("n1", &operation("disk read", "/a/1")).is_some());
    }
}
