//! Tests of patterns: tables, and comparison with plain definitions on generated input.

use std::collections::BTreeMap;
use std::io;

use super::*;

/// A small deterministic source of choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn text(&mut self, alphabet: &[&str], most: usize) -> String {
        (0..self.below(most + 1)).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}

/// The plain exponential definition of `*`, `?`, `**` (ignore dialect), for comparison.
fn naive(pattern: &[u8], name: &[u8], crossing: bool) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', b'*', rest @ ..] if crossing => {
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            if rest.is_empty() {
                return true;
            }
            naive(rest, name, crossing)
                || (0..name.len()).any(|i| name[i] == b'/' && naive(rest, &name[i + 1..], crossing))
        }
        [b'*', rest @ ..] => {
            (0..=name.len()).take_while(|&i| i == 0 || name[i - 1] != b'/').any(|i| naive(rest, &name[i..], crossing))
        }
        [b'?', rest @ ..] => name.first().is_some_and(|&b| b != b'/') && naive(rest, &name[1..], crossing),
        [byte, rest @ ..] => name.first() == Some(byte) && naive(rest, &name[1..], crossing),
    }
}

#[test]
fn globs_agree_with_the_plain_definition() {
    let mut choices = Choices(7);
    let mut hits = 0;
    for _ in 0..5_000 {
        let pattern = choices.text(&["a", "b", "/", "*", "?"], 7);
        let name = choices.text(&["a", "b", "/", "ab"], 7);
        let flat = pattern.replace("**", "*");
        let got = matches(flat.as_bytes(), name.as_bytes()).unwrap();
        assert_eq!(got, naive(flat.as_bytes(), name.as_bytes(), false), "{flat} against {name}");
        let got = Glob::ignore(pattern.as_bytes()).unwrap().is_match(name.as_bytes());
        assert_eq!(got, naive(pattern.as_bytes(), name.as_bytes(), true), "{pattern} against {name}");
        hits += usize::from(got);
    }
    assert!(hits > 120, "the generator must produce matches: {hits}");
}

#[test]
fn glob_table() {
    for (pattern, name, want) in [
        ("*.rs", "main.rs", true),
        ("*.rs", "src/main.rs", false),
        ("src/*/x", "src/a/x", true),
        ("[a-c]?", "bz", true),
        ("[^a-c]x", "bx", false),
        ("[^a-c]x", "/x", true),
        ("[]-]", "]", false),
        ("\\*", "*", true),
        ("\\*", "x", false),
        ("[\\]]", "]", true),
        ("ä?", "äö", true),
        ("*", "", true),
        ("", "", true),
        ("[*]", "*", true),
    ] {
        match matches(pattern.as_bytes(), name.as_bytes()) {
            Ok(got) => assert_eq!(got, want, "{pattern} {name}"),
            Err(_) => assert!(!want, "{pattern}"),
        }
    }
    for bad in ["[", "a[", "[]", "[-]", "[a-]", "[a", "x\\", "[\\", "*[", "zz[^]"] {
        assert!(matches(bad.as_bytes(), b"q").is_err(), "{bad}");
    }
    assert!(matches(b"?", b"\xff").unwrap(), "a byte that is not UTF-8 is one character");
}

#[test]
fn many_stars_do_not_blow_up() {
    let pattern = "*a".repeat(60);
    assert!(!matches(pattern.as_bytes(), "a".repeat(59).as_bytes()).unwrap());
    assert!(matches(pattern.as_bytes(), "a".repeat(400).as_bytes()).unwrap());
}

#[test]
fn clean_base_parent_join() {
    for (path, want) in [
        ("", "."),
        ("a//b/./c", "a/b/c"),
        ("/../a", "/a"),
        ("a/../..", ".."),
        ("./", "."),
        ("/", "/"),
        ("a/b/", "a/b"),
        ("../../x", "../../x"),
    ] {
        assert_eq!(clean(path.as_bytes()), want.as_bytes(), "{path}");
    }
    assert_eq!((base(b"/a/b/"), base(b""), base(b"//")), (&b"b"[..], &b"."[..], &b"/"[..]));
    assert_eq!((parent(b"a/b"), parent(b"a"), parent(b"/a")), (b"a".to_vec(), b".".to_vec(), b"/".to_vec()));
    assert_eq!(join(b"a", b"../b"), b"b");
}

#[test]
fn ordered_lists() {
    let cases: &[(&[&str], &str, bool)] = &[
        (&["node_modules"], "node_modules/x/y", true),
        (&["node_modules"], "app/node_modules", false),
        (&["**/node_modules"], "app/node_modules/x", true),
        (&["**/node_modules"], "node_modules", true),
        (&["docs/**"], "docs", false),
        (&["docs/**"], "docs/a/b", true),
        (&["*.md", "!README.md"], "README.md", false),
        (&["*.md", "!README.md"], "x.md", true),
        (&["*", "!src"], "src/main.rs", false),
        (&["*", "!src", "src/*.log"], "src/a.log", true),
        (&["a/**/z"], "a/z", true),
        (&["a/**/z"], "a/b/c/z", true),
        (&["a/**/z"], "a/bz", false),
        (&["**.log"], "x/y.log", true),
        (&[" target/ "], "target/debug", true),
        (&["./x"], "x", true),
        (&["!x"], "x", false),
        (&["**"], "anything/at/all", true),
        (&["a+b.c"], "a+b.c", true),
        (&["a+b.c"], "aab.c", false),
    ];
    for &(patterns, path, want) in cases {
        let matcher = PatternMatcher::new(patterns).unwrap();
        assert_eq!(matcher.matches(path.as_bytes()), want, "{patterns:?} {path}");
    }
    assert_eq!(PatternMatcher::new(["!"]).unwrap_err(), PatternError::LoneNegation);
    assert!(PatternMatcher::new(["a["]).is_err());
}

#[test]
fn walking_down_agrees_with_testing_alone_without_negations() {
    let mut choices = Choices(21);
    for _ in 0..4_000 {
        let count = 1 + choices.below(3);
        let patterns: Vec<String> = (0..count)
            .map(|_| choices.text(&["a", "b", "/", "*", "**/"], 5))
            .filter(|p| !p.trim_matches('/').is_empty() && !p.starts_with('/'))
            .collect();
        let matcher = PatternMatcher::new(&patterns).unwrap();
        let path: Vec<&str> = (0..1 + choices.below(4)).map(|_| ["a", "b", "ab"][choices.below(3)]).collect();
        let mut info = MatchInfo::default();
        let mut got = false;
        for depth in 1..=path.len() {
            (got, info) = matcher.matches_below(path[..depth].join("/").as_bytes(), &info);
        }
        assert_eq!(got, matcher.matches(path.join("/").as_bytes()), "{patterns:?} {path:?}");
    }
}

fn walk(filter: &PathFilter, paths: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut walk = filter.walk();
    let (mut taken, mut pruned) = (Vec::new(), Vec::<String>::new());
    for path in paths {
        let (path, is_dir) = path.strip_suffix('/').map_or((*path, false), |p| (p, true));
        if pruned.iter().any(|p| path.starts_with(&format!("{p}/"))) {
            continue;
        }
        match walk.visit(path.as_bytes(), is_dir) {
            Verdict::Take { parents } => {
                taken.extend(parents.into_iter().map(|p| String::from_utf8(p).unwrap()));
                taken.push(path.to_owned());
            }
            Verdict::Pass => {}
            Verdict::Prune => pruned.push(path.to_owned()),
        }
    }
    (taken, pruned)
}

#[test]
fn a_walk_takes_parents_late_and_prunes() {
    let tree = ["a/", "a/b/", "a/b/c", "a/d", "e/", "e/f", "g"];
    let filter = PathFilter::new(["a/b/c", "g"], [""; 0]).unwrap();
    let (taken, pruned) = walk(&filter, &tree);
    assert_eq!(taken, ["a", "a/b", "a/b/c", "g"]);
    assert_eq!(pruned, ["e"]);

    let filter = PathFilter::new([""; 0], ["*", "!a/d"]).unwrap();
    let (taken, pruned) = walk(&filter, &tree);
    assert_eq!(taken, ["a", "a/d"]);
    assert_eq!(pruned, ["a/b", "e"]);

    let filter = PathFilter::new(["**/f"], [""; 0]).unwrap();
    let (taken, pruned) = walk(&filter, &tree);
    assert_eq!(taken, ["e", "e/f"]);
    assert!(pruned.is_empty(), "a leading ** may match anywhere");
}

struct Links(BTreeMap<&'static str, &'static str>);

impl LinkSource for Links {
    fn read_link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let path = std::str::from_utf8(path).unwrap();
        Ok(self.0.get(path).filter(|t| !t.is_empty()).map(|t| t.as_bytes().to_vec()))
    }

    fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        Ok(self.0.keys().filter(|p| parent(p.as_bytes()) == path).map(|p| base(p.as_bytes()).to_vec()).collect())
    }
}

fn followed(links: &[(&'static str, &'static str)], paths: &[&str]) -> Option<Vec<String>> {
    let source = Links(links.iter().copied().collect());
    let paths: Vec<_> = paths.iter().map(|p| p.as_bytes().to_vec()).collect();
    follow_paths(&source, &paths).unwrap().map(|list| list.into_iter().map(|p| String::from_utf8(p).unwrap()).collect())
}

#[test]
fn follow_paths_adds_targets_and_ends_cycles() {
    let links = [("bar", "foo"), ("foo", ""), ("dir", ""), ("dir/l", "../foo"), ("loop", "loop/x"), ("abs", "/dir/l")];
    let list = |items: &[&str]| Some(items.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    assert_eq!(followed(&links, &["bar"]), list(&["bar", "foo"]));
    assert_eq!(followed(&links, &["dir/l/deep"]), list(&["dir/l", "foo/deep"]));
    assert_eq!(followed(&links, &["loop"]), list(&["loop"]));
    assert_eq!(followed(&links, &["abs"]), list(&["abs", "dir/l", "foo"]));
    assert_eq!(followed(&links, &["b*"]), list(&["b*", "foo"]));
    assert_eq!(followed(&links, &["dir", "dir/x"]), list(&["dir"]));
    assert_eq!(followed(&links, &["dir", "/"]), None);
    assert_eq!(followed(&links, &["missing/x"]), list(&["missing/x"]));
}
