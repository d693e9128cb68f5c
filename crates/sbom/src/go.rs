//! Modules of Go: what the compiler notes in programs, and `go.mod`.

use crate::package::{Ecosystem, Package};

/// Begins the note in a program.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Where the texts begin in a note of Go 1.18 and later.
const TEXTS: usize = 32;
/// Set in the note's flags when the texts follow it.
const INLINE: u8 = 2;
/// The list of modules is between marks of this length.
const MARK: usize = 16;

/// Returns the modules of a program's note, the compiler's own library among them.
pub(crate) fn noted(section: &[u8], path: &str) -> Vec<Package> {
    noted_texts(section).map_or_else(Vec::new, |(version, list)| modules(&version, &list, path))
}

fn noted_texts(section: &[u8]) -> Option<(String, String)> {
    let note = section.strip_prefix(MAGIC)?;
    // A byte of the pointer's size, then the flags.
    if note.get(1)? & INLINE == 0 {
        return None;
    }
    let (version, rest) = text(section.get(TEXTS..)?)?;
    let (list, _) = text(rest)?;
    let list = list.get(MARK..list.len().checked_sub(MARK)?)?;
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((lossy(version), lossy(list)))
}

/// Splits off a text with its length (a varint) before it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let rest = &bytes[at + 1..];
            return (length <= rest.len()).then(|| rest.split_at(length));
        }
    }
    None
}

fn modules(version: &str, list: &str, path: &str) -> Vec<Package> {
    let mut found = Vec::new();
    if let Some(version) = version.split_whitespace().next().and_then(|v| v.strip_prefix("go")) {
        found.push(Package::new(Ecosystem::Go, "stdlib", version, path));
    }
    for line in list.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            // The program's own module has often no version; then it is `(devel)`.
            ["mod" | "dep", name, version, ..] => found.push(module(name, version, path)),
            ["=>", name, version, ..] => {
                // What replaces the module before is what was compiled.
                found.pop();
                found.push(module(name, version, path));
            }
            _ => {}
        }
    }
    found
}

/// Returns the modules that a `go.mod` requires, replaced where it says so for every version.
pub(crate) fn required(text: &[u8], path: &str) -> Vec<Package> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut block = "";
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let mut words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [")"] => block = "",
            [verb, "("] => block = verb,
            [] => {}
            _ => {
                let verb = if block.is_empty() { words.remove(0) } else { block };
                if let ("require", [name, version]) = (verb, &words[..]) {
                    found.push(module(name.trim_matches('"'), version, path));
                }
            }
        }
    }
    found
}

fn module(name: &str, version: &str, path: &str) -> Package {
    let (namespace, name) = name.rsplit_once('/').unwrap_or(("", name));
    let version = if version == "(devel)" { "" } else { version };
    let mut package = Package::new(Ecosystem::Go, name, version, path);
    namespace.clone_into(&mut package.namespace);
    package
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(version: &str, list: &str) -> Vec<u8> {
        let mut note = MAGIC.to_vec();
        note.extend([8, INLINE]);
        note.resize(TEXTS, 0);
        let marked = format!("{}{list}{}", "m".repeat(MARK), "m".repeat(MARK));
        for text in [version, &marked] {
            let (low, high) = (text.len() & 0x7f, text.len() >> 7);
            note.push(u8::try_from(low).expect("length") | 0x80);
            note.push(u8::try_from(high).expect("length"));
            note.extend(text.as_bytes());
        }
        note
    }

    #[test]
    fn programs_tell_their_modules() {
        let list = "path\te.org/me\nmod\te.org/me\t(devel)\t\ndep\te.org/a/b\tv1.2.3\th1:x=\ndep\te.org/old\tv1.0.0\n\
                    =>\te.org/new\tv2.0.0\th1:y=\nbuild\t-x=y\n";
        let found = noted(&note("go1.22.1 X:y", list), "bin/me");
        let urls: Vec<String> = found.iter().map(Package::purl).collect();
        let wanted = [
            "pkg:golang/stdlib@1.22.1",
            "pkg:golang/e.org/me",
            "pkg:golang/e.org/a/b@v1.2.3",
            "pkg:golang/e.org/new@v2.0.0",
        ];
        assert_eq!(urls, wanted);
    }

    #[test]
    fn a_note_that_is_cut_off_says_nothing() {
        let whole = note("go1.22", "dep\ta\tv1\n");
        for length in 0..whole.len() {
            assert!(noted(&whole[..length], "p").is_empty(), "{length}");
        }
        let mut endless = whole[..TEXTS].to_vec();
        endless.extend([0xff; 9]);
        assert!(noted(&endless, "p").is_empty());
    }

    #[test]
    fn requirements_in_both_forms() {
        let text = "module e.org/me\n\ngo 1.22\n\nrequire e.org/a v1.0.0 // indirect\nrequire (\n\te.org/b/c v0.1.0\n)\nreplace e.org/a => ../a\n";
        let urls: Vec<String> = required(text.as_bytes(), "p").iter().map(Package::purl).collect();
        assert_eq!(urls, ["pkg:golang/e.org/a@v1.0.0", "pkg:golang/e.org/b/c@v0.1.0"]);
    }
}
