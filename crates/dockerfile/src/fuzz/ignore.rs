//! Ignore files: patterns against paths, one path at a time and as a walk goes.

use kiln_stdx::pattern::{MatchInfo, PathFilter, PatternMatcher};

use super::corpus;
use super::random::Random;
use crate::ignore;

const PIECES: [&str; 24] = [
    "a", "b", "dir", ".git", "/", "/", "*", "**", "?", "!", "\n", "\n", "#", " ", "..", ".", "[a-c]", "[", "\\*", "\\",
    "é", "\r\n", "\t", "x.log",
];
const PARTS: [&str; 10] = ["a", "b", "dir", ".git", "x.log", "é", "c", "*", "a b", ".."];

fn path(random: &mut Random) -> Vec<u8> {
    let parts: Vec<&str> = (0..=random.below(4)).map(|_| random.pick(&PARTS[..9])).collect();
    parts.join("/").into_bytes()
}

fn body(random: &mut Random) {
    let text = match random.below(3) {
        0 => corpus::mutated(random),
        _ => random.pieces(&PIECES, 40).into_bytes(),
    };
    let patterns = ignore::parse(&text);
    assert!(patterns.iter().all(|p| !p.contains('\n')), "{patterns:?}");
    let Ok(matcher) = PatternMatcher::new(&patterns) else { return };
    let paths: Vec<Vec<u8>> = (0..8).map(|_| path(random)).collect();
    for path in &paths {
        let alone = matcher.matches(path);
        if !matcher.has_negations() {
            // Without exceptions, what is below something ignored is ignored, and a walk finds the same.
            let mut info = MatchInfo::default();
            let mut above = false;
            let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i).chain([path.len()]);
            for end in ends {
                let (hit, next) = matcher.matches_below(&path[..end], &info);
                assert!(hit || !above, "{:?} of {patterns:?}", String::from_utf8_lossy(path));
                (above, info) = (hit, next);
            }
            assert_eq!(above, alone, "{:?} of {patterns:?}", String::from_utf8_lossy(path));
        }
        // A last pattern that matches everything decides.
        let all = patterns.iter().map(String::as_str).chain(["**"]);
        assert!(PatternMatcher::new(all).is_ok_and(|m| m.matches(path)), "{patterns:?}");
    }
    let Ok(filter) = PathFilter::new(["dir"], &patterns) else { return };
    for path in &paths {
        assert!(!filter.wants(path) || !matcher.matches(path));
    }
}

#[test]
fn ignoring_never_fails_badly() {
    super::campaign("ignore", 500, body);
}
