//! The search for a smaller case that still fails: greedy, deterministic, and ended by a budget of runs. It knows faults as
//! data only, so that a new class of fault is shrunk, too.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;
use sheetanchor_sim::plan::{Fault, Trigger};

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
    let found = Found { case, runs: 0, minimal: false };
    let mut search = Search { found, runs_max, passed: BTreeSet::new(), fails: &mut fails };
    loop {
        // Fewer sessions before faults are looked at one by one: what is run after that is shorter.
        let mut smaller = search.fewer_faults()?;
        smaller |= search.fewer_sessions()?;
        smaller |= search.simpler_faults()?;
        smaller |= search.earlier_faults()?;
        if search.found.runs >= runs_max {
            return Ok(search.found);
        }
        if !smaller {
            return Ok(Found { minimal: true, ..search.found });
        }
    }
}

struct Search<'a> {
    found: Found,
    runs_max: u64,
    /// What was asked for and did not fail in the same way. A run is of its case: it is not asked for again.
    passed: BTreeSet<String>,
    fails: &'a mut dyn FnMut(&Case) -> Result<bool>,
}

impl Search<'_> {
    /// Takes the candidate if it fails. Answers whether it did; not, once the budget is used up.
    fn take_if(&mut self, candidate: Case) -> Result<bool> {
        if self.found.runs >= self.runs_max || candidate == self.found.case {
            return Ok(false);
        }
        let told = serde_json::to_string(&candidate)?;
        if self.passed.contains(&told) {
            return Ok(false);
        }
        self.found.runs += 1;
        let failed = (self.fails)(&candidate)?;
        if failed {
            self.found.case = candidate;
        } else {
            self.passed.insert(told);
        }
        Ok(failed)
    }

    /// Takes the case with one fault replaced, if that fails.
    fn take_with(&mut self, place: usize, fault: Fault) -> Result<bool> {
        let mut candidate = self.found.case.clone();
        if let Some(replaced) = candidate.plan.faults.get_mut(place) {
            *replaced = fault;
        }
        self.take_if(candidate)
    }

    /// Leaves faults out: all, then halves, quarters, and so on down to single ones.
    fn fewer_faults(&mut self) -> Result<bool> {
        let mut smaller = false;
        let mut chunk = self.found.case.plan.faults.len();
        while chunk > 0 {
            let mut from = 0;
            while from < self.found.case.plan.faults.len() {
                let mut candidate = self.found.case.clone();
                let until = (from + chunk).min(candidate.plan.faults.len());
                candidate.plan.faults.drain(from..until);
                if self.take_if(candidate)? {
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

    fn fewer_sessions(&mut self) -> Result<bool> {
        let tried: Vec<u64> = match self.found.case.sessions_max {
            None => SESSIONS_TRIED.to_vec(),
            Some(most) => [most / 2, most.saturating_sub(1)].into_iter().filter(|fewer| *fewer > 0).collect(),
        };
        for fewer in tried {
            if self.take_if(Case { sessions_max: Some(fewer), ..self.found.case.clone() })? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replaces faults by simpler ones, for as long as one of them will do.
    fn simpler_faults(&mut self) -> Result<bool> {
        let mut smaller = false;
        let mut place = 0;
        while let Some(fault) = self.found.case.plan.faults.get(place).cloned() {
            let mut taken = false;
            for simpler in simpler(&fault) {
                if self.take_with(place, simpler)? {
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

    /// Lets faults strike at earlier passes of the gate: one earlier, and if that will do in steps twice as long each, until
    /// one pass earlier is too early. Most faults matter where they are: that is one run for each of them.
    fn earlier_faults(&mut self) -> Result<bool> {
        let mut smaller = false;
        for place in 0..self.found.case.plan.faults.len() {
            let mut step = 1;
            while step > 0 {
                let earlier = self.found.case.plan.faults.get(place).and_then(|fault| earlier(fault, step));
                let taken = earlier.map_or(Ok(false), |fault| self.take_with(place, fault))?;
                smaller |= taken;
                // 0 after 1: what is one pass earlier does not fail, or there is no such pass.
                step = if taken { step * 2 } else { step / 2 };
            }
        }
        Ok(smaller)
    }
}

/// The fault, so many passes earlier; `None` if it strikes at no pass, or there are not as many before it.
fn earlier(fault: &Fault, step: u64) -> Option<Fault> {
    let mut fault = fault.clone();
    let at = fault.at_mut();
    let Trigger::Pass(pass) = at.event else { return None };
    at.event = Trigger::Pass(pass.checked_sub(step).filter(|pass| *pass > 0)?);
    Some(fault)
}

/// Policies of a crash, the simplest to think of first.
const POLICIES: [&str; 3] = ["drop-all", "keep-all", "process-only"];

/// The faults that are one step simpler than this one: shorter, of a simpler kind.
fn simpler(fault: &Fault) -> Vec<Fault> {
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
        // Times: as short as makes a difference, or half as long.
        ("for_ms" | "restart_after_ms", Value::Number(length)) => {
            let half = length.as_u64().unwrap_or(0) / 2;
            if half >= MS_MIN { vec![Value::from(MS_MIN), Value::from(half)] } else { Vec::new() }
        }
        (_, nested) => variants(nested),
    }
}

/// No shorter time is tried: the order of what happens no longer depends on it.
const MS_MIN: u64 = 10;

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
        let mut asked = Vec::new();
        let found = search(case(many), 300, |case| {
            asked.push(case.clone());
            fails(case)
        });
        let found = found.unwrap();
        assert!(found.minimal && found.runs <= 80, "{found:?}");
        let twice = |case: &Case| asked.iter().filter(|other| *other == case).count() > 1;
        assert!(!asked.iter().any(twice), "no case is run twice");
        let mut left = passes(&found.case);
        left.sort();
        assert_eq!(left, [("n1".to_string(), 41), ("n2".to_string(), 1)]);
        assert_eq!(found.case.sessions_max, Some(2));
        for fault in &found.case.plan.faults {
            let Fault::Crash { policy, restart_after_ms, silent, .. } = fault else { panic!("{fault:?}") };
            assert_eq!((*policy, *restart_after_ms, *silent), (CrashPolicy::DropAll, Some(10), false));
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
