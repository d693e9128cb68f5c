//! Files of a mount that processes may write to, read while they run. Nothing is believed of what is found: links lead
//! nowhere outside the mount, and only regular files are opened.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use kiln_snapshot::{Entry, Kind};
use kiln_stdx::limits;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2};
use rustix::io::Errno;

use crate::error::EngineError;
use crate::inspect::Range;

/// How often a look-up is repeated that a rename got in the way of.
const TRIES: usize = 16;

/// The top directory of a mount.
pub struct LiveMount(OwnedFd);

impl LiveMount {
    /// Returns the mount whose top `dir` is.
    pub fn new(dir: OwnedFd) -> Self {
        Self(dir)
    }

    /// Returns what is at `path`, without following a link there. Blocking.
    ///
    /// # Errors
    /// The path does not exist.
    pub fn stat(&self, path: &str) -> Result<Entry, EngineError> {
        let found = self.find(path, OFlags::NOFOLLOW)?;
        let name = path.rsplit('/').find(|name| !name.is_empty()).unwrap_or_default();
        entry(&found, name.as_bytes()).map_err(|errno| failed(path, errno))
    }

    /// Returns what a directory holds, in order of names. Blocking.
    ///
    /// # Errors
    /// The path does not exist, is no directory, or holds more than can be listed.
    pub fn read_dir(&self, path: &str) -> Result<Vec<Entry>, EngineError> {
        let place = self.find(path, OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for found in std::fs::read_dir(own(&place))? {
            let name = found?.file_name();
            if entries.len() >= LISTED {
                return Err(EngineError::user(format!("{path} holds more than {LISTED} files")));
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&place, &name, flags, Mode::empty()).and_then(|fd| entry(&fd, name.as_bytes())) {
                Ok(entry) => entries.push(entry),
                // It was removed since.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(path, errno)),
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// Reads a file, links followed inside the mount. Blocking.
    ///
    /// # Errors
    /// The path does not exist or is no regular file, or the file is larger than a frontend may read at once.
    pub fn read_file(&self, path: &str, range: Option<Range>) -> Result<Vec<u8>, EngineError> {
        let place = self.find(path, OFlags::empty())?;
        let size = match entry(&place, b"").map_err(|errno| failed(path, errno))? {
            Entry { kind: Kind::File, size, .. } => size,
            _ => return Err(EngineError::user(format!("open {path}: not a regular file"))),
        };
        let range = range.unwrap_or(Range { offset: 0, length: size });
        let length = range.length.min(size.saturating_sub(range.offset));
        if length > limits::FRONTEND_FILE {
            return Err(EngineError::user(format!("{path} is too large to be read: {length} bytes")));
        }
        let file = File::open(own(&place))?;
        let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let mut read = 0;
        // It may have become shorter.
        while let Some(rest) = data.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, range.offset.saturating_add(read as u64))? {
                0 => break,
                more => read += more,
            }
        }
        data.truncate(read);
        Ok(data)
    }

    /// Looks a path up without opening what is there.
    fn find(&self, path: &str, flags: OFlags) -> Result<OwnedFd, EngineError> {
        // What is mounted further down is another mount.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let name = if path.is_empty() { "/" } else { path };
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            match openat2(&self.0, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                found => return found.map_err(|errno| failed(path, errno)),
            }
        }
        Err(failed(path, Errno::AGAIN))
    }
}

/// Most entries of one directory.
const LISTED: usize = 100_000;

/// Returns the name of what an own descriptor stands for.
fn own(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn failed(path: &str, errno: Errno) -> EngineError {
    match errno {
        Errno::NOENT => EngineError::user(format!("open {path}: no such file or directory")),
        Errno::NOTDIR => EngineError::user(format!("{path} is not a directory")),
        Errno::XDEV => EngineError::user(format!("open {path}: it lies in another mount")),
        errno => EngineError::user(format!("open {path}: {}", std::io::Error::from(errno))),
    }
}

/// Describes what a descriptor stands for.
fn entry(fd: &OwnedFd, name: &[u8]) -> Result<Entry, Errno> {
    let stat: Stat = rustix::fs::fstat(fd)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::RegularFile => Kind::File,
        // Sockets are nothing that a result could hold.
        _ => Kind::Fifo,
    };
    let target = match kind {
        Kind::Symlink => rustix::fs::readlinkat(fd, c"", Vec::new())?.into_bytes(),
        _ => Vec::new(),
    };
    let size = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    Ok(Entry {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        size,
        rdev: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        target,
        ..Entry::new(name, kind)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    fn mount(dir: &std::path::Path) -> LiveMount {
        LiveMount::new(File::open(dir).expect("open").into())
    }

    #[test]
    fn links_stay_inside_and_only_files_are_read() {
        let outside = tempfile::tempdir().expect("dir");
        let dir = outside.path().join("mount");
        std::fs::create_dir_all(dir.join("etc")).expect("mkdir");
        std::fs::write(outside.path().join("secret"), "host").expect("write");
        std::fs::write(dir.join("etc/name"), "guest").expect("write");
        symlink("/etc/name", dir.join("absolute")).expect("link");
        symlink("../secret", dir.join("out")).expect("link");
        symlink("/proc/self/root/etc", dir.join("magic")).expect("link");
        rustix::fs::mkfifoat(CWD, dir.join("pipe"), Mode::from_raw_mode(0o600)).expect("fifo");
        let mount = mount(&dir);
        assert_eq!(mount.read_file("absolute", None).expect("read"), b"guest");
        assert_eq!(mount.read_file("/etc/name", Some(Range { offset: 1, length: 2 })).expect("read"), b"ue");
        assert_eq!(mount.read_file("/etc/name", Some(Range { offset: 9, length: 2 })).expect("read"), b"");
        for (path, why) in [
            ("out", "no such file"),
            ("../secret", "no such file"),
            ("magic/passwd", ""),
            ("pipe", "not a regular file"),
        ] {
            let error = mount.read_file(path, None).expect_err(path).to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
        let link = mount.stat("/absolute").expect("stat");
        assert_eq!(
            (link.kind, link.name(), link.target.as_slice()),
            (Kind::Symlink, &b"absolute"[..], &b"/etc/name"[..])
        );
        assert_eq!(mount.stat("etc/name").expect("stat").size, 5);
        let names: Vec<_> = mount.read_dir("/").expect("list").into_iter().map(|entry| entry.path).collect();
        assert_eq!(names, [&b"absolute"[..], b"etc", b"magic", b"out", b"pipe"]);
        assert!(mount.read_dir("etc/name").is_err_and(|error| error.to_string().contains("not a directory")));
    }
}
