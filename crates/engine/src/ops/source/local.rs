//! A client's directory as a source. Its own key is good for this run only; what uses it is found by content.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_session::{Session, SyncRequest, TransferOptions};
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::ImmutableRef;

use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session;
use crate::source::local::assemble::{Assembly, Last};
use crate::source::local::metadata::Listing;
use crate::source::local::sync::Received;
use crate::source::local::{Wanted, direct};

/// A directory that a client offers.
pub struct Local {
    parts: Arc<Parts>,
    wanted: Wanted,
    session: Option<String>,
    unique: String,
    /// Whether equal size and time mean equal content.
    trusts_metadata: bool,
}

impl Local {
    /// Returns the operation of `local://name`.
    ///
    /// # Errors
    /// A pattern attribute that is no JSON list.
    pub fn new(parts: Arc<Parts>, name: &str, op: &SourceOp) -> Result<Self, EngineError> {
        let list = |key: &str| -> Result<Vec<String>, EngineError> {
            match op.attr(key) {
                None => Ok(Vec::new()),
                Some(json) => serde_json::from_str::<Option<Vec<String>>>(json)
                    .map(Option::unwrap_or_default)
                    .map_err(|e| EngineError::user(format!("local://{name}: bad value for {key}: {e}"))),
            }
        };
        let wanted = Wanted {
            name: name.to_owned(),
            include: list(attr::LOCAL_INCLUDE_PATTERNS)?,
            exclude: list(attr::LOCAL_EXCLUDE_PATTERNS)?,
            follow: list(attr::LOCAL_FOLLOW_PATHS)?,
            shared_key_hint: op.attr(attr::LOCAL_SHARED_KEY_HINT).unwrap_or_default().to_owned(),
            metadata_except: match op.attr(attr::LOCAL_METADATA_TRANSFER) {
                Some("true" | "1") => Some(list(attr::LOCAL_METADATA_TRANSFER_EXCLUDE)?),
                _ => None,
            },
        };
        Ok(Self {
            parts,
            wanted,
            session: op.attr(attr::LOCAL_SESSION).map(str::to_owned),
            unique: op.attr(attr::LOCAL_UNIQUE).unwrap_or_default().to_owned(),
            trusts_metadata: op.attr(attr::LOCAL_DIFFER) != Some("none"),
        })
    }

    /// Returns the session that offers the directory.
    async fn session(&self, cx: &OpContext) -> Result<Arc<Session>, EngineError> {
        let Some(id) = &self.session else { return session::any_session(&self.parts, cx).await };
        match self.parts.sessions.try_get(id) {
            Some(session) => Ok(session),
            None => Ok(self.parts.sessions.get(id, kiln_stdx::limits::SESSION_WAIT).await?),
        }
    }

    /// The names under which the last state is remembered: of this very part, and of any part of the directory.
    fn memory(&self, session: &Session) -> [(String, String); 2] {
        let shared = format!("{}\n{}", session.shared_key(), self.wanted.shared_key_hint);
        [(self.wanted.part(), shared.clone()), (self.wanted.name.clone(), shared)]
    }

    async fn read(&self, cx: &OpContext, session: &Arc<Session>) -> Result<ImmutableRef, EngineError> {
        let memory = self.memory(session);
        let reference = match session.direct_dir(&self.wanted.name) {
            Some(dir) if self.wanted.metadata_except.is_none() => self.direct(cx, dir, &memory).await?,
            _ => self.sync(cx, session, &memory).await?,
        };
        for (name, shared) in &memory {
            self.parts.store.set_local_ref(name, shared, &reference);
        }
        Ok(reference)
    }

    async fn direct(
        &self,
        cx: &OpContext,
        dir: OwnedFd,
        memory: &[(String, String); 2],
    ) -> Result<ImmutableRef, EngineError> {
        let progress = Progress::new(cx);
        let (store, wanted, memory) = (self.parts.store.clone(), self.wanted.clone(), memory.clone());
        let cancel = cx.cancel().clone();
        let started = SystemTime::now();
        let id = format!("transferring {}:", self.wanted.name);
        progress.status(&id, 0, 0, started, false);
        let read = self.parts.blocking(move || {
            let last = remembered(&store, &memory);
            let uid = rustix::process::geteuid().as_raw();
            let (reference, work) = direct::read(&store, &dir, uid, &wanted, last.as_ref(), &cancel)?;
            let near = direct::near(&dir, &wanted, &reference)?;
            Ok((reference, work, near))
        });
        let (reference, work, near) = read.await?;
        for build in progress.builds() {
            build.near.lock().extend(near.iter().cloned());
        }
        progress.status(&id, work.bytes, 0, started, true);
        Ok(reference)
    }

    async fn sync(
        &self,
        cx: &OpContext,
        session: &Arc<Session>,
        memory: &[(String, String); 2],
    ) -> Result<ImmutableRef, EngineError> {
        let progress = Progress::new(cx);
        let (store, memory) = (self.parts.store.clone(), memory.clone());
        let (except, trusted) = (self.wanted.metadata_except.clone(), self.trusts_metadata);
        let target = self
            .parts
            .blocking(move || {
                let last = remembered(&store, &memory);
                let listing = except.map(|except| Listing::new(&except)).transpose();
                let listing = listing.map_err(|e| EngineError::user(e.to_string()))?;
                Ok(Received::new(&store, last, trusted, listing)?)
            })
            .await?;
        let request = SyncRequest {
            name: self.wanted.name.clone(),
            include_patterns: self.wanted.include.clone(),
            exclude_patterns: self.wanted.exclude.clone(),
            follow_paths: self.wanted.follow.clone(),
        };
        let started = SystemTime::now();
        let id = format!("transferring {}:", self.wanted.name);
        progress.status(&id, 0, 0, started, false);
        let received = session.sync(&request, target, &TransferOptions::cancelled_by(cx.cancel())).await?;
        progress.status(&id, received.bytes, 0, started, true);
        let (store, cancel) = (self.parts.store.clone(), cx.cancel().clone());
        let description = format!("local source for {}", self.wanted.name);
        self.parts
            .blocking(move || {
                let mut received = received;
                received.settle()?;
                let assembly = Assembly {
                    store: &store,
                    entries: std::mem::take(&mut received.entries),
                    links: std::mem::take(&mut received.links),
                    last: received.last(),
                    contents: &received,
                    description,
                    cancel: &cancel,
                };
                assembly.finish()
            })
            .await
    }
}

fn remembered(store: &kiln_store::Store, memory: &[(String, String); 2]) -> Option<Last> {
    memory.iter().find_map(|(name, shared)| Last::of(store, store.local_ref(name, shared)?))
}

#[async_trait]
impl Op<ImmutableRef> for Local {
    async fn cache_map(&self, cx: &OpContext) -> Result<CacheMap, OpError> {
        let session = self.session.clone().unwrap_or_default();
        let key = format!("session:{session}:{}:{:?}:{}", self.unique, self.wanted, cx.vertex());
        let record = KeyRecord::new().with("local", self.wanted.name.clone());
        Ok(CacheMap { digest: Digest::of(key), also: Vec::new(), record, deps: Vec::new(), life: KeyLife::Run })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let session = self.session(cx).await?;
        match self.read(cx, &session).await {
            Ok(reference) => Ok(vec![reference]),
            Err(_) if cx.cancel().is_cancelled() => Err(OpError::canceled()),
            Err(error) if error.class() == ErrorClass::Remote => Err(session::op_error(error, &session)),
            Err(error) => Err(error.into()),
        }
    }
}
