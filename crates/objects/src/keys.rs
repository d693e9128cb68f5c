//! Names of objects as paths of addresses.

use kiln_registry::ErrorKind;
use kiln_stdx::percent;
use reqwest::Url;

use crate::error::config;

/// Escapes what cannot stand in a path, and `/` unless `slash` says that it may.
pub(crate) fn escape(text: &str, slash: bool) -> String {
    percent::escape(text, if slash { b"/" } else { b"" })
}

/// Returns the address of the object `key` below `base`, which ends with a slash.
pub(crate) fn address(base: &str, key: &str, query: &str) -> Result<Url, ErrorKind> {
    let mark = if query.is_empty() { "" } else { "?" };
    Url::parse(&format!("{base}{}{mark}{query}", escape(key, true))).map_err(|e| config(format!("bad address: {e}")))
}

/// Refuses names that an address cannot have: parts `.` and `..` would be taken as steps.
pub(crate) fn check(what: &str, key: &str) -> Result<(), ErrorKind> {
    if key.split('/').any(|part| part == "." || part == "..") || key.chars().any(char::is_control) {
        return Err(config(format!("{what} {key:?} cannot be part of a name")));
    }
    Ok(())
}

/// Reads the address of a server: http or https, without a login in it.
pub(crate) fn base(what: &str, text: &str) -> Result<Url, ErrorKind> {
    let url = Url::parse(text).map_err(|e| config(format!("{what} is no address: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(config(format!("{what} is no address of an HTTP server")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(config(format!("{what} has a login in it; use the attributes for keys and tokens")));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        let url = address("http://h.test/b/", "p/a b/sha256:0~é", "x=1").unwrap();
        assert_eq!(url.as_str(), "http://h.test/b/p/a%20b/sha256%3A0~%C3%A9?x=1");
        assert!(check("name", "a/../b").is_err() && check("name", ".").is_err());
        check("name", "a..b/.c").unwrap();
    }

    #[test]
    fn a_login_in_an_address_is_refused() {
        let error = base("url", "https://me:hunter2@h.test/").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(base("url", "ftp://h.test/").is_err() && base("url", "h.test").is_err());
    }
}
