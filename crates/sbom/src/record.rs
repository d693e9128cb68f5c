//! Which files of an image say what software is in it.

/// What kind of record a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// The distribution's name: `os-release`.
    Os,
    /// Debian's table of packages, or one paragraph of it.
    Dpkg,
    /// Alpine's table of packages.
    Apk,
    /// `package.json` of an installed module.
    Npm,
    /// `METADATA` or `PKG-INFO` of an installed distribution.
    Pypi,
    /// `Cargo.lock`.
    CargoLock,
    /// `go.mod`.
    GoMod,
    /// A Java archive.
    Jar,
    /// A program, which may say what it was compiled from.
    Binary,
}

impl Record {
    /// Returns what kind of record the file at `path` is, relative to the root without a slash before it; none for all
    /// others. `executable` tells whether any of its execute bits is set.
    pub fn of(path: &str, executable: bool) -> Option<Self> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let holds = |part: &str| format!("/{dir}/").contains(part);
        match path {
            "etc/os-release" | "usr/lib/os-release" => return Some(Self::Os),
            "var/lib/dpkg/status" => return Some(Self::Dpkg),
            "lib/apk/db/installed" | "usr/lib/apk/db/installed" => return Some(Self::Apk),
            _ => {}
        }
        let module = || {
            // A module's own directory is right below `node_modules`, or below a scope there.
            let mut parents = dir.rsplit('/');
            let (_, above) = (parents.next(), parents.next().unwrap_or_default());
            above == "node_modules" || above.starts_with('@') && parents.next() == Some("node_modules")
        };
        match name {
            _ if dir == "var/lib/dpkg/status.d" => (!name.ends_with(".md5sums")).then_some(Self::Dpkg),
            "package.json" => module().then_some(Self::Npm),
            "METADATA" => dir.ends_with(".dist-info").then_some(Self::Pypi),
            "PKG-INFO" => dir.ends_with(".egg-info").then_some(Self::Pypi),
            // Sources that a package manager fetched have locks of their own, which say nothing of what is used.
            "Cargo.lock" => (!holds("/registry/src/") && !holds("/git/checkouts/")).then_some(Self::CargoLock),
            "go.mod" => (!holds("/pkg/mod/") && !holds("/vendor/") && !holds("/testdata/")).then_some(Self::GoMod),
            _ if name.ends_with(".egg-info") => Some(Self::Pypi),
            _ if [".jar", ".war", ".ear"].iter().any(|end| name.ends_with(end)) => Some(Self::Jar),
            _ => executable.then_some(Self::Binary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_known_by_their_places() {
        for (path, executable, wanted) in [
            ("var/lib/dpkg/status", false, Some(Record::Dpkg)),
            ("var/lib/dpkg/status.d/base", false, Some(Record::Dpkg)),
            ("var/lib/dpkg/status.d/base.md5sums", false, None),
            ("app/node_modules/a/package.json", false, Some(Record::Npm)),
            ("app/node_modules/@s/a/package.json", false, Some(Record::Npm)),
            ("app/package.json", false, None),
            ("app/node_modules/a/test/package.json", false, None),
            ("usr/lib/python3/x-1.dist-info/METADATA", false, Some(Record::Pypi)),
            ("usr/lib/python3/x.egg-info", false, Some(Record::Pypi)),
            ("src/METADATA", false, None),
            ("src/Cargo.lock", false, Some(Record::CargoLock)),
            ("root/.cargo/registry/src/i/a-1/Cargo.lock", false, None),
            ("root/go/pkg/mod/a@v1/go.mod", false, None),
            ("src/go.mod", false, Some(Record::GoMod)),
            ("opt/a.jar", false, Some(Record::Jar)),
            ("bin/a", true, Some(Record::Binary)),
            ("bin/a", false, None),
        ] {
            assert_eq!(Record::of(path, executable), wanted, "{path}");
        }
    }
}
