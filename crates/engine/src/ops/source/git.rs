//! A git repository as a source, keyed by the commit.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::SourceOp;
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_store::{ImmutableRef, RecordType};
use tokio::sync::OnceCell;

use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::{Parts, builds};
use crate::source::git::{Git, GitLog, GitPin, GitSource, Repository, checkout, pin};
use crate::{keys, layers, session};

/// A repository at a reference.
pub struct GitOp {
    parts: Arc<Parts>,
    source: GitSource,
    pin: OnceCell<GitPin>,
}

impl GitOp {
    /// Returns the operation of `git://`.
    ///
    /// # Errors
    /// A malformed address or attribute.
    pub fn new(parts: Arc<Parts>, op: &SourceOp) -> Result<Self, EngineError> {
        Ok(Self { parts, source: GitSource::new(op)?, pin: OnceCell::new() })
    }

    async fn git(&self, cx: &OpContext) -> Result<Git, EngineError> {
        let progress = Progress::new(cx);
        let offline = progress.offline();
        let log: GitLog = Arc::new(move |stream: i32, data: &[u8]| {
            // A log that cannot be spooled is no reason to fail.
            let _ = progress.log(stream, data);
        });
        let sessions = session::sessions(&self.parts, cx).await;
        Git::open(&self.parts, &sessions, &self.source, (log, offline), cx.cancel().clone()).await
    }

    async fn pinned(&self, cx: &OpContext) -> Result<&GitPin, EngineError> {
        let work = async {
            // What the build was told once holds to its end, whatever is pushed meanwhile.
            let key = format!("{}#{}", self.source.remote, self.source.git_ref);
            let known = builds(cx).iter().find_map(|build| build.git.lock().get(&key).cloned());
            if let (Some(known), None) = (known, &self.source.checksum) {
                return Ok(known);
            }
            let git = self.git(cx).await?;
            let found = pin(&self.parts, cx, &git, &self.source).await?;
            for build in builds(cx) {
                build.git.lock().entry(key.clone()).or_insert_with(|| found.clone());
            }
            Ok(found)
        };
        self.pin.get_or_try_init(|| work).await
    }
}

#[async_trait]
impl Op<ImmutableRef> for GitOp {
    async fn cache_map(&self, cx: &OpContext) -> Result<CacheMap, OpError> {
        let pin = self.pinned(cx).await?;
        let commit = pin.commit(self.source.keep_git_dir);
        let record = KeyRecord::new()
            .with("repository", self.source.shown())
            .with("reference", pin.reference.clone())
            .with("commit", commit.to_owned());
        let key = self.source.key(commit, &pin.reference);
        Ok(CacheMap { digest: keys::source(&key), also: Vec::new(), record, deps: Vec::new(), life: KeyLife::Stored })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let pin = self.pinned(cx).await?;
        let git = self.git(cx).await?;
        let repository = Repository::with(&self.parts, cx, &git, &self.source, pin).await?;
        let draft = self.parts.store.draft().map_err(EngineError::from)?;
        draft.room().runs();
        checkout(&repository, &self.source, pin, &draft.fs(), draft.scratch().map_err(EngineError::from)?).await?;
        let store = self.parts.store.clone();
        let description = format!("git snapshot for {}#{}", self.source.shown(), self.source.git_ref);
        let work = move || {
            let manifest = kiln_snapshot::layer::scan(&draft.fs())?;
            let info = layers::info(&store.scratch(), description, RecordType::SourceGitCheckout);
            Ok(store.scratch().with_layer(store.commit(draft, manifest, info)?))
        };
        Ok(vec![self.parts.blocking(work).await?])
    }
}
