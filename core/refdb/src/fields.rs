//! Fixed-width little-endian fields in byte slices, read and written without panicking on bytes from disk.

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The word at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The half word at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Copies `field` to `at`; whoever calls owns a buffer that is large enough.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    let place = at.checked_add(field.len()).and_then(|until| bytes.get_mut(at..until));
    assert!(place.is_some(), "a field of {} bytes at {at} lies within its buffer", field.len());
    if let Some(place) = place {
        place.copy_from_slice(field);
    }
}

/// A length in memory as a 64-bit number.
pub(crate) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A 64-bit number as a length in memory; one that no memory has becomes the largest.
pub(crate) fn length(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
