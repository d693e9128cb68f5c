//! Mount targets that the root lacks: made before the step, taken away after it, with the times of their parents put back.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timestamps, Uid};

use super::identity::Identity;
use super::mounts::Prepared;
use crate::sys::mount;
use crate::wire::{Failure, WireSpec};

/// Most symbolic links followed in one path, as the kernel has it.
const LINKS: u32 = 40;

/// Directories every sandbox mounts something on.
const OWN_TARGETS: [&str; 3] = ["/proc", "/dev", "/sys"];

/// A path below the root, free of symbolic links, `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    pub parts: Vec<String>,
    /// How many of `parts` exist.
    pub existing: usize,
}

impl Resolved {
    fn path(&self, count: usize) -> String {
        if count == 0 { ".".to_owned() } else { self.parts[..count].join("/") }
    }

    fn is_missing(&self) -> bool {
        self.existing < self.parts.len()
    }

    fn is_below(&self, other: &Self) -> bool {
        self.parts.len() > other.parts.len() && self.parts.starts_with(&other.parts)
    }
}

/// Follows `path` inside `root` by hand, so that links whose target is missing lead to where it would be.
pub(super) fn resolve(root: &OwnedFd, path: &str) -> io::Result<Resolved> {
    let mut pending: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut done = Resolved { parts: Vec::new(), existing: 0 };
    let mut links = 0;
    while let Some(part) = pending.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.parts.pop();
                done.existing = done.existing.min(done.parts.len());
                continue;
            }
            _ => {}
        }
        done.parts.push(part);
        if done.existing + 1 < done.parts.len() {
            continue;
        }
        let here = done.path(done.parts.len());
        match mount::open_in_root(root, here.as_str(), OFlags::PATH | OFlags::NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(found) if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_symlink() => {
                links += 1;
                if links > LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = rustix::fs::readlinkat(&found, c"", Vec::new())?;
                let target =
                    String::from_utf8(target.into_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))?;
                done.parts.pop();
                if target.starts_with('/') {
                    done = Resolved { parts: Vec::new(), existing: 0 };
                }
                pending.extend(target.split('/').rev().map(str::to_owned));
            }
            Ok(_) => done.existing = done.parts.len(),
        }
    }
    Ok(done)
}

/// One thing that was made.
#[derive(Debug)]
struct Stub {
    parent: String,
    name: String,
    is_dir: bool,
    /// The parent's time before, and the time that making the stub gave it.
    before: (i64, i64),
    after: (i64, i64),
}

/// What was made in the root for the step, in order.
#[derive(Debug)]
pub(super) struct Stubs {
    made: Vec<Stub>,
    recursive: bool,
}

impl Stubs {
    pub(super) fn new(recursive: bool) -> Self {
        Self { made: Vec::new(), recursive }
    }

    /// Makes every target that is missing in the root itself (not those inside other mounts) and the working directory,
    /// which stays.
    pub(super) fn create(
        &mut self,
        root: &OwnedFd,
        spec: &WireSpec,
        prepared: &[Prepared],
        user: &Identity,
    ) -> Result<(), Failure> {
        let own = OWN_TARGETS.iter().map(|dest| (*dest, true));
        let wanted = spec.mounts.iter().zip(prepared).map(|(wanted, prepared)| (wanted.dest.as_str(), prepared.is_dir));
        let mut covered: Vec<Resolved> = Vec::new();
        for (dest, is_dir) in own.chain(wanted) {
            let fail = |error| Failure::mount("target", dest, error);
            let target = resolve(root, dest).map_err(fail)?;
            let wanted = target.is_missing() && !covered.iter().any(|mount| target.is_below(mount));
            if wanted && let Err(error) = self.make(root, &target, is_dir) {
                self.remove(root);
                return Err(fail(error));
            }
            covered.push(target);
        }
        let cwd = resolve(root, &spec.cwd)
            .map_err(|error| Failure::setup(format!("working directory {}", spec.cwd), error))?;
        let wanted = cwd.is_missing() && !covered.iter().any(|mount| cwd.is_below(mount));
        if wanted && let Err(error) = make_owned(root, &cwd, user) {
            self.remove(root);
            return Err(Failure::setup(format!("make working directory {}", spec.cwd), error));
        }
        Ok(())
    }

    fn make(&mut self, root: &OwnedFd, target: &Resolved, is_dir: bool) -> io::Result<()> {
        for count in target.existing..target.parts.len() {
            let last = count + 1 == target.parts.len();
            let (parent, name) = (target.path(count), target.parts[count].clone());
            let dir = open_dir(root, &parent)?;
            let before = modified(&dir)?;
            make_one(&dir, &name, is_dir || !last)?;
            if last || self.recursive {
                self.made.push(Stub { parent, name, is_dir: is_dir || !last, before, after: modified(&dir)? });
            }
        }
        Ok(())
    }

    /// Takes away what is still empty. What cannot be removed stays: the step wrote to it, so it belongs to the step.
    pub(super) fn remove(&mut self, root: &OwnedFd) {
        for stub in self.made.drain(..).rev() {
            let _ = remove_one(root, &stub);
        }
    }
}

/// Makes a missing directory and its missing parents, all owned by `user`.
fn make_owned(root: &OwnedFd, target: &Resolved, user: &Identity) -> io::Result<()> {
    for count in target.existing..target.parts.len() {
        let dir = open_dir(root, &target.path(count))?;
        let name = target.parts[count].as_str();
        make_one(&dir, name, true)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Makes every missing part of `target`, the last one as a directory or an empty file.
pub(super) fn make_all(root: &OwnedFd, target: &Resolved, is_dir: bool) -> io::Result<()> {
    for count in target.existing..target.parts.len() {
        let last = count + 1 == target.parts.len();
        make_one(&open_dir(root, &target.path(count))?, &target.parts[count], is_dir || !last)?;
    }
    Ok(())
}

fn make_one(dir: &OwnedFd, name: &str, is_dir: bool) -> io::Result<()> {
    if is_dir {
        match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
            // Another step that shares the mount below made it meanwhile, and owns it.
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            made => made?,
        }
        // The mode must not depend on the umask the engine was started with.
        return Ok(rustix::fs::chmodat(dir, name, Mode::from_raw_mode(0o755), AtFlags::empty())?);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        file => Ok(rustix::fs::fchmod(file?, Mode::from_raw_mode(0o644))?),
    }
}

fn remove_one(root: &OwnedFd, stub: &Stub) -> io::Result<()> {
    // The step may have put something else in the parent's place; a link there is not followed.
    let dir = open_dir(root, &stub.parent)?;
    let found = rustix::fs::statat(&dir, stub.name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if stub.is_dir != kind.is_dir() || (!stub.is_dir && (!kind.is_file() || found.st_size != 0)) {
        return Ok(());
    }
    let now = modified(&dir)?;
    let flags = if stub.is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(&dir, stub.name.as_str(), flags)?;
    // Whoever changed the parent meanwhile gave it a time of its own; only the stub's own marks are undone.
    let time = if now == stub.after { stub.before } else { now };
    let keep = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let modified = rustix::fs::Timespec { tv_sec: time.0, tv_nsec: time.1 };
    Ok(rustix::fs::futimens(&dir, &Timestamps { last_access: keep, last_modification: modified })?)
}

/// Opens a directory below the root by a path that has no links.
fn open_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

fn modified(dir: &OwnedFd) -> io::Result<(i64, i64)> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_mtime as i64, stat.st_mtime_nsec as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn parts(found: &Resolved) -> (String, usize) {
        (found.parts.join("/"), found.existing)
    }

    #[test]
    fn links_stay_inside_and_dangling_ones_lead_to_where_they_would() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("etc")).unwrap();
        std::fs::create_dir_all(at("usr/lib")).unwrap();
        symlink("../run/systemd/resolv.conf", at("etc/resolv.conf")).unwrap();
        symlink("usr/lib", at("lib")).unwrap();
        symlink("/../../etc", at("out")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let root = open(dir.path());
        for (path, expected) in [
            ("/etc", ("etc", 1)),
            ("/etc/resolv.conf", ("run/systemd/resolv.conf", 0)),
            ("/lib/x/y", ("usr/lib/x/y", 2)),
            ("/out/hosts", ("etc/hosts", 1)),
            ("/../..//a/./b/../c", ("a/c", 0)),
        ] {
            assert_eq!(parts(&resolve(&root, path).unwrap()), (expected.0.to_owned(), expected.1), "{path}");
        }
        assert_eq!(resolve(&root, "/loop/x").unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn stubs_vanish_and_their_parent_looks_untouched() {
        for recursive in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("var")).unwrap();
            let root = open(dir.path());
            let time = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().modified().unwrap();
            let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
            std::fs::File::open(dir.path().join("var")).unwrap().set_modified(old).unwrap();
            let mut stubs = Stubs::new(recursive);
            stubs.make(&root, &resolve(&root, "/var/a/b").unwrap(), true).unwrap();
            stubs.make(&root, &resolve(&root, "/var/file").unwrap(), false).unwrap();
            assert!(dir.path().join("var/a/b").is_dir() && dir.path().join("var/file").is_file());
            stubs.remove(&root);
            assert!(!dir.path().join("var/file").exists());
            assert_eq!(dir.path().join("var/a").exists(), !recursive);
            assert!(!dir.path().join("var/a/b").exists());
            if recursive {
                assert_eq!(time("var"), old);
            }
        }
    }

    #[test]
    fn what_the_step_filled_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let mut stubs = Stubs::new(true);
        stubs.make(&root, &resolve(&root, "/d").unwrap(), true).unwrap();
        stubs.make(&root, &resolve(&root, "/f").unwrap(), false).unwrap();
        std::fs::write(dir.path().join("d/x"), "").unwrap();
        std::fs::write(dir.path().join("f"), "text").unwrap();
        stubs.remove(&root);
        assert!(dir.path().join("d/x").exists() && dir.path().join("f").exists());
    }
}
