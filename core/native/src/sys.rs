//! What the system's own library must be asked for, and `rustix` does not offer.
#![allow(unsafe_code, reason = "a call into the C library")]

/// Blocks from this size on are given back to the system as soon as they are freed: packs and segments of WAL are longer,
/// pieces of files shorter.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GIVEN_BACK_BYTES: i32 = 2 << 20;

/// So much freed memory each arena keeps for what comes next. With glibc's 128 KiB every piece of a file would be memory from
/// the system anew: that cost a third more processor time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 4 << 20;

/// Arenas: enough for the threads that hash and compress at once.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: i32 = 4;

/// Keeps memory that was freed from piling up. By default glibc learns from each long block that is freed to keep the next
/// ones, in each of up to eight arenas a core: an agent that used 80 MiB held up to 380. Call it first, and once. Nothing is
/// done where the C library is another.
pub fn give_freed_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, value) in
        [(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_ARENA_MAX, ARENAS)]
    {
        // SAFETY: `mallopt` takes two numbers and touches nothing but the allocator's own settings, under its own lock.
        let taken = unsafe { libc::mallopt(setting, value) };
        // It costs memory if it was not taken, and nothing else.
        if taken != 1 {
            tracing::debug!(setting, value, "the C library did not take a setting of its memory");
        }
    }
}
