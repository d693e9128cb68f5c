//! The files of a result as they leave: one list over all platforms, contents verified while they are read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use bytes::Bytes;
use kiln_snapshot::{Entry, Kind, path};
use kiln_stdx::{Digest, Fingerprint, FingerprintHasher};
use kiln_store::ImmutableRef;

use crate::attest::{self, Subject};
use crate::context::ExportContext;
use crate::error::{ExportError, Result};
use crate::options::FileOptions;
use crate::source::{ExportSource, PlatformResult};

/// Everything that a `local` or `tar` output writes, in component order; the root directory itself is not listed.
pub struct FileSet {
    entries: Vec<FileEntry>,
    sources: Vec<Source>,
    label: String,
}

/// One name of the output.
#[derive(Debug, Clone)]
pub struct FileEntry {
    /// The entry as it is written: with its path in the output and the time it gets.
    pub stat: Entry,
    /// For a further name of an earlier file: that file's path in the output.
    pub link: Option<Vec<u8>>,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Nothing,
    /// A file in the directory of layer `layer` of source `source`, at the path behind the first `cut` bytes.
    Store {
        source: usize,
        layer: usize,
        cut: usize,
    },
    Bytes(Bytes),
}

/// Keeps a ref's layers while its files are being read.
struct Source {
    dirs: Vec<PathBuf>,
    _reference: ImmutableRef,
}

impl FileEntry {
    /// Tells whether the entry has bytes of its own.
    pub fn is_content(&self) -> bool {
        self.stat.is_file() && self.link.is_none()
    }
}

impl FileSet {
    /// Lists the files of `source`.
    ///
    /// # Errors
    /// Layers that cannot be had, and files of several platforms in one place.
    pub(crate) fn collect(context: &ExportContext, options: &FileOptions, source: &ExportSource) -> Result<Self> {
        if !source.keyed && source.entries.len() > 1 {
            let why = "unable to export multiple platforms without map";
            return Err(ExportError::Unsupported(why.to_owned()));
        }
        let split = options.platform_split.unwrap_or(source.keyed);
        let mut set = Self { entries: Vec::new(), sources: Vec::new(), label: "copying files".to_owned() };
        let mut owners: HashMap<Vec<u8>, &str> = HashMap::new();
        for result in &source.entries {
            let epoch = source.epoch(options.epoch, result)?;
            let mut listed = Vec::new();
            if split {
                let mut dir = Entry::dir(result.directory().into_bytes());
                dir.mtime = (epoch.unwrap_or(0), 0);
                listed.push(FileEntry { stat: dir, link: None, body: Body::Nothing });
            }
            let prefix = if split { format!("{}/", result.directory()) } else { String::new() };
            set.add_tree(context, result, prefix.as_bytes(), epoch, &mut listed)?;
            let platform_in_name = source.keyed && !split;
            add_attestations(&set, options, result, prefix.as_bytes(), epoch, platform_in_name, &mut listed)?;
            for entry in listed {
                match owners.get(&entry.stat.path) {
                    None => {
                        owners.insert(entry.stat.path.clone(), &result.id);
                        set.entries.push(entry);
                    }
                    Some(_) if entry.stat.is_dir() => {}
                    Some(first) => {
                        return Err(ExportError::Overlap {
                            path: text(&entry.stat.path),
                            first: (*first).to_owned(),
                            second: result.id.clone(),
                        });
                    }
                }
            }
            if split && source.entries.len() == 1 {
                set.label = format!("{} {}", set.label, result.id);
            }
        }
        set.entries.sort_by(|a, b| path::cmp(&a.stat.path, &b.stat.path));
        Ok(set)
    }

    fn add_tree(
        &mut self,
        context: &ExportContext,
        result: &PlatformResult,
        prefix: &[u8],
        epoch: Option<i64>,
        listed: &mut Vec<FileEntry>,
    ) -> Result<()> {
        let Some(reference) = &result.reference else { return Ok(()) };
        if !reference.is_unpacked() {
            context.remote.unpack(reference)?;
        }
        context.store.check(reference)?;
        let tree = reference.tree()?;
        let source = self.sources.len();
        self.sources.push(Source { dirs: reference.dirs(), _reference: reference.clone() });
        let mut first_names: HashMap<(usize, u32), Vec<u8>> = HashMap::new();
        for node in tree.iter().filter(|node| !node.entry.path.is_empty()) {
            let mut stat = node.entry.clone();
            stat.path = [prefix, &stat.path].concat();
            if let Some(epoch) = epoch {
                stat.mtime = (epoch, 0);
            }
            let mut link = None;
            if let Some(group) = stat.nlink_group.filter(|_| !stat.is_dir()) {
                let first = first_names.entry((node.layer, group)).or_insert_with(|| stat.path.clone());
                link = Some(first.clone()).filter(|first| *first != stat.path);
            }
            let body = match stat.is_file() {
                true => Body::Store { source, layer: node.layer, cut: prefix.len() },
                false => Body::Nothing,
            };
            listed.push(FileEntry { stat, link, body });
        }
        Ok(())
    }

    /// Returns the entries in component order.
    pub fn entries(&self) -> &[FileEntry] {
        &self.entries
    }

    /// Returns the name of the status under which they are copied.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the bytes of all contents.
    pub fn total_size(&self) -> u64 {
        self.entries.iter().filter(|e| e.is_content()).map(|e| e.stat.size).sum()
    }

    /// Returns the entry at `path`.
    pub fn get(&self, wanted: &[u8]) -> Option<&FileEntry> {
        self.entries.binary_search_by(|e| path::cmp(&e.stat.path, wanted)).ok().map(|i| &self.entries[i])
    }

    /// Opens a file's content. What is wrong with it shows when it is read, and the last bytes come only if all are right.
    pub fn open_entry(&self, entry: &FileEntry) -> VerifiedFile {
        let name = text(&entry.stat.path);
        let (input, expected, left) = match &entry.body {
            Body::Nothing => (Input::Bytes(Bytes::new()), None, 0),
            Body::Bytes(bytes) => (Input::Bytes(bytes.clone()), None, bytes.len() as u64),
            Body::Store { source, layer, cut } => {
                (self.open_store(*source, *layer, &entry.stat.path[*cut..]), entry.stat.digest, entry.stat.size)
            }
        };
        VerifiedFile { input, name, hasher: FingerprintHasher::new(), expected, left, damage: None }
    }

    fn open_store(&self, source: usize, layer: usize, relative: &[u8]) -> Input {
        use std::os::unix::ffi::OsStrExt;
        let Some(dir) = self.sources.get(source).and_then(|s| s.dirs.get(layer)) else {
            return Input::Failed(Some(io::ErrorKind::NotFound.into()));
        };
        // Every parent in a layer is a directory of that layer, so no link can lead the path elsewhere.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(dir.join(std::ffi::OsStr::from_bytes(relative)));
        match file {
            Ok(file) => Input::File(file),
            Err(error) => Input::Failed(Some(error)),
        }
    }
}

/// Adds the statements of a platform as files.
fn add_attestations(
    set: &FileSet,
    options: &FileOptions,
    result: &PlatformResult,
    prefix: &[u8],
    epoch: Option<i64>,
    platform_in_name: bool,
    listed: &mut Vec<FileEntry>,
) -> Result<()> {
    let attestations = attest::outgoing(&result.attestations, false);
    if attestations.is_empty() {
        return Ok(());
    }
    // What is inside the store has no digests, so that all of it has to be read.
    let files: Vec<&FileEntry> = listed.iter().filter(|e| e.stat.is_file()).collect();
    let subjects = crate::parallel::map(&files, |e| {
        let mut reader = set.open_entry(e);
        match Digest::of_reader(&mut reader) {
            Ok((digest, _)) => Ok(Subject::new(text(&e.stat.path[prefix.len()..]), &digest)),
            Err(error) => Err(reader.explain(error)),
        }
    })?;
    for attestation in attestations {
        let bytes = attest::statement(attestation, &subjects, true)?;
        let base = attestation.path.rsplit('/').next().unwrap_or_default();
        let mut name = format!("{}{base}", options.attestation_prefix);
        if platform_in_name {
            let (stem, extension) = name.rsplit_once('.').map_or((&name[..], ""), |(stem, ext)| (stem, ext));
            let dot = if extension.is_empty() { "" } else { "." };
            name = format!("{stem}.{}{dot}{extension}", result.directory());
        }
        let mut stat = Entry::new([prefix, name.as_bytes()].concat(), Kind::File);
        stat.mode = 0o600;
        stat.size = bytes.len() as u64;
        stat.mtime = (epoch.unwrap_or(0), 0);
        stat.digest = Some(Fingerprint::of(&bytes));
        if listed.iter().any(|e| e.stat.path == stat.path) {
            let why = format!("duplicate attestation path name {name}");
            return Err(ExportError::Unsupported(why));
        }
        listed.push(FileEntry { stat, link: None, body: Body::Bytes(bytes.into()) });
    }
    Ok(())
}

/// Returns a path of the output for people and documents.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

enum Input {
    File(File),
    Bytes(Bytes),
    Failed(Option<io::Error>),
}

/// Reads one file and compares length and digest before it hands out the last bytes.
pub struct VerifiedFile {
    input: Input,
    name: String,
    hasher: FingerprintHasher,
    expected: Option<Fingerprint>,
    left: u64,
    damage: Option<&'static str>,
}

impl VerifiedFile {
    /// Turns an error of [`Read::read`] into this crate's.
    pub(crate) fn explain(self, source: io::Error) -> ExportError {
        match self.damage {
            Some(what) => ExportError::Damaged { path: self.name, what: what.to_owned() },
            None => ExportError::Read { path: self.name.into(), source },
        }
    }

    fn damaged(&mut self, what: &'static str) -> io::Error {
        self.damage = Some(what);
        io::Error::new(io::ErrorKind::InvalidData, format!("`{}` of the result is damaged: {what}", self.name))
    }
}

impl Read for VerifiedFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = match &mut self.input {
            Input::File(file) => file.read(buf)?,
            Input::Bytes(bytes) => {
                let n = bytes.len().min(buf.len());
                buf[..n].copy_from_slice(&bytes.split_to(n));
                n
            }
            Input::Failed(error) => {
                let error = error.take().unwrap_or_else(|| io::ErrorKind::NotFound.into());
                let is_gone = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
                // It was listed, so it was there: whoever sends it has to tell this from a fault of its own.
                return Err(if is_gone { self.damaged("it is gone") } else { error });
            }
        };
        if n as u64 > self.left || (n == 0 && self.left > 0) {
            return Err(self.damaged("it has another length"));
        }
        self.hasher.update(&buf[..n]);
        self.left -= n as u64;
        if self.left == 0
            && let Some(expected) = self.expected.take()
            && self.hasher.finish() != expected
        {
            return Err(self.damaged("it has other bytes"));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
