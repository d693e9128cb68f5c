//! Tar archives of what is put out: headers from the layer format's encoder, data verified on its way.

use std::io::{self, Read, Write};

use kiln_snapshot::Kind;
use kiln_snapshot::tar::{END, Header, encode};

use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::files::{FileEntry, FileSet};
use crate::progress::Status;

const BLOCK: usize = 512;
/// Size of the pieces in which files are copied, in bytes.
const PIECE: usize = 128 << 10;
/// Status while the archive is on its way.
const SENDING: &str = "sending tarball";

/// Writes the header of a file, or of a directory where `path` ends in a slash: owner 0:0, time 0, not writable.
pub(crate) fn write_plain(out: &mut dyn Write, path: &str, size: u64) -> io::Result<()> {
    let (kind, mode) = if path.ends_with('/') { (b'5', 0o755) } else { (b'0', 0o444) };
    let mut bytes = Vec::new();
    encode(&Header { path: path.as_bytes(), kind, mode, size, ..empty() }, &mut bytes);
    out.write_all(&bytes)
}

/// Fills the last block of a file of `size` bytes.
pub(crate) fn write_padding(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let rest = (size % BLOCK as u64) as usize;
    if rest == 0 { Ok(()) } else { out.write_all(&[0; BLOCK][rest..]) }
}

/// Ends the archive.
pub(crate) fn write_end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&END)
}

/// Writes all of `files`, in their order. Equal files give equal bytes.
pub(crate) fn write_files(context: &ExportContext, files: &FileSet, out: &mut dyn Write) -> Result<()> {
    let mut status = Status::start(&context.progress, SENDING, files.total_size());
    let failed = |e| ExportError::write("the tarball")(e);
    let mut buffer = vec![0; PIECE];
    for entry in files.entries() {
        context.check_canceled()?;
        let mut head = Vec::new();
        encode(&header(entry, &name(entry)), &mut head);
        out.write_all(&head).map_err(failed)?;
        if entry.is_content() {
            let mut reader = files.open_entry(entry);
            loop {
                let n = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(reader.explain(e)),
                };
                out.write_all(&buffer[..n]).map_err(failed)?;
                status.add(n as u64);
            }
            write_padding(out, entry.stat.size).map_err(failed)?;
        }
    }
    write_end(out).map_err(failed)?;
    out.flush().map_err(failed)
}

fn name(entry: &FileEntry) -> Vec<u8> {
    let mut name = entry.stat.path.clone();
    if entry.stat.is_dir() {
        name.push(b'/');
    }
    name
}

fn header<'a>(entry: &'a FileEntry, name: &'a [u8]) -> Header<'a> {
    let stat = &entry.stat;
    let (kind, link): (u8, &[u8]) = match (&entry.link, stat.kind) {
        (Some(first), _) => (b'1', first),
        (None, Kind::Symlink) => (b'2', &stat.target),
        (None, Kind::CharDevice) => (b'3', b""),
        (None, Kind::BlockDevice) => (b'4', b""),
        (None, Kind::Dir) => (b'5', b""),
        (None, Kind::Fifo) => (b'6', b""),
        (None, _) => (b'0', b""),
    };
    Header {
        path: name,
        kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime.0,
        size: if entry.is_content() { stat.size } else { 0 },
        link,
        device: stat.rdev,
        xattrs: Some(&stat.xattrs).filter(|x| !x.is_empty()),
    }
}

fn empty() -> Header<'static> {
    Header {
        path: b"",
        kind: b'0',
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        size: 0,
        link: b"",
        device: (0, 0),
        xattrs: None,
    }
}
