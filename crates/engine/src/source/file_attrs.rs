//! Attributes of sources that are one file: its name, mode and owner in the result.

use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_snapshot::layer::FileMeta;

use crate::error::EngineError;

/// Mode of a file when the definition gives none.
const MODE: u32 = 0o600;

/// What a definition says of the one file of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileAttrs {
    /// As it was given: see [`safe`].
    pub name: Option<String>,
    pub mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

impl FileAttrs {
    /// Reads the attributes.
    ///
    /// # Errors
    /// A malformed one.
    pub fn new(op: &SourceOp) -> Result<Self, EngineError> {
        let bad = |key: &str| EngineError::user(format!("{}: bad value for {key}", op.identifier));
        let number = |key: &str| op.attr(key).map(|v| v.parse::<u32>().map_err(|_| bad(key))).transpose();
        let octal =
            |text: &str| u32::from_str_radix(text.trim_start_matches("0o"), 8).map_err(|_| bad(attr::HTTP_PERM));
        Ok(Self {
            name: op.attr(attr::HTTP_FILENAME).map(str::to_owned),
            mode: op.attr(attr::HTTP_PERM).map(octal).transpose()?,
            uid: number(attr::HTTP_UID)?.unwrap_or(0),
            gid: number(attr::HTTP_GID)?.unwrap_or(0),
        })
    }

    /// Returns what the file is made with; `time` in seconds since 1970.
    pub fn meta(&self, time: i64) -> FileMeta {
        FileMeta { uid: self.uid, gid: self.gid, ..FileMeta::new(self.mode.unwrap_or(MODE), (time, 0)) }
    }
}

/// Returns a name that is one component of a path.
pub fn safe(name: &str) -> String {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    match last {
        "" | "." | ".." => "download".to_owned(),
        name => name.replace('\0', ""),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn attrs(given: &[(&str, &str)]) -> Result<FileAttrs, EngineError> {
        let attrs: BTreeMap<_, _> = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        FileAttrs::new(&SourceOp { identifier: "https://h/x".into(), attrs })
    }

    #[test]
    fn modes_are_octal_and_owners_are_numbers() {
        let file = attrs(&[("http.perm", "0640"), ("http.uid", "7")]).unwrap();
        let meta = file.meta(5);
        assert_eq!((meta.mode & 0o7777, meta.uid, meta.gid), (0o640, 7, 0));
        assert_eq!(attrs(&[]).unwrap().meta(0).mode & 0o7777, 0o600);
        for bad in [("http.perm", "0888"), ("http.gid", "-1"), ("http.uid", "me")] {
            assert!(attrs(&[bad]).unwrap_err().to_string().contains(bad.0), "{bad:?}");
        }
    }
}
