//! The bytes of one file: those on the disk, and changes above them that a crash may take.

use super::loss::Loss;
use crate::chance::Chance;
use crate::host::HostId;
use crate::plan::CrashPolicy;

/// What happens to a change that has not been synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A sync makes it durable, a crash of its writer may take it.
    Dirty,
    /// It is durable; it is kept apart only because an older change is not.
    Durable,
    /// A failed sync gave it up: readable until its writer crashes, and never written.
    Lost,
}

/// How far apart the places are at which a write that goes astray may land.
const ASTRAY_BYTES: usize = 4096;

/// The bytes of a file. Changes stand in the order in which they were made, whoever made them.
#[derive(Debug, Default)]
pub(super) struct Content {
    base: Vec<u8>,
    changes: Vec<Change>,
    /// What readers see: `base` and all changes.
    seen: Vec<u8>,
}

#[derive(Debug)]
struct Change {
    writer: HostId,
    fate: Fate,
    what: What,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        length: usize,
    },
    /// The file is at least that long: what a write leaves of which only the new length has reached the disk.
    Reach {
        length: usize,
    },
}

impl What {
    fn written(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len(),
            Self::Truncate { .. } | Self::Reach { .. } => 0,
        }
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes: written } => {
                let end = offset.saturating_add(written.len());
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                if let Some(place) = bytes.get_mut(*offset..end) {
                    place.copy_from_slice(written);
                }
            }
            Self::Truncate { length } => bytes.resize(*length, 0),
            Self::Reach { length } => bytes.resize(bytes.len().max(*length), 0),
        }
    }
}

impl Content {
    pub(super) fn length(&self) -> usize {
        self.seen.len()
    }

    /// The length on the disk, counting nothing that is unsynced.
    pub(super) fn durable_length(&self) -> usize {
        let mut bytes = self.base.clone();
        for change in self.changes.iter().filter(|change| change.fate == Fate::Durable) {
            change.what.apply(&mut bytes);
        }
        bytes.len()
    }

    /// Bytes that `writer` wrote and that no sync has made durable.
    pub(super) fn unsynced_by(&self, writer: HostId) -> usize {
        let unsynced = self.changes.iter().filter(|change| change.writer == writer && change.fate != Fate::Durable);
        unsynced.map(|change| change.what.written()).sum()
    }

    pub(super) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let from = offset.min(self.seen.len());
        let until = offset.saturating_add(length).min(self.seen.len());
        self.seen.get(from..until).unwrap_or_default().to_vec()
    }

    /// Reads into `place`; answers how many bytes there were.
    pub(super) fn read_into(&self, offset: usize, place: &mut [u8]) -> usize {
        let bytes = self.seen.get(offset.min(self.seen.len())..).unwrap_or_default();
        let count = bytes.len().min(place.len());
        for (to, from) in place.iter_mut().zip(bytes) {
            *to = *from;
        }
        count
    }

    pub(super) fn write(&mut self, writer: HostId, offset: usize, bytes: Vec<u8>) {
        self.change(writer, What::Write { offset, bytes });
    }

    pub(super) fn truncate(&mut self, writer: HostId, length: usize) {
        self.change(writer, What::Truncate { length });
    }

    /// A write that is lost: the file is as long as it would be, and none of the bytes are there.
    pub(super) fn lose(&mut self, writer: HostId, offset: usize, count: usize) {
        self.change(writer, What::Reach { length: offset.saturating_add(count) });
    }

    /// A write that lands at another place, a whole number of sectors away from its own.
    pub(super) fn go_astray(&mut self, writer: HostId, offset: usize, bytes: Vec<u8>, draw: u64) {
        self.lose(writer, offset, bytes.len());
        let sectors = self.length().div_ceil(ASTRAY_BYTES).saturating_add(1);
        let sector = usize::try_from(draw).unwrap_or(usize::MAX) % sectors;
        let landed = sector * ASTRAY_BYTES + offset % ASTRAY_BYTES;
        let landed = if landed == offset { landed.saturating_add(ASTRAY_BYTES) } else { landed };
        self.write(writer, landed, bytes);
    }

    /// Flips a bit at rest, among those of `count` bytes from `offset` on: on the disk, and in what is on its way there.
    pub(super) fn rot(&mut self, offset: usize, count: usize, draw: u64) {
        let there = count.min(self.length().saturating_sub(offset));
        let bits = there.saturating_mul(8);
        let Some(bit) = usize::try_from(draw).unwrap_or(usize::MAX).checked_rem(bits) else { return };
        let (at, mask) = (offset + bit / 8, 1 << (bit % 8));
        let flip = |bytes: &mut Vec<u8>, at: usize| bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask);
        flip(&mut self.base, at);
        flip(&mut self.seen, at);
        for change in &mut self.changes {
            if let What::Write { offset, bytes } = &mut change.what
                && let Some(within) = at.checked_sub(*offset)
            {
                flip(bytes, within);
            }
        }
    }

    fn change(&mut self, writer: HostId, what: What) {
        what.apply(&mut self.seen);
        self.changes.push(Change { writer, fate: Fate::Dirty, what });
    }

    /// Makes everything durable that no failed sync gave up, whoever wrote it, as fsync on a shared file system does.
    pub(super) fn sync(&mut self) {
        self.settle(Fate::Durable, |_| true);
        self.fold();
    }

    /// A sync of `writer` that fails: what its cache holds is given up without another word. Other hosts have their own.
    pub(super) fn fail_sync(&mut self, writer: HostId) {
        self.settle(Fate::Lost, |change| change.writer == writer);
    }

    fn settle(&mut self, fate: Fate, which: impl Fn(&Change) -> bool) {
        for change in self.changes.iter_mut().filter(|change| change.fate == Fate::Dirty && which(change)) {
            change.fate = fate;
        }
    }

    /// Takes the unsynced changes of `writer` as its crash does. Those of others stay as they are.
    pub(super) fn crash(&mut self, writer: HostId, policy: CrashPolicy, chance: &Chance) {
        if policy == CrashPolicy::ProcessOnly || !self.changes.iter().any(|change| change.writer == writer) {
            return;
        }
        let dirty = self.changes.iter().filter(|change| change.writer == writer && change.fate == Fate::Dirty).count();
        let mut loss = Loss::of(policy, dirty, chance);
        for change in core::mem::take(&mut self.changes) {
            let own = change.writer == writer;
            match change.fate {
                Fate::Lost if own => {}
                Fate::Dirty if own => {
                    let spared = loss.spares(change.what, chance).into_iter();
                    self.changes.extend(spared.map(|what| Change { writer, fate: Fate::Durable, what }));
                }
                Fate::Dirty | Fate::Durable | Fate::Lost => self.changes.push(change),
            }
        }
        self.fold();
        self.seen.clone_from(&self.base);
        for change in &self.changes {
            change.what.apply(&mut self.seen);
        }
    }

    /// Moves durable changes that no other one lies below into the base.
    fn fold(&mut self) {
        let settled = self.changes.iter().take_while(|change| change.fate == Fate::Durable).count();
        for change in self.changes.drain(..settled) {
            change.what.apply(&mut self.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Concern;

    const A: HostId = HostId::new(0);
    const B: HostId = HostId::new(1);

    fn chance() -> Chance {
        Chance::of(1, Concern::Crash)
    }

    fn written(parts: &[(HostId, usize, &[u8])]) -> Content {
        let mut content = Content::default();
        for (writer, offset, bytes) in parts {
            content.write(*writer, *offset, bytes.to_vec());
        }
        content
    }

    fn all(content: &Content) -> Vec<u8> {
        content.read(0, usize::MAX)
    }

    #[test]
    fn synced_bytes_survive_and_unsynced_ones_go() {
        let mut content = written(&[(A, 0, b"synced")]);
        content.sync();
        content.write(A, 6, b" and not".to_vec());
        assert_eq!(all(&content), b"synced and not");
        content.crash(A, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"synced");
    }

    #[test]
    fn keep_all_makes_everything_durable() {
        let mut content = written(&[(A, 0, b"one")]);
        content.crash(A, CrashPolicy::KeepAll, &chance());
        content.crash(A, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"one");
    }

    #[test]
    fn a_killed_process_leaves_its_writes_unsynced() {
        let mut content = written(&[(A, 0, b"one")]);
        content.crash(A, CrashPolicy::ProcessOnly, &chance());
        assert_eq!(all(&content), b"one");
        content.crash(A, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"");
    }

    #[test]
    fn a_crash_takes_the_writes_of_its_own_host_only() {
        let mut content = written(&[(A, 0, b"aaaa"), (B, 2, b"bb"), (A, 3, b"A")]);
        content.crash(A, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"\0\0bb");
        content.crash(B, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"");
    }

    #[test]
    fn what_survives_one_crash_keeps_its_place_among_the_others_writes() {
        let mut content = written(&[(B, 0, b"b"), (A, 0, b"a")]);
        content.crash(A, CrashPolicy::KeepAll, &chance());
        assert_eq!(all(&content), b"a", "the later write stays on top");
        content.crash(B, CrashPolicy::KeepAll, &chance());
        assert_eq!(all(&content), b"a");
    }

    #[test]
    fn a_sync_of_one_host_covers_the_writes_of_all() {
        let mut content = written(&[(A, 0, b"a"), (B, 1, b"b")]);
        content.sync();
        content.crash(A, CrashPolicy::DropAll, &chance());
        content.crash(B, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"ab");
    }

    #[test]
    fn after_a_failed_sync_a_good_one_brings_nothing_back() {
        let mut content = written(&[(A, 0, b"first")]);
        content.fail_sync(A);
        content.write(A, 5, b"second".to_vec());
        content.sync();
        assert_eq!(all(&content), b"firstsecond", "still readable");
        content.crash(A, CrashPolicy::KeepAll, &chance());
        assert_eq!(all(&content), b"\0\0\0\0\0second");
    }

    #[test]
    fn a_failed_sync_gives_up_what_its_own_host_has_written() {
        let mut content = written(&[(A, 0, b"mine"), (B, 4, b"theirs")]);
        content.fail_sync(B);
        content.sync();
        content.crash(A, CrashPolicy::DropAll, &chance());
        content.crash(B, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"mine");
    }

    #[test]
    fn a_torn_prefix_is_whole_writes_then_whole_sectors_of_the_next() {
        let body: Vec<u8> = (1..=255).cycle().take(20_000).collect();
        let chance = chance();
        let mut lengths = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut content = Content::default();
            content.write(A, 0, body[..100].to_vec());
            content.write(A, 100, body[100..].to_vec());
            content.crash(A, CrashPolicy::TornPrefix, &chance);
            let left = all(&content);
            assert_eq!(left, body[..left.len()], "a prefix");
            assert!(left.len().is_multiple_of(512) || left.len() == 100 || left.len() == body.len(), "{}", left.len());
            lengths.insert(left.len());
        }
        assert!(lengths.contains(&0) && lengths.contains(&100) && lengths.contains(&body.len()), "{lengths:?}");
        assert!(lengths.len() > 10, "many places to tear at: {lengths:?}");
    }

    #[test]
    fn any_sectors_leaves_holes_and_nothing_that_was_never_written() {
        let body: Vec<u8> = (1..=255).cycle().take(8 * 512).collect();
        let chance = chance();
        let (mut holes, mut whole) = (0, 0);
        for _ in 0..200 {
            let mut content = written(&[(A, 0, &body)]);
            content.crash(A, CrashPolicy::AnySectors, &chance);
            let left = all(&content);
            for (was, is) in body.chunks(512).zip(left.chunks(512)) {
                assert!(is == was || is.iter().all(|byte| *byte == 0), "a sector is there or not");
            }
            holes += u32::from(left.starts_with(&[0]) && left.iter().any(|byte| *byte != 0));
            whole += u32::from(left == body);
        }
        assert!(holes > 20 && whole > 0, "{holes} holes, {whole} whole");
    }

    #[test]
    fn size_first_leaves_zeros_and_names_first_leaves_nothing() {
        for (policy, left) in [(CrashPolicy::SizeFirst, "old\0\0\0"), (CrashPolicy::NamesFirst, "old")] {
            let mut content = written(&[(A, 0, b"old")]);
            content.sync();
            content.write(A, 3, b"new".to_vec());
            content.crash(A, policy, &chance());
            assert_eq!(all(&content), left.as_bytes(), "{policy:?}");
        }
    }

    #[test]
    fn one_bit_rots_among_those_that_are_read_and_stays_so_through_a_crash() {
        let body: Vec<u8> = (0..=255).cycle().take(600).collect();
        for synced in [false, true] {
            for draw in 0..500 {
                let mut content = written(&[(A, 0, &body), (A, 100, &body[100..200])]);
                if synced {
                    content.sync();
                }
                content.rot(90, 30, draw);
                let seen = all(&content);
                let flipped: Vec<(usize, u8)> =
                    (0..600).map(|at| (at, seen[at] ^ body[at])).filter(|(_, bits)| *bits != 0).collect();
                let [(at, bits)] = flipped[..] else { panic!("{flipped:?}") };
                assert!((90..120).contains(&at) && bits.is_power_of_two(), "byte {at}: {bits:b}");
                content.crash(A, CrashPolicy::KeepAll, &chance());
                assert_eq!(all(&content), seen);
            }
        }
        let mut content = written(&[(A, 0, b"four")]);
        content.rot(4, 30, 3);
        assert_eq!(all(&content), b"four", "nothing is read there");
    }

    #[test]
    fn a_lost_write_leaves_the_length_and_what_was_there() {
        let mut content = written(&[(A, 0, b"older")]);
        content.lose(A, 3, 6);
        assert_eq!(all(&content), b"older\0\0\0\0");
        content.sync();
        content.crash(A, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"older\0\0\0\0");
    }

    #[test]
    fn a_write_that_goes_astray_lands_once_sectors_away_from_its_place() {
        let mut landed = std::collections::BTreeSet::new();
        for draw in 0..40 {
            let mut content = written(&[(A, 0, &[1; 9_000])]);
            content.go_astray(A, 4_200, vec![2; 10], draw);
            let left = all(&content);
            let from = left.iter().position(|byte| *byte == 2).unwrap();
            assert!(from != 4_200 && from % 4_096 == 4_200 % 4_096, "{from}");
            assert_eq!(left[from..from + 10], [2; 10]);
            assert!((0..9_000).all(|at| left[at] == if (from..from + 10).contains(&at) { 2 } else { 1 }));
            landed.insert(from);
        }
        assert_eq!(landed.len(), 3, "{landed:?}");
        let mut fresh = Content::default();
        fresh.go_astray(A, 0, b"new".to_vec(), 0);
        assert_eq!((all(&fresh).len(), &all(&fresh)[..3]), (4_099, &[0; 3][..]), "beyond a file that was empty");
    }

    #[test]
    fn a_truncation_is_lost_or_kept_like_a_write() {
        let mut content = written(&[(A, 0, b"0123456789")]);
        content.sync();
        content.truncate(A, 3);
        assert_eq!(all(&content), b"012");
        content.crash(A, CrashPolicy::DropAll, &chance());
        assert_eq!(all(&content), b"0123456789");
    }
}
