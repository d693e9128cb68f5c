//! A package that was found, and its package URL (purl-spec).

use std::collections::BTreeSet;
use std::fmt::Write as _;

use kiln_stdx::percent::escape;

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ecosystem {
    Apk,
    Cargo,
    Deb,
    Go,
    Maven,
    Npm,
    Pypi,
}

impl Ecosystem {
    /// Returns the type in package URLs.
    pub fn purl_type(self) -> &'static str {
        match self {
            Self::Apk => "apk",
            Self::Cargo => "cargo",
            Self::Deb => "deb",
            Self::Go => "golang",
            Self::Maven => "maven",
            Self::Npm => "npm",
            Self::Pypi => "pypi",
        }
    }
}

/// A package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub ecosystem: Ecosystem,
    /// What comes before the name in its URL: the distribution, a scope, a group, the path of a module.
    pub namespace: String,
    pub name: String,
    pub version: String,
    /// `arch`, `distro`, `upstream`; in the order of the URL, which is that of their names.
    pub qualifiers: Vec<(&'static str, String)>,
    /// As its author wrote it.
    pub license: String,
    /// `Organization: …` or `Person: …`; empty if nobody says.
    pub supplier: String,
    /// The records that name it, by path.
    pub found: BTreeSet<String>,
}

impl Package {
    /// Returns a package that a record at `path` names.
    pub fn new(ecosystem: Ecosystem, name: impl Into<String>, version: impl Into<String>, path: &str) -> Self {
        Self {
            ecosystem,
            namespace: String::new(),
            name: name.into(),
            version: version.into(),
            qualifiers: Vec::new(),
            license: String::new(),
            supplier: String::new(),
            found: BTreeSet::from([path.to_owned()]),
        }
    }

    /// Returns the package's name with what belongs before it, as its users write it.
    pub fn full_name(&self) -> String {
        match (self.namespace.is_empty(), self.ecosystem) {
            (true, _) | (_, Ecosystem::Deb | Ecosystem::Apk) => self.name.clone(),
            (_, Ecosystem::Maven) => format!("{}:{}", self.namespace, self.name),
            _ => format!("{}/{}", self.namespace, self.name),
        }
    }

    /// Returns the package URL.
    pub fn purl(&self) -> String {
        let mut url = format!("pkg:{}", self.ecosystem.purl_type());
        for part in self.namespace.split('/').filter(|part| !part.is_empty()) {
            let _ = write!(url, "/{}", escaped(part));
        }
        let _ = write!(url, "/{}", escaped(&self.name));
        if !self.version.is_empty() {
            let _ = write!(url, "@{}", escaped(&self.version));
        }
        let qualifiers: Vec<String> = self
            .qualifiers
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| format!("{key}={}", escaped(value)))
            .collect();
        if !qualifiers.is_empty() {
            let _ = write!(url, "?{}", qualifiers.join("&"));
        }
        url
    }
}

fn escaped(text: &str) -> String {
    escape(text, b":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_written_as_the_specification_has_them() {
        let mut scoped = Package::new(Ecosystem::Npm, "core", "1.0.0", "x");
        scoped.namespace = "@me".to_owned();
        assert_eq!(scoped.purl(), "pkg:npm/%40me/core@1.0.0");
        assert_eq!(scoped.full_name(), "@me/core");
        let mut deb = Package::new(Ecosystem::Deb, "libstdc++6", "1:12.2.0-14", "x");
        deb.namespace = "debian".to_owned();
        deb.qualifiers = vec![("arch", "amd64".to_owned()), ("distro", String::new())];
        assert_eq!(deb.purl(), "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14?arch=amd64");
        assert_eq!(deb.full_name(), "libstdc++6");
        let mut jar = Package::new(Ecosystem::Maven, "lib", "", "x");
        jar.namespace = "org.example".to_owned();
        assert_eq!((jar.purl().as_str(), jar.full_name().as_str()), ("pkg:maven/org.example/lib", "org.example:lib"));
    }
}
