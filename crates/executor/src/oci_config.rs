//! The `config.json` of an OCI bundle (runtime-spec 1.0) for a step.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::init::defaults;
use crate::wire::{WireMount, WireNetwork, WireRuntime, WireSandboxMount, WireSource, WireSpec};
use crate::{Resources, seccomp, ulimit};

/// Where things of the host are found by the runtime.
pub(crate) struct Sources {
    /// One path for each mount of the spec.
    pub mounts: Vec<PathBuf>,
    pub netns: Option<PathBuf>,
}

/// The user of the process, as numbers.
pub(crate) struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Returns the config.
pub(crate) fn build(spec: &WireSpec, user: &ProcessUser, sources: &Sources, call: &WireRuntime) -> Value {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process(spec, user),
        "root": { "path": "root", "readonly": spec.root_readonly },
        "hostname": spec.hostname,
        "mounts": mounts(spec, sources),
        "linux": linux(spec, sources, call),
    });
    if let Some(path) = &call.cgroups_path {
        config["linux"]["cgroupsPath"] = json!(path);
    }
    if !spec.insecure {
        config["linux"]["seccomp"] = seccomp::oci_profile();
        config["linux"]["maskedPaths"] = json!(defaults::HIDDEN);
        config["linux"]["readonlyPaths"] = json!(defaults::FROZEN);
    }
    config
}

fn process(spec: &WireSpec, user: &ProcessUser) -> Value {
    let mut env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !spec.env.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
        env.push(format!("HOME={}", user.home));
    }
    let held = if spec.insecure { defaults::all_capabilities() } else { defaults::capabilities() };
    let none: Vec<String> = Vec::new();
    let passed = if spec.insecure { &held } else { &none };
    let rlimits: Vec<Value> = spec
        .rlimits
        .iter()
        .map(|&(number, soft, hard)| {
            json!({ "type": format!("RLIMIT_{}", ulimit::name(number).to_uppercase()), "soft": soft, "hard": hard })
        })
        .collect();
    json!({
        "args": spec.args,
        "env": env,
        "cwd": spec.cwd,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "capabilities": {
            "bounding": held, "effective": held, "permitted": held, "inheritable": passed, "ambient": passed,
        },
        "rlimits": rlimits,
        "noNewPrivileges": false,
    })
}

fn mounts(spec: &WireSpec, sources: &Sources) -> Value {
    let access = if spec.insecure { "rw" } else { "ro" };
    let shm = format!("size={}", spec.shm_size);
    let system = |dest: &str, kind: &str, options: &[&str]| json!({ "destination": dest, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        system("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        system("/sys/fs/cgroup", "cgroup", &[access, "nosuid", "noexec", "nodev"]),
    ];
    for (wanted, source) in spec.mounts.iter().zip(&sources.mounts) {
        mounts.push(json!({
            "destination": wanted.dest,
            "type": "bind",
            "source": source,
            "options": bind_options(wanted),
        }));
    }
    Value::Array(mounts)
}

fn bind_options(wanted: &WireSandboxMount) -> Vec<&'static str> {
    let mut options = vec!["rbind", "rprivate"];
    match &wanted.source {
        WireSource::File { .. } => options.extend(["nosuid", "nodev", "noexec"]),
        WireSource::Mount(WireMount::Tmpfs { .. }) => options.extend(["nosuid", "nodev"]),
        WireSource::Mount(_) | WireSource::Path(_) => {}
    }
    if wanted.readonly {
        options.push("ro");
    }
    options
}

fn linux(spec: &WireSpec, sources: &Sources, call: &WireRuntime) -> Value {
    let mut namespaces =
        vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
    match (spec.network, &sources.netns) {
        (WireNetwork::Host, _) => {}
        (WireNetwork::Isolated, _) | (WireNetwork::Existing, None) => namespaces.push(json!({"type": "network"})),
        (WireNetwork::Existing, Some(path)) => namespaces.push(json!({"type": "network", "path": path})),
    }
    if spec.cgroup.unified {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut resources = resources(&call.resources);
    resources["devices"] = if spec.insecure {
        json!([{ "allow": true, "access": "rwm" }])
    } else {
        json!([{ "allow": false, "access": "rwm" }])
    };
    json!({ "namespaces": namespaces, "resources": resources })
}

fn resources(wanted: &Resources) -> Value {
    let mut out = json!({});
    if wanted.memory.is_some() || wanted.memory_swap.is_some() {
        out["memory"] = json!({});
        if let Some(limit) = wanted.memory {
            out["memory"]["limit"] = json!(limit);
        }
        if let Some(swap) = wanted.memory_swap {
            out["memory"]["swap"] = json!(swap);
        }
    }
    let cpu = [
        ("shares", wanted.cpu_shares.map(|value| json!(value))),
        ("quota", wanted.cpu_quota.map(|value| json!(value))),
        ("period", wanted.cpu_period.map(|value| json!(value))),
        ("cpus", wanted.cpuset_cpus.as_ref().map(|value| json!(value))),
        ("mems", wanted.cpuset_mems.as_ref().map(|value| json!(value))),
    ];
    for (name, value) in cpu {
        if let Some(value) = value {
            out["cpu"][name] = value;
        }
    }
    if let Some(pids) = wanted.pids {
        out["pids"] = json!({ "limit": pids });
    }
    out
}
