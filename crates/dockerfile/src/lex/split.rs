//! An instruction's text: keyword, flags, and the rest in words.

/// An instruction taken apart, before its keyword is known to mean anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Parts {
    pub keyword: String,
    /// Words that begin with `--`, quotes removed.
    pub flags: Vec<String>,
    pub rest: String,
}

/// Blanks between words; a line holds no line feed.
fn blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// Takes an instruction apart.
pub(crate) fn split_instruction(text: &str, escape: char) -> Parts {
    let text = text.trim();
    let Some((keyword, rest)) = text.split_once(blank) else {
        return Parts { keyword: text.to_owned(), ..Parts::default() };
    };
    let (flags, rest) = take_flags(rest.trim_start_matches(blank), escape);
    Parts { keyword: keyword.to_owned(), flags, rest: rest.trim().to_owned() }
}

/// Takes the leading words that begin with `--`; a bare `--` ends them.
fn take_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let (word, used, quoted) = flag_word(rest, escape);
        rest = &rest[used..];
        if word == "--" {
            return (flags, rest);
        }
        if quoted || !word.is_empty() {
            flags.push(word);
        }
    }
}

/// Reads one flag: quotes group and vanish, escapes protect the next character.
fn flag_word(text: &str, escape: char) -> (String, usize, bool) {
    let (mut word, mut quote, mut quoted) = (String::new(), None, false);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, at, quoted),
            None if matches!(c, '\'' | '"') => (quote, quoted) = (Some(c), true),
            Some(open) if c == open => quote = None,
            _ if c == escape => word.extend(chars.next().map(|(_, c)| c)),
            _ => word.push(c),
        }
    }
    (word, text.len(), quoted)
}

/// Splits at blanks, nothing else: the form of `COPY`, `EXPOSE`, `FROM` and `VOLUME`.
pub(crate) fn blank_words(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    text.split(blank).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// Splits into words, honouring quotes and escapes and keeping both: the form of `ENV`, `LABEL` and `ARG`.
pub(crate) fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let (mut out, mut word, mut quote, mut quoted) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if quoted || !word.is_empty() {
                    out.push(std::mem::take(&mut word));
                }
                quoted = false;
            }
            _ if c == escape && quote != Some('\'') => {
                // An escape at the very end is dropped.
                if let Some(next) = chars.next() {
                    word.push(c);
                    word.push(next);
                }
            }
            None => {
                if matches!(c, '\'' | '"') {
                    (quote, quoted) = (Some(c), true);
                }
                word.push(c);
            }
            Some(open) => {
                if c == open {
                    quote = None;
                }
                word.push(c);
            }
        }
    }
    if quoted || !word.is_empty() {
        out.push(word);
    }
    out
}

/// Splits the old form `KEY rest of line` at the first blanks.
pub(crate) fn key_and_rest(text: &str) -> Option<(&str, &str)> {
    text.split_once(blank).map(|(key, rest)| (key, rest.trim_start_matches(blank)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_first() {
        let parts = split_instruction("  RUN --mount=\"type=a b\",x --net='h' -- --no echo \\", '\\');
        assert_eq!(parts.keyword, "RUN");
        assert_eq!(parts.flags, ["--mount=type=a b,x", "--net=h"]);
        assert_eq!(parts.rest, "--no echo \\");
        let parts = split_instruction("COPY --from=a\\ b é /", '\\');
        assert_eq!((parts.flags, parts.rest.as_str()), (vec!["--from=a b".to_owned()], "é /"));
        assert_eq!(split_instruction("RUN --é=ü", '\\').flags, ["--é=ü"]);
        assert_eq!(split_instruction("FROM", '\\').rest, "");
    }

    #[test]
    fn words_keep_their_quotes() {
        assert_eq!(
            quoted_words(r#"a=1 b="x y" c='p\' d=\ e f"" \"#, '\\'),
            ["a=1", "b=\"x y\"", "c='p\\'", "d=\\ e", "f\"\""]
        );
        assert_eq!(quoted_words("``\" x", '`'), ["``\" x"]);
        assert_eq!(blank_words("a\tb  c"), ["a", "b", "c"]);
        assert_eq!(key_and_rest("k \t v w "), Some(("k", "v w ")));
    }
}
