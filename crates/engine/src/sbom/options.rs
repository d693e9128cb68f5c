//! What a request wants of an SBOM: `attest:sbom`, `build-arg:BUILDKIT_ATTEST_SBOM`.

use std::collections::BTreeMap;

use kiln_oci::Reference;

use crate::error::EngineError;

/// The name by which kiln's own scanner is asked for.
const OWN: &str = "builtin";

/// Who is to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Generator {
    /// kiln itself.
    Own,
    /// The whole name of an image.
    Image(String),
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// None for the usual scanner, or kiln's own where that cannot be had.
    pub generator: Option<Generator>,
    /// For the scanner: variables of its environment, without their prefix.
    pub parameters: BTreeMap<String, String>,
}

impl Options {
    /// Reads the options of a request; none if it wants no SBOM.
    ///
    /// # Errors
    /// A scanner that is no image's name.
    pub fn of(attrs: &BTreeMap<String, String>) -> Result<Option<Self>, EngineError> {
        let mut found = None;
        for (key, value) in attrs {
            let kind = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            if kind.is_some_and(|kind| kind.eq_ignore_ascii_case("sbom")) {
                found = Self::parse(value)?;
            }
        }
        Ok(found)
    }

    fn parse(text: &str) -> Result<Option<Self>, EngineError> {
        let mut options = Self::default();
        for field in text.split(',').map(|field| field.trim_matches('"')).filter(|field| !field.is_empty()) {
            match field.split_once('=').unwrap_or((field, "")) {
                ("disabled", "true" | "1") | ("false", "") => return Ok(None),
                ("disabled", _) | ("true", "") => {}
                ("generator", "") => return Err(EngineError::user("sbom generator cannot be empty")),
                ("generator", OWN) => options.generator = Some(Generator::Own),
                ("generator", name) => {
                    let reference = Reference::parse(name)
                        .map_err(|e| EngineError::user(format!("failed to parse sbom generator {name}: {e}")))?;
                    options.generator = Some(Generator::Image(reference.to_string()));
                }
                (key, value) => drop(options.parameters.insert(key.to_owned(), value.to_owned())),
            }
        }
        Ok(Some(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, value: &str) -> Result<Option<Options>, EngineError> {
        Options::of(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn a_scanner_may_be_named() {
        assert_eq!(of("attest:provenance", "").unwrap(), None);
        assert_eq!(of("build-arg:BUILDKIT_ATTEST_SBOM", "").unwrap(), Some(Options::default()));
        let named = of("attest:sbom", "generator=me/scan,SELECT=all").unwrap().unwrap();
        assert_eq!(named.generator, Some(Generator::Image("docker.io/me/scan:latest".to_owned())));
        assert_eq!(named.parameters, BTreeMap::from([("SELECT".to_owned(), "all".to_owned())]));
        assert_eq!(of("attest:sbom", "generator=builtin").unwrap().unwrap().generator, Some(Generator::Own));
        assert_eq!(of("attest:sbom", "disabled=true").unwrap(), None);
        for bad in ["generator=", "generator=A B"] {
            assert!(of("attest:sbom", bad).is_err(), "{bad}");
        }
    }
}
