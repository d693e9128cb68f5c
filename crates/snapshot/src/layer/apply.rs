//! Unpacking archives into layers.
//!
//! Nothing in an archive decides where bytes land on the host: every name is cleaned, resolved against what the
//! layer and those below it hold as data, and only then used, below the layer's directory and without following
//! any link there.

mod feed;

use std::io::{BufRead, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use kiln_stdx::{Digest, FingerprintHasher};

use super::build::{FileMeta, LayerBuilder};
use crate::entry::Kind;
use crate::error::{ArchiveProblem, Error, Result};
use crate::manifest::LayerManifest;
use crate::path;
use crate::sys;
use crate::tar::{Member, MemberKind, Reader};
use crate::tree::{ResolveError, Tree};

/// Start of names that mean a deletion.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The name that means that lower layers' content of its directory is hidden.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Start of names that old union file systems used for themselves; no files.
const UNION_PRIVATE: &[u8] = b".wh..wh.";

/// What came of unpacking a layer.
#[derive(Debug)]
pub struct Applied {
    /// What the layer's directory holds.
    pub manifest: LayerManifest,
    /// Digest of the uncompressed archive, to the last byte of its input.
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    pub archive_size: u64,
    /// What was unpacked.
    pub extracted: Extracted,
}

/// Counts of what was taken from an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Members of the archive.
    pub members: u64,
    /// Device nodes that were left out because this process may not make devices (in a user namespace).
    pub skipped_devices: Vec<String>,
}

/// How an archive is unpacked into a layer that is being built.
#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Directory that is the archive's root; made if missing. Links are resolved with it as their root.
    pub at: Vec<u8>,
    /// Whether names that begin with `.wh.` are deletions, as in image layers, or plain names.
    pub whiteouts: bool,
    /// Whether a symbolic link may say more `..` than there are directories above it. Layers may hold such links, which
    /// a container follows no further than its root; in an archive of a user's they are a mistake or an attack.
    pub climbing_links: bool,
    /// Owner of everything, instead of what the archive says.
    pub owner: Option<(u32, u32)>,
}

/// Unpacks an uncompressed layer archive into the directory `dest` (missing or empty) on top of `lower`, whose
/// layers' directories are `lower_dirs`, bottom to top.
///
/// The input is read and hashed on a thread of its own, up to its end, so decompression and download overlap with
/// writing; an archive of one piece is not worth a thread.
///
/// # Errors
/// [`Error::Archive`] for a bad archive, [`Error::Input`] when reading it fails, [`Error::Io`] when `dest` cannot be
/// written. What was written until then stays in `dest`.
pub fn apply(mut tar: impl Read + Send, dest: &Path, lower: &Tree, lower_dirs: &[PathBuf]) -> Result<Applied> {
    let mut builder = LayerBuilder::new(dest, lower, lower_dirs)?;
    let options = ExtractOptions { whiteouts: true, climbing_links: true, ..ExtractOptions::default() };
    let first = feed::first(&mut tar).map_err(Error::Input)?;
    if first.len() < feed::PIECE {
        // This is all of it: threads would take longer to start than to work.
        let extracted = extract_from(&mut builder, first.as_slice(), &options)?;
        let (diff_id, archive_size) = (Digest::of(&first), first.len() as u64);
        return Ok(Applied { manifest: builder.finish()?, diff_id, archive_size, extracted });
    }
    let tar = std::io::Cursor::new(first).chain(tar);
    std::thread::scope(|scope| {
        let (mut feed, reader) = feed::start(scope, tar);
        let extracted = extract_from(&mut builder, &mut feed, &options)?;
        // What follows the end of the archive belongs to its digest.
        feed.drain().map_err(Error::Input)?;
        drop(feed);
        let (diff_id, archive_size) = reader.join().map_err(|_| Error::Input(feed::gone()))?;
        Ok(Applied { manifest: builder.finish()?, diff_id, archive_size, extracted })
    })
}

/// Unpacks an uncompressed archive into a layer that is being built.
///
/// # Errors
/// As [`apply`].
pub fn extract(builder: &mut LayerBuilder<'_>, tar: impl Read, options: &ExtractOptions) -> Result<Extracted> {
    extract_from(builder, std::io::BufReader::with_capacity(feed::PIECE, tar), options)
}

fn extract_from(builder: &mut LayerBuilder<'_>, tar: impl BufRead, options: &ExtractOptions) -> Result<Extracted> {
    let mut extracted = Extracted::default();
    let mut reader = Reader::new(tar);
    let implicit = FileMeta::new(0o755, (0, 0));
    builder.mkdir_all(&options.at, &implicit)?;
    while let Some(mut member) = reader.next_member()? {
        extracted.members += 1;
        if let Some((uid, gid)) = options.owner {
            (member.uid, member.gid) = (uid, gid);
        }
        let mut one = One { builder, options, extracted: &mut extracted };
        one.take(&member, &mut reader)?;
    }
    Ok(extracted)
}

/// One member on its way into the layer.
struct One<'x, 'b, 'l> {
    builder: &'b mut LayerBuilder<'l>,
    options: &'x ExtractOptions,
    extracted: &'x mut Extracted,
}

impl One<'_, '_, '_> {
    fn take<R: BufRead>(&mut self, member: &Member, reader: &mut Reader<R>) -> Result<()> {
        let fail = |problem| Error::archive(&member.path, problem);
        let clean = checked(&member.path).map_err(fail)?;
        if clean.is_empty() {
            return match member.kind {
                MemberKind::Dir => self.builder.mkdir(&self.options.at, &meta(member)),
                _ => Err(fail(ArchiveProblem::BadName("it is empty".into()))),
            };
        }
        let parent = self.resolve(path::parent(&clean).unwrap_or_default()).map_err(fail)?;
        let name = path::name(&clean);
        if self.options.whiteouts && name.starts_with(WHITEOUT) {
            return self.whiteout(&parent, name, member);
        }
        let dest = path::join(&parent, name);
        match self.make(&dest, member, reader) {
            Err(Error::NotADirectory(what)) => Err(fail(ArchiveProblem::ParentNotDirectory(what))),
            Err(Error::BadPath { what, .. }) => Err(fail(ArchiveProblem::BadName(what.into()))),
            other => other,
        }
    }

    fn make<R: BufRead>(&mut self, dest: &[u8], member: &Member, reader: &mut Reader<R>) -> Result<()> {
        let meta = meta(member);
        match member.kind {
            MemberKind::File => self.file(dest, member, &meta, reader),
            MemberKind::Dir => self.builder.mkdir(dest, &meta),
            MemberKind::Symlink => {
                if member.link.is_empty() || member.link.contains(&0) {
                    let problem = ArchiveProblem::BadName("a symbolic link's target is empty".into());
                    return Err(Error::archive(&member.path, problem));
                }
                if !self.options.climbing_links && climbs(self.below(dest), &member.link) {
                    let problem = ArchiveProblem::LinkEscapes(path::lossy(&member.link));
                    return Err(Error::archive(&member.path, problem));
                }
                self.builder.symlink(dest, &member.link, &meta)
            }
            MemberKind::HardLink => self.hard_link(dest, member),
            MemberKind::Fifo => self.builder.node(dest, Kind::Fifo, (0, 0), &meta),
            // What this device is on disk; also how overlay's own directories are archived by plain tar.
            MemberKind::CharDevice if member.device == (0, 0) => self.builder.hide(dest),
            MemberKind::CharDevice => self.device(dest, Kind::CharDevice, member, &meta),
            MemberKind::BlockDevice => self.device(dest, Kind::BlockDevice, member, &meta),
        }
    }

    fn file<R: BufRead>(
        &mut self,
        dest: &[u8],
        member: &Member,
        meta: &FileMeta,
        reader: &mut Reader<R>,
    ) -> Result<()> {
        let file = self.builder.create(dest)?;
        let mut hasher = FingerprintHasher::new();
        let mut at = 0;
        reader.read_data(member, |offset, bytes| {
            hash_zeros(&mut hasher, offset - at);
            hasher.update(bytes);
            at = offset + bytes.len() as u64;
            sys::copy::write_at(file.as_fd(), bytes, offset).map_err(Error::sys("write", dest))
        })?;
        if at < member.size {
            rustix::fs::ftruncate(&file, member.size).map_err(Error::sys("extend", dest))?;
            hash_zeros(&mut hasher, member.size - at);
        }
        self.builder.seal(dest, &file, meta, member.size, hasher.finish())
    }

    fn hard_link(&mut self, dest: &[u8], member: &Member) -> Result<()> {
        let shown = path::lossy(&member.link);
        let fail = |problem| Error::archive(&member.path, problem);
        let clean = checked(&member.link).map_err(|_| fail(ArchiveProblem::BadLinkTarget(shown.clone())))?;
        let parent = self.resolve(path::parent(&clean).unwrap_or_default()).map_err(fail)?;
        let target = path::join(&parent, path::name(&clean));
        match self.builder.lookup(&target) {
            None => return Err(fail(ArchiveProblem::MissingLinkTarget(shown))),
            // A link that would have to replace a directory above its own target cannot be made either.
            Some(entry) if entry.is_dir() || path::is_below(&target, dest) => {
                return Err(fail(ArchiveProblem::BadLinkTarget(shown)));
            }
            Some(_) => {}
        }
        self.builder.hard_link(&target, dest)
    }

    fn device(&mut self, dest: &[u8], kind: Kind, member: &Member, meta: &FileMeta) -> Result<()> {
        match self.builder.node(dest, kind, member.device, meta) {
            Err(Error::Io { source, .. })
                if sys::xattr::is_confined() && source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                self.extracted.skipped_devices.push(path::lossy(dest));
                Ok(())
            }
            other => other,
        }
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8], member: &Member) -> Result<()> {
        let hidden = match name {
            OPAQUE => return self.builder.set_opaque(parent),
            _ if name.starts_with(UNION_PRIVATE) => return Ok(()),
            _ => &name[WHITEOUT.len()..],
        };
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            let problem = ArchiveProblem::BadName("it deletes nothing that has a name".into());
            return Err(Error::archive(&member.path, problem));
        }
        self.builder.hide(&path::join(parent, hidden))
    }

    /// Returns a path of the layer as one below the archive's root.
    fn below<'p>(&self, dest: &'p [u8]) -> &'p [u8] {
        dest.strip_prefix(&self.options.at[..]).map_or(dest, |rest| rest.strip_prefix(b"/").unwrap_or(rest))
    }

    /// Follows links on the way to the directory `dir`, with the archive's root as root.
    fn resolve(&self, dir: &[u8]) -> Result<Vec<u8>, ArchiveProblem> {
        let at = &self.options.at;
        match self.builder.resolve_in(at, dir, true) {
            Ok(resolved) => Ok(path::join(at, &resolved.path)),
            Err(ResolveError::TooManyLinks(_)) => Err(ArchiveProblem::TooManyLinks),
            Err(ResolveError::NotADirectory(what)) => Err(ArchiveProblem::ParentNotDirectory(what)),
        }
    }
}

/// Returns a member's path in the form of layers. Slashes at the start mean the archive's root; a `..` is taken
/// back lexically, but must not lead out.
fn checked(raw: &[u8]) -> Result<Vec<u8>, ArchiveProblem> {
    match path::clean(raw) {
        (_, true) => Err(ArchiveProblem::Escapes),
        (clean, false) => match path::check(&clean) {
            Ok(()) => Ok(clean),
            Err(Error::BadPath { what, .. }) => Err(ArchiveProblem::BadName(what.into())),
            Err(_) => Err(ArchiveProblem::BadName("it is malformed".into())),
        },
    }
}

/// Tells whether a relative link at `path` leads above where `path` begins.
fn climbs(path: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return false;
    }
    let mut depth = path.split(|b| *b == b'/').count() - 1;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
            _ => depth += 1,
        }
    }
    false
}

fn meta(member: &Member) -> FileMeta {
    FileMeta { mode: member.mode, uid: member.uid, gid: member.gid, mtime: member.mtime, xattrs: member.xattrs.clone() }
}

fn hash_zeros(hasher: &mut FingerprintHasher, mut count: u64) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    while count > 0 {
        let n = usize::try_from(count).unwrap_or(ZEROS.len()).min(ZEROS.len());
        hasher.update(&ZEROS[..n]);
        count -= n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::climbs;

    #[test]
    fn links_that_leave_the_root() {
        for (path, target, out) in [
            ("link", "file", false),
            ("link", "..", true),
            ("a/link", "..", false),
            ("a/link", "../..", true),
            ("a/link", "b/../../c", false),
            ("a/link", "./b//../../../c", true),
            ("a/link", "/../..", false),
        ] {
            assert_eq!(climbs(path.as_bytes(), target.as_bytes()), out, "{path} -> {target}");
        }
    }
}
