//! What the system's own library must be asked for, and `rustix` does not offer.
#![allow(unsafe_code, reason = "a call into the C library")]

/// Blocks from this size on are given back to the system as soon as they are freed: packs and segments of WAL are longer,
/// pieces of files shorter.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GIVEN_BACK_BYTES: i32 = 2 << 20;

/// Keeps memory that was freed from piling up. By default glibc learns from each long block that is freed to keep the next
/// ones, in each of up to eight arenas a core: an agent that used 80 MiB held up to 380. Call it first, and once. Nothing is
/// done where the C library is another.
pub fn give_freed_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: `mallopt` takes two numbers and touches nothing but the allocator's own settings, under its own lock.
        let taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES) };
        // It costs memory if it was not taken, and nothing else.
        if taken != 1 {
            tracing::debug!("the C library did not take the size from which on memory is given back");
        }
    }
}
