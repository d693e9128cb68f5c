//! The simple commands of a `RUN`, as far as they can be told without running a shell.

use crate::ast::{CommandLine, Run};

/// Words before a command that are not the command.
const PREFIXES: [&str; 12] =
    ["sudo", "exec", "time", "env", "command", "if", "then", "else", "do", "!", "nice", "while"];
/// Shells that take a script with `-c`, or on standard input.
const SHELLS: [&str; 5] = ["sh", "bash", "ash", "dash", "zsh"];

/// Returns the commands of a step, each as its words without quotes, without leading assignments.
pub(super) fn commands(run: &Run) -> Vec<Vec<String>> {
    let CommandLine { args, heredocs, shell } = &run.command;
    let mut out = Vec::new();
    match (shell, args.as_slice()) {
        (false, [program, flag, script, ..]) if SHELLS.contains(&base(program)) && flag.ends_with('c') => {
            out.extend(parse(script));
        }
        (false, words) => out.extend(simple(words.to_vec())),
        (true, texts) => {
            let text = texts.join(" ");
            let bare = text.trim_start().starts_with("<<");
            let commands = parse(&text);
            if bare || commands.first().is_some_and(|c| c.first().is_some_and(|w| SHELLS.contains(&base(w)))) {
                heredocs.iter().for_each(|doc| out.extend(parse(&doc.content)));
            }
            if !bare {
                out.extend(commands);
            }
        }
    }
    out
}

/// Returns the last part of a path.
pub(super) fn base(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// Drops what stands before the command's name; none when nothing is left.
fn simple(words: Vec<String>) -> Option<Vec<String>> {
    let assignment = |w: &String| {
        w.split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    };
    let skipped = words.iter().take_while(|w| assignment(w) || PREFIXES.contains(&w.as_str())).count();
    let rest: Vec<String> = words.into_iter().skip(skipped).collect();
    (!rest.is_empty()).then_some(rest)
}

/// Splits a script at operators, lines and brackets.
fn parse(text: &str) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    let (mut words, mut word, mut begun) = (Vec::new(), String::new(), false);
    let mut quote: Option<char> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.push(c),
            (_, '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(next) => {
                    begun = true;
                    word.push(next);
                }
            },
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                begun = true;
            }
            (None, '#') if !begun => while chars.next_if(|c| *c != '\n').is_some() {},
            (None, '&' | '|' | ';' | '\n' | '(' | ')' | '{' | '}' | ' ' | '\t' | '\r') => {
                // Braces and `&` inside words belong to them: ${name}, 2>&1.
                let inner = match c {
                    '{' | '}' => begun || word.ends_with('$'),
                    '(' | ')' => word.ends_with('$'),
                    '&' => word.ends_with('>'),
                    _ => false,
                };
                if inner {
                    word.push(c);
                    continue;
                }
                if begun {
                    words.push(std::mem::take(&mut word));
                    begun = false;
                }
                if !matches!(c, ' ' | '\t' | '\r') {
                    out.extend(simple(std::mem::take(&mut words)));
                }
            }
            (None, c) => {
                begun = true;
                word.push(c);
            }
        }
    }
    if begun {
        words.push(word);
    }
    out.extend(simple(words));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_become_commands() {
        let show = |text: &str| parse(text).iter().map(|c| c.join(" ")).collect::<Vec<_>>();
        assert_eq!(
            show(
                "set -eux; A=1 apt-get update && sudo apt-get install -y 'a b' \\\n  c 2>&1 | tee log # && no\nmake ${X}"
            ),
            ["set -eux", "apt-get update", "apt-get install -y a b c 2>&1", "tee log", "make ${X}"]
        );
        assert_eq!(show("( cd x && npm ci )"), ["cd x", "npm ci"]);
        assert!(show(" # nothing\n").is_empty());
    }

    #[test]
    fn forms_of_run() {
        let run = |text: &str| {
            let file = crate::parse("Dockerfile", format!("FROM scratch\n{text}\n").as_bytes()).unwrap();
            match &file.stages[0].instructions[0].kind {
                crate::ast::Kind::Run(run) => commands(run).iter().map(|c| c.join(" ")).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(run("RUN [\"/bin/bash\", \"-ec\", \"npm ci && ls\"]"), ["npm ci", "ls"]);
        assert_eq!(run("RUN [\"npm\", \"ci\"]"), ["npm ci"]);
        assert_eq!(run("RUN <<EOF\nnpm ci\nls\nEOF"), ["npm ci", "ls"]);
        assert_eq!(run("RUN bash -e <<EOF\nnpm ci\nEOF").first().map(String::as_str), Some("npm ci"));
    }
}
