//! The table `[worker.oci]` of the configuration file. Its keys are read whatever their case, as they always were.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::collect::{GcRule, GcSettings};
use crate::network::NetworkKind;
use crate::settings::Settings;
use crate::space::{Space, duration};

/// All keys of the table.
const KEYS: &[&str] = &[
    "enabled",
    "labels",
    "platforms",
    "snapshotter",
    "rootless",
    "noProcessSandbox",
    "gc",
    "gckeepstorage",
    "reservedSpace",
    "maxUsedSpace",
    "minFreeSpace",
    "gcpolicy",
    "networkMode",
    "cniConfigPath",
    "cniBinaryPath",
    "cniPoolSize",
    "bridgeName",
    "bridgeSubnet",
    "binary",
    "proxySnapshotterPath",
    "defaultCgroupParent",
    "stargzSnapshotter",
    "apparmor-profile",
    "selinux",
    "max-parallelism",
    "userRemapUnsupported",
];

/// The table, as far as this engine makes use of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Table {
    enabled: Option<bool>,
    labels: BTreeMap<String, String>,
    platforms: Vec<String>,
    snapshotter: String,
    no_process_sandbox: bool,
    gc: Option<bool>,
    gckeepstorage: Option<toml::Value>,
    reserved_space: Option<toml::Value>,
    max_used_space: Option<toml::Value>,
    min_free_space: Option<toml::Value>,
    gcpolicy: Vec<Policy>,
    network_mode: String,
    cni_pool_size: Option<usize>,
    bridge_name: String,
    bridge_subnet: String,
    binary: String,
    proxy_snapshotter_path: String,
    #[serde(rename = "defaultCgroupParent")]
    cgroup_parent: String,
    #[serde(rename = "apparmor-profile")]
    apparmor_profile: String,
    selinux: bool,
    #[serde(rename = "max-parallelism")]
    max_parallelism: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Policy {
    all: bool,
    filters: Vec<String>,
    keep_duration: Option<toml::Value>,
    keep_bytes: Option<toml::Value>,
    reserved_space: Option<toml::Value>,
    max_used_space: Option<toml::Value>,
    min_free_space: Option<toml::Value>,
}

/// Puts what the table says into `settings`.
///
/// # Errors
/// An unknown key or value, or one that asks for what this engine has not.
pub fn apply(table: &BTreeMap<String, toml::Value>, settings: &mut Settings) -> Result<(), String> {
    let known = |key: &String| KEYS.iter().find(|k| k.eq_ignore_ascii_case(key));
    let mut exact = toml::Table::new();
    for (key, value) in table {
        let key = known(key).ok_or_else(|| format!("unknown key {key:?} in [worker.oci]"))?;
        exact.insert((*key).to_owned(), value.clone());
    }
    let mut table = Table::deserialize(exact).map_err(|e| format!("[worker.oci]: {e}"))?;
    table.refuse()?;
    settings.gc = table.gc_settings()?;
    settings.network.kind = NetworkKind::parse(&table.network_mode)?;
    settings.network.bridge = Some(table.bridge_name).filter(|name| !name.is_empty());
    settings.network.subnet =
        Some(table.bridge_subnet.as_str()).filter(|s| !s.is_empty()).map(str::parse).transpose()?;
    settings.network.pool = table.cni_pool_size.unwrap_or(settings.network.pool);
    settings.runtime = Some(table.binary).filter(|name| !name.is_empty()).map(PathBuf::from);
    settings.snapshotter = super::file::snapshotter(&table.snapshotter)?;
    settings.labels = table.labels;
    settings.platforms = table.platforms;
    settings.max_parallelism = Some(table.max_parallelism).filter(|n| *n > 0);
    settings.cgroup_parent = Some(table.cgroup_parent).filter(|p| !p.is_empty());
    Ok(())
}

impl Table {
    /// Refuses what would weaken or change what steps may rely on, instead of silently doing something else.
    fn refuse(&self) -> Result<(), String> {
        for (asked, what) in [
            (self.enabled == Some(false), "[worker.oci] enabled = false: turning the only worker off"),
            (self.no_process_sandbox, "[worker.oci] noProcessSandbox"),
            (!self.proxy_snapshotter_path.is_empty(), "[worker.oci] proxySnapshotterPath"),
            (!self.apparmor_profile.is_empty(), "[worker.oci] apparmor-profile"),
            (self.selinux, "[worker.oci] selinux"),
        ] {
            if asked {
                return Err(format!("{what} is not supported by this engine"));
            }
        }
        Ok(())
    }

    fn gc_settings(&mut self) -> Result<Option<GcSettings>, String> {
        if self.gc == Some(false) {
            return Ok(None);
        }
        let reserved = self.reserved_space.as_ref().or(self.gckeepstorage.as_ref());
        let rules = std::mem::take(&mut self.gcpolicy);
        Ok(Some(GcSettings {
            reserved: space(reserved)?,
            maximum: space(self.max_used_space.as_ref())?,
            free: space(self.min_free_space.as_ref())?,
            rules: rules.into_iter().map(Policy::rule).collect::<Result<_, _>>()?,
        }))
    }
}

impl Policy {
    fn rule(self) -> Result<GcRule, String> {
        Ok(GcRule {
            all: self.all,
            filters: self.filters,
            keep: self.keep_duration.as_ref().map(duration).transpose()?.unwrap_or_default(),
            reserved: space(self.reserved_space.as_ref().or(self.keep_bytes.as_ref()))?,
            maximum: space(self.max_used_space.as_ref())?,
            free: space(self.min_free_space.as_ref())?,
        })
    }
}

fn space(value: Option<&toml::Value>) -> Result<Space, String> {
    value.map(Space::of_value).transpose().map(Option::unwrap_or_default)
}
