//! `--name=value` flags of instructions.

use crate::diag::{Fault, Outcome};

/// What a flag takes.
enum Slot<'a> {
    Bool(&'a mut Option<bool>),
    Text(&'a mut Option<String>),
    List(&'a mut Vec<String>),
}

/// Flags an instruction knows, and those it was given.
pub(super) struct Flags<'a> {
    given: &'a [String],
    known: Vec<(&'static str, Slot<'a>)>,
}

impl<'a> Flags<'a> {
    pub fn new(given: &'a [String]) -> Self {
        Self { given, known: Vec::new() }
    }

    /// Declares a flag that is true when it has no value.
    pub fn bool(mut self, name: &'static str, slot: &'a mut Option<bool>) -> Self {
        self.known.push((name, Slot::Bool(slot)));
        self
    }

    /// Declares a flag that needs a value.
    pub fn text(mut self, name: &'static str, slot: &'a mut Option<String>) -> Self {
        self.known.push((name, Slot::Text(slot)));
        self
    }

    /// Declares a flag that may be repeated.
    pub fn list(mut self, name: &'static str, slot: &'a mut Vec<String>) -> Self {
        self.known.push((name, Slot::List(slot)));
        self
    }

    /// Reads what was given.
    pub fn parse(mut self) -> Outcome<()> {
        for flag in self.given {
            let (written, value) = match flag.split_once('=') {
                Some((written, value)) => (written, Some(value)),
                None => (flag.as_str(), None),
            };
            let name = written.trim_start_matches("--");
            let names: Vec<&'static str> = self.known.iter().map(|(n, _)| *n).collect();
            let slot = self.known.iter_mut().find(|(known, _)| format!("--{known}") == written);
            let Some((_, slot)) = slot else {
                let fault = Fault::new(format!("unknown flag: {written}")).did_you_mean(name, names.iter().copied());
                let list: Vec<String> = names.iter().map(|n| format!("--{n}")).collect();
                let hint = match list.as_slice() {
                    [] => "this instruction takes no flags".to_owned(),
                    list => format!("known here: {}", list.join(", ")),
                };
                return Err(fault.hint(hint).word(written));
            };
            slot.set(written, value)?;
        }
        Ok(())
    }
}

impl Slot<'_> {
    fn set(&mut self, written: &str, value: Option<&str>) -> Outcome<()> {
        let duplicate = || Err(Fault::new(format!("duplicate flag specified: {written}")).word(written));
        let missing = || Fault::new(format!("missing a value on flag: {written}")).word(written);
        match self {
            Self::Bool(Some(_)) | Self::Text(Some(_)) => return duplicate(),
            Self::Bool(slot) => {
                **slot = Some(match value.map(str::to_ascii_lowercase).as_deref() {
                    None | Some("true") => true,
                    Some("false") => false,
                    Some("") => return Err(missing()),
                    Some(_) => {
                        let value = value.unwrap_or_default();
                        let message = format!("expecting boolean value for flag {written}, not: {value}");
                        return Err(Fault::new(message).word(value));
                    }
                });
            }
            Self::Text(slot) => **slot = Some(value.ok_or_else(missing)?.to_owned()),
            Self::List(slot) => slot.push(value.ok_or_else(missing)?.to_owned()),
        }
        Ok(())
    }
}
