//! A disk that can be copied in one instant: ext4 on a loop device whose backing file lies on XFS.
//!
//! A plain copy of a backing file that is being written is no state the disk ever had. XFS clones a file under its lock:
//! writes that came before are in the clone whole, later ones are not, and nothing is flushed for it (`fsfreeze` would
//! write everything back first, and there would be nothing to lose). What the clone has is what the disk would have if
//! the machine lost power at that moment: the file system's journal is to be replayed, and pages that were not written
//! back are gone.

use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_testkit::{Run, program};

/// Bytes of the outer file system, which holds the disk and its copies; sparse.
const OUTER: &str = "3G";
/// Bytes of the disk.
const INNER: &str = "600M";

/// The disk, mounted at `state`, and its copies, mounted one after the other at `copy`.
///
/// All mounts are made in the mount namespace of the calling thread, which [`isolate`] has made its own: they go when the
/// last process in it ends, and the loop devices with them.
pub struct Disk {
    dir: PathBuf,
}

/// Gives the calling thread, and what it starts, a mount namespace of its own. Tells whether the host allows that.
pub fn isolate() -> bool {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: only the calling thread's view of mounts changes; no memory or descriptors are shared differently.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    unshared.is_ok() && mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
}

impl Disk {
    /// Makes the disk below `dir`.
    ///
    /// # Errors
    /// What the host lacks for it.
    pub fn new(dir: &Path) -> Result<Self, String> {
        let needed = ["mkfs.xfs", "mkfs.ext4", "mount", "losetup", "dumpe2fs"];
        if let Some(missing) = needed.into_iter().find(|name| program(name).is_none()) {
            return Err(format!("no {missing} on this host"));
        }
        let disk = Self { dir: dir.to_owned() };
        for name in ["outer", "state", "copy"] {
            std::fs::create_dir(dir.join(name)).map_err(|e| e.to_string())?;
        }
        run("truncate", &["-s", OUTER, &disk.path("outer.img")])?;
        run("mkfs.xfs", &["-q", "-m", "reflink=1", &disk.path("outer.img")])?;
        run("mount", &["-o", "loop", &disk.path("outer.img"), &disk.path("outer")])?;
        run("truncate", &["-s", INNER, &disk.path("outer/disk.img")])?;
        run("mkfs.ext4", &["-q", "-F", &disk.path("outer/disk.img")])?;
        // A short commit interval lets copies differ in more than what the engine syncs itself.
        run("mount", &["-o", "loop,commit=1", &disk.path("outer/disk.img"), &disk.path("state")])?;
        Ok(disk)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Where the disk is mounted.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Has the disk write back what it has up to now.
    pub fn write_back(&self) -> Result<(), String> {
        run("sync", &["-f", &self.path("state")])
    }

    /// Copies the disk as it is at this moment, as number `n`.
    pub fn copy(&self, n: usize) -> Result<(), String> {
        run("cp", &["--reflink=always", &self.path("outer/disk.img"), &self.path(&format!("outer/{n}.img"))])
    }

    /// Mounts copy `n` and returns where, and whether its journal had something to replay.
    pub fn mount_copy(&self, n: usize) -> Result<(PathBuf, bool), String> {
        let image = self.path(&format!("outer/{n}.img"));
        let header = Run::new(program("dumpe2fs").unwrap_or_default()).args(["-h", &image]).finish();
        run("mount", &["-o", "loop", &image, &self.path("copy")])?;
        Ok((self.dir.join("copy"), header.out().contains("needs_recovery")))
    }

    /// Unmounts and deletes copy `n`.
    pub fn drop_copy(&self, n: usize) -> Result<(), String> {
        run("umount", &[&self.path("copy")])?;
        std::fs::remove_file(self.path(&format!("outer/{n}.img"))).map_err(|e| e.to_string())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for name in ["copy", "state", "outer"] {
            // Lazily, so that a process that is just ending does not keep the rest from going.
            let _ = Command::new("umount").args(["-l", &self.path(name)]).output();
        }
    }
}

fn run(name: &str, args: &[&str]) -> Result<(), String> {
    let program = program(name).ok_or_else(|| format!("no {name} on this host"))?;
    let done = Run::new(program).args(args).finish();
    if done.code == Some(0) { Ok(()) } else { Err(done.report()) }
}
