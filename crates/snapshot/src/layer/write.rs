//! Writing a layer as an archive.
//!
//! The bytes depend on manifest, content and options alone: members in component order, owners as numbers, times
//! in whole seconds (as other builders write them, so that equal layers have equal digests; a PAX record carries
//! only times that the plain field cannot hold), hard links to the first name in order, holes written out.
//! A deletion is an empty member `.wh.NAME`, an opaque directory has the member `.wh..wh..opq`, both with the time
//! of the epoch option or 0. The root directory is a member (`./`) only when it is not 0755, 0:0 and without
//! attributes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

use kiln_stdx::{Digest, DigestWriter, FingerprintHasher};
use rustix::io::Errno;

use super::apply::{OPAQUE, WHITEOUT};
use crate::entry::{Entry, Kind};
use crate::error::{Damage, DamageKind, Error, Result};
use crate::manifest::LayerManifest;
use crate::path;
use crate::sys::Root;
use crate::tar::{END, Header, encode};

/// How an archive is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TarOptions {
    /// Later times become this one, in seconds since 1970.
    pub epoch: Option<i64>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Digest of the archive.
    pub diff_id: Digest,
    /// Bytes of the archive.
    pub size: u64,
}

/// Writes the layer with manifest `manifest` and directory `fs` to `out`. The bytes of every file are compared
/// with the manifest's fingerprint while they pass.
///
/// # Errors
/// [`Error::Damage`] when a file is not what the manifest says, [`Error::Unstorable`] for names that would mean a
/// deletion, [`Error::Output`] when `out` fails. What was written until then is no archive.
pub fn write_tar(manifest: &LayerManifest, fs: &Path, out: impl Write, options: &TarOptions) -> Result<Written> {
    let mut writer = TarWriter {
        out: DigestWriter::new(out),
        root: Root::open(fs)?,
        options,
        first_names: HashMap::new(),
        buf: vec![0; 256 * 1024],
        head: Vec::new(),
    };
    for entry in manifest.entries() {
        writer.entry(entry)?;
    }
    writer.out.write_all(&END).map_err(Error::Output)?;
    writer.out.flush().map_err(Error::Output)?;
    let (_, diff_id, size) = writer.out.finish();
    Ok(Written { diff_id, size })
}

struct TarWriter<'a, W> {
    out: DigestWriter<W>,
    root: Root,
    options: &'a TarOptions,
    /// First name of each group of hard links.
    first_names: HashMap<u32, &'a [u8]>,
    buf: Vec<u8>,
    head: Vec<u8>,
}

impl<'a, W: Write> TarWriter<'a, W> {
    fn entry(&mut self, entry: &'a Entry) -> Result<()> {
        if entry.name().starts_with(WHITEOUT) {
            let what = "names that begin with `.wh.` mean deletions there";
            return Err(Error::Unstorable { path: path::lossy(&entry.path), what });
        }
        if entry.kind == Kind::Whiteout {
            let parent = path::parent(&entry.path).unwrap_or_default();
            return self.marker(&path::join(parent, &[WHITEOUT, entry.name()].concat()));
        }
        if let Some(group) = entry.nlink_group {
            if let Some(first) = self.first_names.get(&group) {
                let header = Header { kind: b'1', size: 0, link: first, xattrs: None, ..self.header(entry) };
                return self.head(&header);
            }
            self.first_names.insert(group, &entry.path);
        }
        if entry.path.is_empty() {
            let plain = entry.mode == 0o755 && (entry.uid, entry.gid) == (0, 0) && entry.xattrs.is_empty();
            if !plain {
                self.head(&Header { path: b"./", ..self.header(entry) })?;
            }
        } else if entry.is_dir() {
            let name = [&entry.path[..], b"/"].concat();
            self.head(&Header { path: &name, ..self.header(entry) })?;
        } else {
            self.head(&self.header(entry))?;
        }
        if entry.opaque {
            self.marker(&path::join(&entry.path, OPAQUE))?;
        }
        if entry.is_file() { self.data(entry) } else { Ok(()) }
    }

    fn header(&self, entry: &'a Entry) -> Header<'a> {
        let kind = match entry.kind {
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
            Kind::File | Kind::Whiteout => b'0',
        };
        Header {
            path: &entry.path,
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: self.options.epoch.map_or(entry.mtime.0, |epoch| entry.mtime.0.min(epoch)),
            size: entry.size,
            link: &entry.target,
            device: entry.rdev,
            xattrs: Some(&entry.xattrs),
        }
    }

    fn marker(&mut self, path: &[u8]) -> Result<()> {
        self.head(&Header {
            path,
            kind: b'0',
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: self.options.epoch.unwrap_or(0),
            size: 0,
            link: b"",
            device: (0, 0),
            xattrs: None,
        })
    }

    fn head(&mut self, header: &Header<'_>) -> Result<()> {
        self.head.clear();
        encode(header, &mut self.head);
        self.out.write_all(&self.head).map_err(Error::Output)
    }

    fn data(&mut self, entry: &Entry) -> Result<()> {
        let damaged = |what| Err(Damage::new(&entry.path, what).into());
        let mut file = match self.root.open_file(&entry.path) {
            Ok(fd) => std::fs::File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => return damaged(DamageKind::Missing),
            Err(Errno::LOOP | Errno::NXIO) => return damaged(DamageKind::Kind),
            Err(e) => return damaged(DamageKind::Unreadable(std::io::Error::from(e).to_string())),
        };
        let mut hasher = FingerprintHasher::new();
        let mut left = entry.size;
        loop {
            let n = match file.read(&mut self.buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return damaged(DamageKind::Unreadable(e.to_string())),
            };
            let Some(rest) = left.checked_sub(n as u64) else { return damaged(DamageKind::Size) };
            left = rest;
            hasher.update(&self.buf[..n]);
            self.out.write_all(&self.buf[..n]).map_err(Error::Output)?;
        }
        if left > 0 {
            return damaged(DamageKind::Size);
        }
        if Some(hasher.finish()) != entry.digest {
            return damaged(DamageKind::Content);
        }
        let padding = entry.size.wrapping_neg() % 512;
        self.out.write_all(&END[..padding as usize]).map_err(Error::Output)
    }
}
