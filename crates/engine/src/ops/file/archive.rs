//! ADD of a local archive: its members go below the destination as if they had been copied.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStringExt;

use kiln_snapshot::layer::{ExtractOptions, extract};
use kiln_snapshot::{LayerBuilder, compress, tar};
use kiln_stdx::ErrorClass;

use super::copy::CopyRun;
use crate::error::EngineError;
use crate::paths::clean_relative;

/// Unpacks `source` if it is an archive; returns false, with nothing done, if it is not.
///
/// # Errors
/// An archive that is damaged or malformed, a full disk.
pub fn unpack(run: &CopyRun<'_>, source: &[u8], builder: &mut LayerBuilder<'_>) -> Result<bool, EngineError> {
    let resolved = run.resolve(source)?;
    let Some(node) = run.tree.get(&resolved).filter(|node| node.entry.is_file()) else { return Ok(false) };
    let Some(dir) = run.dirs.get(node.layer) else { return Ok(false) };
    let path = dir.join(OsString::from_vec(node.entry.path.clone()));
    let mut head = Vec::new();
    let Ok((_, probe)) = compress::decompress(BufReader::new(File::open(&path)?)) else { return Ok(false) };
    let name = String::from_utf8_lossy(source).into_owned();
    // What cannot even be read as far as a first header is no archive and is copied as it is, unless it says that it is
    // one.
    match probe.take(tar::BLOCK as u64).read_to_end(&mut head) {
        Ok(_) if tar::is_tar(&head) => {}
        Err(_) if is_called_archive(&name) => {}
        _ => return Ok(false),
    }
    let fail = |e: kiln_snapshot::Error| {
        let class = match &e {
            // The file was read well enough; what it holds is broken.
            kiln_snapshot::Error::Input(cause) if cause.raw_os_error().is_none() => ErrorClass::UserInput,
            _ => e.class(),
        };
        let error = EngineError::new(class, format!("failed to unpack {name}: {}", crate::error::chain(&e)));
        match class {
            ErrorClass::UserInput => error.with_hint(format!(
                "check it with `tar -tvf {name}` and make it anew; COPY takes it as it is, without unpacking"
            )),
            _ => error,
        }
    };
    let (_, reader) =
        compress::decompress(BufReader::new(File::open(&path)?)).map_err(|e| fail(kiln_snapshot::Error::Input(e)))?;
    let mut reader = run.room.for_archive(reader);
    let dest = clean_relative(&run.copy.dest);
    let at = builder.resolve(dest.as_bytes(), true)?.path;
    if !at.is_empty() {
        builder.mkdir_all(&at, &run.new_dir())?;
    }
    let options = ExtractOptions { at, owner: run.owner, ..ExtractOptions::default() };
    extract(builder, &mut reader, &options).map_err(fail)?;
    // The checksum of what was unpacked stands behind the archive's end.
    match std::io::copy(&mut reader, &mut std::io::sink()) {
        Err(e) if !is_padding(&e) => Err(fail(kiln_snapshot::Error::Input(e))),
        _ => Ok(true),
    }
}

/// Tells whether a name is one of a compressed tar archive.
fn is_called_archive(name: &str) -> bool {
    let name = name.to_lowercase();
    let ends = ["gz", "bz2", "xz", "zst"].iter().any(|ending| name.ends_with(&format!(".tar.{ending}")));
    ends || [".tgz", ".tbz2", ".tbz", ".txz", ".tzst"].iter().any(|ending| name.ends_with(ending))
}

/// Tells whether a decompressor only stumbled over bytes behind the end of its stream, which other tools pass over.
fn is_padding(error: &std::io::Error) -> bool {
    error.to_string() == "invalid gzip header"
}
