//! When a source was made, for `SOURCE_DATE_EPOCH`: a commit's time, what a server says, or the newest file of an archive.

use std::io::BufReader;

use kiln_llb::op::SourceOp;
use kiln_llb::{Definition, Graph, Op};
use kiln_snapshot::tar::{MemberKind, Reader};
use kiln_snapshot::{compress, tar};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::Blob;

use super::meta;
use crate::bridge::Bridge;
use crate::error::EngineError;

/// Returns the time of the one source of a graph in seconds since 1970; none when it has no time of its own.
///
/// # Errors
/// The source cannot be asked.
pub async fn of(bridge: &Bridge, definition: &Definition) -> Result<Option<i64>, EngineError> {
    if definition.is_empty() {
        return Ok(None);
    }
    let graph = Graph::load(definition, &kiln_llb::LoadOptions::default())?;
    let mut sources = graph.vertices().iter().filter_map(|vertex| match &vertex.op {
        Op::Source(source) => Some(source),
        _ => None,
    });
    let (Some(source), None) = (sources.next(), sources.next()) else { return Ok(None) };
    let source: SourceOp = bridge.policed_source(source.clone(), None).await?;
    match source.identifier.split_once("://") {
        Some(("git", _)) => Ok(commit_time(&meta::git_objects(bridge, &source).await?.commit)),
        Some(("http" | "https", _)) => {
            let found = meta::http(bridge, &source).await?;
            match found.last_modified {
                Some(seconds) => Ok(Some(seconds)),
                None => newest(bridge, found.digest).await,
            }
        }
        _ => Ok(None),
    }
}

/// Returns when a commit was made, from its object (`git cat-file commit`).
fn commit_time(object: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(object);
    let line = text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix("committer "))?;
    let (_, time) = line.rsplit_once('>')?;
    time.split_whitespace().next()?.parse().ok()
}

/// Returns the time of the newest file in a download; none if it is no archive.
async fn newest(bridge: &Bridge, digest: Digest) -> Result<Option<i64>, EngineError> {
    let parts = bridge.parts();
    let gone = || EngineError::new(ErrorClass::Damage, "a downloaded file is gone");
    let blob = parts.store.blob(&digest).ok_or_else(gone)?;
    parts.blocking(move || Ok(newest_of(&blob)?)).await
}

fn newest_of(blob: &Blob) -> std::io::Result<Option<i64>> {
    let open = || blob.open().map_err(std::io::Error::other);
    let mut head = Vec::new();
    let Ok((_, probe)) = compress::decompress(BufReader::new(open()?)) else { return Ok(None) };
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(probe, tar::BLOCK as u64), &mut head);
    if read.is_err() || !tar::is_tar(&head) {
        return Ok(None);
    }
    let (_, input) = compress::decompress(BufReader::new(open()?))?;
    let mut reader = Reader::new(BufReader::new(input));
    let mut newest = None;
    // What is damaged further on is found by whoever unpacks it.
    while let Ok(Some(member)) = reader.next_member() {
        if member.kind == MemberKind::File {
            newest = newest.max(Some(member.mtime.0));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::commit_time;

    #[test]
    fn a_commit_was_made_when_its_committer_says() {
        let object =
            b"tree 00\nauthor A <a@b> 100 +0000\ncommitter B > C <b@c> 1234567 +0130\n\ncommitter x <y> 7 +0000\n";
        assert_eq!(commit_time(object), Some(1_234_567));
        assert_eq!(commit_time(b"tree 00\n\ncommitter x <y> 7 +0000\n"), None);
    }
}
