//! File metadata on the wire: Go's mode bits, the order of paths, and the checks a receiver makes.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::error::SessionError;
use crate::proto::fs::Stat;

/// Bits of Go's `os.FileMode`.
pub mod go {
    pub const DIR: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 27;
    pub const DEVICE: u32 = 1 << 26;
    pub const NAMED_PIPE: u32 = 1 << 25;
    pub const SOCKET: u32 = 1 << 24;
    pub const SETUID: u32 = 1 << 23;
    pub const SETGID: u32 = 1 << 22;
    pub const CHAR_DEVICE: u32 = 1 << 21;
    pub const STICKY: u32 = 1 << 20;
    pub const IRREGULAR: u32 = 1 << 19;
    pub const PERM: u32 = 0o777;
    /// Every bit that says what kind of file it is.
    pub const TYPE: u32 = DIR | SYMLINK | NAMED_PIPE | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;
}

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;

/// Special permission bits: Go's and stat(2)'s.
const SPECIAL: [(u32, u32); 3] = [(go::SETUID, 0o4000), (go::SETGID, 0o2000), (go::STICKY, 0o1000)];

/// Turns a mode of stat(2) into Go's.
pub fn to_go_mode(mode: u32) -> u32 {
    let kind = match mode & S_IFMT {
        S_IFDIR => go::DIR,
        S_IFLNK => go::SYMLINK,
        S_IFBLK => go::DEVICE,
        S_IFCHR => go::DEVICE | go::CHAR_DEVICE,
        S_IFIFO => go::NAMED_PIPE,
        S_IFSOCK => go::SOCKET,
        _ => 0,
    };
    SPECIAL.iter().filter(|(_, unix)| mode & unix != 0).fold(kind | (mode & go::PERM), |out, (go, _)| out | go)
}

/// Turns a mode of Go into that of stat(2).
pub fn to_unix_mode(mode: u32) -> u32 {
    let kind = match mode & go::TYPE {
        m if m & go::DIR != 0 => S_IFDIR,
        m if m & go::SYMLINK != 0 => S_IFLNK,
        m if m & go::CHAR_DEVICE != 0 => S_IFCHR,
        m if m & go::DEVICE != 0 => S_IFBLK,
        m if m & go::NAMED_PIPE != 0 => S_IFIFO,
        m if m & go::SOCKET != 0 => S_IFSOCK,
        _ => S_IFREG,
    };
    SPECIAL.iter().filter(|(go, _)| mode & go != 0).fold(kind | (mode & go::PERM), |out, (_, unix)| out | unix)
}

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    /// A regular file that shares the inode of an earlier one, named by `linkname`.
    HardLink,
    Dir,
    Symlink,
    Fifo,
    CharDevice,
    BlockDevice,
}

impl Stat {
    /// Returns the kind of file.
    pub fn kind(&self) -> Kind {
        match self.mode & go::TYPE {
            m if m & go::DIR != 0 => Kind::Dir,
            m if m & go::SYMLINK != 0 => Kind::Symlink,
            m if m & go::CHAR_DEVICE != 0 => Kind::CharDevice,
            m if m & go::DEVICE != 0 => Kind::BlockDevice,
            m if m & go::NAMED_PIPE != 0 => Kind::Fifo,
            _ if self.linkname.is_empty() => Kind::File,
            _ => Kind::HardLink,
        }
    }

    /// Tells whether content can be asked for. Both sides must agree on this.
    pub fn has_content(&self) -> bool {
        self.mode & go::TYPE == 0
    }

    /// Returns permission bits with set-id and sticky, as chmod(2) takes them.
    pub fn permissions(&self) -> u32 {
        to_unix_mode(self.mode) & 0o7777
    }

    /// Returns the time of the last change as seconds and nanoseconds.
    pub fn mtime(&self) -> (i64, u32) {
        let nanos = u32::try_from(self.mod_time.rem_euclid(1_000_000_000)).unwrap_or(0);
        (self.mod_time.div_euclid(1_000_000_000), nanos)
    }
}

/// Compares paths component by component: `/` sorts before every other byte.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0u16 } else { u16::from(*byte) + 1 };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// Checks a listing as it comes in: clean relative paths, in order, below directories that were listed, hard links
/// to files that were listed.
#[derive(Debug, Default)]
pub struct ListValidator {
    /// The directories that the last entry is in, outermost first; the last component seen in each.
    open: Vec<(Vec<u8>, Vec<u8>)>,
    files: HashSet<Vec<u8>>,
}

impl ListValidator {
    /// Checks the next entry.
    ///
    /// # Errors
    /// The entry breaks a rule; nothing of it may be used.
    pub fn check(&mut self, stat: &Stat) -> Result<(), SessionError> {
        let path = stat.path.as_slice();
        let shown = || String::from_utf8_lossy(path).into_owned();
        let bad = |what: &str| Err(SessionError::Protocol(format!("{what}: {:?}", shown())));
        if path.is_empty() || path.contains(&0) {
            return bad("empty or malformed path");
        }
        if path[0] == b'/' {
            return bad("absolute path");
        }
        if path.split(|&b| b == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            return bad("unclean path");
        }
        let (dir, base) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        if self.open.is_empty() {
            self.open.push((Vec::new(), Vec::new()));
        }
        while self.open.len() > 1 && self.open.last().is_some_and(|(open, _)| open != dir) {
            self.open.pop();
        }
        match self.open.last_mut() {
            Some((open, last)) if open == dir && last.as_slice() < base => *last = base.to_vec(),
            _ => return bad("changes out of order"),
        }
        match stat.kind() {
            Kind::Dir => self.open.push((path.to_vec(), Vec::new())),
            Kind::Symlink => {}
            Kind::HardLink if !self.files.contains(&stat.linkname) => {
                return bad("hard link to an unknown path");
            }
            Kind::HardLink => {}
            _ => {
                self.files.insert(path.to_vec());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(path: &str, mode: u32, link: &str) -> Stat {
        Stat { path: path.into(), mode, linkname: link.into(), ..Stat::default() }
    }

    fn check(list: &[(&str, u32, &str)]) -> Result<(), SessionError> {
        let mut validator = ListValidator::default();
        list.iter().try_for_each(|(path, mode, link)| validator.check(&stat(path, *mode, link)))
    }

    #[test]
    fn modes_go_both_ways() {
        for unix in [0o100_644, 0o104_755, 0o041_777, 0o120_777, 0o020_600, 0o060_660, 0o010_600, 0o102_711] {
            assert_eq!(to_unix_mode(to_go_mode(unix)), unix, "{unix:o}");
        }
        assert_eq!(to_go_mode(0o041_777), go::DIR | go::STICKY | 0o777);
        assert_eq!(to_go_mode(0o020_600), go::DEVICE | go::CHAR_DEVICE | 0o600);
    }

    #[test]
    fn separators_sort_lowest() {
        let mut paths = vec!["a-b", "a/z", "a", "a b", "a/b/c", "ab"];
        paths.sort_by(|a, b| compare_paths(a.as_bytes(), b.as_bytes()));
        assert_eq!(paths, ["a", "a/b/c", "a/z", "a b", "a-b", "ab"]);
    }

    #[test]
    fn good_listings_pass() {
        let dir = go::DIR | 0o755;
        check(&[
            ("a", dir, ""),
            ("a/b", dir, ""),
            ("a/b/c", 0o644, ""),
            ("a/d", 0o644, "a/b/c"),
            ("a-b", 0o644, ""),
            ("l", go::SYMLINK, "/outside"),
        ])
        .unwrap();
    }

    #[test]
    fn bad_listings_are_refused() {
        let dir = go::DIR | 0o755;
        for list in [
            &[("/a", 0o644, "")][..],
            &[("../a", 0o644, "")],
            &[("a/../b", 0o644, "")],
            &[("a//b", 0o644, "")],
            &[("a/", dir, "")],
            &[(".", dir, "")],
            &[("", dir, "")],
            &[("nul\0", 0o644, "")],
            &[("b", 0o644, ""), ("a", 0o644, "")],
            &[("a", 0o644, ""), ("a", 0o644, "")],
            &[("a/b", 0o644, "")],
            &[("a", 0o644, ""), ("a/b", 0o644, "")],
            &[("l", go::SYMLINK, "x"), ("l/b", 0o644, "")],
            &[("a", dir, ""), ("b", 0o644, ""), ("a/x", 0o644, "")],
            &[("a", 0o644, "zz")],
            &[("a", dir, ""), ("b", 0o644, "a")],
        ] {
            assert!(check(list).is_err(), "{list:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_have_positive_nanoseconds() {
        let stat = Stat { mod_time: -1, ..Stat::default() };
        assert_eq!(stat.mtime(), (-1, 999_999_999));
    }
}
