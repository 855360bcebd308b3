//! Which ways the machines of the operations went, as their milestones tell: from phase to phase, for each kind of
//! operation.

use std::collections::BTreeMap;
use std::fmt;

/// How often an operation of a kind went from one phase straight to another.
#[derive(Debug, Default)]
pub struct Edges(BTreeMap<String, BTreeMap<(String, String), u64>>);

/// Where every operation begins.
const BEGIN: &str = "begun";

impl Edges {
    /// Counts what one timeline tells.
    pub fn count(&mut self, timeline: &str) {
        let mut last: BTreeMap<&str, &str> = BTreeMap::new();
        for line in timeline.lines() {
            let field = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            let (Some(operation), Some(phase)) = (field("operation"), field("phase")) else { continue };
            let Some((kind, _)) = operation.split_once('-') else { continue };
            let from = last.insert(operation, phase).unwrap_or(BEGIN);
            let edges = self.0.entry(kind.into()).or_default();
            *edges.entry((from.into(), phase.into())).or_default() += 1;
        }
    }

    /// How many different ones there are.
    fn different(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

impl fmt::Display for Edges {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} edges between phases:", self.different())?;
        for (kind, edges) in &self.0 {
            let edges: Vec<String> =
                edges.iter().map(|((from, until), count)| format!("{from}>{until} {count}")).collect();
            write!(out, "\n  {kind}: {}", edges.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_counted_operation_by_operation() {
        let mut edges = Edges::default();
        edges.count(
            "  0.1  operator1  phase operation=point-1-a phase=closing\n\
             0.2  operator2  phase operation=backup-2-b phase=pinning\n\
             0.3  operator1  phase operation=point-1-a scn=1.0 phase=drained\n\
             0.4  operator3  phase operation=point-9-c phase=closing\n\
             0.5  n1         agent listening node=1\n",
        );
        assert_eq!(
            edges.to_string(),
            "3 edges between phases:\n  backup: begun>pinning 1\n  point: begun>closing 2, closing>drained 1"
        );
    }
}
