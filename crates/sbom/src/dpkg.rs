//! Debian's table of packages: paragraphs of fields (deb822).

use crate::package::{Ecosystem, Package};

/// Returns the installed packages of a table. Paragraphs without a status are those of images without a package
/// manager, which list only what is there.
pub(crate) fn packages(text: &[u8], path: &str) -> Vec<Package> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut paragraph = Paragraph::default();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            found.extend(std::mem::take(&mut paragraph).package(path));
        } else if !line.starts_with([' ', '\t'])
            && let Some((key, value)) = line.split_once(':')
        {
            paragraph.set(key, value.trim());
        }
    }
    found
}

#[derive(Default)]
struct Paragraph<'a> {
    name: &'a str,
    version: &'a str,
    status: Option<&'a str>,
    arch: &'a str,
    source: &'a str,
    maintainer: &'a str,
}

impl<'a> Paragraph<'a> {
    fn set(&mut self, key: &str, value: &'a str) {
        match key {
            "Package" => self.name = value,
            "Version" => self.version = value,
            "Status" => self.status = Some(value),
            "Architecture" => self.arch = value,
            "Source" => self.source = value,
            "Maintainer" => self.maintainer = value,
            _ => {}
        }
    }

    fn package(self, path: &str) -> Option<Package> {
        let installed = self.status.is_none_or(|status| status.split_whitespace().last() == Some("installed"));
        if self.name.is_empty() || !installed {
            return None;
        }
        let mut package = Package::new(Ecosystem::Deb, self.name, self.version, path);
        // `name (version)` where the source's version is another one.
        let upstream = self.source.replace(" (", "@").replace(')', "");
        package.qualifiers = vec![("arch", self.arch.to_owned()), ("upstream", upstream)];
        if !self.maintainer.is_empty() {
            package.supplier = format!("Organization: {}", self.maintainer.replace('<', "(").replace('>', ")"));
        }
        Some(package)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_counts() {
        let text = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0-1\n\
                    Source: src (1.0)\nMaintainer: Team <t@e.org>\nDescription: x\n Package: fake\n\n\
                    Package: b\nStatus: deinstall ok config-files\nVersion: 2\n\n\nPackage: c\nVersion: 3\n";
        let found = packages(text.as_bytes(), "var/lib/dpkg/status");
        let names: Vec<&str> = found.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(found[0].qualifiers, [("arch", "amd64".to_owned()), ("upstream", "src@1.0".to_owned())]);
        assert_eq!(found[0].supplier, "Organization: Team (t@e.org)");
        assert!(packages(b"\xff\xfe:\n\n: x", "p").is_empty());
    }
}
