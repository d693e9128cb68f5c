//! Words with variables: all forms, nested in each other, with values that hold what means something.

use std::collections::BTreeMap;

use super::random::Random;
use crate::lex::{Vars, WordLexer};

struct Map(BTreeMap<String, String>);

impl Vars for Map {
    fn value(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

const NAMES: [&str; 8] = ["a", "B", "_c", "d1", "empty", "missing", "1", "@"];
const PIECES: [&str; 26] = [
    "a", "b/c", "*", "?", "\\", "'", "\"", "`", " ", "é", "}", "{", "$", "$$", "$(", "/", "//", "%", "#", "[a-z]", ".",
    "<<", "\t", "\u{301}", "x*y", ":",
];

/// A text with forms of expansion; often well formed, and not always.
fn text(random: &mut Random, depth: usize) -> String {
    let mut out = String::new();
    for _ in 0..random.below(4) {
        if random.chance(2) || depth == 0 {
            out.push_str(random.pick(&PIECES));
            continue;
        }
        let name = random.pick(&NAMES);
        let (one, two) = (text(random, depth - 1), text(random, depth - 1));
        let form = match random.below(16) {
            0 => format!("${name}"),
            1 => format!("${{{name}}}"),
            2 => format!("${{{name}:-{one}}}"),
            3 => format!("${{{name}-{one}}}"),
            4 => format!("${{{name}:+{one}}}"),
            5 => format!("${{{name}+{one}}}"),
            6 => format!("${{{name}:?{one}}}"),
            7 => format!("${{{name}?{one}}}"),
            8 => format!("${{{name}#{one}}}"),
            9 => format!("${{{name}##{one}}}"),
            10 => format!("${{{name}%{one}}}"),
            11 => format!("${{{name}%%{one}}}"),
            12 => format!("${{{name}/{one}/{two}}}"),
            13 => format!("${{{name}//{one}/{two}}}"),
            14 => format!("\"{one}\""),
            _ => format!("'{one}'"),
        };
        out.push_str(&form);
    }
    out
}

fn body(random: &mut Random) {
    let mut vars = BTreeMap::from([("empty".to_owned(), String::new())]);
    for name in ["a", "B", "_c", "d1"] {
        if !random.chance(4) {
            let value = random.pieces(&PIECES, 8).repeat(1 + random.below(6));
            vars.insert(name.to_owned(), value);
        }
    }
    let vars = Map(vars);
    let text = if random.chance(50) {
        // Deep nesting, most often closed.
        let depth = random.below(200);
        "${missing:-".repeat(depth) + &"}".repeat(depth.saturating_sub(random.below(2)))
    } else {
        text(random, 6)
    };
    let lexer = WordLexer {
        escape: if random.chance(3) { '`' } else { '\\' },
        raw_quotes: random.chance(3),
        raw_escapes: random.chance(3),
        ignore_quotes: random.chance(5),
        keep_unset: random.chance(4),
    };
    let Ok(done) = lexer.expand(&text, &vars) else { return };
    assert!(done.text.len() <= crate::lex::word::MAX_TEXT, "{} bytes", done.text.len());
    assert!(done.words.iter().all(|w| !w.is_empty()));
    assert!(done.matched.iter().all(|name| vars.0.contains_key(name)), "{:?}", done.matched);
    assert!(done.unmatched.iter().all(|name| !vars.0.contains_key(name)), "{:?}", done.unmatched);
    // A text without anything that means something stays.
    if !text.contains(['$', '\\', '`', '"', '\'']) {
        assert_eq!(done.text, text);
    }
    // The same words, however often it is asked.
    assert_eq!(lexer.expand(&text, &vars), Ok(done));
}

#[test]
fn expanding_never_fails_badly() {
    super::campaign("expander", 2000, body);
}

/// A value that grows with each step of a nest has an end.
#[test]
fn values_cannot_grow_without_end() {
    let vars = Map(BTreeMap::from([("a".to_owned(), "x".repeat(100))]));
    let mut word = "${a}".to_owned();
    for _ in 0..8 {
        word = format!("${{a//?/{word}}}");
    }
    let error = WordLexer::new('\\').expand(&word, &vars).unwrap_err();
    assert!(error.contains("longer than"), "{error}");
}
