//! `ENV`, `LABEL` and `ARG`.

use super::{Request, at_least_one};
use crate::ast::{ArgDef, Kind, Pair, doc_comment};
use crate::diag::{Fault, Outcome};
use crate::lex::split;

/// Reads `key=value …`, or the old form `key rest of line`.
pub(super) fn parse_pairs(request: &Request<'_>, name: &str) -> Outcome<Vec<Pair>> {
    let words = split::quoted_words(request.rest, request.escape);
    let Some(first) = words.first() else {
        request.no_flags()?;
        return Err(at_least_one(name));
    };
    let mut out = Vec::with_capacity(words.len());
    if first.contains('=') {
        for word in &words {
            let Some((key, value)) = word.split_once('=') else {
                let quoted = crate::gofmt::quote(word);
                let message = format!("Syntax error - can't find = in {quoted}. Must be of the form: name=value");
                return Err(Fault::new(message).word(word).hint("quote values that hold blanks: name=\"a b\""));
            };
            out.push(Pair { key: key.to_owned(), value: value.to_owned(), legacy: false });
        }
    } else {
        let Some((key, value)) = split::key_and_rest(request.rest) else {
            return Err(Fault::new(format!("{name} must have two arguments")).word(request.rest));
        };
        out.push(Pair { key: key.to_owned(), value: value.to_owned(), legacy: true });
    }
    request.no_flags()?;
    if out.iter().any(|pair| pair.key.is_empty()) {
        return Err(Fault::new(format!("{name} names can not be blank")));
    }
    Ok(out)
}

/// Reads `name[=default] …`.
pub(super) fn parse_arg(request: &Request<'_>) -> Outcome<Kind> {
    let words = split::quoted_words(request.rest, request.escape);
    if words.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let mut out = Vec::with_capacity(words.len());
    for word in &words {
        let (name, default) = match word.split_once('=') {
            Some(("", _)) => return Err(Fault::new("ARG names can not be blank").word(word)),
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (word.as_str(), None),
        };
        let description = doc_comment(&request.logical.comments, name).map(str::to_owned);
        out.push(ArgDef { name: name.to_owned(), default, description });
    }
    Ok(Kind::Arg(out))
}
