//! A file system of its own on a loop device, for tests of small, full and different disks.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::process::Run;

/// A mounted file system; it is unmounted when this is dropped, by which time nobody may use it.
pub struct Disk {
    mount: PathBuf,
    _dir: TempDir,
}

impl Disk {
    /// Makes and mounts a file system of `kind` (`ext4`, `xfs`) with room for `megabytes`.
    ///
    /// # Errors
    /// What the host lacks for it.
    pub fn new(kind: &str, megabytes: u64) -> Result<Self, String> {
        let mkfs = format!("mkfs.{kind}");
        if crate::program(&mkfs).is_none() {
            return Err(format!("no {mkfs} on this host"));
        }
        let dir = tempfile::Builder::new().prefix("kiln-disk-").tempdir().map_err(|e| e.to_string())?;
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(megabytes << 20).map_err(|e| e.to_string())?;
        run(&[Path::new(&mkfs), Path::new("-q"), &image])?;
        Self::mount(dir, &[Path::new("-o"), Path::new("loop"), &image])
    }

    /// Mounts a tmpfs with room for `megabytes`.
    ///
    /// # Errors
    /// The host does not allow it.
    pub fn tmpfs(megabytes: u64) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("kiln-disk-").tempdir().map_err(|e| e.to_string())?;
        let size = format!("size={megabytes}m");
        Self::mount(dir, &["-t", "tmpfs", "-o", &size, "tmpfs"].map(Path::new))
    }

    fn mount(dir: TempDir, args: &[&Path]) -> Result<Self, String> {
        let mount = dir.path().join("mnt");
        std::fs::create_dir(&mount).map_err(|e| e.to_string())?;
        run(&[&[Path::new("mount")], args, &[&mount]].concat())?;
        Ok(Self { mount, _dir: dir })
    }

    /// Returns the directory where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A file system that is still used is at least taken out of the tree.
        if run(&[Path::new("umount"), &self.mount]).is_err() {
            let _ = run(&[Path::new("umount"), Path::new("-l"), &self.mount]);
        }
    }
}

fn run(command: &[&Path]) -> Result<(), String> {
    let done = Run::new(command[0]).args(&command[1..]).finish();
    if done.code == Some(0) { Ok(()) } else { Err(done.err().trim().to_owned()) }
}
