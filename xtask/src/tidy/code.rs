//! Rust source without what is not code: a rule about `select!` must not stumble over a comment or a string that names
//! it. Not a parser; just enough to blank comments and literals and to follow brackets.

/// `text` with comments and the contents of literals blanked. Line breaks stay, so line numbers hold.
pub fn code_of(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => text_literal(rest),
            '\'' => character_literal(rest),
            'r' | 'b' | 'c' if !out.ends_with(is_word) => raw_literal(rest),
            _ => 0,
        };
        let (skipped, after) = rest.split_at(if length == 0 { next.len_utf8() } else { length });
        if length == 0 {
            out.push(next);
        } else {
            out.extend(skipped.chars().map(|skipped| if skipped == '\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    out
}

/// `code` without the items under `#[cfg(test)]`.
pub fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for marker in ["#[cfg(test)]", "#[cfg(all(test"] {
        while let Some(start) = out.find(marker) {
            let until = item_end(&out, start);
            let (before, tail) = out.split_at(start);
            let (item, after) = tail.split_at(until.saturating_sub(start));
            let blank: String = item.chars().map(|inside| if inside == '\n' { '\n' } else { ' ' }).collect();
            out = format!("{before}{blank}{after}");
        }
    }
    out
}

/// Where `word` stands in `code` as a word of its own.
pub fn words(code: &str, word: &str) -> Vec<usize> {
    let alone = |at: &usize| {
        let (before, tail) = code.split_at(*at);
        let after = tail.get(word.len()..).unwrap_or_default();
        !before.ends_with(is_word) && !after.starts_with(is_word)
    };
    code.match_indices(word).map(|(at, _)| at).filter(alone).collect()
}

/// What stands between the bracket at or after `from`, with only blanks before it, and the one that closes it.
pub fn group(code: &str, from: usize) -> Option<&str> {
    let tail = code.get(from..)?.trim_start();
    if !tail.starts_with(['(', '[', '{']) {
        return None;
    }
    let mut depth = 0_usize;
    for (at, character) in tail.char_indices() {
        if "([{".contains(character) {
            depth += 1;
        } else if ")]}".contains(character) {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return tail.get(1..at);
            }
        }
    }
    None
}

/// The attributes in `code`: where each starts, and what stands between its brackets.
pub fn attributes(code: &str) -> Vec<(usize, &str)> {
    let hashes = code.match_indices('#').map(|(at, _)| at);
    let of = |at: usize| {
        let after = if code.get(at..)?.starts_with("#![") { at + 2 } else { at + 1 };
        code.get(after..)?.starts_with('[').then(|| group(code, after)).flatten().map(|inside| (at, inside))
    };
    hashes.filter_map(of).collect()
}

/// The number of the line in which `at` lies, from 1.
pub fn line_at(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The end of the item whose first attribute starts at `start`.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, character) in code.char_indices().skip_while(|(at, _)| *at < start) {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth = depth.saturating_sub(1);
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn text_literal(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal, or 0 for a lifetime.
fn character_literal(rest: &str) -> usize {
    let mut after = rest.char_indices().skip(1);
    match (after.next(), after.next()) {
        (Some((_, '\\')), Some((escaped, _))) => {
            let tail = rest.get(escaped + 1..).unwrap_or_default();
            tail.find('\'').map_or(rest.len(), |end| escaped + 1 + end + 1)
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 0,
    }
}

/// The length of a raw literal, or 0 if `rest` does not start with one.
fn raw_literal(rest: &str) -> usize {
    let Some(tail) = ["r", "br", "cr"].into_iter().find_map(|prefix| rest.strip_prefix(prefix)) else { return 0 };
    let body = tail.trim_start_matches('#');
    if !body.starts_with('"') {
        return 0;
    }
    let hashes = "#".repeat(tail.len() - body.len());
    let opened = rest.len() - body.len() + 1;
    let inside = rest.get(opened..).unwrap_or_default();
    let closing = format!("\"{hashes}");
    inside.find(&closing).map_or(rest.len(), |end| opened + end + closing.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` keeps what stands in `kept` and nothing else.
    fn keeps(text: &str, kept: &str) {
        let code = code_of(text);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), kept.split_whitespace().collect::<Vec<_>>(), "{text}");
        assert_eq!(code.matches('\n').count(), text.matches('\n').count(), "{text}");
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        keeps("a // b \"c\nd", "a d");
        keeps("a /* b /* c */\n d */ e", "a e");
        keeps("a(\"b \\\" c\") d", "a( ) d");
        keeps("a(r#\"b \" c\"#, br\"d\\\") e", "a( , ) e");
        keeps("ab\"c\" d", "ab d");
        keeps("fn f<'a>(x: &'a str, c: char) { c == 'x' || c == '\\'' || c == '\\u{1}' }", {
            "fn f<'a>(x: &'a str, c: char) { c ==     || c ==    || c ==   }"
        });
        keeps("'\"' a '\"'", "a");
        keeps("\"open", "");
        keeps("/* open", "");
    }

    #[test]
    fn items_under_test_are_left_out() {
        let code = "a;\n#[cfg(test)]\nextern crate std;\nb;\n#[cfg(test)]\nmod tests { fn f() { g(); } }\nc;";
        let kept: Vec<String> = without_tests(code).split_whitespace().map(str::to_owned).collect();
        assert_eq!(kept, ["a;", "b;", "c;"]);
        assert_eq!(without_tests(code).matches('\n').count(), 6);
    }

    #[test]
    fn words_groups_and_attributes_are_found() {
        assert_eq!(words("todo!() not_todo!() todo", "todo"), [0, 20]);
        assert_eq!(group("f (a, (b), [c]) d", 1), Some("a, (b), [c]"));
        assert_eq!(group("f a(b)", 1), None);
        assert_eq!(attributes("#![a]\n#[b(c[d])]\nx # y"), [(0, "a"), (6, "b(c[d])")]);
        assert_eq!(line_at("a\nb\nc", 4), 3);
    }
}
