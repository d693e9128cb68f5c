//! The kernel as layers need it: paths resolved beneath a directory, attributes, whiteouts.

pub(crate) mod copy;
pub(crate) mod root;
pub(crate) mod xattr;

use rustix::fs::{FileType, Stat};

use crate::entry::Kind;

pub(crate) use root::Root;

/// Returns what a file is by its status; `None` for a socket, which no layer holds.
pub(crate) fn kind_of(stat: &Stat) -> Option<Kind> {
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice if stat.st_rdev == 0 => Kind::Whiteout,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => return None,
    })
}

/// Returns the modification time of a file.
pub(crate) fn mtime_of(stat: &Stat) -> (i64, u32) {
    #[expect(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
    (stat.st_mtime as i64, stat.st_mtime_nsec as u32)
}

/// Returns a change stamp that any write to the inode moves, except within one tick of the kernel's clock.
pub(crate) fn ctime_of(stat: &Stat) -> (i64, i64) {
    #[expect(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
    (stat.st_ctime as i64, stat.st_ctime_nsec as i64)
}

/// Returns the numbers of a device.
pub(crate) fn rdev_of(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

/// Returns the number of threads for work that is bound by the processor.
pub(crate) fn workers() -> usize {
    // Looking it up reads files of the control group, which is too much for every step.
    static WORKERS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *WORKERS.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16))
}
