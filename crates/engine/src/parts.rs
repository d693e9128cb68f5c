//! What operations are made of: the services that the composition root chose, shared by all builds.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_executor::Executor;
use kiln_oci::Descriptor;
use kiln_registry::Registry;
use kiln_session::SessionRegistry;
use kiln_snapshot::Snapshotter;
use kiln_solver::OpContext;
use kiln_stdx::{Digest, ErrorClass, SingleFlight};
use kiln_store::{Blob, Store};
use parking_lot::Mutex;

use crate::build::BuildContext;
use crate::error::EngineError;
use crate::frontend::gateway::GatewayServer;
use crate::history::Scribe;
use crate::ops::exec::RunningSteps;
use crate::runtime_dir::RuntimeDir;

/// Shared by every operation.
pub struct Parts {
    pub store: Store,
    pub snapshotter: Arc<dyn Snapshotter>,
    pub executor: Arc<dyn Executor>,
    pub registry: Registry,
    pub sessions: SessionRegistry,
    /// What steps that need an entitlement may have at most: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// What steps have that say nothing of it.
    pub steps: StepDefaults,
    /// Which frontends may run.
    pub frontends: FrontendRules,
    /// What whoever runs the engine adds to provenance.
    pub provenance_env: serde_json::Map<String, serde_json::Value>,
    /// Writes what the history keeps.
    pub scribe: Arc<dyn Scribe>,
    /// Serves frontends in images.
    pub gateway: Arc<dyn GatewayServer>,
    /// Sockets and other short-lived files of running steps; on a tmpfs where there is one.
    pub runtime_dir: RuntimeDir,
    /// Bounds kiln's own work (hashing, copying, unpacking) to the number of cores.
    pub work: Arc<tokio::sync::Semaphore>,
    /// Bounds layers being unpacked. Apart from `work`, since work may wait for a layer.
    pub unpacks: Arc<tokio::sync::Semaphore>,
    /// Layers on their way, by digest of the blob.
    pub fetches: SingleFlight<Digest, Blob>,
    /// Blobs of cached results that were offered and then not given.
    pub refused: Refused,
    /// Steps whose processes run.
    pub running: RunningSteps,
}

/// Blobs of remote caches that could not be had when they were read. Such a result is not left where it is again: it is
/// fetched before it is used, so that a step whose result cannot be had is run.
#[derive(Default)]
pub struct Refused(Mutex<BTreeSet<Digest>>);

impl Refused {
    /// Most blobs that are remembered; beyond it all are forgotten.
    const MAX: usize = 4096;

    /// Notes how the fetch of a blob ended.
    pub fn note<T>(&self, digest: Digest, outcome: &Result<T, EngineError>) {
        let mut refused = self.0.lock();
        match outcome {
            Ok(_) => {
                refused.remove(&digest);
            }
            Err(error) if error.class() == ErrorClass::Canceled => {}
            Err(_) => {
                if refused.len() >= Self::MAX {
                    refused.clear();
                }
                refused.insert(digest);
            }
        }
    }

    /// Tells whether one of these blobs could not be had.
    pub fn any(&self, blobs: &[Descriptor]) -> bool {
        let refused = self.0.lock();
        blobs.iter().any(|blob| refused.contains(&blob.digest))
    }
}

/// What steps have that say nothing of it.
#[derive(Debug, Clone, Default)]
pub struct StepDefaults {
    /// `/etc/resolv.conf` in place of the host's.
    pub resolv_conf: Option<Vec<u8>>,
    pub cgroup_parent: Option<String>,
    /// Most steps that run a process at once.
    pub max_parallelism: Option<usize>,
}

/// Which frontends may run.
#[derive(Debug, Clone)]
pub struct FrontendRules {
    /// The built-in Dockerfile frontend.
    pub dockerfile: bool,
    /// Frontends in images.
    pub gateway: bool,
    /// Repositories whose images may run as frontends; any when empty.
    pub allowed_repositories: Vec<String>,
}

impl Default for FrontendRules {
    fn default() -> Self {
        Self { dockerfile: true, gateway: true, allowed_repositories: Vec::new() }
    }
}

impl Parts {
    /// Runs blocking work on a thread of its own, at most as many at once as there are cores.
    ///
    /// # Errors
    /// Whatever the work fails with; a panic in it is a bug and reported as one.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        bounded(&self.work, work).await
    }

    /// Runs the unpacking of a layer on a thread of its own, at most as many at once as there are cores.
    ///
    /// # Errors
    /// As [`Self::blocking`].
    pub async fn unpacking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        bounded(&self.unpacks, work).await
    }
}

/// Runs blocking work that mostly waits on a thread of its own.
///
/// # Errors
/// As [`Parts::blocking`].
pub async fn unbounded<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| EngineError::new(ErrorClass::Bug, format!("a task panicked: {e}")))?
}

async fn bounded<T: Send + 'static>(
    bound: &Arc<tokio::sync::Semaphore>,
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let permit = bound.clone().acquire_owned().await;
    unbounded(move || {
        let _permit = permit;
        work()
    })
    .await
}

/// Returns the builds that want the vertex of this call, oldest first; at least one while the call is wanted.
pub fn builds(cx: &OpContext) -> Vec<Arc<BuildContext>> {
    cx.contexts::<BuildContext>()
}
