//! Outputs on their way to the client through its session.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kiln_oci::Descriptor;
use kiln_session::proto::fs::Stat;
use kiln_session::stat::{go, to_go_mode};
use kiln_session::{ProgressFn, SendOutcome, Session, TransferOptions, TreeSource};
use kiln_snapshot::Kind;
use parking_lot::Mutex;

use crate::content::Content;
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::files::{FileEntry, FileSet};
use crate::progress::Status;

/// Size of the pieces in which blobs go to the client's store, in bytes.
const PIECE: usize = 1 << 20;

impl FileEntry {
    /// Returns the entry as it goes over the wire.
    fn to_wire(&self) -> Stat {
        let stat = &self.stat;
        let kind = match stat.kind {
            Kind::Dir => go::DIR,
            Kind::Symlink => go::SYMLINK,
            Kind::Fifo => go::NAMED_PIPE,
            Kind::CharDevice => go::DEVICE | go::CHAR_DEVICE,
            Kind::BlockDevice => go::DEVICE,
            Kind::File | Kind::Whiteout => 0,
        };
        let linkname = match (&self.link, stat.kind) {
            (Some(first), _) => first.clone(),
            (None, Kind::Symlink) => stat.target.clone(),
            (None, _) => Vec::new(),
        };
        let nanos = i128::from(stat.mtime.0) * 1_000_000_000 + i128::from(stat.mtime.1);
        let xattrs =
            stat.xattrs.iter().filter_map(|(key, value)| Some((String::from_utf8(key.clone()).ok()?, value.clone())));
        Stat {
            path: stat.path.clone(),
            mode: kind | (to_go_mode(stat.mode) & !go::TYPE),
            uid: stat.uid,
            gid: stat.gid,
            size: if self.is_content() { i64::try_from(stat.size).unwrap_or(i64::MAX) } else { 0 },
            mod_time: i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }),
            linkname,
            devmajor: i64::from(stat.rdev.0),
            devminor: i64::from(stat.rdev.1),
            xattrs: xattrs.collect(),
        }
    }
}

impl TreeSource for FileSet {
    fn walk(&self, emit: &mut dyn FnMut(Stat) -> io::Result<()>) -> io::Result<()> {
        self.entries().iter().try_for_each(|entry| emit(entry.to_wire()))
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let entry = self.get(path).ok_or(io::ErrorKind::NotFound)?;
        // Never an error here, which the receiver would take for an empty file: it shows when the file is read.
        Ok(Box::new(self.open_entry(entry)))
    }
}

/// Sends `files` as a directory. With `mirror` the client removes what is not among them.
pub(crate) async fn directory(
    context: &ExportContext,
    session: &Session,
    id: u32,
    files: Arc<FileSet>,
    mirror: bool,
) -> Result<()> {
    let status = Mutex::new(Status::start(&context.progress, files.label(), 0));
    let seen = AtomicU64::new(0);
    let progress: ProgressFn = Arc::new(move |total| {
        let before = seen.fetch_max(total, Ordering::Relaxed);
        status.lock().add(total.saturating_sub(before));
    });
    let options = TransferOptions { progress: Some(progress), ..TransferOptions::cancelled_by(&context.cancel) };
    session.send_dir(id, files, mirror, &options).await.map(drop).map_err(ExportError::Session)
}

/// Sends what `write` writes as one file; `meta` is what the client may name it by.
pub(crate) async fn file(
    context: &ExportContext,
    session: &Session,
    id: u32,
    meta: &std::collections::BTreeMap<String, String>,
    write: impl FnOnce(&mut dyn io::Write) -> Result<()> + Send + 'static,
) -> Result<()> {
    let sender = session.send_file(id, meta).map_err(ExportError::Session)?.into_blocking();
    let cancel = context.cancel.clone();
    let work = move || {
        let mut out = sender;
        match write(&mut out) {
            Ok(()) => {}
            // The client hung up; its answer says why, and that it has the file already is no failure.
            Err(ExportError::Write { source, what }) if source.kind() == io::ErrorKind::BrokenPipe => {
                return match out.finish(&cancel) {
                    Ok(SendOutcome::Skipped) => Ok(()),
                    Ok(SendOutcome::Done) => Err(ExportError::Write { what, source }),
                    Err(error) => Err(ExportError::Session(error)),
                };
            }
            // Dropping the sender tells the client that what it got is not a file.
            Err(error) => return Err(error),
        }
        out.finish(&cancel).map(drop).map_err(ExportError::Session)
    };
    joined(tokio::task::spawn_blocking(work).await)
}

/// Copies `contents` into the client's blob store `store`.
pub(crate) async fn contents(
    context: &ExportContext,
    session: &Arc<Session>,
    store: &str,
    contents: &[Content],
) -> Result<()> {
    let total = contents.iter().map(|c| c.descriptor.size).sum();
    let mut status = Status::start(&context.progress, "sending tarball", total);
    for piece in contents {
        content(context, session, store, piece).await?;
        status.add(piece.descriptor.size);
    }
    Ok(())
}

/// Copies one blob into the client's blob store `store`, unless it is there.
pub(crate) async fn content(
    context: &ExportContext,
    session: &Arc<Session>,
    store: &str,
    content: &Content,
) -> Result<()> {
    context.check_canceled()?;
    let Descriptor { digest, size, .. } = &content.descriptor;
    let begun = session.content(store).write(digest, *size).await.map_err(ExportError::Session)?;
    let Some(mut writer) = begun else { return Ok(()) };
    let (pieces, mut queue) = tokio::sync::mpsc::channel::<Bytes>(2);
    let (content, remote) = (content.clone(), context.remote.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE, PieceWriter(pieces));
        content.copy_to(&*remote, &mut out, &mut |_| {})?;
        io::Write::flush(&mut out).map_err(ExportError::write("a blob"))
    });
    while let Some(piece) = queue.recv().await {
        writer.write(piece).await.map_err(ExportError::Session)?;
    }
    joined(reading.await)?;
    writer.commit().await.map_err(ExportError::Session)
}

/// Hands what is written to an async reader.
struct PieceWriter(tokio::sync::mpsc::Sender<Bytes>);

impl io::Write for PieceWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(&data[..data.len().min(PIECE)]);
        let length = piece.len();
        self.0.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the result of a blocking task; one that panicked or was dropped at shutdown is a canceled one.
pub(crate) fn joined<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    match result {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ExportError::Canceled),
        },
    }
}
