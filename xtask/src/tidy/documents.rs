//! Checks on what people read.

use std::collections::BTreeMap;

use super::tree::File;
use super::{Finding, Tree};

const CATALOGUE: &str = "core/src/refusal.rs";
const PAGE: &str = "docs/refusals.md";

/// Every refusal code is on the page that explains them, and no other. (That the page says what the catalogue says is
/// a test of `sheetanchor-core`.)
pub fn every_refusal_is_explained(tree: &Tree) -> Vec<Finding> {
    let catalogue = tree.file(CATALOGUE).map(codes).unwrap_or_default();
    let rows = tree.file(PAGE).into_iter().flat_map(File::lines).filter_map(|(line, text)| {
        let code = text.strip_prefix("| `")?.split('`').next()?;
        Some((code.to_owned(), line))
    });
    let page: BTreeMap<String, usize> = rows.collect();
    let mut findings = Vec::new();
    if catalogue.is_empty() {
        findings.push(Finding::new(CATALOGUE, 1, "no refusal code found in the catalogue"));
    }
    let unexplained = catalogue.iter().filter(|(code, _)| !page.contains_key(*code));
    findings.extend(unexplained.map(|(code, line)| Finding::new(CATALOGUE, *line, format!("{code} is not in {PAGE}"))));
    let unknown = page.iter().filter(|(code, _)| !catalogue.contains_key(*code));
    findings.extend(unknown.map(|(code, line)| Finding::new(PAGE, *line, format!("{code} is not in {CATALOGUE}"))));
    findings
}

/// The codes of the catalogue with their lines: the entries read `Variant "CODE" "meaning" "hint";`.
fn codes(catalogue: &File) -> BTreeMap<String, usize> {
    let entries = catalogue.lines().skip_while(|(_, line)| !line.starts_with("catalogue! {"));
    let entries = entries.take_while(|(_, line)| *line != "}");
    let code = |(line, text): (usize, &str)| text.split('"').nth(1).map(|code| (code.to_owned(), line));
    entries.filter_map(code).collect()
}

/// A link to a file of ours leads to one. Links to the web are not followed.
pub fn links_lead_somewhere(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_extension("md") {
        let mut fenced = false;
        for (line, text) in file.lines() {
            fenced ^= text.trim_start().starts_with("```");
            let links = if fenced { Vec::new() } else { links(text) };
            for link in links.into_iter().filter(|link| !leads_to_the_web(link)) {
                let target = link.split('#').next().unwrap_or_default();
                let found = target.is_empty() || resolved(&file.path, target).is_some_and(|path| tree.holds(&path));
                if !found {
                    findings.push(Finding::new(&file.path, line, format!("`{link}` leads nowhere")));
                }
            }
        }
    }
    findings
}

/// The targets of `[text](target)` and of `[name]: target` in a line, but for those in code.
fn links(line: &str) -> Vec<&str> {
    let prose = line.split('`').step_by(2);
    let inline = prose.clone().flat_map(|part| part.split("](").skip(1)).filter_map(|tail| tail.split(')').next());
    // The text of a link may itself be code: [`core`](core).
    let after_code = line.split("`](").skip(1).filter_map(|tail| tail.split(')').next());
    let definition = line.strip_prefix('[').and_then(|tail| tail.split_once("]: ")).map(|(_, target)| target.trim());
    let mut found: Vec<&str> = inline.chain(after_code).chain(definition).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn leads_to_the_web(link: &str) -> bool {
    ["https://", "http://", "mailto:"].into_iter().any(|scheme| link.starts_with(scheme))
}

/// `target` as seen from the folder of `from`; `None` if it leads out of the tree.
fn resolved(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::expect;

    #[test]
    fn a_refusal_and_its_row_belong_together() {
        let catalogue = "macro \"ZZ999\"\ncatalogue! {\n    A \"SA001\" \"m\" \"h\";\n\n    B \"SA002\" \"m\" \"h\";\n}\n\"SA003\"\n";
        let page = "| Code |\n|---|\n| `SA001` | m | h |\n| `SA002` | m | h |\n";
        expect(every_refusal_is_explained, &[(CATALOGUE, catalogue), (PAGE, page)], &[]);
        let page = "| `SA001` | m | h |\n| `SA009` | m | h |\n";
        let expected = ["core/src/refusal.rs:5", "docs/refusals.md:2"];
        expect(every_refusal_is_explained, &[(CATALOGUE, catalogue), (PAGE, page)], &expected);
        expect(every_refusal_is_explained, &[(CATALOGUE, "")], &["core/src/refusal.rs:1"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let page = "[a](b.md) [c](../core) [`d`](../core/x.rs#y) [e](https://f.g) [h](#i)\n\
                    [j](k.md)\n`[l](m.md)`\n[`n`](o.md)\n[p]: q.md\n```\n[r](s.md)\n```\n[t](../../u.md)\n";
        let files = [("docs/a.md", page), ("docs/b.md", ""), ("core/x.rs", "")];
        let expected = ["docs/a.md:2", "docs/a.md:4", "docs/a.md:5", "docs/a.md:9"];
        expect(links_lead_somewhere, &files, &expected);
    }
}
