//! What a request wants of provenance: `attest:provenance`, `build-arg:BUILDKIT_ATTEST_PROVENANCE`.

use std::collections::BTreeMap;

use crate::error::EngineError;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing of build arguments, labels, secrets and steps.
    Min,
    #[default]
    Max,
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub mode: Mode,
    /// Version 0.2 of the predicate instead of 1.
    pub is_02: bool,
    pub builder_id: String,
    pub reproducible: bool,
    /// Fail if something that the build used cannot be told.
    pub complete: bool,
    pub inline_only: bool,
    /// Name of the file in outputs that are files.
    pub filename: Option<String>,
}

impl Options {
    /// Reads the options of a request; none if it wants no provenance.
    ///
    /// # Errors
    /// An unknown kind of attestation, a bad value.
    pub fn of(attrs: &BTreeMap<String, String>) -> Result<Option<Self>, EngineError> {
        let mut found = None;
        for (key, value) in attrs {
            let kind = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            match kind.map(str::to_lowercase).as_deref() {
                Some("provenance") => found = Some(Self::parse(value)?),
                None | Some("sbom") => {}
                Some(other) => return Err(EngineError::user(format!("unknown attestation type {other:?}"))),
            }
        }
        Ok(found)
    }

    fn parse(text: &str) -> Result<Self, EngineError> {
        let mut options = Self::default();
        for field in text.split(',').map(|field| field.trim_matches('"')).filter(|field| !field.is_empty()) {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            let truth = || match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                _ => Err(EngineError::user(format!("failed to parse {key} flag {value:?}"))),
            };
            match key {
                "mode" => {
                    options.mode = match value {
                        "min" => Mode::Min,
                        "max" | "full" => Mode::Max,
                        _ => return Err(EngineError::user(format!("invalid mode {value:?}"))),
                    }
                }
                "version" => {
                    options.is_02 = match value {
                        "v1" => false,
                        "v0.2" => true,
                        _ => return Err(EngineError::user(format!("invalid provenance SLSA version: {value}"))),
                    }
                }
                "builder-id" => options.builder_id = value.to_owned(),
                "reproducible" => options.reproducible = truth()?,
                "complete-materials" => options.complete = truth()?,
                "inline-only" => options.inline_only = truth().unwrap_or(false),
                "filename" => options.filename = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(options)
    }

    /// Returns the type of the predicate.
    pub fn predicate_type(&self) -> &'static str {
        if self.is_02 { "https://slsa.dev/provenance/v0.2" } else { "https://slsa.dev/provenance/v1" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, value: &str) -> Result<Option<Options>, EngineError> {
        Options::of(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn options_by_both_names() {
        let wanted = of("attest:provenance", "mode=min,version=v0.2,builder-id=b,inline-only=true").unwrap().unwrap();
        assert_eq!((wanted.mode, wanted.is_02, wanted.builder_id.as_str()), (Mode::Min, true, "b"));
        assert!(wanted.inline_only);
        assert_eq!(of("build-arg:BUILDKIT_ATTEST_PROVENANCE", "").unwrap().unwrap().mode, Mode::Max);
        assert_eq!(of("attest:sbom", "").unwrap(), None);
        for (key, value) in
            [("attest:provenance", "mode=most"), ("attest:provenance", "version=v9"), ("attest:vex", "")]
        {
            assert!(of(key, value).is_err(), "{key}={value}");
        }
    }
}
