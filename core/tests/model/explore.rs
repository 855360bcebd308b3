//! Explores a model whole, or until what a planted fault must break is broken.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// Threads of one exploration.
const THREADS: usize = 2;

/// Explores every reachable state: every invariant must hold in all of them, and what must be possible must happen in
/// some, for a model in which nothing happens shows nothing.
pub fn holds<M>(what: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let started = Instant::now();
    let checker = model.checker().threads(THREADS).spawn_bfs().join();
    let (states, deep) = (checker.unique_state_count(), checker.max_depth());
    println!("{what}: {states} states, {deep} deep, {} s", started.elapsed().as_secs());
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            Expectation::Always => {
                let path = found.map(|path| told(&path.into_actions()));
                assert!(path.is_none(), "{what}: not `{}`:\n{}", property.name, path.unwrap_or_default());
            }
            Expectation::Sometimes => assert!(found.is_some(), "{what}: never `{}`: it shows nothing", property.name),
            Expectation::Eventually => panic!("`{}`: paths that meet again hide what never comes", property.name),
        }
    }
}

/// Explores until a state is found in which `invariant` does not hold; there must be one.
pub fn breaks<M>(invariant: &'static str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let until = HasDiscoveries::AllOf([invariant].into());
    let checker = model.checker().threads(THREADS).finish_when(until).spawn_bfs().join();
    let path = checker.discovery(invariant).map(|path| told(&path.into_actions()));
    let path = path.unwrap_or_else(|| panic!("the fault is not seen: `{invariant}` holds everywhere"));
    println!("not `{invariant}`, {} states:\n{path}", checker.unique_state_count());
}

fn told<A: Debug>(actions: &[A]) -> String {
    let lines: Vec<String> = actions.iter().map(|action| format!("  {action:?}")).collect();
    lines.join("\n")
}
