//! Overlay mounts.
//!
//! `index`, `metacopy`, `redirect_dir` and `xino` are off, so that an upper directory alone says what changed. The mount is
//! `volatile`: an upper directory is thrown away when the engine or the machine dies, and the store syncs what it keeps,
//! so neither the step's own `fsync` calls nor the unmount need to wait for the disk.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_stdx::limits::OVERLAY_LAYERS;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags};

use super::userns;
use crate::sys::mount;
use crate::wire::Failure;

/// Returns the options besides the directories.
fn features() -> [(&'static str, &'static str); 4] {
    // With `userxattr` the kernel takes no other word for "off" than the stricter one.
    let redirect = if userns::inside() { "nofollow" } else { "off" };
    [("index", "off"), ("metacopy", "off"), ("redirect_dir", redirect), ("xino", "off")]
}

/// The directories of one overlay.
pub(super) struct Overlay<'a> {
    /// Top first.
    pub lowers: &'a [PathBuf],
    pub upper: Option<&'a Path>,
    pub work: Option<&'a Path>,
}

impl Overlay<'_> {
    /// Mounts it and returns the detached mount. Less than two directories need no overlay and become a bind mount.
    pub(super) fn mount(&self, dest: &str) -> Result<OwnedFd, Failure> {
        if self.lowers.len() > OVERLAY_LAYERS {
            return Err(Failure::TooManyLayers { layers: self.lowers.len() });
        }
        let fail = |what: String, error: io::Error| Failure::mount(what, dest, error);
        match (self.lowers, self.upper) {
            ([], None) => Err(Failure::InvalidSpec(format!("overlay on {dest} has no directory"))),
            ([], Some(only)) => {
                super::mounts::bind(only, false).map_err(|error| fail(format!("directory {}", only.display()), error))
            }
            ([only], None) => {
                super::mounts::bind(only, true).map_err(|error| fail(format!("layer {}", only.display()), error))
            }
            _ => match self.by_parts() {
                Err(Problem::NoLowerdirPlus) => {
                    self.by_string().map_err(|error| fail(format!("overlay of {} layers", self.lowers.len()), error))
                }
                Err(Problem::Layer(path, error)) => Err(fail(format!("overlay layer {}", path.display()), error)),
                Err(Problem::Mount(said, error)) => {
                    Err(fail(format!("overlay of {} layers{said}", self.lowers.len()), error))
                }
                Ok(mount) => Ok(mount),
            },
        }
    }

    /// Linux 6.5 and later: one call a layer, each named by descriptor, so that neither length nor odd characters matter.
    fn by_parts(&self) -> Result<OwnedFd, Problem> {
        self.forget_volatile();
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(Problem::plain)?;
        let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
        set("source", "overlay").map_err(Problem::plain)?;
        for (number, layer) in self.lowers.iter().enumerate() {
            let dir = open_dir(layer)?;
            match set("lowerdir+", &by_descriptor(&dir)) {
                Err(rustix::io::Errno::INVAL) if number == 0 => return Err(Problem::NoLowerdirPlus),
                result => result.map_err(|errno| Problem::Layer(layer.clone(), errno.into()))?,
            }
        }
        for (key, path) in [("upperdir", self.upper), ("workdir", self.work)] {
            if let Some(path) = path {
                let dir = open_dir(path)?;
                set(key, &by_descriptor(&dir)).map_err(|errno| Problem::Layer(path.to_owned(), errno.into()))?;
            }
        }
        for (key, value) in features() {
            set(key, value).map_err(Problem::plain)?;
        }
        let flags = [("volatile", self.upper.is_some()), ("userxattr", userns::inside())];
        for (flag, _) in flags.into_iter().filter(|(_, wanted)| *wanted) {
            rustix::mount::fsconfig_set_flag(&context, flag).map_err(Problem::plain)?;
        }
        if let Err(errno) = rustix::mount::fsconfig_create(&context) {
            return Err(Problem::Mount(explanation(&context), errno.into()));
        }
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(Problem::plain)
    }

    /// Linux before 6.5: one option string of at most a page, by `mount(2)`, in a mount namespace of this process alone.
    fn by_string(&self) -> io::Result<OwnedFd> {
        self.forget_volatile();
        // First of all: layers opened before would belong to the namespace that is left.
        // SAFETY: a mount namespace of its own shares no memory or descriptors differently; only paths change.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let open =
            |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dirs = self.lowers.iter().map(|layer| open(layer)).collect::<Result<Vec<_>, _>>()?;
        let lowers: Vec<String> = dirs.iter().map(by_descriptor).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        let mut held = Vec::new();
        for (key, path) in [("upperdir", self.upper), ("workdir", self.work)] {
            if let Some(path) = path {
                let dir = open(path)?;
                options.push_str(&format!(",{key}={}", by_descriptor(&dir)));
                held.push(dir);
            }
        }
        for (key, value) in features() {
            options.push_str(&format!(",{key}={value}"));
        }
        if self.upper.is_some() {
            options.push_str(",volatile");
        }
        if userns::inside() {
            options.push_str(",userxattr");
        }
        // The mount covers /proc for the two calls that make it a detached one; no other directory is sure to exist.
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount("overlay", "/proc", "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
        let tree = mount::clone_tree(rustix::fs::CWD, c"/proc", false);
        rustix::mount::unmount("/proc", UnmountFlags::DETACH)?;
        tree
    }

    /// The kernel refuses a work directory that a volatile mount used before; whoever passes it again knows it is whole.
    fn forget_volatile(&self) {
        if let Some(work) = self.work {
            let mark = work.join("work/incompat/volatile");
            let _ = rustix::fs::unlinkat(rustix::fs::CWD, mark.join("dirty"), AtFlags::empty());
            let _ = rustix::fs::unlinkat(rustix::fs::CWD, mark, AtFlags::REMOVEDIR);
        }
    }
}

enum Problem {
    NoLowerdirPlus,
    Layer(PathBuf, io::Error),
    Mount(String, io::Error),
}

impl Problem {
    fn plain(errno: rustix::io::Errno) -> Self {
        Self::Mount(String::new(), errno.into())
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Problem> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Problem::Layer(path.to_owned(), errno.into()))
}

fn by_descriptor(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// Returns what the kernel wrote into the context's log, as ` (text)`.
fn explanation(context: &OwnedFd) -> String {
    let mut buffer = [0u8; 512];
    let mut said = Vec::new();
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        said.push(String::from_utf8_lossy(&buffer[..length]).trim().trim_start_matches("e ").to_owned());
    }
    if said.is_empty() { String::new() } else { format!(" ({})", said.join("; ")) }
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a skipped test says why")]
mod tests {
    use super::*;

    fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|number| {
                let layer = dir.join(format!("layer:{number},x"));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join(format!("f{number}")), number.to_string()).unwrap();
                std::fs::write(layer.join("top"), number.to_string()).unwrap();
                layer
            })
            .collect()
    }

    fn read(mount: &OwnedFd, name: &str) -> String {
        let file = rustix::fs::openat(mount, name, OFlags::RDONLY, Mode::empty()).unwrap();
        io::read_to_string(std::fs::File::from(file)).unwrap()
    }

    fn check(by: impl Fn(&Overlay<'_>) -> Option<OwnedFd>) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let lowers = layers(dir.path(), 130);
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        // Twice: the mark a volatile mount leaves behind must not stop the second.
        for _ in 0..2 {
            let overlay = Overlay { lowers: &lowers, upper: Some(&upper), work: Some(&work) };
            let Some(mount) = by(&overlay) else { return };
            assert_eq!(read(&mount, "top"), "0");
            assert_eq!(read(&mount, "f129"), "129");
            rustix::fs::mkdirat(&mount, "new", Mode::RWXU).unwrap();
            assert!(upper.join("new").is_dir());
            rustix::fs::unlinkat(&mount, "new", AtFlags::REMOVEDIR).unwrap();
        }
    }

    #[test]
    fn many_layers_with_odd_names_by_parts() {
        check(|overlay| match overlay.by_parts() {
            Ok(mount) => Some(mount),
            Err(Problem::NoLowerdirPlus) => {
                eprintln!("skip: this kernel has no lowerdir+");
                None
            }
            Err(Problem::Layer(_, error) | Problem::Mount(_, error)) => panic!("{error}"),
        });
    }

    #[test]
    fn many_layers_with_odd_names_by_string() {
        // The namespace is the thread's own: the other tests do not see it.
        std::thread::spawn(|| check(|overlay| Some(overlay.by_string().unwrap()))).join().unwrap();
    }
}
