//! Collects packages from records, one after the other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use crate::bytes::{ReadAt, whole};
use crate::elf::Sections;
use crate::os::OsRelease;
use crate::package::{Ecosystem, Package};
use crate::record::Record;
use crate::{apk, cargo, dpkg, go, maven, npm, pypi};

/// Largest record that is text, in bytes.
const TEXT: u64 = 64 << 20;
/// Largest note in a program, in bytes.
const NOTE: usize = 8 << 20;

/// Collects packages. The order in which records come does not matter.
#[derive(Debug, Default)]
pub struct Scanner {
    os: OsRelease,
    found: BTreeSet<Package>,
}

impl Scanner {
    /// Reads one record; `path` is relative to the root.
    pub fn add(&mut self, record: Record, path: &str, source: &dyn ReadAt) {
        let found = match record {
            Record::Binary => program(source, path),
            Record::Jar => maven::packages(source, path),
            text => match whole(source, TEXT) {
                Some(bytes) => self.text(text, path, &bytes),
                None => Vec::new(),
            },
        };
        self.found.extend(found);
    }

    fn text(&mut self, record: Record, path: &str, bytes: &[u8]) -> Vec<Package> {
        match record {
            Record::Os => {
                let os = OsRelease::parse(bytes);
                // What is below /etc may be changed by whoever runs the system, and goes first.
                if self.os == OsRelease::default() || path.starts_with("etc/") {
                    self.os = os;
                }
                Vec::new()
            }
            Record::Dpkg => dpkg::packages(bytes, path),
            Record::Apk => apk::packages(bytes, path),
            Record::Npm => npm::package(bytes, path).into_iter().collect(),
            Record::Pypi => pypi::package(bytes, path).into_iter().collect(),
            Record::CargoLock => cargo::locked(bytes, path),
            Record::GoMod => go::required(bytes, path),
            Record::Binary | Record::Jar => Vec::new(),
        }
    }

    /// Returns the distribution and what was found, sorted; a package that several records name is there once.
    pub fn finish(self) -> (OsRelease, Vec<Package>) {
        let mut merged: BTreeMap<(Ecosystem, String), Package> = BTreeMap::new();
        for mut package in self.found {
            if matches!(package.ecosystem, Ecosystem::Deb | Ecosystem::Apk) {
                package.namespace = match (self.os.id.is_empty(), package.ecosystem) {
                    (false, _) => self.os.id.clone(),
                    (true, Ecosystem::Deb) => "debian".to_owned(),
                    (true, _) => "alpine".to_owned(),
                };
                package.qualifiers.push(("distro", self.os.distro()));
                package.qualifiers.sort();
            }
            match merged.entry((package.ecosystem, package.purl())) {
                Entry::Occupied(mut known) => known.get_mut().found.append(&mut package.found),
                Entry::Vacant(free) => drop(free.insert(package)),
            }
        }
        (self.os, merged.into_values().collect())
    }
}

fn program(source: &dyn ReadAt, path: &str) -> Vec<Package> {
    let Some(sections) = Sections::of(source) else { return Vec::new() };
    let mut found = sections.get(".go.buildinfo", NOTE).map_or_else(Vec::new, |note| go::noted(&note, path));
    found.extend(sections.get(".dep-v0", NOTE).map_or_else(Vec::new, |list| cargo::audited(&list, path)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(records: &[(&str, &[u8])]) -> (OsRelease, Vec<Package>) {
        let mut scanner = Scanner::default();
        for (path, bytes) in records {
            scanner.add(Record::of(path, true).expect("a record"), path, bytes);
        }
        scanner.finish()
    }

    #[test]
    fn the_order_of_records_does_not_matter() {
        let mut records: Vec<(&str, &[u8])> = vec![
            ("var/lib/dpkg/status", b"Package: a\nVersion: 1\nArchitecture: all\n"),
            ("usr/lib/os-release", b"ID=other\n"),
            ("etc/os-release", b"ID=debian\nVERSION_ID=12\n"),
            ("x/node_modules/m/package.json", br#"{"name":"m","version":"1.0.0"}"#),
            ("y/node_modules/m/package.json", br#"{"name":"m","version":"1.0.0"}"#),
            ("bin/tool", b"\x7fELF"),
        ];
        let first = scanned(&records);
        records.reverse();
        assert_eq!(first, scanned(&records));
        let urls: Vec<String> = first.1.iter().map(Package::purl).collect();
        assert_eq!(urls, ["pkg:deb/debian/a@1?arch=all&distro=debian-12", "pkg:npm/m@1.0.0"]);
        assert_eq!(first.1[1].found.len(), 2);
    }

    #[test]
    fn programs_are_looked_into() {
        let json = br#"{"packages":[{"name":"serde","version":"1.0.0"}]}"#;
        let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packer, json).expect("pack");
        let program = crate::elf::program(&[(".text", b"x"), (".dep-v0", &packer.finish().expect("pack"))]);
        assert_eq!(scanned(&[("bin/tool", &program)]).1[0].purl(), "pkg:cargo/serde@1.0.0");
    }
}
