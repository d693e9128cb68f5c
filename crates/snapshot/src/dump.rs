//! The dump format: a file tree as text, one line an inode. Fixture language, debug output and golden form in one.
//!
//! ```text
//! /            dir 0755 0:0 @0
//! /bin/tool    file 4755 0:0 5 @1700000000.5 blake3:… security.capability=0x0100
//! /bin/alias   = /bin/tool
//! /etc/link    link 0:0 @0 -> ../x
//! /dev/null    char 0666 0:0 @0 1,3
//! /gone        whiteout
//! /opt         dir 0755 0:0 @now opaque
//! ```
//!
//! (Columns are separated by one space; they are aligned here for reading.) Bytes of names, targets and attribute
//! names that are not printable ASCII, and spaces, backslashes, `=` and `>`, are written `\xNN`. Attribute values are
//! hexadecimal. The time is seconds since 1970 with its fraction, or `now` when it is not before a given moment.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::entry::{Entry, Kind};
use crate::error::Result;
use crate::manifest::LayerManifest;
use crate::tree::Tree;

/// How a dump is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpOptions {
    /// Times at or after this one, in seconds since 1970, are written `now`.
    pub now: Option<i64>,
}

/// Dumps a merged view. Opaque marks are not part of it.
pub fn tree(tree: &Tree, options: &DumpOptions) -> String {
    let mut dump = Dump::new(options);
    for node in tree.iter() {
        dump.line(&Entry { opaque: false, ..node.entry.clone() }, node.layer);
    }
    dump.text
}

/// Dumps one layer, with its whiteouts and opaque marks.
pub fn layer(manifest: &LayerManifest, options: &DumpOptions) -> String {
    let mut dump = Dump::new(options);
    for entry in manifest.entries() {
        dump.line(entry, 0);
    }
    dump.text
}

/// Dumps a directory of the host, read as a layer.
///
/// # Errors
/// When it cannot be read.
pub fn dir(path: &Path, options: &DumpOptions) -> Result<String> {
    Ok(layer(&crate::layer::scan(path)?, options))
}

struct Dump<'a> {
    options: &'a DumpOptions,
    text: String,
    first_names: HashMap<(usize, u32), Vec<u8>>,
}

impl<'a> Dump<'a> {
    fn new(options: &'a DumpOptions) -> Self {
        Self { options, text: String::new(), first_names: HashMap::new() }
    }

    fn line(&mut self, entry: &Entry, layer: usize) {
        let first = entry.nlink_group.map(|group| self.first_names.entry((layer, group)).or_insert(entry.path.clone()));
        let text = &mut self.text;
        put(text, "/", &entry.path);
        match first {
            Some(first) if *first != entry.path => put(text, " = /", first),
            _ => describe(text, entry, self.options),
        }
        text.push('\n');
    }
}

fn describe(text: &mut String, entry: &Entry, options: &DumpOptions) {
    let kind = match entry.kind {
        Kind::File => "file",
        Kind::Dir => "dir",
        Kind::Symlink => "link",
        Kind::Fifo => "fifo",
        Kind::CharDevice => "char",
        Kind::BlockDevice => "block",
        Kind::Whiteout => "whiteout",
    };
    text.push(' ');
    text.push_str(kind);
    if entry.kind == Kind::Whiteout {
        return;
    }
    // Writing to a string cannot fail.
    if entry.kind != Kind::Symlink {
        let _ = write!(text, " {:04o}", entry.mode);
    }
    let _ = write!(text, " {}:{}", entry.uid, entry.gid);
    if entry.is_file() {
        let _ = write!(text, " {}", entry.size);
    }
    match options.now {
        Some(now) if entry.mtime.0 >= now => text.push_str(" @now"),
        _ => put_time(text, entry.mtime),
    }
    match entry.kind {
        Kind::Symlink => put(text, " -> ", &entry.target),
        Kind::CharDevice | Kind::BlockDevice => {
            let _ = write!(text, " {},{}", entry.rdev.0, entry.rdev.1);
        }
        _ => {}
    }
    if let Some(digest) = &entry.digest {
        let _ = write!(text, " {digest}");
    }
    if entry.opaque {
        text.push_str(" opaque");
    }
    for (name, value) in &entry.xattrs {
        put(text, " ", name);
        text.push_str("=0x");
        for byte in value {
            let _ = write!(text, "{byte:02x}");
        }
    }
}

fn put_time(text: &mut String, (seconds, nanos): (i64, u32)) {
    let _ = write!(text, " @{seconds}");
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        let _ = write!(text, ".{}", fraction.trim_end_matches('0'));
    }
}

fn put(text: &mut String, before: &str, bytes: &[u8]) {
    text.push_str(before);
    for &byte in bytes {
        if byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'=' | b'>') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_stdx::Fingerprint;

    use super::*;

    #[test]
    fn every_kind_has_its_line() {
        let file = Entry {
            mode: 0o4755,
            uid: 1,
            gid: 2,
            size: 1,
            mtime: (5, 500_000_000),
            nlink_group: Some(0),
            digest: Some(Fingerprint::of("x")),
            xattrs: BTreeMap::from([(b"user.a b".to_vec(), vec![0, 255])]),
            ..Entry::new("f", Kind::File)
        };
        let manifest = LayerManifest::new(vec![
            Entry { opaque: true, mtime: (-1, 1), ..Entry::dir("") },
            Entry { path: b"g\xff".to_vec(), ..file.clone() },
            file,
            Entry { target: b"a->b".to_vec(), mtime: (100, 0), ..Entry::new("l", Kind::Symlink) },
            Entry { mode: 0o600, rdev: (1, 3), ..Entry::new("null", Kind::CharDevice) },
            Entry::new("p", Kind::Fifo),
            Entry::whiteout("w"),
        ])
        .unwrap();
        let expected = format!(
            "/ dir 0755 0:0 @-1.000000001 opaque\n\
             /f file 4755 1:2 1 @5.5 {} user.a\\x20b=0x00ff\n\
             /g\\xff = /f\n\
             /l link 0:0 @now -> a-\\x3eb\n\
             /null char 0600 0:0 @0 1,3\n\
             /p fifo 0000 0:0 @0\n\
             /w whiteout\n",
            Fingerprint::of("x")
        );
        assert_eq!(layer(&manifest, &DumpOptions { now: Some(100) }), expected);
        let merged = Tree::merge(&[manifest.into()]);
        assert!(!tree(&merged, &DumpOptions::default()).contains("opaque"));
    }
}
