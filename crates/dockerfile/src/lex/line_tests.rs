//! Lines: what continues, what does not, and where words are.

use super::*;

fn texts(data: &str) -> Vec<String> {
    lex(data.as_bytes()).unwrap().instructions.into_iter().map(|l| l.text).collect()
}

#[test]
fn continuations() {
    assert_eq!(texts("RUN a \\\n b"), ["RUN a  b"]);
    assert_eq!(texts("RUN a \\  \t\n b"), ["RUN a  b"]);
    assert_eq!(texts("RUN a \\\\\nRUN b"), ["RUN a \\\\", "RUN b"]);
    assert_eq!(texts("RUN a \\\n# c\n  # d\n b\\\n\n c"), ["RUN a  b c"]);
    assert_eq!(texts("RUN a \\"), ["RUN a "]);
    assert_eq!(texts("# escape=`\nRUN a `\n b\nRUN c\\\nRUN d"), ["RUN a  b", "RUN c\\", "RUN d"]);
}

#[test]
fn comments_belong_to_the_next_instruction() {
    let lexed = lex(b"# syntax=x\n# one\n# two\nRUN a\n# three\n#\n# four\nRUN b").unwrap();
    assert_eq!(lexed.instructions[0].comments, ["one", "two"]);
    assert_eq!(lexed.instructions[1].comments, ["four"]);
}

#[test]
fn heredocs_only_where_they_are_allowed() {
    let lexed = lex(b"RUN cat <<A\nx\nA\nCMD cat <<A\nENV x=<<B\nRUN [\"<<C\"]\nonbuild run <<D\ny\nD").unwrap();
    let docs: Vec<usize> = lexed.instructions.iter().map(|l| l.heredocs.len()).collect();
    assert_eq!(docs, [1, 0, 0, 0, 1]);
    assert_eq!(lexed.instructions[0].heredocs[0].content, "x\n");
    assert_eq!(lexed.instructions[0].lines, Lines::new(1, 3));
}

#[test]
fn words_are_found_again() {
    let lexed = lex("\n  RUN --mount=a \\\n    é --flag x".as_bytes()).unwrap();
    let logical = &lexed.instructions[0];
    assert_eq!(logical.find("RUN"), Some(Position { line: 2, column: 3 }));
    assert_eq!(logical.find("--mount"), Some(Position { line: 2, column: 7 }));
    assert_eq!(logical.find("--flag"), Some(Position { line: 3, column: 7 }));
    assert_eq!(logical.find("gone"), None);
}

#[test]
fn long_lines_are_refused() {
    let fits = format!("RUN {}", "x".repeat(limits::DOCKERFILE_LINE - 4));
    assert!(lex(fits.as_bytes()).is_ok());
    let error = lex(format!("{fits}y").as_bytes()).unwrap_err();
    assert_eq!(error.message, "dockerfile line greater than max allowed size of 65535");
}
