//! How fast threads are merged, beside a plain read of the same bytes one thread after the other: `cargo bench -p
//! sheetanchor-core --bench merge`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a program that talks to whoever runs it"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use sheetanchor_core::identity::ThreadId;
use sheetanchor_core::merge::{Merge, Step};
use sheetanchor_core::position::Lsn;
use sheetanchor_core::scn::Scn;

const ROUNDS: usize = 7;

/// Records of all threads together.
const RECORDS: u64 = 400_000;

/// Bytes of one record: stamp, and what it says.
const RECORD_BYTES: usize = 128;

/// One thread's WAL. Its stamps rise by a step of their own, so that threads neither take strict turns nor follow each
/// other.
fn wal_of(thread: u64, threads: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut scn = thread;
    for place in 0..RECORDS / threads {
        scn += threads + (place * 7 + thread * 13) % (threads + 1);
        let mut record = [u8::try_from(place % 251).unwrap(); RECORD_BYTES];
        record.first_chunk_mut::<8>().unwrap().copy_from_slice(&scn.to_le_bytes());
        bytes.extend_from_slice(&record);
    }
    bytes
}

/// What recovery does with every record at the least: it looks at all of it.
fn look(record: &[u8]) -> u32 {
    crc32c::crc32c(record)
}

fn read_plainly(threads: &[Vec<u8>]) -> u32 {
    let records = threads.iter().flat_map(|bytes| bytes.chunks_exact(RECORD_BYTES));
    records.map(look).fold(0, u32::wrapping_add)
}

fn read_merged(threads: &[Vec<u8>]) -> u32 {
    let ids: Vec<ThreadId> = (1..).map(ThreadId::new).take(threads.len()).collect();
    let mut places = vec![0_usize; threads.len()];
    let mut merge = Merge::new(Scn::new(u64::MAX - 1), ids);
    let mut sum = 0_u32;
    loop {
        match merge.step() {
            Step::Feed(thread) => {
                let index = usize::from(thread.get()) - 1;
                let place = places.get_mut(index).unwrap();
                let address = |place: usize| Lsn::new(u64::try_from(place * RECORD_BYTES).unwrap());
                let (from, until) = (address(*place), address(*place + 1));
                let record = threads.get(index).unwrap().chunks_exact(RECORD_BYTES).nth(*place);
                let scn = record.map_or(u64::MAX, |record| u64::from_le_bytes(*record.first_chunk().unwrap()));
                merge.feed(thread, Scn::new(scn), from, until, record.unwrap_or_default()).unwrap();
                *place += 1;
            }
            Step::Apply { record, .. } => sum = sum.wrapping_add(look(record)),
            Step::Reached => return sum,
        }
    }
}

fn median(mut times: Vec<Duration>) -> (f64, f64, f64) {
    times.sort_unstable();
    let millions = |time: &Duration| f64::from(u32::try_from(RECORDS).unwrap()) / time.as_secs_f64() / 1e6;
    let (fastest, slowest) = (times.first().unwrap(), times.last().unwrap());
    (millions(times.get(times.len() / 2).unwrap()), millions(slowest), millions(fastest))
}

fn main() {
    println!(
        "{RECORDS} records of {RECORD_BYTES} bytes, millions of records a second: median (slowest to fastest of {ROUNDS})"
    );
    for count in [1, 4, 16, 64] {
        let threads: Vec<Vec<u8>> = (0..count).map(|thread| wal_of(thread, count)).collect();
        let (mut plain, mut merged) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let expected = black_box(read_plainly(&threads));
            plain.push(start.elapsed());
            let start = Instant::now();
            let sum = black_box(read_merged(&threads));
            merged.push(start.elapsed());
            assert_eq!(sum, expected, "every record came once");
        }
        let ((plain, plain_low, plain_high), (merged, low, high)) = (median(plain), median(merged));
        println!(
            "{count:2} threads: merged {merged:6.2} ({low:.2} to {high:.2}), plain {plain:6.2} ({plain_low:.2} to {plain_high:.2}), {:.1} times",
            plain / merged
        );
    }
}
