//! What befalls connections and clocks by plan: the same on every backend.

use std::io::ErrorKind;
use std::time::Duration;

use sheetanchor_engine::env::{Env, Stream};
use sheetanchor_sim::plan::{Fault, Plan, When};
use sheetanchor_sim::world::{Settings, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_mins(1);
const ADDRESS: &str = "n2:7000";

fn world(seed: u64, fault: Fault) -> World {
    World::new(Settings::of(seed).with(Plan::peaceful().and(fault)), crate::backend(seed))
}

/// Says back every byte; one connection after the other. How each ended.
async fn echo(env: Env, connections: usize) -> Vec<Option<ErrorKind>> {
    let mut listener = env.net.listen(ADDRESS).await.unwrap();
    let mut ends = Vec::new();
    for _ in 0..connections {
        let mut stream = listener.accept().await.unwrap();
        ends.push(loop {
            match stream.read_u8().await {
                Ok(byte) => say(stream.as_mut(), byte).await,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break None,
                Err(error) => break Some(error.kind()),
            }
        });
    }
    ends
}

async fn say(stream: &mut dyn Stream, byte: u8) {
    stream.write_u8(byte).await.unwrap();
    stream.flush().await.unwrap();
}

async fn dial(env: &Env) -> Box<dyn Stream> {
    env.clock.sleep(Duration::from_millis(20)).await;
    let mut stream = env.net.connect(ADDRESS).await.unwrap();
    say(stream.as_mut(), 1).await;
    assert_eq!(stream.read_u8().await.unwrap(), 1);
    tracing::info!(target: "sheetanchor::test", "linked");
    stream
}

#[test]
fn both_ends_of_a_connection_hear_that_it_was_reset() {
    for seed in 0..8 {
        let at = When::milestone("n1", "linked");
        let mut world = world(seed, Fault::Reset { at, one: "n2".into(), other: "n1".into() });
        let heard = world.launch("n2", |env| echo(env, 2));
        let dialled = world.launch("n1", |env| async move {
            let mut stream = dial(&env).await;
            let read = stream.read_u8().await.unwrap_err().kind();
            let written = async {
                stream.write_u8(2).await?;
                stream.flush().await
            };
            let written = written.await.unwrap_err().kind();
            drop(stream);
            // What is dialled afterwards carries.
            drop(dial(&env).await);
            [read, written]
        });
        assert_eq!(world.finish(&dialled, LIMIT).unwrap(), [ErrorKind::ConnectionReset; 2], "seed {seed}");
        assert_eq!(world.finish(&heard, LIMIT).unwrap(), [Some(ErrorKind::ConnectionReset), None], "seed {seed}");
    }
}

#[test]
fn one_direction_is_held_while_the_other_goes_on() {
    for seed in 0..8 {
        let at = When::milestone("n1", "linked");
        let mut world = world(seed, Fault::Clog { at, from: "n2".into(), to: "n1".into(), for_ms: 700 });
        let heard = world.launch("n2", |env| async move {
            let mut listener = env.net.listen(ADDRESS).await.unwrap();
            let mut stream = listener.accept().await.unwrap();
            let byte = stream.read_u8().await.unwrap();
            say(stream.as_mut(), byte).await;
            let byte = stream.read_u8().await.unwrap();
            let heard_at = env.clock.now();
            say(stream.as_mut(), byte).await;
            assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
            env.clock.now().since(heard_at)
        });
        let answered = world.launch("n1", |env| async move {
            let mut stream = dial(&env).await;
            // Until the plan has struck.
            env.clock.sleep(Duration::from_millis(10)).await;
            let said_at = env.clock.now();
            say(stream.as_mut(), 2).await;
            assert_eq!(stream.read_u8().await.unwrap(), 2);
            env.clock.now().since(said_at)
        });
        let late = Duration::from_millis(600)..Duration::from_millis(900);
        let answered = world.finish(&answered, LIMIT).unwrap();
        assert!(late.contains(&answered), "seed {seed}: answered after {answered:?}");
        let heard = world.finish(&heard, LIMIT).unwrap();
        assert!(late.contains(&heard), "seed {seed}: it was heard at once, and gone {heard:?} later");
    }
}

#[test]
fn a_wall_clock_jumps_and_drifts_while_timers_go_on() {
    let at = When::milestone("n1", "about to jump");
    let mut world = world(1, Fault::Clock { at, by_ms: -5_000, drift_ppm: 100_000 });
    let seen = world.launch("n1", |env| async move {
        let before = (env.clock.now(), env.clock.wall().get());
        tracing::info!(target: "sheetanchor::test", "about to jump");
        env.clock.sleep(Duration::from_secs(10)).await;
        let lived = env.clock.now().since(before.0);
        assert!(lived < Duration::from_millis(10_010), "{lived:?}");
        i64::try_from(env.clock.wall().get()).unwrap() - i64::try_from(before.1).unwrap()
    });
    let seen = world.finish(&seen, LIMIT).unwrap();
    // Ten seconds, a tenth too fast, and five back.
    assert!((5_990..=6_010).contains(&seen), "{seen}");
}
