//! Platforms: `os/arch[/variant]` texts, normal forms and matching, as containerd's platform rules have them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What machine an image is for. Empty fields are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.told())]
pub struct ParsePlatformError(pub String);

impl ParsePlatformError {
    /// Names the part that is malformed, in the words that build checks of other builders have for it, or else the whole.
    fn told(&self) -> String {
        let Self(text) = self;
        match text.split('/').find(|part| !part.contains('(') && !well_formed(part)) {
            Some(part) => format!(
                "{part:?} is an invalid component of {text:?}: platform specifier component must match \
                 \"^[A-Za-z0-9_.-]+$\": invalid argument"
            ),
            None => format!("`{text}` is not a platform: expected OS/ARCH or OS/ARCH/VARIANT, for example linux/arm64"),
        }
    }
}

/// Tells whether a part of a platform's text has the letters that it may have, and any at all.
fn well_formed(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

const ARCHES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
];
const SYSTEMS: &[&str] = &[
    "linux",
    "windows",
    "darwin",
    "freebsd",
    "netbsd",
    "openbsd",
    "wasip1",
    "js",
    "solaris",
    "illumos",
    "plan9",
    "aix",
    "android",
    "dragonfly",
    "ios",
];

impl Platform {
    /// Returns the normalised platform of these parts.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
        .normalize()
    }

    /// Returns the platform this process runs on.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, "")
    }

    /// Parses `os/arch[/variant]`, or one word that is an OS or an architecture, and normalises it.
    ///
    /// # Errors
    /// A text with other than one to three parts, an empty part, or an unknown single word.
    pub fn parse(text: &str) -> Result<Self, ParsePlatformError> {
        let bad = || ParsePlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        // An OS may carry a version in parentheses, `windows(10.0.17763)/amd64`.
        let (os, version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')').ok_or_else(bad)?),
            None => (parts[0], ""),
        };
        if !well_formed(os) || !parts[1..].iter().all(|part| well_formed(part)) {
            return Err(bad());
        }
        let host = Self::host();
        let mut platform = match parts.as_slice() {
            [_] if os == "local" => host,
            [_] => {
                let (arch, variant) = normal_arch(os, "");
                if ARCHES.contains(&arch.as_str()) {
                    Self::new(&host.os, &arch, &variant)
                } else if SYSTEMS.contains(&normal_os(os).as_str()) {
                    Self::new(os, &host.architecture, &host.variant)
                } else {
                    return Err(bad());
                }
            }
            [_, arch] => Self::new(os, arch, ""),
            [_, arch, variant] => Self::new(os, arch, variant),
            _ => return Err(bad()),
        };
        platform.os_version = version.to_owned();
        Ok(platform)
    }

    /// Returns the same platform with names in their usual form: `x86_64` is `amd64`, `arm64/v8` is `arm64`.
    #[must_use]
    pub fn normalize(mut self) -> Self {
        self.os = normal_os(&self.os);
        (self.architecture, self.variant) = normal_arch(&self.architecture, &self.variant);
        self
    }

    /// Tells whether an image for `self` runs where `wanted` is asked for.
    ///
    /// The same OS and architecture are needed. An ARM image of a lower variant runs on a higher one; an amd64 image
    /// of a lower microarchitecture level runs on a higher one.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        let (have, want) = (self.clone().normalize(), wanted.clone().normalize());
        if have.os != want.os || have.architecture != want.architecture {
            return false;
        }
        have.variant == want.variant || level(&have) <= level(&want)
    }

    /// Returns how well `self` answers `wanted`, higher is better; none when it does not run there. Of images that are
    /// alike but for the version of the OS, the one of the version that is asked for is better.
    pub fn rank(&self, wanted: &Platform) -> Option<u32> {
        let exact = !wanted.os_version.is_empty() && self.os_version == wanted.os_version;
        self.satisfies(wanted).then(|| level(&self.clone().normalize()) * 2 + u32::from(exact))
    }

    /// Returns the text without OS version and features, `os/arch[/variant]`.
    pub fn short(&self) -> String {
        let mut text = format!("{}/{}", self.os, self.architecture);
        if !self.variant.is_empty() {
            text = format!("{text}/{}", self.variant);
        }
        text
    }

    /// Returns the text with the version of the OS, `os(version)/arch[/variant]`.
    pub fn full(&self) -> String {
        let short = self.short();
        match (self.os_version.as_str(), short.strip_prefix(&self.os)) {
            ("", _) | (_, None) => short,
            (version, Some(rest)) => format!("{}({version}){rest}", self.os),
        }
    }
}

/// Returns the number in a variant (`v7` is 7); the default variants of arm, arm64 and amd64 where it is empty.
fn level(platform: &Platform) -> u32 {
    let fallback = match platform.architecture.as_str() {
        "arm" => 7,
        "arm64" => 8,
        _ => 1,
    };
    platform.variant.strip_prefix('v').and_then(|n| n.parse().ok()).unwrap_or(fallback)
}

fn normal_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normal_arch(arch: &str, variant: &str) -> (String, String) {
    let (arch, variant) = (arch.to_ascii_lowercase(), variant.to_ascii_lowercase());
    let (arch, variant) = match (arch.as_str(), variant.as_str()) {
        ("i386" | "i686" | "x86" | "386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", v) => ("arm64", v),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (a, v) => (a, v),
    };
    (arch.to_owned(), variant.to_owned())
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_platform_is_told_by_its_part() {
        let told = |text: &str| Platform::parse(text).unwrap_err().to_string();
        assert!(told("linux/").starts_with(r#""" is an invalid component of "linux/""#), "{}", told("linux/"));
        assert!(told("li nux/amd64").starts_with(r#""li nux" is an invalid component"#));
        assert!(told("a/b/c/d").contains("OS/ARCH/VARIANT"));
    }

    #[test]
    fn versions_of_the_system_count_where_they_are_asked_for() {
        let old = Platform::parse("windows(1.1.0)/amd64").unwrap();
        let new = Platform::parse("windows(1.2.3)/amd64").unwrap();
        assert_eq!((old.full().as_str(), old.short().as_str()), ("windows(1.1.0)/amd64", "windows/amd64"));
        assert_eq!(Platform::parse("linux/arm/v7").unwrap().full(), "linux/arm/v7");
        assert!(old.rank(&old) > new.rank(&old));
        let any = Platform::parse("windows/amd64").unwrap();
        assert_eq!(old.rank(&any), new.rank(&any));
    }

    #[test]
    fn texts_are_normalised() {
        for (text, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("Linux/AMD64/v3", "linux/amd64/v3"),
            ("linux/s390x", "linux/s390x"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), want);
        }
        assert_eq!(Platform::parse("arm64").unwrap().architecture, "arm64");
        for text in ["", "/", "linux/", "a/b/c/d", "frob", "linux/am d64"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lower_variants_run_on_higher_ones() {
        let p = |t: &str| Platform::parse(t).unwrap();
        assert!(p("linux/arm/v6").satisfies(&p("linux/arm/v7")));
        assert!(!p("linux/arm/v7").satisfies(&p("linux/arm/v6")));
        assert!(p("linux/amd64").satisfies(&p("linux/amd64/v3")));
        assert!(!p("linux/amd64").satisfies(&p("linux/arm64")));
        assert!(p("linux/arm/v7").rank(&p("linux/arm/v7")) > p("linux/arm/v6").rank(&p("linux/arm/v7")));
    }
}
