//! Figures of rounds, side by side.

use serde::Serialize;

/// Things that were measured in turn, of which one is what the goal names.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// What was measured.
    pub title: String,
    /// The unit of the figures.
    pub unit: &'static str,
    /// Whether less is better.
    pub less_is_better: bool,
    /// The row that the others are divided by.
    pub base: String,
    /// The goal, in words, and for which row, as a ratio to the base or as a figure.
    pub goal: Option<Goal>,
    pub rows: Vec<Row>,
}

/// What was to be reached.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub words: String,
    pub row: String,
    pub bound: f64,
    /// Whether the bound is one of the ratio to the base, else of the median.
    pub of_ratio: bool,
}

/// One thing, measured in every round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub who: String,
    pub figures: Vec<f64>,
    /// Seconds of processor, where they are known.
    pub cpu: Vec<f64>,
    /// What else there is to say of it: the size of a repository, the memory of an agent.
    pub note: String,
}

impl Row {
    pub fn of(who: &str) -> Self {
        Self { who: who.to_owned(), ..Self::default() }
    }
}

impl Group {
    /// The rows of a group, which take their figures later.
    pub fn new(title: &str, unit: &'static str, base: &str, rows: &[&str]) -> Self {
        let rows = rows.iter().map(|who| Row::of(who)).collect();
        Self { title: title.to_owned(), unit, less_is_better: true, base: base.to_owned(), goal: None, rows }
    }

    pub fn row(&mut self, who: &str) -> &mut Row {
        let at = self.rows.iter().position(|row| row.who == who).unwrap_or_else(|| {
            self.rows.push(Row::of(who));
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    pub fn find(&self, who: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.who == who)
    }

    /// The median of a row's figures divided by the base's, round by round: what both suffered falls out.
    pub fn ratio(&self, row: &Row) -> Option<f64> {
        let base = self.find(&self.base)?;
        let pairs = row.figures.iter().zip(&base.figures).filter(|(_, base)| **base > 0.0);
        let ratios: Vec<f64> = pairs.map(|(own, base)| own / base).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// What the goal's row came to, and whether that is enough. `None` if it was not measured.
    pub fn judged(&self) -> Option<(f64, bool)> {
        let goal = self.goal.as_ref()?;
        let row = self.find(&goal.row).filter(|row| !row.figures.is_empty())?;
        let reached = if goal.of_ratio { self.ratio(row)? } else { median(&row.figures) };
        let met = if self.less_is_better { reached <= goal.bound } else { reached >= goal.bound };
        Some((reached, met))
    }
}

/// The middle of some figures, of two middles the upper one.
pub fn median(figures: &[f64]) -> f64 {
    at_percent(figures, 50)
}

/// The figure that `percent` of them lie below.
pub fn at_percent(figures: &[f64], percent: usize) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// The least and the most.
pub fn spread(figures: &[f64]) -> (f64, f64) {
    (at_percent(figures, 0), at_percent(figures, 100))
}
