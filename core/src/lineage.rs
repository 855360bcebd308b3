//! The tree of incarnations, and the way through it that leads to one of them. What an ancestor wrote beyond the branch
//! is on another way: it counts for nothing here.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

use crate::format::catalog::{Cut, IncarnationObject, IncarnationState, Opened};
use crate::identity::Incarnation;
use crate::planted::{self, Bug};
use crate::refusal::{Code, Refusal};
use crate::scn::Scn;
use crate::time::WallMillis;

/// Every incarnation that was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    opened: BTreeMap<Incarnation, Opened>,
}

/// The incarnations from the first one to a chosen one, each up to where the next branched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    stretches: Vec<Stretch>,
}

/// What a way has of one incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Which.
    pub incarnation: Incarnation,
    /// Its clock started above this.
    pub floor: Scn,
    /// What its clock added to wall time, in milliseconds.
    pub offset_ms: u64,
    /// Where the way leaves it; `None` for the last one.
    pub leaves: Option<Cut>,
}

impl Lineage {
    /// The tree that these objects make; tombstones are no part of it.
    ///
    /// # Errors
    /// `SA002` if a branch has no parent, or one that is not older.
    pub fn of(objects: &[IncarnationObject]) -> Result<Self, Refusal> {
        let opened: BTreeMap<Incarnation, Opened> = objects
            .iter()
            .filter_map(|object| match &object.state {
                IncarnationState::Opened(opened) => Some((object.incarnation, opened.clone())),
                IncarnationState::Aborted(_) => None,
            })
            .collect();
        for (number, of) in &opened {
            let Some(branch) = &of.branch else { continue };
            if branch.parent >= *number || !opened.contains_key(&branch.parent) {
                let message = format!("incarnation {number} branches off {}, which is no ancestor", branch.parent);
                return Err(Refusal::new(Code::Damaged, message));
            }
        }
        Ok(Self { opened })
    }

    /// The way to `incarnation`.
    ///
    /// # Errors
    /// `SA301` if it was never opened.
    pub fn way_to(&self, incarnation: Incarnation) -> Result<Way, Refusal> {
        let mut stretches = Vec::new();
        let mut next = Some((incarnation, None));
        while let Some((number, leaves)) = next {
            let Some(opened) = self.opened.get(&number) else {
                let message = format!("there is no incarnation {number}");
                return Err(Refusal::new(Code::NoSuchTarget, message));
            };
            let (floor, offset_ms) = (opened.scn_floor, opened.scn_offset_ms);
            stretches.push(Stretch { incarnation: number, floor, offset_ms, leaves });
            next = opened.branch.as_ref().map(|branch| (branch.parent, Some(branch.cut.clone())));
        }
        stretches.reverse();
        Ok(Way { stretches })
    }

    /// The incarnations that branched off `incarnation`, ascending.
    pub fn children(&self, incarnation: Incarnation) -> Vec<Incarnation> {
        let of = |opened: &Opened| opened.branch.as_ref().is_some_and(|branch| branch.parent == incarnation);
        self.opened.iter().filter(|(_, opened)| of(opened)).map(|(number, _)| *number).collect()
    }
}

impl Way {
    /// A way inside one incarnation: whatever lies before it does not matter.
    pub fn within(incarnation: Incarnation) -> Self {
        Self { stretches: Vec::from([Stretch { incarnation, floor: Scn::ZERO, offset_ms: 0, leaves: None }]) }
    }

    /// The incarnation that it leads to.
    pub fn end(&self) -> Incarnation {
        self.stretches.last().map(|stretch| stretch.incarnation).unwrap_or_default()
    }

    /// Its stretches, the oldest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// What it has of one incarnation.
    pub fn stretch(&self, incarnation: Incarnation) -> Option<&Stretch> {
        self.stretches.iter().find(|stretch| stretch.incarnation == incarnation)
    }

    /// The stretches from one incarnation through another; none if they do not follow on this way.
    pub fn between(&self, from: Incarnation, through: Incarnation) -> Vec<&Stretch> {
        let on = self.stretch(from).is_some() && self.stretch(through).is_some();
        let inside = |stretch: &&Stretch| on && (from..=through).contains(&stretch.incarnation);
        self.stretches.iter().filter(inside).collect()
    }

    /// Whether a cut in `incarnation` lies on this way: at or before the place where it is left.
    pub fn holds(&self, incarnation: Incarnation, cut: &Cut) -> bool {
        match self.stretch(incarnation) {
            None => false,
            Some(stretch) => stretch.leaves.as_ref().is_none_or(|leaves| {
                let stamped = leaves.scn != Scn::ZERO && cut.scn <= leaves.scn;
                planted::is(Bug::BranchCutIgnored) || cut == leaves || stamped || leaves.is_after(cut)
            }),
        }
    }

    /// The incarnation whose stretch an SCN falls in. The branch cut itself still belongs to the ancestor; a descendant
    /// begins above its floor.
    ///
    /// # Errors
    /// `SA306` between two stretches.
    pub fn place_of(&self, scn: Scn) -> Result<Incarnation, Refusal> {
        for stretch in &self.stretches {
            if scn <= stretch.floor && stretch.floor != Scn::ZERO {
                return Err(self.nowhere(scn, stretch));
            }
            if stretch.leaves.as_ref().is_none_or(|leaves| scn <= leaves.scn) {
                return Ok(stretch.incarnation);
            }
        }
        Ok(self.end())
    }

    fn nowhere(&self, scn: Scn, next: &Stretch) -> Refusal {
        let before = self.stretches.iter().take_while(|stretch| *stretch != next).last();
        let message = match before {
            Some(Stretch { incarnation, leaves: Some(leaves), .. }) => format!(
                "SCN {scn} lies beyond {}, where incarnation {} branched off, and not above {}, where it began: only \
                 incarnation {incarnation} went on there",
                leaves.scn, next.incarnation, next.floor
            ),
            Some(_) | None => format!("SCN {scn} lies below {}, where this history began", next.floor),
        };
        Refusal::new(Code::BetweenIncarnations, message)
    }

    /// The last state whose stamps' wall time is at or before `time`: an incarnation, and an SCN in it that is inclusive.
    /// Between the branch cut and the first stamp of the descendant that is the branch cut.
    ///
    /// # Errors
    /// `SA302` before the first incarnation began.
    pub fn place_at(&self, time: WallMillis) -> Result<(Incarnation, Scn), Refusal> {
        for stretch in self.stretches.iter().rev() {
            let last = last_stamp_at(time, stretch.offset_ms);
            if last > stretch.floor {
                let leaves = stretch.leaves.as_ref().map(|leaves| leaves.scn);
                return Ok((stretch.incarnation, leaves.map_or(last, |leaves| last.min(leaves))));
            }
        }
        Err(Refusal::new(Code::NoBackup, format!("nothing was stamped at or before {} ms", time.get())))
    }
}

/// The highest SCN whose wall time is `time`, in an incarnation that adds `offset_ms`.
fn last_stamp_at(time: WallMillis, offset_ms: u64) -> Scn {
    let millis = time.get().saturating_add(offset_ms).min((1 << 48) - 1);
    Scn::new(Scn::at(WallMillis::new(millis)).get() | 0xFFFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::catalog::{Abort, Branch};
    use crate::identity::{Membership, Nonce};
    use alloc::string::String;

    fn cut(scn: u64) -> Cut {
        Cut { record: String::new(), scn: Scn::new(scn), threads: BTreeMap::new() }
    }

    fn number(number: u32) -> Incarnation {
        Incarnation::new(number)
    }

    fn object(incarnation: u32, parent: Option<(u32, u64)>, floor: u64, offset_ms: u64) -> IncarnationObject {
        let branch = parent.map(|(parent, scn)| Branch { cut: cut(scn), parent: number(parent) });
        let opened = Opened {
            branch,
            membership: Membership::new(1),
            origin: None,
            opened_ms: WallMillis::new(0),
            scn_floor: Scn::new(floor),
            scn_offset_ms: offset_ms,
        };
        let state = IncarnationState::Opened(opened);
        IncarnationObject { incarnation: number(incarnation), nonce: Nonce::new(1), restore: None, state }
    }

    /// 1 at 100 → 2 (above 200) at 300 → 4 (above 500); 1 at 50 → 3 (above 400); 5 was never opened.
    fn tree() -> Lineage {
        let dead = IncarnationState::Aborted(Abort { code: "SA212".into(), message: String::new() });
        let objects = [
            object(1, None, 0, 0),
            object(2, Some((1, 100)), 200, 0),
            object(3, Some((1, 50)), 400, 0),
            object(4, Some((2, 300)), 500, 0),
            IncarnationObject { state: dead, ..object(5, None, 0, 0) },
        ];
        Lineage::of(&objects).unwrap()
    }

    #[test]
    fn a_way_leads_from_the_first_incarnation_and_leaves_each_at_its_branch() {
        let way = tree().way_to(number(4)).unwrap();
        let seen: Vec<(u32, Option<u64>)> = way
            .stretches()
            .iter()
            .map(|stretch| (stretch.incarnation.get(), stretch.leaves.as_ref().map(|cut| cut.scn.get())))
            .collect();
        assert_eq!(seen, [(1, Some(100)), (2, Some(300)), (4, None)]);
        assert_eq!(way.between(number(2), number(4)).len(), 2);
        assert!(way.between(number(1), number(3)).is_empty(), "3 is on another way");
        assert_eq!(tree().children(number(1)), [number(2), number(3)]);
        for missing in [5, 6] {
            assert_eq!(tree().way_to(number(missing)).unwrap_err().code, Code::NoSuchTarget);
        }
    }

    #[test]
    fn the_branch_cut_is_on_the_way_and_what_lies_beyond_is_not() {
        let way = tree().way_to(number(4)).unwrap();
        for (incarnation, scn, on) in
            [(1, 99, true), (1, 100, true), (1, 101, false), (2, 300, true), (2, 301, false), (3, 40, false)]
        {
            assert_eq!(way.holds(number(incarnation), &cut(scn)), on, "{scn} in {incarnation}");
        }
        assert!(way.holds(number(4), &cut(9_999)));
    }

    #[test]
    fn every_scn_has_one_place_on_a_way_or_none() {
        let way = tree().way_to(number(4)).unwrap();
        for (scn, place) in [
            (1, Ok(1)),
            (100, Ok(1)),
            (101, Err(Code::BetweenIncarnations)),
            (200, Err(Code::BetweenIncarnations)),
            (201, Ok(2)),
            (300, Ok(2)),
            (301, Err(Code::BetweenIncarnations)),
            (500, Err(Code::BetweenIncarnations)),
            (501, Ok(4)),
        ] {
            let found = way.place_of(Scn::new(scn));
            assert_eq!(found.map(Incarnation::get).map_err(|refusal| refusal.code), place, "{scn}");
        }
        assert_eq!(tree().way_to(number(1)).unwrap().place_of(Scn::new(101)), Ok(number(1)));
    }

    #[test]
    fn a_time_is_the_last_stamp_at_or_before_it_less_the_offset() {
        let at = |ms: u64| Scn::at(WallMillis::new(ms)).get();
        // Opened at wall time 2000, when the history had run ahead to 5000: it adds 3000.
        let objects = [object(1, None, 0, 0), object(2, Some((1, at(1_000))), at(5_000), 3_000)];
        let way = Lineage::of(&objects).unwrap().way_to(number(2)).unwrap();
        for (time, place) in [
            (900, (1, at(900) | 0xFFFF)),
            (1_000, (1, at(1_000))),
            (1_500, (1, at(1_000))),
            (1_999, (1, at(1_000))),
            (2_000, (2, at(5_000) | 0xFFFF)),
            (2_500, (2, at(5_500) | 0xFFFF)),
        ] {
            let (incarnation, scn) = way.place_at(WallMillis::new(time)).unwrap();
            assert_eq!((incarnation.get(), scn.get()), place, "{time}");
        }
    }

    #[test]
    fn a_branch_without_its_parent_is_damage() {
        for objects in [[object(2, Some((1, 5)), 0, 0)], [object(2, Some((2, 5)), 0, 0)]] {
            assert_eq!(Lineage::of(&objects).unwrap_err().code, Code::Damaged);
        }
    }
}
