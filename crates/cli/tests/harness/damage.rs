//! What can be damaged, by class, what of it lies below a state root, and how.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::choices::Choices;

/// The classes of what can be damaged; each gets an equal share of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Blob,
    LayerFile,
    LayerDirectory,
    Manifest,
    Metadata,
    ImageLayout,
    History,
    SocketAndLock,
    /// Version, epoch, context index, cache mounts, the engine's log.
    Rest,
    /// What remote caches hold, and their servers.
    Remote,
}

impl Class {
    pub const ALL: [Self; 10] = [
        Self::Blob,
        Self::LayerFile,
        Self::LayerDirectory,
        Self::Manifest,
        Self::Metadata,
        Self::ImageLayout,
        Self::History,
        Self::SocketAndLock,
        Self::Rest,
        Self::Remote,
    ];

    /// Tells whether the path `name` below the root belongs to the class; `base` are the digests of the base image.
    fn has(self, name: &str, is_dir: bool, base: &[String]) -> bool {
        let parts: Vec<&str> = name.split('/').collect();
        let layer = parts[0] == "layers" && parts.len() > 1;
        let in_files = layer && parts.get(2) == Some(&"fs");
        match self {
            Self::Blob => parts[0] == "blobs" && !is_dir,
            Self::LayerFile => in_files && parts.len() > 3 && !is_dir,
            Self::LayerDirectory => is_dir && layer && (parts.len() == 2 || in_files),
            Self::Manifest => layer && parts.len() == 3 && !is_dir,
            Self::Metadata => matches!(name, "meta.db" | "meta.db-wal"),
            Self::ImageLayout => {
                let of_base = parts[0] == "blobs" && parts.last().is_some_and(|last| base.iter().any(|b| b == last));
                !is_dir && (parts[0] == "images" || of_base)
            }
            Self::History => matches!(name, "history.db" | "history.db-wal"),
            Self::Remote => false,
            Self::SocketAndLock => matches!(name, "engine.sock" | "direct.sock" | "lock" | "engine.start.lock"),
            Self::Rest => {
                let files = !is_dir && matches!(parts[0], "version" | "epoch" | "context" | "mounts" | "engine.log");
                files || (is_dir && matches!(parts[0], "context" | "mounts" | "tmp" | "drafts" | "damaged"))
            }
        }
    }
}

/// Returns everything of a class, in a fixed order.
pub fn victims(root: &Path, class: Class, base: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            if class.has(&name, is_dir, base) {
                found.push(path.clone());
            }
            if is_dir {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Damages one thing and says how; in a third of the cases each it is deleted, cut short or changed.
pub fn damage(path: &Path, choices: &mut Choices) -> String {
    let Ok(meta) = fs::symlink_metadata(path) else { return "gone before".to_owned() };
    let how = choices.below(3);
    let kind = meta.file_type();
    let result = match (how, kind.is_file(), kind.is_dir()) {
        (0, _, true) => fs::remove_dir_all(path).map(|()| "delete".to_owned()),
        (0, ..) => fs::remove_file(path).map(|()| "delete".to_owned()),
        (1, true, _) => truncate(path, meta.len(), choices),
        (_, true, _) => flip(path, meta.len(), choices),
        (1, _, true) => empty_half(path, choices),
        (_, _, true) => change_directory(path, choices),
        _ if kind.is_symlink() => replace(path, |path| std::os::unix::fs::symlink("/nowhere", path), "other target"),
        (1, ..) => replace(path, |path| fs::write(path, b""), "an empty file in its place"),
        // What cannot be flipped (sockets, devices) is exchanged.
        _ if kind.is_socket() && choices.below(2) == 0 => {
            replace(path, |path| std::os::unix::net::UnixListener::bind(path).map(drop), "a dead socket in its place")
        }
        _ => replace(path, |path| fs::write(path, b"something else"), "a file in its place"),
    };
    result.unwrap_or_else(|e| format!("not done ({e})"))
}

fn truncate(path: &Path, size: u64, choices: &mut Choices) -> std::io::Result<String> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let keep = if choices.below(3) == 0 { 0 } else { choices.below(size) };
    fs::File::options().write(true).open(path)?.set_len(keep as u64)?;
    Ok(format!("truncate from {size} to {keep}"))
}

/// Changes some bits in place; where there are none, some are added.
fn flip(path: &Path, size: u64, choices: &mut Choices) -> std::io::Result<String> {
    let mut bytes = fs::read(path)?;
    let mut file = fs::File::options().write(true).open(path)?;
    if bytes.is_empty() {
        file.write_all(b"x")?;
        return Ok("add a byte".to_owned());
    }
    let mut places = Vec::new();
    // Scattered single bits, or a run of bytes as of a bad sector.
    if choices.below(2) == 0 {
        places.extend((0..=choices.below(8)).map(|_| choices.below(bytes.len())));
    } else {
        let from = choices.below(bytes.len());
        places.extend(from..bytes.len().min(from + 64));
    }
    for &place in &places {
        bytes[place] ^= 1 << choices.below(8);
        file.seek(SeekFrom::Start(place as u64))?;
        file.write_all(&bytes[place..=place])?;
    }
    Ok(format!("flip {} of {size} bytes, the first at {}", places.len(), places[0]))
}

fn empty_half(path: &Path, choices: &mut Choices) -> std::io::Result<String> {
    let mut removed = 0;
    for entry in fs::read_dir(path)?.flatten() {
        if choices.below(2) == 0 {
            removed += 1;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
    }
    Ok(format!("delete {removed} things inside"))
}

fn change_directory(path: &Path, choices: &mut Choices) -> std::io::Result<String> {
    match choices.below(3) {
        0 => {
            let mode = fs::metadata(path)?.permissions().mode() ^ 0o022;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            Ok("change its mode".to_owned())
        }
        1 => {
            fs::write(path.join("stray"), b"stray")?;
            Ok("add a file".to_owned())
        }
        _ => {
            fs::remove_dir_all(path)?;
            fs::write(path, b"")?;
            Ok("a file in its place".to_owned())
        }
    }
}

fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>, what: &str) -> std::io::Result<String> {
    fs::remove_file(path)?;
    make(path)?;
    Ok(what.to_owned())
}
