//! What the engine says of itself: version, platforms, labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_engine::Parts;
use kiln_llb::pb;
use kiln_oci::Platform;
use kiln_session::proto::control::types::{BuildkitVersion, GcPolicy, WorkerRecord};
use kiln_store::PrunePolicy;

use crate::DaemonConfig;

/// What an engine says of itself that its parts do not know.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub build_id: String,
    pub labels: BTreeMap<String, String>,
    /// Platforms to announce; the host's when empty.
    pub platforms: Vec<String>,
    /// The network of steps that ask for none in particular.
    pub network: String,
    /// Rules by which garbage is collected.
    pub gc: Arc<Vec<PrunePolicy>>,
}

impl About {
    /// Returns what a configuration says.
    pub fn of(config: &DaemonConfig) -> Self {
        Self {
            build_id: config.build_id.clone(),
            labels: config.settings.labels.clone(),
            platforms: config.settings.platforms.clone(),
            network: "host".to_owned(),
            gc: Arc::new(config.settings.gc.as_ref().map(|gc| gc.policies(&config.root)).unwrap_or_default()),
        }
    }
}

/// Returns the version record; its package tells kiln's own clients whom they talk to.
pub fn version(build_id: &str) -> BuildkitVersion {
    BuildkitVersion {
        package: "kiln".to_owned(),
        version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        revision: build_id.to_owned(),
        dockerfile_version: kiln_engine::provenance::DOCKERFILE_VERSION.to_owned(),
    }
}

/// Returns the one worker.
pub fn worker(parts: &Parts, of: &About) -> WorkerRecord {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let prefix = "org.mobyproject.buildkit.worker.";
    let labels = [
        ("executor", parts.executor.name().to_owned()),
        ("snapshotter", parts.snapshotter.name().to_owned()),
        ("hostname", host),
        ("network", of.network.clone()),
        ("oci.process-mode", "sandbox".to_owned()),
        ("selinux.enabled", "false".to_owned()),
    ];
    let named = of.platforms.iter().filter_map(|text| Platform::parse(text).ok());
    let platforms = std::iter::once(Platform::host()).filter(|_| of.platforms.is_empty()).chain(named);
    let platforms = platforms.map(|p| pb::Platform {
        os: p.os,
        architecture: p.architecture,
        variant: p.variant,
        os_version: p.os_version,
        os_features: p.os_features,
    });
    let platforms = platforms.collect();
    WorkerRecord {
        id: "kiln".to_owned(),
        labels: labels.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)).chain(of.labels.clone()).collect(),
        platforms,
        gc_policy: of.gc.iter().map(gc_policy).collect(),
        buildkit_version: Some(version(&of.build_id)),
        cdi_devices: Vec::new(),
    }
}

fn gc_policy(policy: &PrunePolicy) -> GcPolicy {
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    GcPolicy {
        all: policy.all,
        keep_duration: i64::try_from(policy.keep_duration.as_nanos()).unwrap_or(i64::MAX),
        filters: policy.filters.clone(),
        reserved_space: bytes(policy.reserved_space),
        max_used_space: bytes(policy.max_used_space),
        min_free_space: bytes(policy.min_free_space),
    }
}
