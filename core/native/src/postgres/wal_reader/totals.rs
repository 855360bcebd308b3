//! How much of what was read. `pg_waldump --stats` counts the same, which is how the reader is checked.

use std::collections::BTreeMap;

use super::record::RecordHead;

/// Of one resource manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Records.
    pub records: u64,
    /// Their bytes, headers and page images included, alignment and page headers not.
    pub bytes: u64,
}

/// By number of resource manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals(Box<[Total; 256]>);

impl Default for Totals {
    fn default() -> Self {
        Self(Box::new([Total::default(); 256]))
    }
}

impl Totals {
    pub(super) fn add(&mut self, head: &RecordHead) {
        if let Some(total) = self.0.get_mut(usize::from(head.manager)) {
            total.records = total.records.saturating_add(1);
            total.bytes = total.bytes.saturating_add(u64::from(head.total));
        }
    }

    /// Those that have any, by number.
    pub fn by_manager(&self) -> BTreeMap<u8, Total> {
        (0_u8..=u8::MAX).zip(self.0.iter().copied()).filter(|(_, total)| total.records > 0).collect()
    }

    /// Of all resource managers.
    pub fn all(&self) -> Total {
        self.0.iter().fold(Total::default(), |sum, total| Total {
            records: sum.records.saturating_add(total.records),
            bytes: sum.bytes.saturating_add(total.bytes),
        })
    }
}
