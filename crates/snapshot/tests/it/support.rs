//! What the tests share: scratch directories, archives written member by member, trees compared as text.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_snapshot::layer::{Applied, FileMeta, LayerBuilder, TarOptions, apply, write_tar};
use kiln_snapshot::tar::{END, Header, encode};
use kiln_snapshot::{Entry, LayerManifest, Result, Tree};

/// Tells whether the process may make devices and set owners, and says so if not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        kiln_testkit::report_skip("layers with owners and devices need root");
    }
    root
}

macro_rules! root_only {
    () => {
        if !crate::support::is_root() {
            return;
        }
    };
}
pub(crate) use root_only;

pub fn meta(mode: u32) -> FileMeta {
    FileMeta::new(mode, (1_700_000_000, 123_456_789))
}

/// A chain of layers in a scratch directory.
pub struct Chain {
    pub temp: tempfile::TempDir,
    pub layers: Vec<Arc<LayerManifest>>,
    pub dirs: Vec<PathBuf>,
}

impl Chain {
    pub fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap(), layers: Vec::new(), dirs: Vec::new() }
    }

    pub fn tree(&self) -> Tree {
        Tree::merge(&self.layers)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Adds a layer made by `make`.
    pub fn build(&mut self, make: impl FnOnce(&mut LayerBuilder<'_>)) -> Arc<LayerManifest> {
        let tree = self.tree();
        let dir = self.path(&format!("layer{}", self.dirs.len()));
        let mut builder = LayerBuilder::new(&dir, &tree, &self.dirs).unwrap();
        make(&mut builder);
        let manifest = builder.finish().unwrap();
        self.push(manifest, dir)
    }

    /// Adds a layer unpacked from `archive`.
    pub fn unpack(&mut self, archive: &[u8]) -> Result<Applied> {
        let dir = self.path(&format!("layer{}", self.dirs.len()));
        let applied = apply(archive, &dir, &self.tree(), &self.dirs)?;
        self.push(applied.manifest.clone(), dir);
        Ok(applied)
    }

    pub fn push(&mut self, manifest: LayerManifest, dir: PathBuf) -> Arc<LayerManifest> {
        let manifest = Arc::new(manifest);
        self.layers.push(Arc::clone(&manifest));
        self.dirs.push(dir);
        manifest
    }
}

/// An archive that grows by members.
#[derive(Default)]
pub struct Archive {
    pub bytes: Vec<u8>,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn member(mut self, kind: u8, path: &[u8], link: &[u8], data: &[u8]) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        let size = data.len() as u64;
        let header = Header { path, kind, mode, uid: 0, gid: 0, mtime: 1000, size, link, device: (0, 0), xattrs: None };
        encode(&header, &mut self.bytes);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn with_xattrs(mut self, path: &[u8], xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let header = Header {
            path,
            kind: if path.ends_with(b"/") { b'5' } else { b'0' },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 1000,
            size: 0,
            link: b"",
            device: (0, 0),
            xattrs: Some(xattrs),
        };
        encode(&header, &mut self.bytes);
        self
    }

    pub fn device(mut self, path: &[u8], kind: u8, device: (u32, u32)) -> Self {
        let header =
            Header { path, kind, mode: 0o600, uid: 0, gid: 0, mtime: 1000, size: 0, link: b"", device, xattrs: None };
        encode(&header, &mut self.bytes);
        self
    }

    pub fn file(self, path: &str, data: &str) -> Self {
        self.member(b'0', path.as_bytes(), b"", data.as_bytes())
    }

    pub fn dir(self, path: &str) -> Self {
        self.member(b'5', format!("{path}/").as_bytes(), b"", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(b'2', path.as_bytes(), target.as_bytes(), b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.member(b'1', path.as_bytes(), target.as_bytes(), b"")
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&END);
        self.bytes
    }
}

/// Writes a layer as an archive.
pub fn tar_of(manifest: &LayerManifest, dir: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let written = write_tar(manifest, dir, &mut out, &TarOptions::default()).unwrap();
    assert_eq!(written.diff_id, kiln_stdx::Digest::of(&out));
    assert_eq!(written.size, out.len() as u64);
    out
}

/// Returns the entries as they are after a trip through an archive: other inodes, whole seconds.
pub fn portable(manifest: &LayerManifest) -> Vec<Entry> {
    manifest.entries().iter().map(|e| Entry { ino: 0, mtime: (e.mtime.0, 0), ..e.clone() }).collect()
}

/// Returns the names of a manifest as text, whiteouts marked.
pub fn names(manifest: &LayerManifest) -> Vec<String> {
    let mark = |e: &Entry| match (e.kind, e.opaque) {
        (kiln_snapshot::Kind::Whiteout, _) => "-",
        (_, true) => "!",
        _ => "",
    };
    manifest.entries().iter().map(|e| format!("{}{}", mark(e), String::from_utf8_lossy(&e.path))).collect()
}

pub fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::symlink_metadata(path).unwrap())
}

pub fn os(path: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(path)
}

/// A generator of numbers with a fixed start.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}
