//! `FROM [--platform=…] base [AS name]`.

use crate::ast::Stage;
use crate::diag::{Fault, Outcome};
use crate::lex::line::Logical;
use crate::lex::split;
use crate::parse::flags::Flags;

pub(super) fn parse(logical: &Logical) -> Outcome<Stage> {
    let words = split::blank_words(&logical.parts.rest);
    let (base, alias) = match words.as_slice() {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, Some((keyword.clone(), name.clone()))),
        _ => {
            return Err(Fault::new("FROM requires either one or three arguments")
                .hint("write FROM <image>, or FROM <image> AS <name>"));
        }
    };
    let name = alias.as_ref().map(|(_, name)| name.to_lowercase());
    if let (Some(name), Some((_, written))) = (&name, &alias)
        && !valid_name(name)
    {
        return Err(Fault::new(format!(
            "invalid name for build stage: {}, name can't start with a number or contain symbols",
            crate::gofmt::quote(written)
        ))
        .word(written));
    }
    let mut platform = None;
    Flags::new(&logical.parts.flags).text("platform", &mut platform).parse()?;
    Ok(Stage {
        keyword: logical.parts.keyword.clone(),
        alias,
        name,
        base: base.clone(),
        platform: platform.filter(|p| !p.is_empty()),
        code: logical.text.trim().to_owned(),
        lines: logical.lines,
        comments: logical.comments.clone(),
        instructions: Vec::new(),
    })
}

/// A letter, then letters, digits, `-`, `_` and `.`.
fn valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}
