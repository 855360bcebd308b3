//! The search for a smaller case that still fails: greedy, deterministic, and ended by a budget of runs. It knows faults as
//! data only, so that a new class of fault is shrunk, too.

use anyhow::Result;
use serde_json::Value;
use sheetanchor_sim::plan::Fault;

use crate::case::Case;

/// Where a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The smallest case that failed in the same way.
    pub case: Case,
    /// How many cases were run.
    pub runs: u64,
    /// Whether no single step makes it smaller; else the budget ended the search.
    pub minimal: bool,
}

/// Sessions that are tried first where the story says how many there are.
const SESSIONS_TRIED: [u64; 3] = [1, 2, 4];

/// Makes `case` smaller as long as `fails` says that it still fails in the same way, at most `runs_max` times asked.
pub fn search(case: Case, runs_max: u64, mut fails: impl FnMut(&Case) -> Result<bool>) -> Result<Found> {
    let mut found = Found { case, runs: 0, minimal: false };
    loop {
        let steps = [fewer_faults, simpler_faults, fewer_sessions];
        let mut smaller = false;
        for step in steps {
            smaller |= step(&mut found, runs_max, &mut fails)?;
        }
        if found.runs >= runs_max {
            return Ok(found);
        }
        if !smaller {
            return Ok(Found { minimal: true, ..found });
        }
    }
}

type Fails<'a> = &'a mut dyn FnMut(&Case) -> Result<bool>;

/// Takes the candidate if it fails. Answers whether it did; not, once the budget is used up.
fn take_if(found: &mut Found, runs_max: u64, fails: Fails<'_>, candidate: Case) -> Result<bool> {
    if found.runs >= runs_max || candidate == found.case {
        return Ok(false);
    }
    found.runs += 1;
    let good = fails(&candidate)?;
    if good {
        found.case = candidate;
    }
    Ok(good)
}

/// Leaves faults out: all, then halves, quarters, and so on down to single ones.
fn fewer_faults(found: &mut Found, runs_max: u64, fails: Fails<'_>) -> Result<bool> {
    let mut smaller = false;
    let mut chunk = found.case.plan.faults.len();
    while chunk > 0 {
        let mut from = 0;
        while from < found.case.plan.faults.len() {
            let mut candidate = found.case.clone();
            let until = (from + chunk).min(candidate.plan.faults.len());
            candidate.plan.faults.drain(from..until);
            if take_if(found, runs_max, fails, candidate)? {
                // What stood behind has moved to here.
                smaller = true;
            } else {
                from += chunk;
            }
        }
        chunk /= 2;
    }
    Ok(smaller)
}

/// Replaces faults by simpler ones, for as long as one of them will do.
fn simpler_faults(found: &mut Found, runs_max: u64, fails: Fails<'_>) -> Result<bool> {
    let mut smaller = false;
    let mut place = 0;
    while let Some(fault) = found.case.plan.faults.get(place).cloned() {
        let mut taken = false;
        for simpler in simpler(&fault) {
            let mut candidate = found.case.clone();
            if let Some(fault) = candidate.plan.faults.get_mut(place) {
                *fault = simpler;
            }
            if take_if(found, runs_max, fails, candidate)? {
                taken = true;
                break;
            }
        }
        smaller |= taken;
        if !taken {
            place += 1;
        }
    }
    Ok(smaller)
}

fn fewer_sessions(found: &mut Found, runs_max: u64, fails: Fails<'_>) -> Result<bool> {
    let tried: Vec<u64> = match found.case.sessions_max {
        None => SESSIONS_TRIED.to_vec(),
        Some(most) => [most / 2, most.saturating_sub(1)].into_iter().filter(|fewer| *fewer > 0).collect(),
    };
    for fewer in tried {
        let candidate = Case { sessions_max: Some(fewer), ..found.case.clone() };
        if take_if(found, runs_max, fails, candidate)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Policies of a crash, the simplest to think of first.
const POLICIES: [&str; 3] = ["drop-all", "keep-all", "process-only"];

/// The faults that are one step simpler than this one: earlier, shorter, of a simpler kind.
pub fn simpler(fault: &Fault) -> Vec<Fault> {
    let Ok(value) = serde_json::to_value(fault) else { return Vec::new() };
    variants(&value).into_iter().filter_map(|variant| serde_json::from_value(variant).ok()).collect()
}

/// A value with one field replaced by a simpler one, in every way that is known; fields of fields, too.
fn variants(value: &Value) -> Vec<Value> {
    let Value::Object(fields) = value else { return Vec::new() };
    let mut variants = Vec::new();
    for (key, field) in fields {
        for simpler in simpler_field(key, field) {
            let mut other = fields.clone();
            other.insert(key.clone(), simpler);
            variants.push(Value::Object(other));
        }
    }
    variants
}

fn simpler_field(key: &str, field: &Value) -> Vec<Value> {
    match (key, field) {
        ("policy", Value::String(policy)) => {
            POLICIES.iter().take_while(|simpler| *simpler != policy).map(|simpler| Value::from(*simpler)).collect()
        }
        ("silent", Value::Bool(true)) => vec![Value::from(false)],
        // A pass of the gate: earlier by half, by a quarter, and so on, down to the one before.
        ("pass", Value::Number(pass)) => lower(pass.as_u64().unwrap_or(0), 1),
        // Times: half as long, as long as that is a time that makes a difference.
        ("for_ms" | "restart_after_ms", Value::Number(length)) => {
            let half = length.as_u64().unwrap_or(0) / 2;
            if half >= MS_MIN { vec![Value::from(half)] } else { Vec::new() }
        }
        (_, nested) => variants(nested),
    }
}

/// No shorter time is tried: the order of what happens no longer depends on it.
const MS_MIN: u64 = 10;

fn lower(number: u64, least: u64) -> Vec<Value> {
    let mut lower: Vec<u64> = [2, 4, 16, 128].iter().map(|part| number - number / part).collect();
    lower.push(number.saturating_sub(1));
    lower.retain(|lower| *lower < number && *lower >= least);
    lower.dedup();
    lower.into_iter().map(Value::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Simulator;
    use sheetanchor_sim::plan::{CrashPolicy, Plan, When};

    fn crash(host: &str, pass: u64) -> Fault {
        let policy = CrashPolicy::TornPrefix;
        Fault::Crash { at: When::pass(host, pass), policy, restart_after_ms: Some(480), silent: true }
    }

    fn case(faults: Vec<Fault>) -> Case {
        Case { plan: Plan { faults }, only_plan: true, ..Case::of("a-story", 7, Simulator::DEFAULT, None) }
    }

    fn passes(case: &Case) -> Vec<(String, u64)> {
        let pass = |fault: &Fault| match &fault.at().event {
            sheetanchor_sim::plan::Trigger::Pass(pass) => (fault.at().host.clone(), *pass),
            other => panic!("{other:?}"),
        };
        case.plan.faults.iter().map(pass).collect()
    }

    #[test]
    fn what_does_not_matter_goes_and_what_matters_stays() {
        let many = (0..10).map(|number| crash(if number % 2 == 0 { "n1" } else { "n2" }, 100 + number)).collect();
        // Red with a crash of n1 at pass 41 or later, beside one of n2 at any, and two sessions at least.
        let fails = |case: &Case| {
            let passes = passes(case);
            let one = passes.iter().any(|(host, pass)| host == "n1" && *pass >= 41);
            Ok(one && passes.iter().any(|(host, _)| host == "n2") && case.sessions_max.is_none_or(|most| most >= 2))
        };
        let found = search(case(many), 300, fails).unwrap();
        assert!(found.minimal, "{found:?}");
        let mut left = passes(&found.case);
        left.sort();
        assert_eq!(left, [("n1".to_string(), 41), ("n2".to_string(), 1)]);
        assert_eq!(found.case.sessions_max, Some(2));
        for fault in &found.case.plan.faults {
            let Fault::Crash { policy, restart_after_ms, silent, .. } = fault else { panic!("{fault:?}") };
            assert_eq!((*policy, *restart_after_ms, *silent), (CrashPolicy::DropAll, Some(15), false));
        }
    }

    #[test]
    fn the_budget_ends_the_search_and_what_was_found_fails() {
        let many: Vec<Fault> = (1..100).map(|number| crash("n1", number)).collect();
        let fails = |case: &Case| Ok(passes(case).iter().map(|(_, pass)| pass).sum::<u64>() > 2_000);
        let mut asked = 0;
        let found = search(case(many), 20, |case| {
            asked += 1;
            fails(case)
        })
        .unwrap();
        assert!(!found.minimal && found.runs == 20 && asked == 20, "{}", found.runs);
        assert!(fails(&found.case).unwrap());
    }

    #[test]
    fn a_case_that_needs_nothing_is_left_with_nothing() {
        let found = search(case(vec![crash("n1", 5), crash("n2", 6)]), 300, |_| Ok(true)).unwrap();
        assert!(found.minimal && found.case.plan.faults.is_empty());
        assert_eq!(found.case.sessions_max, Some(1));
    }
}
