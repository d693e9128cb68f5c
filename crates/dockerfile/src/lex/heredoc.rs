//! Heredoc marks: `<<EOF`, `<<-EOF`, `3<<"EOF"`.

use super::word::{NoVars, WordLexer};
use crate::ast::Heredoc;

/// Reads one word as a heredoc mark; none when it is none.
///
/// # Errors
/// A delimiter with an unclosed quote.
pub(crate) fn parse_mark(word: &str) -> Result<Option<Heredoc>, String> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches([' ', '\t', '\n', '\x0c', '\r']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let plain = WordLexer { keep_unset: true, ..WordLexer::new('\\') };
    let words = plain.expand(rest, &NoVars)?.words;
    let [name] = words.as_slice() else { return Ok(None) };
    // A delimiter is quoted when reading it with and without its quotes makes a difference.
    let raw = WordLexer { raw_quotes: true, ..plain }.expand(rest, &NoVars)?.words.concat();
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        expand: quotes(name) == quotes(&raw),
        name: name.clone(),
        content: String::new(),
        strip_tabs,
        descriptor: word[..digits].parse().unwrap_or(0),
    }))
}

/// Finds the heredoc marks of an instruction's text.
///
/// # Errors
/// A delimiter with an unclosed quote.
pub(crate) fn marks(text: &str) -> Result<Vec<Heredoc>, String> {
    let lexer = WordLexer { raw_quotes: true, raw_escapes: true, keep_unset: true, ..WordLexer::new('\\') };
    // A text that is no list of words, say for an odd quote, has no heredocs: the shell will complain.
    let words = lexer.expand(text, &NoVars).map(|e| e.words).unwrap_or_default();
    let mut out = Vec::new();
    for word in words {
        out.extend(parse_mark(&word)?);
    }
    Ok(out)
}

/// Drops leading tabs from every line.
pub(crate) fn strip_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_recognised() {
        let mark = |word: &str| parse_mark(word).unwrap().map(|h| (h.name, h.expand, h.strip_tabs, h.descriptor));
        assert_eq!(mark("<<EOF"), Some(("EOF".into(), true, false, 0)));
        assert_eq!(mark("3<<-'E F'"), Some(("E F".into(), false, true, 3)));
        assert_eq!(mark("<< \"X\""), Some(("X".into(), false, false, 0)));
        for word in ["<<", "<<<x", "<EOF", "a<<EOF", "<<a b", "x"] {
            assert_eq!(mark(word), None, "{word}");
        }
        assert!(parse_mark("<<\"x").is_err());
    }

    #[test]
    fn several_on_one_line() {
        let names: Vec<_> = marks("RUN cat <<A <<-\"B\" > x").unwrap().into_iter().map(|h| h.name).collect();
        assert_eq!(names, ["A", "B"]);
        assert!(marks("RUN echo \"a << b").unwrap().is_empty());
        assert!(marks("RUN echo $((1<<2)) '<<EOF'").unwrap().iter().all(|h| h.name != "EOF"));
    }

    #[test]
    fn tabs_go() {
        assert_eq!(strip_tabs("\t\ta\n b\n\tc"), "a\n b\nc");
    }
}
