//! Where a failed run parts from one that passes: the same seed without what was planted, or without faults, if there is
//! such a run, or else another seed.

use anyhow::Result;
use sheetanchor_sim::plan::Plan;
use sheetanchor_sim::recording::Recording;
use sheetanchor_sim::trace::Event;

use super::Recorded;
use super::board::micros;
use super::messages::clock;
use crate::case::Case;

/// The first difference between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What the other run is, and what was compared.
    pub other: String,
    /// How many events (or milestones) are the same before it.
    pub common: usize,
    /// The last ones that both have, then what the failed run did.
    pub ours: Vec<String>,
    /// The same of the other.
    pub theirs: Vec<String>,
}

/// Seeds that are tried when nothing was planted.
const SEEDS_TRIED: u64 = 8;
/// How much is shown before the difference, and from there on.
const BEFORE: usize = 4;
const AFTER: usize = 10;

/// Compares a failed run with the nearest one that passes. `None` if none of those tried does.
pub fn difference(failed: &Recorded) -> Result<Option<Difference>> {
    for (other, case) in same_seed(&failed.case) {
        let (report, recording) = case.run()?;
        if report.verdict.is_ok() {
            let other = format!("the same seed {other}, event by event");
            return Ok(compare(other, &events(&failed.recording), &events(&recording)));
        }
    }
    for seed in (1..=SEEDS_TRIED).map(|step| failed.case.seed.wrapping_add(step)) {
        let (report, recording) = Case { seed, ..failed.case.clone() }.run()?;
        if report.verdict.is_ok() {
            return Ok(by_host(seed, &failed.recording, &recording));
        }
    }
    Ok(None)
}

/// Runs of the same seed that lack something of the failed one, the nearest first.
fn same_seed(failed: &Case) -> Vec<(&'static str, Case)> {
    let mended = Case { planted: None, ..failed.clone() };
    let peaceful = |case: &Case| Case { plan: Plan::peaceful(), only_plan: true, ..case.clone() };
    let (spared, both) = (peaceful(failed), peaceful(&mended));
    let ways = [
        ("with nothing planted", mended),
        ("without faults", spared),
        ("with nothing planted and without faults", both),
    ];
    let mut seen = vec![failed.clone()];
    let is_new = |(_, case): &(_, Case)| {
        let new = !seen.contains(case);
        seen.push(case.clone());
        new
    };
    ways.into_iter().filter(is_new).collect()
}

/// What is compared, and what is shown of it.
type Told = (String, String);

fn told(event: &Event, recording: &Recording) -> String {
    let host = event.host.and_then(|host| recording.hosts.get(usize::from(host.number())));
    format!("{} {:<9} {}", clock(micros(event.at)), host.map_or("world", String::as_str), event.what)
}

fn events(recording: &Recording) -> Vec<Told> {
    recording.events.iter().map(|event| (told(event, recording), told(event, recording))).collect()
}

fn compare(other: String, ours: &[Told], theirs: &[Told]) -> Option<Difference> {
    let common = ours.iter().zip(theirs).take_while(|(one, two)| one.0 == two.0).count();
    if common == ours.len() && common == theirs.len() {
        return None;
    }
    let shown = |side: &[Told]| {
        let from = common.saturating_sub(BEFORE);
        side.iter().skip(from).take(common - from + AFTER).map(|(_, shown)| shown.clone()).collect()
    };
    Some(Difference { other, common, ours: shown(ours), theirs: shown(theirs) })
}

/// Two seeds share no event, but the steps of a story: host by host, milestones are compared without what is drawn.
fn by_host(seed: u64, ours: &Recording, theirs: &Recording) -> Option<Difference> {
    let steps = |recording: &Recording, name: &str| -> Vec<Told> {
        let of_host = |event: &&Event| {
            event.host.and_then(|host| recording.hosts.get(usize::from(host.number()))).is_some_and(|host| host == name)
        };
        let milestones =
            recording.events.iter().filter(|event| event.detail == sheetanchor_sim::trace::Detail::Milestone);
        // How often a node makes a checkpoint says nothing.
        let milestones = milestones.filter(of_host).filter(|event| !is_routine(&event.what));
        milestones.map(|event| (without_draws(&event.what), told(event, recording))).collect()
    };
    let differences = ours.hosts.iter().filter_map(|host| {
        let other = format!("seed {seed}: the milestones of {host}, without what is drawn");
        compare(other, &steps(ours, host), &steps(theirs, host))
    });
    // The first in time of the failed run.
    differences.min_by_key(|difference| difference.ours.get(difference.common.min(BEFORE)).cloned())
}

fn is_routine(what: &str) -> bool {
    what.contains("checkpoint") || what.contains("recycled")
}

fn without_draws(what: &str) -> String {
    let plain =
        |word: &&str| !word.split_once('=').is_some_and(|(_, value)| value.contains(|c: char| c.is_ascii_digit()));
    what.split(' ').filter(plain).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(words: &[&str]) -> Vec<Told> {
        words.iter().map(|word| ((*word).to_string(), format!("shown {word}"))).collect()
    }

    #[test]
    fn the_first_difference_is_shown_with_what_came_before() {
        let (ours, theirs) =
            (side(&["a", "b", "c", "d", "e", "f", "x"]), side(&["a", "b", "c", "d", "e", "f", "y", "z"]));
        let found = compare("other".into(), &ours, &theirs).unwrap();
        assert_eq!(found.common, 6);
        assert_eq!(found.ours, ["shown c", "shown d", "shown e", "shown f", "shown x"]);
        assert_eq!(found.theirs.last().unwrap(), "shown z");
        assert_eq!(compare("other".into(), &ours, &ours), None);
    }

    #[test]
    fn the_nearest_run_is_the_one_that_lacks_the_least() {
        let simulator = crate::backends::Simulator::DEFAULT;
        let drawn = Case::of("a-story", 7, simulator, Some("no-fence"));
        let ways = |case: &Case| same_seed(case).into_iter().map(|(other, _)| other).collect::<Vec<_>>();
        let (bug, faults, both) = ("with nothing planted", "without faults", "with nothing planted and without faults");
        assert_eq!(ways(&drawn), [bug, faults, both]);
        assert_eq!(ways(&Case { planted: None, ..drawn.clone() }), [faults]);
        assert_eq!(ways(&Case { only_plan: true, ..drawn.clone() }), [bug]);
        assert!(ways(&Case { only_plan: true, planted: None, ..drawn }).is_empty());
    }

    #[test]
    fn what_is_drawn_is_left_out() {
        let one = "phase operation=point-18bc-2d phase=drained";
        assert_eq!(without_draws(one), "phase phase=drained");
    }
}
