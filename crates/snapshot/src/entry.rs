//! One name of a layer with everything that is to be known of it.

use std::collections::BTreeMap;

use kiln_stdx::Fingerprint;

/// What a name in a layer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device (never 0/0, which is a whiteout).
    CharDevice,
    /// A block device.
    BlockDevice,
    /// The name is deleted: what lower layers hold there is hidden.
    Whiteout,
}

/// One name of a layer.
///
/// A whiteout has only its path: every other field is zero or empty. A directory's size is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path without a leading slash; empty for the layer's root directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`); 0777 for a symbolic link.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds (0 to 999,999,999).
    pub mtime: (i64, u32),
    /// Bytes of a regular file; 0 for everything else.
    pub size: u64,
    /// Inode number on the file system of the store.
    pub ino: u64,
    /// Names of this layer with the same number are one inode; `None` when it has no other name here.
    pub nlink_group: Option<u32>,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Where a symbolic link points.
    pub target: Vec<u8>,
    /// Extended attributes, without those of overlay and without those that belong to the host.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Fingerprint of a regular file's bytes; `None` for everything else.
    pub digest: Option<Fingerprint>,
    /// For a directory: what lower layers hold in it is hidden.
    pub opaque: bool,
}

impl Entry {
    /// Returns an entry of `kind` at `path`, owned by 0:0, with all else zero or empty.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Self {
        Self {
            path: path.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            ino: 0,
            nlink_group: None,
            rdev: (0, 0),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            digest: None,
            opaque: false,
        }
    }

    /// Returns a directory at `path` with mode 0755.
    pub fn dir(path: impl Into<Vec<u8>>) -> Self {
        Self { mode: 0o755, ..Self::new(path, Kind::Dir) }
    }

    /// Returns a deletion of `path`.
    pub fn whiteout(path: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::Whiteout)
    }

    /// Tells whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// Tells whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Returns the last name of the path.
    pub fn name(&self) -> &[u8] {
        crate::path::name(&self.path)
    }

    /// Tells whether both have the same mode, owner, group, time and extended attributes.
    pub fn same_metadata(&self, other: &Self) -> bool {
        self.mode == other.mode
            && self.uid == other.uid
            && self.gid == other.gid
            && self.mtime == other.mtime
            && self.xattrs == other.xattrs
    }

    /// Tells whether a reader of the file system would see no difference, inode numbers and link counts aside.
    pub fn same_object(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.same_metadata(other)
            && self.size == other.size
            && self.digest == other.digest
            && self.rdev == other.rdev
            && self.target == other.target
    }
}
