//! Attributes of caches: how values are read, and which of them are secret.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_registry::ErrorKind;
use kiln_stdx::duration;

use crate::error::config;

/// What `--cache-to` and `--cache-from` say.
pub type Attrs = BTreeMap<String, String>;
/// The environment of whoever asks, by name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Tells whether the value of an attribute must not be shown or kept.
pub fn is_secret(name: &str) -> bool {
    matches!(name, "token" | "ghtoken" | "access_key_id" | "secret_access_key" | "session_token")
}

/// Returns attributes as they may be shown: without secrets, and addresses without what follows `?`.
pub fn shown(attrs: &Attrs) -> Attrs {
    let plain = |(name, value): (&String, &String)| {
        if is_secret(name) {
            return (name.clone(), "****".to_owned());
        }
        let secret_part = name.contains("url").then(|| value.find('?')).flatten();
        (name.clone(), secret_part.map_or_else(|| value.clone(), |at| format!("{}?****", &value[..at])))
    };
    attrs.iter().map(plain).collect()
}

/// Returns an attribute that is there and not empty.
pub(crate) fn given<'a>(attrs: &'a Attrs, name: &str) -> Option<&'a str> {
    attrs.get(name).map(String::as_str).filter(|text| !text.is_empty())
}

/// Returns the names of a list with semicolons.
pub(crate) fn names(attrs: &Attrs, fallback: &str) -> Vec<String> {
    attrs.get("name").map_or(fallback, String::as_str).split(';').map(str::to_owned).collect()
}

/// Reads true or false as Go does; what is neither counts as not given.
pub(crate) fn boolean(attrs: &Attrs, name: &str) -> bool {
    matches!(attrs.get(name).map(String::as_str), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Reads a positive number.
pub(crate) fn positive(attrs: &Attrs, name: &str) -> Result<Option<u32>, ErrorKind> {
    let Some(text) = attrs.get(name) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| *number > 0);
    number.map(Some).ok_or_else(|| config(format!("{name} must be a positive integer")))
}

/// Reads `timeout`.
pub(crate) fn timeout(attrs: &Attrs) -> Result<Option<Duration>, ErrorKind> {
    let Some(text) = attrs.get("timeout") else { return Ok(None) };
    let time = duration::parse(text.trim()).filter(|time| !time.is_zero());
    time.map(Some).ok_or_else(|| config(format!("timeout {text:?} is no time; write 30s or 10m")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let attrs = Attrs::from([
            ("bucket".to_owned(), "b".to_owned()),
            ("secret_access_key".to_owned(), "hunter2".to_owned()),
            ("account_url".to_owned(), "https://a.test/?sig=hunter2".to_owned()),
        ]);
        let text = format!("{:?}", shown(&attrs));
        assert!(!text.contains("hunter2") && text.contains("https://a.test/?****"), "{text}");
    }

    #[test]
    fn numbers_and_lists() {
        let attrs = |name: &str, value: &str| Attrs::from([(name.to_owned(), value.to_owned())]);
        assert_eq!(positive(&attrs("n", "8"), "n").unwrap(), Some(8));
        assert!(positive(&attrs("n", "0"), "n").is_err() && positive(&attrs("n", "x"), "n").is_err());
        assert_eq!(names(&attrs("name", "a;b"), "f"), ["a", "b"]);
        assert_eq!(names(&Attrs::new(), "f"), ["f"]);
    }
}
