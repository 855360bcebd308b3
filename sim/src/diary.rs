//! A small story for backends: a keeper writes numbers into a file and acknowledges each once it is durable; a writer
//! sends them and tries again until it is answered. Whatever crashes, an acknowledged number is in the diary.

use std::time::Duration;

use sheetanchor_core::error::{Fault, FaultKind};
use sheetanchor_engine::env::{DiskFile, Env, OpenMode, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Failure, Promise, World};

/// The host that keeps the diary.
pub const KEEPER: &str = "keeper";
/// The host that writes to it.
pub const WRITER: &str = "writer";

const ADDRESS: &str = "keeper:7000";
const FOLDER: &str = "/var/lib/diary";
const PATH: &str = "/var/lib/diary/numbers";
/// Asks for all numbers instead of adding one.
const READ: u64 = 0;
const PATIENCE: Duration = Duration::from_millis(400);
const RECORD: usize = 16;

/// Whether the keeper does its work properly: one that does not must be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// Syncs before it acknowledges.
    Synced,
    /// Acknowledges what only the page cache has.
    Unsynced,
    /// Syncs the bytes and forgets the name.
    NameUnsynced,
}

/// Starts both hosts. The promise is the diary as read in the end, after `1..=count` were acknowledged.
pub fn begin(world: &mut World, count: u64, care: Care) -> Promise<Vec<u64>> {
    world.start(KEEPER, move |env| async move {
        // A fault ends the keeper, as it would end a process; the next life opens the diary again.
        if let Err(fault) = keep(&env, care).await {
            tracing::info!(target: "sheetanchor::diary", kind = ?fault.kind, "keeper ended");
        }
    });
    world.launch(WRITER, move |env| async move { write(&env, count).await })
}

/// Runs the story to its end and says whether the diary holds what was acknowledged.
///
/// # Errors
/// What went wrong in the world.
pub fn run(world: &mut World, count: u64, care: Care) -> Result<Verdict, Failure> {
    let promise = begin(world, count, care);
    let diary = world.finish(&promise, Duration::from_mins(1))?;
    let lost = (1..=count).filter(|number| !diary.contains(number)).collect();
    Ok(Verdict { lost })
}

/// What became of the acknowledged numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, and not in the diary.
    pub lost: Vec<u64>,
}

fn record(number: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let check = blake3::hash(&number.to_le_bytes());
    let bytes = number.to_le_bytes().into_iter().chain(check.as_bytes().iter().copied());
    for (place, byte) in record.iter_mut().zip(bytes) {
        *place = byte;
    }
    record
}

/// The numbers of the whole records, up to the first that is torn.
fn parse(bytes: &[u8]) -> Vec<u64> {
    let (records, _torn) = bytes.as_chunks::<RECORD>();
    let number = |bytes: &[u8; RECORD]| {
        let number = bytes.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))?;
        (record(number) == *bytes).then_some(number)
    };
    records.iter().map_while(number).collect()
}

struct Diary {
    file: Box<dyn DiskFile>,
    numbers: Vec<u64>,
    care: Care,
}

impl Diary {
    async fn open(env: &Env, care: Care) -> Result<Self, Fault> {
        env.disk.create_folder(FOLDER).await?;
        if care != Care::NameUnsynced {
            for folder in ["/var/lib", "/var", "/"] {
                env.disk.sync_dir(folder).await?;
            }
        }
        let file = match env.disk.open(PATH, OpenMode::Write).await {
            Err(fault) if fault.kind == FaultKind::NotFound => env.disk.open(PATH, OpenMode::CreateNew).await?,
            opened => opened?,
        };
        let length = usize::try_from(file.length().await?.get()).unwrap_or(usize::MAX);
        let numbers = parse(&file.read_at(0, length).await?);
        if care != Care::NameUnsynced {
            env.disk.sync_dir(FOLDER).await?;
        }
        tracing::info!(target: "sheetanchor::diary", numbers = numbers.len(), "opened");
        Ok(Self { file, numbers, care })
    }

    async fn add(&mut self, number: u64) -> Result<(), Fault> {
        if !self.numbers.contains(&number) {
            let offset = u64::try_from(self.numbers.len() * RECORD).unwrap_or(u64::MAX);
            self.file.write_at(offset, record(number).to_vec().into()).await?;
            self.numbers.push(number);
        }
        if self.care != Care::Unsynced {
            // Also for a number found there: a life before this one may have written it and not synced it.
            self.file.sync().await?;
        }
        Ok(())
    }
}

async fn keep(env: &Env, care: Care) -> Result<(), Fault> {
    let mut diary = Diary::open(env, care).await?;
    let mut listener = env.net.listen(ADDRESS).await?;
    loop {
        let mut stream = listener.accept().await?;
        while let Some(number) = receive(env, stream.as_mut()).await {
            if number != READ {
                diary.add(number).await?;
                tracing::info!(target: "sheetanchor::diary", number, "kept");
            }
            let mut answer = vec![u64::try_from(diary.numbers.len()).unwrap_or(u64::MAX)];
            if number == READ {
                answer.extend(&diary.numbers);
            }
            if send(stream.as_mut(), &answer).await.is_err() {
                break;
            }
        }
    }
}

async fn write(env: &Env, count: u64) -> Vec<u64> {
    let mut stream = None;
    for number in 1..=count {
        request(env, &mut stream, number).await;
        tracing::info!(target: "sheetanchor::diary", number, "acknowledged");
    }
    request(env, &mut stream, READ).await
}

/// Asks until there is an answer. The numbers in it, if numbers were asked for.
async fn request(env: &Env, stream: &mut Option<Box<dyn Stream>>, number: u64) -> Vec<u64> {
    loop {
        if stream.is_none() {
            let limit = env.clock.now().after(PATIENCE);
            *stream = tokio::select! {
                biased;
                dialled = env.net.connect(ADDRESS) => dialled.ok(),
                () = env.clock.sleep_until(limit) => None,
            };
        }
        if let Some(open) = stream.as_deref_mut()
            && let Some(answer) = ask(env, open, number).await
        {
            return answer;
        }
        *stream = None;
        env.clock.sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(env: &Env, stream: &mut dyn Stream, number: u64) -> Option<Vec<u64>> {
    send(stream, &[number]).await.ok()?;
    let count = receive(env, stream).await?;
    let mut numbers = Vec::new();
    for _ in 0..if number == READ { count } else { 0 } {
        numbers.push(receive(env, stream).await?);
    }
    Some(numbers)
}

async fn send(stream: &mut dyn Stream, words: &[u64]) -> std::io::Result<()> {
    for word in words {
        stream.write_all(&word.to_le_bytes()).await?;
    }
    stream.flush().await
}

async fn receive(env: &Env, stream: &mut dyn Stream) -> Option<u64> {
    let mut word = [0; 8];
    let limit = env.clock.now().after(PATIENCE);
    tokio::select! {
        biased;
        read = stream.read_exact(&mut word) => read.ok().map(|_| u64::from_le_bytes(word)),
        () = env.clock.sleep_until(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_tail_ends_the_diary() {
        let whole: Vec<u8> = [3, 5].into_iter().flat_map(record).collect();
        assert_eq!(parse(&whole), [3, 5]);
        assert_eq!(parse(&whole[..31]), [3]);
        let mut damaged = whole.clone();
        damaged[17] ^= 1;
        assert_eq!(parse(&damaged), [3]);
        assert!(parse(&[0; 32]).is_empty());
    }
}
