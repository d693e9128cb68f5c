//! A received directory: written aside in full, then put in place.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::proto::fs::Stat;
use crate::stat::Kind;
use crate::transfer::SyncTarget;

/// How many written names an error lists.
const LISTED: usize = 20;

/// Writes into a directory of its own beside the destination, or inside it when that exists: it may be a mount point.
pub struct DirWriter {
    dest: PathBuf,
    aside: PathBuf,
    /// The destination does not exist yet.
    fresh: bool,
    delete: bool,
    entries: Vec<Stat>,
    /// Files whose content is on its way; opened with the first piece.
    files: HashMap<u32, (PathBuf, Option<File>)>,
}

fn os(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

impl DirWriter {
    /// Returns a writer of the directory `dest`; with `delete`, what was not sent goes from it.
    ///
    /// # Errors
    /// `dest` is something else, or nothing can be written beside it.
    pub fn new(dest: &Path, delete: bool) -> io::Result<Self> {
        let fresh = match fs::metadata(dest) {
            Ok(meta) if meta.is_dir() => false,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::NotADirectory, "it exists and is no directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let aside = if fresh {
            let parent = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::create_dir_all(parent)?;
            parent.join(format!(".kiln-export-{}", kiln_stdx::rand_id()))
        } else {
            dest.join(format!(".kiln-export-{}", kiln_stdx::rand_id()))
        };
        // Nobody else looks into it before it is complete; a new destination gets the usual mode then.
        fs::DirBuilder::new().mode(0o700).create(&aside)?;
        Ok(Self { dest: dest.to_owned(), aside, fresh, delete, entries: Vec::new(), files: HashMap::new() })
    }

    fn create(&self, stat: &Stat) -> io::Result<()> {
        let path = self.aside.join(os(&stat.path));
        match stat.kind() {
            Kind::Dir => fs::DirBuilder::new().mode(0o700).create(&path),
            Kind::Symlink => symlink(os(&stat.linkname), &path),
            Kind::HardLink => fs::hard_link(self.aside.join(os(&stat.linkname)), &path),
            Kind::File => OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map(drop),
            kind => {
                let (file_type, device) = match kind {
                    Kind::CharDevice => (FileType::CharacterDevice, device(stat)),
                    Kind::BlockDevice => (FileType::BlockDevice, device(stat)),
                    _ => (FileType::Fifo, 0),
                };
                Ok(rustix::fs::mknodat(CWD, &path, file_type, Mode::from_raw_mode(0o600), device)?)
            }
        }
    }

    /// Moves everything into an existing directory, one by one, directories made on the way.
    fn merge(&self) -> io::Result<()> {
        for (written, stat) in self.entries.iter().enumerate() {
            self.place(stat).map_err(|error| self.after(error, stat, written))?;
        }
        for stat in self.entries.iter().rev().filter(|s| s.kind() == Kind::Dir) {
            set_metadata(&self.dest.join(os(&stat.path)), stat)?;
        }
        fs::remove_dir_all(&self.aside)?;
        if self.delete { self.delete_others() } else { Ok(()) }
    }

    fn place(&self, stat: &Stat) -> io::Result<()> {
        let (from, to) = (self.aside.join(os(&stat.path)), self.dest.join(os(&stat.path)));
        let existing = fs::symlink_metadata(&to).ok();
        match (stat.kind(), existing) {
            (Kind::Dir, Some(old)) if old.is_dir() => Ok(()),
            (Kind::Dir, Some(_)) => {
                fs::remove_file(&to)?;
                fs::create_dir(&to)
            }
            (Kind::Dir, None) => fs::create_dir(&to),
            (_, Some(old)) if old.is_dir() => {
                fs::remove_dir_all(&to)?;
                fs::rename(&from, &to)
            }
            _ => fs::rename(&from, &to),
        }
    }

    /// Says what is in place already when the rest could not be put there.
    fn after(&self, error: io::Error, at: &Stat, written: usize) -> io::Error {
        let name = |stat: &Stat| String::from_utf8_lossy(&stat.path).into_owned();
        if written == 0 {
            return io::Error::new(error.kind(), format!("{}: {error}; nothing was written", name(at)));
        }
        let list: Vec<String> = self.entries[..written].iter().take(LISTED).map(name).collect();
        let more = written.saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        io::Error::new(error.kind(), format!("{}: {error}; already written: {}{more}", name(at), list.join(", ")))
    }

    /// Removes what was not sent.
    fn delete_others(&self) -> io::Result<()> {
        let sent: HashSet<&Path> = self.entries.iter().map(|s| os(&s.path)).collect();
        let mut todo = vec![PathBuf::new()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.dest.join(&dir))? {
                let entry = entry?;
                let path = dir.join(entry.file_name());
                let is_dir = entry.file_type()?.is_dir();
                match (sent.contains(path.as_path()), is_dir) {
                    (true, true) => todo.push(path),
                    (true, false) => {}
                    (false, true) => fs::remove_dir_all(entry.path())?,
                    (false, false) => fs::remove_file(entry.path())?,
                }
            }
        }
        // Deleting changed the times of the directories.
        for stat in self.entries.iter().rev().filter(|s| s.kind() == Kind::Dir) {
            set_metadata(&self.dest.join(os(&stat.path)), stat)?;
        }
        Ok(())
    }
}

fn device(stat: &Stat) -> u64 {
    let part = |n: i64| u32::try_from(n).unwrap_or(0);
    rustix::fs::makedev(part(stat.devmajor), part(stat.devminor))
}

/// Sets attributes, mode and time. The owner stays the user who runs this.
fn set_metadata(path: &Path, stat: &Stat) -> io::Result<()> {
    for (key, value) in &stat.xattrs {
        match rustix::fs::lsetxattr(path, key.as_str(), value, XattrFlags::empty()) {
            // Not every file system and not every user may have them.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if stat.kind() != Kind::Symlink {
        fs::set_permissions(path, fs::Permissions::from_mode(stat.permissions()))?;
    }
    let (seconds, nanos) = stat.mtime();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

impl SyncTarget for DirWriter {
    fn entry(&mut self, id: u32, stat: Stat) -> io::Result<bool> {
        let failed = |e: io::Error| {
            io::Error::new(e.kind(), format!("creating {}: {e}", self.dest.join(os(&stat.path)).display()))
        };
        self.create(&stat).map_err(failed)?;
        let wanted = stat.kind() == Kind::File && stat.size > 0;
        if wanted {
            self.files.insert(id, (self.aside.join(os(&stat.path)), None));
        }
        self.entries.push(stat);
        Ok(wanted)
    }

    fn data(&mut self, id: u32, data: Bytes) -> io::Result<()> {
        let Some((path, file)) = self.files.get_mut(&id) else { return Ok(()) };
        let (aside, dest) = (&self.aside, &self.dest);
        let named = |path: &Path, e: io::Error| {
            let shown = dest.join(path.strip_prefix(aside).unwrap_or(path));
            io::Error::new(e.kind(), format!("{}: {e}", shown.display()))
        };
        let file = match file {
            Some(file) => file,
            None => {
                let opened = OpenOptions::new().append(true).open(&*path);
                file.insert(opened.map_err(|e| named(path, e))?)
            }
        };
        file.write_all(&data).map_err(|e| named(path, e))
    }

    fn end(&mut self, id: u32) -> io::Result<()> {
        self.files.remove(&id);
        Ok(())
    }

    fn complete(&mut self) -> io::Result<()> {
        for stat in self.entries.iter().rev().filter(|s| !matches!(s.kind(), Kind::Dir | Kind::HardLink)) {
            set_metadata(&self.aside.join(os(&stat.path)), stat)?;
        }
        if !self.fresh {
            return self.merge();
        }
        for stat in self.entries.iter().rev().filter(|s| s.kind() == Kind::Dir) {
            set_metadata(&self.aside.join(os(&stat.path)), stat)?;
        }
        // The mode a directory made here would have: the user's mask applies.
        let sample = self.aside.with_extension("mode");
        fs::create_dir(&sample)?;
        let mode = fs::metadata(&sample)?.permissions();
        fs::remove_dir(&sample)?;
        fs::set_permissions(&self.aside, mode)?;
        fs::rename(&self.aside, &self.dest)
    }
}

impl Drop for DirWriter {
    fn drop(&mut self) {
        // After success it is gone already. Directories without write permission may be left to the user.
        let _ = fs::remove_dir_all(&self.aside);
    }
}
