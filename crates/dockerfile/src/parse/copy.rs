//! `COPY` and `ADD`.

use super::Request;
use crate::ast::{Add, Copy, Heredoc, Kind, Transfer};
use crate::diag::{Fault, Outcome};
use crate::lex::heredoc;

pub(super) fn parse_copy(request: &Request<'_>) -> Outcome<Kind> {
    let words = words(request, "COPY")?;
    let (mut from, mut chown, mut chmod, mut link, mut parents) = (None, None, None, None, None);
    let mut exclude = Vec::new();
    request
        .flags()
        .text("chown", &mut chown)
        .text("from", &mut from)
        .text("chmod", &mut chmod)
        .bool("link", &mut link)
        .list("exclude", &mut exclude)
        .bool("parents", &mut parents)
        .parse()?;
    let transfer = Transfer {
        chown: chown.unwrap_or_default(),
        chmod: chmod.unwrap_or_default(),
        link: link.unwrap_or(false),
        exclude,
        ..transfer(request, words, "COPY")?
    };
    Ok(Kind::Copy(Copy { transfer, from: from.filter(|f| !f.is_empty()), parents: parents.unwrap_or(false) }))
}

pub(super) fn parse_add(request: &Request<'_>) -> Outcome<Kind> {
    let words = words(request, "ADD")?;
    let (mut chown, mut chmod, mut link, mut keep_git_dir, mut checksum, mut unpack) =
        (None, None, None, None, None, None);
    let mut exclude = Vec::new();
    request
        .flags()
        .text("chown", &mut chown)
        .text("chmod", &mut chmod)
        .bool("link", &mut link)
        .bool("keep-git-dir", &mut keep_git_dir)
        .text("checksum", &mut checksum)
        .bool("unpack", &mut unpack)
        .list("exclude", &mut exclude)
        .parse()?;
    let transfer = Transfer {
        chown: chown.unwrap_or_default(),
        chmod: chmod.unwrap_or_default(),
        link: link.unwrap_or(false),
        exclude,
        ..transfer(request, words, "ADD")?
    };
    Ok(Kind::Add(Add { transfer, keep_git_dir, checksum: checksum.unwrap_or_default(), unpack }))
}

fn words(request: &Request<'_>, name: &str) -> Outcome<Vec<String>> {
    let words = request.list()?;
    if words.len() < 2 {
        let message = format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        );
        return Err(Fault::new(message).hint(format!("write {name} <source>... <destination>")));
    }
    Ok(words)
}

/// Splits words into paths, heredocs and the destination.
fn transfer(request: &Request<'_>, mut words: Vec<String>, name: &str) -> Outcome<Transfer> {
    let dest = words.pop().unwrap_or_default();
    if mark(&dest).is_some() {
        return Err(Fault::new(format!("{name} cannot accept a heredoc as a destination")).word(dest));
    }
    let mut out = Transfer { dest, ..Transfer::default() };
    for word in words {
        match mark(&word) {
            Some(found) => {
                // Several marks may share a delimiter; the last body counts, as it does elsewhere.
                let doc = request.logical.heredocs.iter().rev().find(|d| d.name == found.name);
                out.inline.push(Heredoc { content: doc.map(|d| d.content.clone()).unwrap_or_default(), ..found });
            }
            None => out.sources.push(word),
        }
    }
    Ok(out)
}

fn mark(word: &str) -> Option<Heredoc> {
    heredoc::parse_mark(word).ok().flatten()
}
