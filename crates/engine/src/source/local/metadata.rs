//! A directory of which only metadata is wanted, but for some paths: all entries are records of one file beside those.

use std::io;

use kiln_session::proto::fs::Stat;
use kiln_snapshot::{Entry, Kind};
use kiln_stdx::pattern::PatternMatcher;
use prost::Message;

/// The file of records: of every entry, in the order of the listing, a little-endian 32-bit length and that many bytes
/// of `fsutil.types.Stat`.
pub const RECORDS_NAME: &[u8] = b".fsutil-metadata";

/// Stands for the file of records where a transfer's numbers of files stand; a transfer never gets that far.
pub const RECORDS_ID: u32 = u32::MAX;

/// Takes down entries and tells which ones are wanted whole.
pub struct Listing {
    except: PatternMatcher,
    pub records: Vec<u8>,
    /// Whether the file of records is in the listing already.
    pub placed: bool,
    /// The directories above the current entry that are not in the listing yet.
    pending: Vec<Entry>,
}

impl Listing {
    /// Returns a listing that wants what `except` matches whole.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn new(except: &[String]) -> io::Result<Self> {
        let except = PatternMatcher::new(except).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        Ok(Self { except, records: Vec::new(), placed: false, pending: Vec::new() })
    }

    /// Takes down an entry. Returns the directories that have to come before it, or none if only metadata is wanted.
    pub fn note(&mut self, stat: &Stat, entry: &Entry) -> Option<Vec<Entry>> {
        let record = stat.encode_to_vec();
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        self.records.extend_from_slice(&length.to_le_bytes());
        self.records.extend_from_slice(&record);
        self.pending.retain(|dir| is_above(&dir.path, &entry.path));
        if self.except.matches(&entry.path) {
            return Some(std::mem::take(&mut self.pending));
        }
        if entry.kind == Kind::Dir {
            self.pending.push(entry.clone());
        }
        None
    }
}

fn is_above(dir: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Returns the entry of the file of records, empty yet.
pub fn records_entry() -> Entry {
    let mut entry = Entry::new(RECORDS_NAME.to_vec(), Kind::File);
    entry.mode = 0o644;
    entry
}

#[cfg(test)]
mod tests {
    use kiln_session::stat::go;

    use super::*;

    fn note(listing: &mut Listing, path: &str, dir: bool) -> Option<Vec<String>> {
        let mode = if dir { go::DIR | 0o755 } else { 0o644 };
        let stat = Stat { path: path.as_bytes().to_vec(), mode, ..Stat::default() };
        let entry = Entry::new(path.as_bytes().to_vec(), if dir { Kind::Dir } else { Kind::File });
        let names =
            |dirs: Vec<Entry>| dirs.into_iter().map(|d| String::from_utf8_lossy(&d.path).into_owned()).collect();
        listing.note(&stat, &entry).map(names)
    }

    #[test]
    fn directories_come_only_with_something_in_them() {
        let mut listing = Listing::new(&["**/keep".to_owned()]).unwrap();
        assert_eq!(note(&mut listing, "a", true), None);
        assert_eq!(note(&mut listing, "a/b", true), None);
        assert_eq!(note(&mut listing, "a/b/drop", false), None);
        assert_eq!(note(&mut listing, "a/c", true), None);
        assert_eq!(note(&mut listing, "a/c/keep", false), Some(vec!["a".to_owned(), "a/c".to_owned()]));
        assert_eq!(note(&mut listing, "ac", true), None);
        assert_eq!(note(&mut listing, "ac/keep", false), Some(vec!["ac".to_owned()]));
        let mut rest = listing.records.as_slice();
        let mut paths = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (record, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            paths.push(Stat::decode(record).unwrap().path.to_vec());
            rest = tail;
        }
        let all: [&[u8]; 7] = [b"a", b"a/b", b"a/b/drop", b"a/c", b"a/c/keep", b"ac", b"ac/keep"];
        assert_eq!(paths, all, "every entry has a record");
    }
}
