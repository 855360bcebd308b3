//! What a night tells: a page that needs no network, and a summary that a CI system can show.

use std::collections::BTreeMap;

use super::history::{Hunted, Night};
use crate::artefact::escaped;
use crate::runs::Run;

/// Nights that a plot shows: the last ones.
const NIGHTS_SHOWN: usize = 90;

/// One story on one simulator: runs, and failures.
pub type Stories = BTreeMap<(String, String), (usize, usize)>;

/// The runs of the night by story and simulator.
pub fn stories(ran: &[&Run]) -> Stories {
    let mut stories = Stories::new();
    for run in ran {
        let key = (run.scenario.name.to_string(), run.simulator.name().to_string());
        let (runs, failed) = stories.entry(key).or_default();
        *runs += 1;
        *failed += usize::from(!run.passed());
    }
    stories
}

fn rate(night: &Night) -> f64 {
    real(night.runs) / night.seconds.max(0.001)
}

fn real(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// None of a night that hunted nothing.
fn kill_percent(night: &Night) -> Option<f64> {
    (!night.hunted.is_empty()).then(|| 100.0 * real(night.killed()) / real(night.hunted.len()))
}

/// The command that runs a failure again.
fn replay(failed: &super::Failed) -> String {
    format!("cargo xtask replay {} {} --backend {}", failed.seed, failed.story, failed.backend)
}

/// The night in Markdown.
pub fn summary(night: &Night) -> String {
    let verdict = if night.is_good() { "passed" } else { "FAILED" };
    let mut lines = vec![
        format!("## Nightly {}: {verdict}", night.date),
        String::new(),
        format!("- commit {}; new seeds from {}", night.commit, night.from),
        format!(
            "- {} runs, each twice ({} of them seeds that once failed), {:.1} a second; **{} failed**",
            night.runs,
            night.old_seeds,
            rate(night),
            night.failed.len()
        ),
        format!(
            "- planted bugs: {} of {} hunts as claimed; {} of {} claims not reached within the time",
            night.killed(),
            night.hunted.len(),
            night.claims.saturating_sub(night.hunted.len()),
            night.claims
        ),
    ];
    if !night.failed.is_empty() {
        lines.extend([
            String::new(),
            "| story | seed | backend | invariant | again |".into(),
            "|---|---|---|---|---|".into(),
        ]);
        let row = |failed: &super::Failed| {
            let plain = |text: &str| text.replace('|', "\\|");
            format!(
                "| {} | {} | {} | {} | `{}` |",
                failed.story,
                failed.seed,
                failed.backend,
                plain(&failed.invariant),
                replay(failed)
            )
        };
        lines.extend(night.failed.iter().map(row));
    }
    for hunted in night.hunted.iter().filter(|hunted| !hunted.is_as_claimed()) {
        lines.push(format!(
            "- **{}** was not seen by {}",
            hunted.bug,
            hunted.story.as_deref().unwrap_or("any story that claims to")
        ));
    }
    lines.join("\n") + "\n"
}

/// The page: the last night, and trends over all.
pub fn page(nights: &[Night], stories: &Stories) -> String {
    let Some(night) = nights.last() else { return String::new() };
    let (verdict, class) = if night.is_good() { ("passed", "good") } else { ("FAILED", "bad") };
    let plots = [
        plot("runs", nights, |night| Some(real(night.runs))),
        plot("runs a second", nights, |night| Some(rate(night))),
        plot("failures", nights, |night| Some(real(night.failed.len()))),
        plot("hunts that ended as claimed, %", nights, kill_percent),
    ];
    let failed: Vec<String> = night.failed.iter().map(failure_row).collect();
    let told: Vec<String> = stories
        .iter()
        .map(|((story, backend), (runs, failed))| {
            let class = if *failed > 0 { "bad" } else { "" };
            format!(
                "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{runs}</td><td>{failed}</td></tr>",
                escaped(story),
                escaped(backend)
            )
        })
        .collect();
    let hunted: Vec<String> = night.hunted.iter().map(hunt_row).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Nightly {date}: {verdict}</title>\n<style>\n{style}</style></head><body>\n\
         <h1 class=\"{class}\">Nightly {date}: {verdict}</h1>\n<p>commit {commit} · new seeds from {from} · {runs} runs, each twice · {count} failed · {reached} of {claims} claims about planted bugs hunted</p>\n\
         <div class=\"plots\">{plots}</div>\n<h2>Failures</h2>\n{failures}\n<h2>Stories</h2>\n<table><tr><th>story</th><th>backend</th><th>runs</th><th>failed</th></tr>{told}</table>\n\
         <h2>Planted bugs</h2>\n<table><tr><th>bug</th><th>story</th><th>runs</th><th>seconds</th><th>seen by</th></tr>{hunted}</table>\n</body></html>\n",
        date = escaped(&night.date),
        style = include_str!("report.css"),
        commit = escaped(&night.commit),
        from = night.from,
        runs = night.runs,
        count = night.failed.len(),
        reached = night.hunted.len(),
        claims = night.claims,
        plots = plots.join("\n"),
        failures = if failed.is_empty() {
            "<p>None.</p>".into()
        } else {
            format!(
                "<table><tr><th>story</th><th>seed</th><th>backend</th><th>invariant</th><th>again</th></tr>{}</table>",
                failed.join("")
            )
        },
        told = told.join(""),
        hunted = hunted.join(""),
    )
}

fn failure_row(failed: &super::Failed) -> String {
    let story = escaped(&failed.story);
    let story = match &failed.folder {
        Some(folder) => format!("<a href=\"{}/timeline.html\">{story}</a>", escaped(folder)),
        None => story,
    };
    format!(
        "<tr class=\"bad\"><td>{story}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
        failed.seed,
        escaped(&failed.backend),
        escaped(&failed.invariant),
        escaped(&replay(failed))
    )
}

fn hunt_row(hunted: &Hunted) -> String {
    let class = if hunted.is_as_claimed() { "" } else { "bad" };
    format!(
        "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td></tr>",
        escaped(&hunted.bug),
        escaped(hunted.story.as_deref().unwrap_or("no story claims it")),
        escaped(&hunted.runs),
        hunted.seconds,
        escaped(hunted.seen.as_deref().unwrap_or("NOBODY"))
    )
}

/// One value over the last nights that have it, from zero up.
fn plot(name: &str, nights: &[Night], value: impl Fn(&Night) -> Option<f64>) -> String {
    let valued: Vec<(&Night, f64)> = nights.iter().filter_map(|night| Some((night, value(night)?))).collect();
    let shown = valued.get(valued.len().saturating_sub(NIGHTS_SHOWN)..).unwrap_or_default();
    let most = shown.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let step = 280.0 / real(shown.len().saturating_sub(1).max(1));
    let point = |(place, (night, value)): (u32, &(&Night, f64))| {
        let (x, y) = (10.0 + f64::from(place) * step, 70.0 - 55.0 * value / most);
        let date = escaped(&night.date);
        let dot =
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"><title>{date}: {}</title></circle>", figure(*value));
        (format!("{x:.1},{y:.1}"), dot)
    };
    let (line, dots): (Vec<String>, Vec<String>) = (0_u32..).zip(shown).map(point).unzip();
    let date = |of: Option<&(&Night, f64)>| of.map_or_else(String::new, |(night, _)| escaped(&night.date));
    format!(
        "<figure><figcaption>{}: <b>{}</b></figcaption><svg viewBox=\"0 0 300 84\"><line x1=\"10\" x2=\"290\" y1=\"70\" y2=\"70\"/>\
         <text x=\"10\" y=\"11\">{}</text><text x=\"10\" y=\"82\">{}</text><text class=\"last\" x=\"290\" y=\"82\">{}</text>\
         <polyline points=\"{}\"/>{}</svg></figure>",
        escaped(name),
        shown.last().map_or_else(|| "none yet".into(), |(_, value)| figure(*value)),
        figure(most),
        date(shown.first()),
        date(shown.last()),
        line.join(" "),
        dots.join("")
    )
}

/// A count as one; with one digit what is none.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::super::history::sample;
    use super::*;

    #[test]
    fn the_summary_says_what_failed_and_how_to_run_it_again() {
        let good = summary(&sample("2026-01-01", 0, true));
        assert!(good.starts_with("## Nightly 2026-01-01: passed\n"), "{good}");
        assert!(good.contains("1 of 2 claims not reached"), "{good}");
        let bad = summary(&sample("2026-01-02", 1, false));
        assert!(bad.starts_with("## Nightly 2026-01-02: FAILED\n"), "{bad}");
        assert!(bad.contains("`cargo xtask replay 7 a-story --backend own`"), "{bad}");
        assert!(bad.contains("**no-fence** was not seen by a-story"), "{bad}");
    }

    #[test]
    fn the_page_shows_every_night_and_needs_no_network() {
        let nights = [sample("2026-01-01", 0, true), sample("2026-01-02", 1, false), sample("2026-01-03", 0, true)];
        let page = page(&nights, &Stories::from([(("a-story".into(), "own".into()), (3, 1))]));
        assert_eq!(page.matches("<polyline").count(), 4);
        assert_eq!(page.matches("<circle").count(), 12);
        assert!(page.contains("Nightly 2026-01-03: passed") && !page.contains("http"));
        assert!(page.contains("runs: <b>120</b>") && page.contains("runs a second: <b>2</b>"), "{page}");
        // A night that hunted nothing is no night on which nothing was seen.
        let idle = super::super::Night { hunted: Vec::new(), ..sample("2026-01-04", 0, true) };
        let page = super::page(&[nights[0].clone(), idle], &Stories::new());
        assert!(page.contains("claimed, %: <b>100</b>") && page.matches("<circle").count() == 7, "{page}");
        let page = super::page(&nights[..2], &Stories::new());
        assert!(page.contains("<a href=\"a-story-7-own/timeline.html\">") && page.contains("1 &lt; 2"));
    }
}
