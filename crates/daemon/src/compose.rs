//! Builds the engine from its parts: which drivers, which directories.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_engine::history::HistoryLimits;
use kiln_engine::parts::{FrontendRules, StepDefaults};
use kiln_engine::runtime_dir::RuntimeDir;
use kiln_engine::{Engine, History, Parts};
use kiln_executor::{Executor, Networks, RuncConfig, RuncExecutor, SandboxConfig, SandboxExecutor};
use kiln_registry::{Registry, RegistryConfig};
use kiln_session::SessionRegistry;
use kiln_snapshot::{CopySnapshotter, OverlaySnapshotter, Snapshotter};
use kiln_store::{Meta, Store, StoreConfig};

use crate::gateway::Gateway;
use crate::workers::About;
use crate::{DaemonConfig, DaemonError};

/// Seconds between checks of one blob or layer; for tests and for hosts that are not trusted.
const RECHECK: &str = "KILN_RECHECK";
/// `overlay` or `copy`; without it, overlay where the kernel has it.
const DRIVER: &str = "KILN_SNAPSHOTTER";
/// An OCI runtime that runs steps where the configuration names none; the engine's own sandbox without it.
const RUNTIME: &str = "KILN_OCI_RUNTIME";

/// Opens the state and returns the engine, and what it says of itself. Must be called within a tokio runtime.
///
/// # Errors
/// The root is in use or cannot be written.
pub fn engine(config: &DaemonConfig) -> Result<(Engine, About), DaemonError> {
    let mut store_config = StoreConfig::new(&config.root);
    if let Some(seconds) = std::env::var(RECHECK).ok().and_then(|v| v.parse().ok()) {
        store_config.recheck = std::time::Duration::from_secs(seconds);
    }
    let store = Store::open(store_config).map_err(|error| match error {
        kiln_store::StoreError::Locked { .. } => DaemonError::InUse { root: config.root.display().to_string() },
        other => start("opening the store", std::io::Error::other(other)),
    })?;
    let history = Meta::open(config.root.join("history.db"), config.root.join("damaged"), store.repairs().clone());
    let runtime_dir = RuntimeDir::make(&[Path::new("/run"), &config.root.join("tmp")])
        .map_err(|e| start("making a runtime directory", e))?;
    let settings = &config.settings;
    let mut registry = RegistryConfig { hosts: settings.registries.clone(), ..RegistryConfig::default() };
    if let Some(most) = settings.registry_concurrency {
        registry.max_concurrency = most.max(1);
    }
    let (networks, network) = settings.network.networks(&config.root)?;
    let executor = executor(config, networks).map_err(|e| start("preparing the sandbox", std::io::Error::other(e)))?;
    let about = About { network, ..About::of(config) };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let provenance_env = match &settings.provenance_env_dir {
        Some(dir) => {
            kiln_engine::provenance::read_environment(dir).map_err(|e| start("reading provenanceEnvDir", e))?
        }
        None => serde_json::Map::new(),
    };
    let parts = Parts {
        provenance_env,
        snapshotter: snapshotter(settings.snapshotter.as_deref()),
        executor,
        registry: Registry::new(registry),
        sessions: SessionRegistry::new(),
        entitlements: settings.entitlements.clone(),
        steps: StepDefaults {
            resolv_conf: settings.dns.as_ref().map(|dns| dns.resolv_conf().into_bytes()),
            cgroup_parent: settings.cgroup_parent.clone(),
            max_parallelism: settings.max_parallelism,
        },
        frontends: FrontendRules {
            dockerfile: settings.frontends.dockerfile,
            gateway: settings.frontends.gateway,
            allowed_repositories: settings.frontends.allowed_repositories.clone(),
        },
        scribe: Arc::new(crate::scribe::WireScribe),
        gateway: Arc::new(Gateway::new(about.clone())),
        runtime_dir,
        work: Arc::new(tokio::sync::Semaphore::new(cores.max(2))),
        unpacks: Arc::new(tokio::sync::Semaphore::new(cores.max(2))),
        fetches: kiln_stdx::SingleFlight::new(),
        refused: kiln_engine::parts::Refused::default(),
        running: kiln_engine::RunningSteps::default(),
        store,
    };
    let keep = HistoryLimits {
        age: settings.history.max_age.unwrap_or(HistoryLimits::default().age),
        entries: settings.history.max_entries.unwrap_or(HistoryLimits::default().entries),
    };
    Ok((Engine::new(Arc::new(parts), History::new(history, keep)), about))
}

/// Returns what runs steps.
fn executor(config: &DaemonConfig, networks: Networks) -> Result<Arc<dyn Executor>, kiln_executor::ExecError> {
    let sandbox = SandboxConfig { networks, ..SandboxConfig::default() };
    let named = std::env::var_os(RUNTIME).filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(match config.settings.runtime.clone().or(named) {
        None => Arc::new(SandboxExecutor::new(sandbox)?),
        Some(program) => {
            Arc::new(RuncExecutor::new(RuncConfig { program, state: config.root.join("tmp/runtime"), sandbox })?)
        }
    })
}

fn start(what: &'static str, source: std::io::Error) -> DaemonError {
    DaemonError::Start { what, source }
}

fn snapshotter(wanted: Option<&str>) -> Arc<dyn Snapshotter> {
    let overlay = std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("overlay"));
    match std::env::var(DRIVER).ok().as_deref().or(wanted) {
        Some("copy") => Arc::new(CopySnapshotter),
        Some("overlay") => Arc::new(OverlaySnapshotter),
        _ if overlay => Arc::new(OverlaySnapshotter),
        _ => Arc::new(CopySnapshotter),
    }
}
