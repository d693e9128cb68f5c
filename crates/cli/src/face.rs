//! Which command line the binary shows: it depends on the name it was invoked by.

use std::ffi::OsStr;
use std::path::Path;

/// A face of the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// kiln's own full command line.
    Kiln,
    /// The builder commands of a docker CLI plugin (`docker-buildx`, `buildx`).
    Buildx,
    /// The engine with that daemon's flags (`buildkitd`).
    Buildkitd,
    /// That client's commands (`buildctl`).
    Buildctl,
}

impl Face {
    /// Returns the face for the first argument of the process. Any other name is the full command line.
    pub fn of(argv0: &OsStr) -> Face {
        let name = Path::new(argv0).file_name().and_then(OsStr::to_str).unwrap_or_default();
        match name {
            "docker-buildx" | "buildx" => Face::Buildx,
            "buildkitd" => Face::Buildkitd,
            "buildctl" => Face::Buildctl,
            _ => Face::Kiln,
        }
    }

    /// Returns the name of the face.
    pub fn name(self) -> &'static str {
        match self {
            Face::Kiln => "kiln",
            Face::Buildx => "buildx",
            Face::Buildkitd => "buildkitd",
            Face::Buildctl => "buildctl",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_faces() {
        for (name, face) in [
            ("kiln", Face::Kiln),
            ("/usr/libexec/docker/cli-plugins/docker-buildx", Face::Buildx),
            ("./buildctl", Face::Buildctl),
            ("buildkitd", Face::Buildkitd),
            ("kiln-0.1.0", Face::Kiln),
            ("", Face::Kiln),
        ] {
            assert_eq!(Face::of(OsStr::new(name)), face, "{name}");
        }
    }
}
