//! How fast WAL is proven, beside `pg_waldump --stats` on the same segments: `cargo bench -p sheetanchor-native --bench
//! wal_reader -- FOLDER`, where FOLDER holds whole segments of one timeline, as an archive command leaves them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that talks to whoever runs it")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sheetanchor_core::identity::TimelineId;
use sheetanchor_core::position::Lsn;
use sheetanchor_native::postgres::wal_reader::{Noted, Origin, Reader, SegmentSize, Sink, Touch};

const ROUNDS: usize = 7;

/// How many changes there were.
#[derive(Default)]
struct Touches(u64);

impl Sink for Touches {
    const TOUCHES: bool = true;

    fn noted(&mut self, _noted: Noted) {}

    fn touched(&mut self, _touch: Touch) {
        self.0 = self.0.saturating_add(1);
    }
}

fn main() {
    let Some(folder) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        println!("which folder of segments?");
        return;
    };
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let segments: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let word = |at: usize| u64::from_ne_bytes(*segments.first().unwrap().get(at..).unwrap().first_chunk().unwrap());
    let size = SegmentSize::new(segments.first().unwrap().len().try_into().unwrap()).unwrap();
    let origin = Origin { system: word(24), segment: size, timeline: TimelineId::new(1) };
    let total: u64 = segments.iter().map(|bytes| u64::try_from(bytes.len()).unwrap()).sum();
    let (mut ours, mut touching, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut records, mut touches) = (0, 0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut reader = Reader::at_page_of(origin, Lsn::new(word(8)));
        for segment in &segments {
            reader.feed(segment, &mut |_| ()).unwrap();
        }
        ours.push(start.elapsed());
        records = reader.totals().all().records;
        let start = Instant::now();
        let (mut reader, mut sink) = (Reader::at_page_of(origin, Lsn::new(word(8))), Touches::default());
        for segment in &segments {
            reader.read(segment, &mut sink).unwrap();
        }
        touching.push(start.elapsed());
        touches = sink.0;
        let start = Instant::now();
        let mut waldump = Command::new("pg_waldump");
        waldump.arg("--stats").args([paths.first().unwrap(), paths.last().unwrap()]);
        assert!(
            waldump
                .args(["--end", &reader.whole_until().to_string()])
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        theirs.push(start.elapsed());
    }
    println!(
        "{} segments, {total} bytes, {records} records, {touches} changes, {ROUNDS} rounds in turn",
        segments.len()
    );
    let touching = ("reader with what each record changes", touching);
    for (name, mut times) in
        [("reader, from memory", ours), touching, ("pg_waldump --stats, from the page cache", theirs)]
    {
        times.sort();
        let rate = |time: &Duration| u128::from(total) * 1000 / time.as_nanos();
        let (fast, middle, slow) = (times.first().unwrap(), times.get(ROUNDS / 2).unwrap(), times.last().unwrap());
        println!("{name}: median {} MB/s ({} to {}), {middle:?}", rate(middle), rate(slow), rate(fast));
    }
}
