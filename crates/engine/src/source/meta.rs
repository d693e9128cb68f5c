//! What a source leads to, asked for by a frontend before it builds. The build then uses what was answered.

use std::sync::Arc;

use kiln_llb::op::SourceOp;
use kiln_session::Session;
use kiln_solver::{OpContext, VertexDigest};
use kiln_stdx::Digest;
use tokio_util::sync::CancellationToken;

use super::git::{Git, GitLog, GitPin, GitSource, Repository, pin};
use super::http::{Fetched, HttpSource, fetch, last_fetched};
use crate::bridge::Bridge;
use crate::error::EngineError;

/// Returns what a git reference leads to.
///
/// # Errors
/// A malformed source, a remote that cannot be asked or has no such reference.
pub async fn git(bridge: &Bridge, op: &SourceOp) -> Result<GitPin, EngineError> {
    let source = GitSource::new(op)?;
    let key = format!("{}#{}", source.remote, source.git_ref);
    if let (Some(known), None) = (bridge.build().git.lock().get(&key).cloned(), &source.checksum) {
        return Ok(known);
    }
    let sessions = sessions(bridge).await;
    let cancel = CancellationToken::new();
    // Dropping this future ends git too.
    let _cancel = cancel.clone().drop_guard();
    let git = Git::open(bridge.parts(), &sessions, &source, quiet(bridge), cancel).await?;
    let cx = detached(bridge, &format!("reference {key}"));
    let found = pin(bridge.parts(), &cx, &git, &source).await?;
    bridge.build().git.lock().insert(key, found.clone());
    Ok(found)
}

/// The objects behind a git reference, as `git cat-file` prints them.
pub struct GitObjects {
    pub commit: Vec<u8>,
    /// For an annotated tag.
    pub tag: Option<Vec<u8>>,
}

/// Fetches the objects that a git reference leads to.
///
/// # Errors
/// As [`git`]; the objects cannot be fetched.
pub async fn git_objects(bridge: &Bridge, op: &SourceOp) -> Result<GitObjects, EngineError> {
    let pin = git(bridge, op).await?;
    let source = GitSource::new(op)?;
    let cx = detached(bridge, &format!("objects of {}", source.key(&pin.object, &pin.reference)));
    let cancel = CancellationToken::new();
    // Dropping this future ends git too.
    let _cancel = cancel.clone().drop_guard();
    let git = Git::open(bridge.parts(), &sessions(bridge).await, &source, quiet(bridge), cancel).await?;
    let repository = Repository::with(bridge.parts(), &cx, &git, &source, &pin).await?;
    let commit = repository.git.run(&["cat-file", "commit", pin.commit(false)]).await?;
    let tag = match pin.commit {
        Some(_) => Some(repository.git.run(&["cat-file", "tag", &pin.object]).await?),
        None => None,
    };
    Ok(GitObjects { commit, tag })
}

/// Returns what a server has.
///
/// # Errors
/// A malformed source, a server that cannot be reached or refuses.
pub async fn http(bridge: &Bridge, op: &SourceOp) -> Result<Fetched, EngineError> {
    let source = HttpSource::new(op)?;
    let key = source.key();
    if let Some(known) = bridge.build().http.lock().get(&key).cloned() {
        return source.checked(known);
    }
    let sessions = sessions(bridge).await;
    let fetched = match bridge.build().settings.offline {
        true => last_fetched(bridge.parts(), &sessions, &source).await?,
        false => fetch(bridge.parts(), &sessions, &source, &|_, _| {}).await?,
    };
    bridge.build().held.lock().extend(bridge.parts().store.blob(&fetched.digest));
    bridge.build().http.lock().insert(key, fetched.clone());
    Ok(fetched)
}

/// Says that git's output is not shown, and whether remotes are spoken to.
fn quiet(bridge: &Bridge) -> (GitLog, bool) {
    (Arc::new(|_, _| {}), bridge.build().settings.offline)
}

/// Returns a context for what is looked up outside the graph.
fn detached(bridge: &Bridge, what: &str) -> OpContext {
    let vertex = VertexDigest(Digest::of(what));
    OpContext::detached(vertex, [(bridge.job().id(), Arc::clone(bridge.build()) as _)])
}

async fn sessions(bridge: &Bridge) -> Vec<Arc<Session>> {
    let id = &bridge.build().settings.session;
    if id.is_empty() {
        return Vec::new();
    }
    bridge.parts().sessions.get(id, kiln_stdx::limits::SESSION_WAIT).await.into_iter().collect()
}
