//! ADD of a local archive: its members go below the destination as if they had been copied.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStringExt;

use kiln_snapshot::layer::{ExtractOptions, extract};
use kiln_snapshot::{LayerBuilder, compress, tar};

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
    // What cannot even be read as far as a first header is no archive, and is copied as it is.
    if probe.take(tar::BLOCK as u64).read_to_end(&mut head).is_err() || !tar::is_tar(&head) {
        return Ok(false);
    }
    let name = String::from_utf8_lossy(source).into_owned();
    let fail = |e: kiln_snapshot::Error| {
        EngineError::new(e.class(), format!("failed to unpack {name}: {}", crate::error::chain(&e)))
    };
    let (_, reader) =
        compress::decompress(BufReader::new(File::open(&path)?)).map_err(|e| fail(kiln_snapshot::Error::Input(e)))?;
    let dest = clean_relative(&run.copy.dest);
    let at = builder.resolve(dest.as_bytes(), true)?.path;
    if !at.is_empty() {
        builder.mkdir_all(&at, &run.new_dir())?;
    }
    let options = ExtractOptions { at, whiteouts: false, owner: run.owner };
    extract(builder, reader, &options).map_err(fail)?;
    Ok(true)
}
