//! Content keys: the digest of what an operation sees of an input.

use std::sync::Arc;

use kiln_snapshot::Tree;
use kiln_solver::{Difference, OpContext, Part};
use kiln_stdx::Digest;
use kiln_store::{ContentSelector, ImmutableRef};

use crate::build::BuildContext;
use crate::error::EngineError;
use crate::keys::file::Selector;
use crate::parts::{Parts, builds};
use crate::source::lazy;

/// How many files a reason names.
const SHOWN: usize = 20;

/// Returns the selector of a path with all below it, links followed.
pub fn whole_path(path: String) -> Selector {
    Selector {
        path,
        wildcard: false,
        follow_links: true,
        include: Vec::new(),
        exclude: Vec::new(),
        required: Vec::new(),
    }
}

/// Returns the digest of the selected parts of `reference`; no selector means all of it.
///
/// # Errors
/// A selected path does not exist, or the layers cannot be read.
pub async fn digest(
    parts: &Parts,
    cx: &OpContext,
    reference: &ImmutableRef,
    selectors: Vec<Selector>,
) -> Result<Digest, EngineError> {
    lazy::unpack_inputs(parts, cx, [reference]).await?;
    let builds = builds(cx);
    let (store, reference) = (parts.store.clone(), reference.clone());
    parts
        .blocking(move || {
            let selectors = of_store(selectors);
            let mut digests = Vec::with_capacity(selectors.len());
            for selector in selectors {
                let digest = store.content_digest(&reference, &selector).map_err(|e| {
                    let id = reference.id();
                    let what = match &e {
                        kiln_store::StoreError::NotFound(path) => format!("{path:?}: not found"),
                        other => other.to_string(),
                    };
                    let text = match &e {
                        // There is nothing to sum up in an empty file system.
                        kiln_store::StoreError::NotFound(path) if reference.is_scratch() => {
                            format!("lstat {path}: no such file or directory")
                        }
                        _ => format!("failed to compute cache key: failed to calculate checksum of ref {id}: {what}"),
                    };
                    let mut error = EngineError::new(e.class(), text);
                    error.hint = suggested(&builds, &selector.path)
                        .or_else(|| nearest(&*reference.tree().ok()?, &selector.path));
                    error
                })?;
                digests.push(digest.to_string());
            }
            Ok(Digest::of(digests.join("\0")))
        })
        .await
}

/// Keeps what the selected parts are made of, so that a later miss can tell what changed since.
pub async fn keep_listing(parts: &Parts, cx: &OpContext, reference: &ImmutableRef, selectors: Vec<Selector>) {
    let Ok(content) = digest(parts, cx, reference, selectors.clone()).await else { return };
    let (store, reference) = (parts.store.clone(), reference.clone());
    let kept = parts.blocking(move || {
        store.keep_listing(&content, || store.content_listing(&reference, &of_store(selectors)));
        Ok(())
    });
    // Without it a miss is told with fewer words.
    let _ = kept.await;
}

/// Returns how the selected parts of `reference` differ from the content with the digest `old`, if that is still known.
pub async fn difference(
    parts: &Parts,
    old: &Digest,
    reference: &ImmutableRef,
    selectors: Vec<Selector>,
) -> Option<Difference> {
    let (store, reference, old) = (parts.store.clone(), reference.clone(), *old);
    let work = move || {
        let Some(before) = store.listing(&old) else { return Ok(None) };
        let Ok(now) = store.content_listing(&reference, &of_store(selectors)) else { return Ok(None) };
        let mut changes = before.changes(&now);
        let more = changes.len().saturating_sub(SHOWN);
        changes.truncate(SHOWN);
        let parts: Vec<Part> = changes.into_iter().map(|c| Part { name: c.path, what: c.what }).collect();
        Ok((!parts.is_empty()).then_some(Difference { parts, more: more as u64 }))
    };
    parts.blocking(work).await.ok().flatten()
}

/// Returns selectors in the store's words; none at all means everything.
fn of_store(selectors: Vec<Selector>) -> Vec<ContentSelector> {
    if selectors.is_empty() {
        return vec![ContentSelector::path("")];
    }
    let of_store = |selector: Selector| ContentSelector {
        path: selector.path,
        wildcard: selector.wildcard,
        follow_links: selector.follow_links,
        include: selector.include,
        exclude: selector.exclude,
        required: selector.required,
    };
    selectors.into_iter().map(of_store).collect()
}

/// Returns a hint with what was seen beside a path when the client's directory was read.
fn suggested(builds: &[Arc<BuildContext>], path: &str) -> Option<String> {
    let clean = crate::paths::clean_relative(path);
    let found = builds.iter().find_map(|build| build.near.lock().get(&clean).cloned())?;
    Some(format!("did you mean `{found}`?"))
}

/// Returns a hint with the names nearest to a path that is not there.
pub fn nearest(tree: &Tree, path: &str) -> Option<String> {
    let clean = crate::paths::clean_relative(path);
    let (dir, name) = clean.rsplit_once('/').unwrap_or(("", &clean));
    let names: Vec<String> =
        tree.children(dir.as_bytes()).map(|node| String::from_utf8_lossy(node.entry.name()).into_owned()).collect();
    let found = kiln_stdx::suggest::nearest(name, names.iter().map(String::as_str))?;
    let found = if dir.is_empty() { found.to_owned() } else { format!("{dir}/{found}") };
    Some(format!("did you mean `{found}`?"))
}
