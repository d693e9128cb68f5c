//! Trees and errors of whatever text, and how errors are drawn; questions, checks and advice that need no base.

use super::corpus;
use super::random::{Random, TOKENS};
use crate::advice::{self, ContextView};
use crate::source::SourceFile;
use crate::{Diagnostic, parse, render};

/// Places must lie in the file, and a drawn error must show something.
pub fn check_diagnostic(source: &SourceFile, diagnostic: &Diagnostic) {
    assert!(!diagnostic.message.is_empty(), "{diagnostic:?}");
    let drawn = render::diagnostic(source, diagnostic);
    assert!(drawn.contains(diagnostic.message.lines().next().unwrap_or("")), "{drawn}");
    // What is drawn may be several times what it shows, but not without end.
    assert!(drawn.len() <= diagnostic.message.len() + 64 * 1024 + 4 * source.data.len(), "{} bytes", drawn.len());
}

fn body(random: &mut Random) {
    let data = match random.below(6) {
        0 => format!("FROM scratch\nRUN {}", random.pieces(&TOKENS, 60)).into_bytes(),
        _ => corpus::mutated(random),
    };
    let source = SourceFile { name: "Dockerfile".into(), data: data.clone() };
    let file = match parse("Dockerfile", &data) {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.diagnostics.is_empty());
            for diagnostic in error.diagnostics.iter().chain(&error.warnings) {
                check_diagnostic(&source, diagnostic);
            }
            return;
        }
    };
    assert!(!file.stages.is_empty() || !file.global_args.is_empty());
    for stage in &file.stages {
        let mut last = stage.lines.last;
        for instruction in &stage.instructions {
            assert!(instruction.lines.first > last, "{:?} behind line {last}", instruction.lines);
            last = instruction.lines.last;
        }
    }
    let context = ContextView { known: random.chance(2), ..ContextView::default() };
    for piece in advice::advise(&file, &context) {
        let drawn = advice::diff(&file.source, &context, &piece.edits);
        assert!(piece.edits.is_empty() || !piece.ready || !drawn.is_empty(), "{piece:?}");
    }
    let _ = advice::propose(&file.source, &context);
    // The same text gives the same tree.
    assert_eq!(format!("{file:?}"), format!("{:?}", parse("Dockerfile", &data).unwrap()));
}

#[test]
fn parsing_never_fails_badly() {
    super::campaign("parser", 300, body);
}
