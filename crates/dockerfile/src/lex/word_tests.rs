//! A table of words: every form of variables, quotes and escapes.

use super::*;

fn vars() -> kiln_llb::builder::EnvList {
    [
        ("a", "alpha"),
        ("e", ""),
        ("path", "/usr/local/lib/x.tar.gz"),
        ("sp", "one  two"),
        ("q", "a*b?c"),
        ("nl", "x\ny"),
        ("ü", "umlaut"),
    ]
    .into_iter()
    .collect()
}

fn expand(text: &str) -> Result<String, String> {
    WordLexer::new('\\').expand(text, &vars()).map(|e| e.text)
}

#[test]
fn forms() {
    for (text, want) in [
        ("$a", "alpha"),
        ("${a}", "alpha"),
        ("$none", ""),
        ("x${none}y", "xy"),
        ("${none:-w}", "w"),
        ("${e:-w}", "w"),
        ("${e-w}", ""),
        ("${none-w}", "w"),
        ("${a:-w}", "alpha"),
        ("${a:+w}", "w"),
        ("${e:+w}", ""),
        ("${e+w}", "w"),
        ("${none+w}", ""),
        ("${a:?m}", "alpha"),
        ("${e?m}", ""),
        ("${path#*/}", "usr/local/lib/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "/usr/local/lib/x.tar"),
        ("${path%%.*}", "/usr/local/lib/x"),
        ("${path/l/L}", "/usr/Local/lib/x.tar.gz"),
        ("${path//l/L}", "/usr/LocaL/Lib/x.tar.gz"),
        ("${path//\\//-}", "-usr-local-lib-x.tar.gz"),
        ("${path/usr*lib/}", "//x.tar.gz"),
        ("${q#a\\*}", "b?c"),
        ("${q%\\?c}", "a*b"),
        ("${q%?c}", "a*b"),
        ("${a#z}", "alpha"),
        ("${a//[al]/x}", "alpha"),
        ("${none:-${a:-x}}", "alpha"),
        ("${none:-$a$a}", "alphaalpha"),
        ("${a:+${none:-deep}}", "deep"),
        ("${none:-'a b'}", "a b"),
        ("${none:-a\\}b}", "a}b"),
        ("$ü", "umlaut"),
        ("$a-$a_", "alpha-"),
        ("$1x $@ $* $# $? $- $! $0", "x       "),
        ("$$", ""),
        ("$ a", "$ a"),
        ("$", "$"),
        ("$/x", "$/x"),
        ("${nl#*}", "x\ny"),
        ("${nl##*}", "\ny"),
    ] {
        assert_eq!(expand(text).as_deref(), Ok(want), "{text}");
    }
}

#[test]
fn quotes_and_escapes() {
    for (text, want) in [
        ("'$a'", "$a"),
        ("\"$a\"", "alpha"),
        ("\\$a", "$a"),
        ("\"\\$a\"", "$a"),
        ("\"a\\\"b\"", "a\"b"),
        ("\"a\\nb\"", "a\\\\nb".replacen("\\\\", "\\", 1).as_str()),
        ("a\\ b", "a b"),
        ("'it'\"'\"'s'", "it's"),
        ("a\\", "a"),
        ("\"\\\\\"", "\\"),
        ("''", ""),
        ("a'b c'd", "ab cd"),
    ] {
        assert_eq!(expand(text).as_deref(), Ok(want), "{text}");
    }
    let backtick = WordLexer::new('`');
    assert_eq!(backtick.expand("C:\\dir\\`$a", &vars()).unwrap().text, "C:\\dir\\$a");
}

#[test]
fn errors() {
    for (text, want) in [
        ("${", "missing '}'"),
        ("${a", "missing '}'"),
        ("${a:-x", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${{a}}", "bad substitution"),
        ("${a^}", "unsupported modifier (^)"),
        ("${a:#x}", "unsupported modifier (:#)"),
        ("${a:%x}", "unsupported modifier (:%)"),
        ("${a:=x}", "unsupported modifier (:=)"),
        ("${none:?gone}", "none: gone"),
        ("${none?}", "none: is not allowed to be unset"),
        ("${e:?}", "e: is not allowed to be empty"),
        ("${a/x}", "missing '/' in ${}"),
        ("${a/x/y", "missing '}'"),
        ("${a#\\q}", "invalid escape '\\q'"),
        ("'a", "matching single-quote"),
        ("\"a", "matching double-quote"),
    ] {
        let error = expand(text).unwrap_err();
        assert!(error.contains(want), "{text}: {error}");
        assert!(error.starts_with("failed to process \""), "{error}");
    }
    let deep = "${x:-".repeat(500) + &"}".repeat(500);
    assert!(expand(&deep).unwrap_err().contains("nested too deeply"));
}

#[test]
fn words_are_split_after_expansion() {
    let words = |text: &str| WordLexer::new('\\').expand(text, &vars()).unwrap().words;
    assert_eq!(words("a $sp 'b c' \"$sp\""), ["a", "one", "two", "b c", "one  two"]);
    assert_eq!(words("x$sp y"), ["xone", "two", "y"]);
    assert_eq!(words("  "), Vec::<String>::new());
    assert_eq!(words("a\\ b"), ["a b"]);
    assert_eq!(words("80${none:-81} 82"), ["8081", "82"]);
}

#[test]
fn used_names_are_reported() {
    let found = WordLexer::new('\\').expand("$a ${none:-$path} ${e}", &vars()).unwrap();
    assert_eq!(found.matched.into_iter().collect::<Vec<_>>(), ["a", "e", "path"]);
    assert_eq!(found.unmatched.into_iter().collect::<Vec<_>>(), ["none"]);
}

#[test]
fn unset_variables_can_be_kept() {
    let lexer = WordLexer { keep_unset: true, raw_quotes: true, ..WordLexer::new('\\') };
    let text = "echo \"$a\" '$a' $none ${none} ${none:-$a} ${none#x} ${none/a/b}";
    assert_eq!(
        lexer.expand(text, &vars()).unwrap().text,
        "echo \"alpha\" '$a' $none ${none} ${none:-alpha} ${none#x} ${none/a/b}"
    );
}
