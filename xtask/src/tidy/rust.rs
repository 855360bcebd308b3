//! Checks on Rust sources.

use super::code::{attributes, code_of, group, line_at, without_tests, words};
use super::tree::File;
use super::{Finding, Tree};

/// An unbiased `select!` draws from a thread-local random source: the same seed would run differently twice.
pub fn every_select_is_biased(tree: &Tree) -> Vec<Finding> {
    in_code(tree, |file, code| {
        let unbiased = |at: &usize| {
            let inside = group(code, at + "select!".len()).unwrap_or_default();
            words(inside, "biased").first().is_none_or(|first| !inside.split_at(*first).0.trim().is_empty())
        };
        let places = words(code, "select").into_iter().filter(|at| code.split_at(*at).1.starts_with("select!"));
        places.filter(unbiased).map(|at| finding(file, code, at, "`select!` does not start with `biased;`")).collect()
    })
}

/// A test that does not run, or that any panic satisfies, proves nothing.
pub fn no_test_is_switched_off(tree: &Tree) -> Vec<Finding> {
    in_code(tree, |file, code| {
        let named = |inside: &str| {
            ["ignore", "should_panic"].into_iter().find(|name| !words(inside, name).is_empty()).filter(|name| {
                let inside = inside.trim_start();
                inside.starts_with(name) || inside.starts_with("cfg_attr")
            })
        };
        let found = |(at, inside): (usize, &str)| {
            named(inside).map(|name| finding(file, code, at, format!("`#[{name}]`: a test runs, and says what it saw")))
        };
        attributes(code).into_iter().filter_map(found).collect()
    })
}

/// Code that is not there yet is not merged.
pub fn nothing_is_unfinished(tree: &Tree) -> Vec<Finding> {
    in_code(tree, |file, code| {
        let of = |name: &'static str| {
            let calls = words(code, name).into_iter().filter(|at| code.split_at(at + name.len()).1.starts_with('!'));
            calls.map(move |at| finding(file, code, at, format!("`{name}!` is not an implementation")))
        };
        ["todo", "unimplemented"].into_iter().flat_map(of).collect()
    })
}

/// A lint that is switched off without a reason will stay off when the reason is gone.
pub fn every_allow_has_a_reason(tree: &Tree) -> Vec<Finding> {
    in_code(tree, |file, code| {
        let mut findings = Vec::new();
        for (at, inside) in attributes(code) {
            for name in ["allow", "expect"] {
                let lists = words(inside, name).into_iter().filter_map(|word| group(inside, word + name.len()));
                for _ in lists.filter(|list| words(list, "reason").is_empty()) {
                    findings.push(finding(file, code, at, format!("`{name}(…)` without a reason")));
                }
            }
        }
        findings
    })
}

/// `--cfg madsim` changes the whole build, so that every other crate must be deaf to it.
pub fn madsim_stays_in_its_crate(tree: &Tree) -> Vec<Finding> {
    let outside = |file: &&File| !file.path.starts_with("sim/madsim/");
    let in_sources = in_code(tree, |file, code| {
        let mentions = words(code, "madsim").into_iter();
        let in_cfg = |at: &usize| {
            let line = code.split_at(*at).0.rsplit('\n').next().unwrap_or_default();
            outside(&file) && (line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr("))
        };
        mentions.filter(in_cfg).map(|at| finding(file, code, at, "`cfg(madsim)` outside sim/madsim")).collect()
    });
    let in_manifests = tree.with_extension("toml").filter(outside).flat_map(|file| {
        let targets = file.lines().filter(|(_, line)| line.starts_with("[target.") && line.contains("madsim"));
        targets.map(|(line, _)| Finding::new(&file.path, line, "`cfg(madsim)` outside sim/madsim"))
    });
    in_sources.into_iter().chain(in_manifests).collect()
}

/// What `core` and `engine` cannot name, they cannot do: no clock, socket, file, thread or `HashMap` exists there.
pub fn the_inner_crates_are_pure(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for folder in ["core/src/", "core/engine/src/"] {
        let root = format!("{folder}lib.rs");
        match tree.file(&root) {
            None => findings.push(Finding::new(&root, 1, "the crate has no lib.rs")),
            Some(file) => {
                let code = code_of(&file.text);
                let stated: Vec<&str> = attributes(&code).into_iter().map(|(_, inside)| inside).collect();
                let missing = ["no_std", "forbid(unsafe_code)"].into_iter().filter(|rule| !stated.contains(rule));
                findings.extend(missing.map(|rule| Finding::new(&root, 1, format!("`#![{rule}]` is missing"))));
            }
        }
        let of_crate = |file: &&File| file.path.starts_with(folder) && !file.path.ends_with("/tests.rs");
        for file in tree.with_extension("rs").filter(of_crate) {
            let code = without_tests(&code_of(&file.text));
            let named = |at: &usize| {
                let (before, tail) = code.split_at(*at);
                tail.starts_with("std::") || before.ends_with("extern crate ")
            };
            let places = words(&code, "std").into_iter().filter(named);
            findings.extend(places.map(|at| finding(file, &code, at, "std is not to be named here, but in tests")));
        }
    }
    findings
}

/// Runs `check` on the code of every Rust file.
fn in_code(tree: &Tree, check: impl Fn(&File, &str) -> Vec<Finding>) -> Vec<Finding> {
    tree.with_extension("rs").flat_map(|file| check(file, &code_of(&file.text))).collect()
}

fn finding(file: &File, code: &str, at: usize, what: impl Into<String>) -> Finding {
    Finding::new(&file.path, line_at(code, at), what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::expect;

    #[test]
    fn an_unbiased_select_is_found() {
        let green = "tokio::select! {\n    biased;\n    _ = a => {}\n}\n// select! { b }\nlet select = 1;";
        let red = "fn f() {\n    select! { _ = a => {} }\n    tokio::select!(b = c => biased)\n}";
        expect(every_select_is_biased, &[("a.rs", green), ("b.rs", red)], &["b.rs:2", "b.rs:3"]);
    }

    #[test]
    fn a_test_that_is_switched_off_is_found() {
        let green = "#[doc = \"#[ignore]\"]\n#[test]\nfn ignore() {}\n#[serde(ignore_unknown)]\nstruct A;";
        let red = "#[test]\n#[ignore]\nfn a() {}\n#[should_panic(expected = \"x\")]\nfn b() {}\n#[ignore = \"slow\"]";
        let by_cfg = "#[cfg_attr(miri, ignore)]\nfn c() {}";
        let files = [("a.rs", green), ("b.rs", red), ("c.rs", by_cfg)];
        expect(no_test_is_switched_off, &files, &["b.rs:2", "b.rs:4", "b.rs:6", "c.rs:1"]);
    }

    #[test]
    fn unfinished_code_is_found() {
        let red = "fn a() {\n    todo!()\n}\nfn b() { unimplemented!(\"later\") }\nfn todo() {} // todo!()";
        expect(nothing_is_unfinished, &[("a.rs", red)], &["a.rs:2", "a.rs:4"]);
    }

    #[test]
    fn an_allow_without_a_reason_is_found() {
        let green = "#![allow(a, reason = \"b\")]\n#[cfg_attr(test, allow(c, reason = \"d\"))]\nfn allow(e: u8) {}";
        let red = "#[allow(clippy::reason_free)]\nfn a() {}\n#![cfg_attr(test, allow(b))]\n#[expect(\n    c\n)]";
        let files = [("a.rs", green), ("b.rs", red)];
        expect(every_allow_has_a_reason, &files, &["b.rs:1", "b.rs:3", "b.rs:4"]);
    }

    #[test]
    fn madsim_elsewhere_is_found() {
        let sample = "#[cfg(madsim)]\nmod a;\nuse madsim::b;\nlet c = cfg!(not(madsim));\n#[cfg(feature = \"madsim\")]";
        let manifest = "[lints]\n[target.'cfg(madsim)'.dependencies]\n";
        let files = [
            ("sim/madsim/src/lib.rs", sample),
            ("sim/src/lib.rs", sample),
            ("sim/madsim/Cargo.toml", manifest),
            ("sim/Cargo.toml", manifest),
        ];
        let expected = ["sim/src/lib.rs:1", "sim/src/lib.rs:4", "sim/Cargo.toml:2"];
        expect(madsim_stays_in_its_crate, &files, &expected);
    }

    #[test]
    fn an_impure_inner_crate_is_found() {
        let pure =
            "//! std::fs\n#![no_std]\n#![forbid(unsafe_code)]\n#[cfg(test)]\nextern crate std;\nuse my_std::a;\n";
        let tested = "use core::fmt;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        let green = [("core/src/lib.rs", pure), ("core/engine/src/lib.rs", pure), ("core/src/a.rs", tested)];
        expect(the_inner_crates_are_pure, &green, &[]);
        let red = [
            ("core/src/lib.rs", "#![no_std]\nextern crate std;\n"),
            ("core/src/a.rs", "fn a() {\n    ::std::fs::read();\n}"),
            ("core/native/src/lib.rs", "use std::fs;"),
        ];
        let expected = ["core/src/lib.rs:1", "core/src/lib.rs:2", "core/src/a.rs:2", "core/engine/src/lib.rs:1"];
        expect(the_inner_crates_are_pure, &red, &expected);
    }
}
