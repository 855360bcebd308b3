//! `demo`: the main job, on this machine, with clusters made for it. Nodes are processes of their own and are killed as
//! such; nothing is simulated.

mod compare;

mod embedded;

mod house;

mod journal;

mod postgres;

mod steps;

use sheetanchor_core::error::Error;
use sheetanchor_core::refusal::{Code, Refusal};

use crate::args::DemoArguments;
use crate::interrupt::Interrupts;
use crate::report::Result;
use crate::screen::Screen;
use house::House;
use steps::Steps;

/// Runs the demonstration.
///
/// # Errors
/// A bug if what is read back is not what was committed; whatever goes wrong on the way.
pub async fn run(screen: &Screen, arguments: &DemoArguments) -> Result<()> {
    let mut interrupts = Interrupts::listen()?;
    let mut house = House::new()?;
    let steps = Steps::new(screen);
    let story = async {
        if arguments.postgres {
            postgres::play(screen, &steps, &mut house).await
        } else {
            embedded::play(screen, &steps, &mut house).await
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = story => outcome,
        () = interrupts.next() => Err(Refusal::new(Code::Cancelled, "the demonstration was cancelled").into()),
    };
    steps.clear();
    let failed = matches!(&outcome, Err(trouble) if trouble.refused() != Some(Code::Cancelled));
    if let Some(folder) = house.close(arguments.keep || failed).await {
        screen.note(&format!("files and logs are kept in {folder}"));
    }
    outcome
}

/// What the demonstration saw is not what Sheetanchor promises.
fn broken(what: impl Into<String>) -> Error {
    Error::Bug(what.into())
}
