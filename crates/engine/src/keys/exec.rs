//! The key of an exec op: canonical digest, and per input which part of it matters and whether by content.

use std::collections::BTreeSet;

use kiln_llb::pb;
use kiln_oci::{JsonError, Platform, to_ordered_json};
use kiln_stdx::Digest;
use serde::Serialize;

use super::canonical::{Cache, Credential, Device, Exec, Host, Meta, Mount, SecretEnv, Tmpfs, Ulimit};

/// How one input of an exec op enters its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputKey {
    /// Paths below the input that are mounted, absolute and clean, in mount order.
    pub selectors: Vec<String>,
    /// The input may be keyed by content: every mount of it is without output.
    pub by_content: bool,
}

impl InputKey {
    /// Returns the digest of the selectors, as it enters links between keys; none when the input is not mounted.
    pub fn selector(&self) -> Option<Digest> {
        (!self.selectors.is_empty()).then(|| Digest::of(self.selectors.join("\0")))
    }

    /// Returns the paths whose content counts: without those below another one; empty means all of the input.
    pub fn content_paths(&self) -> Vec<String> {
        let paths: BTreeSet<&String> = self.selectors.iter().collect();
        if paths.contains(&"/".to_owned()) {
            return Vec::new();
        }
        let below = |path: &str, other: &str| path.len() > other.len() && path.starts_with(&format!("{other}/"));
        paths.iter().filter(|path| !paths.iter().any(|other| below(path, other))).map(|path| (*path).clone()).collect()
    }
}

#[derive(Serialize)]
struct Document {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Exec")]
    exec: Exec,
    #[serde(rename = "OS")]
    os: String,
    #[serde(rename = "Arch")]
    arch: String,
    #[serde(rename = "Variant", skip_serializing_if = "String::is_empty")]
    variant: String,
    #[serde(rename = "OSVersion", skip_serializing_if = "String::is_empty")]
    os_version: String,
    #[serde(rename = "OSFeatures", skip_serializing_if = "Vec::is_empty")]
    os_features: Vec<String>,
}

/// Returns the canonical digest of an exec op for `platform`.
///
/// # Errors
/// Never in practice: every field is plain text or a number.
pub fn digest(op: &pb::ExecOp, platform: &Platform) -> Result<Digest, JsonError> {
    let Platform { os, architecture, variant, os_version, os_features } = platform.clone();
    let exec = canonical(op);
    let document =
        Document { kind: "buildkit.exec.v0", exec, os, arch: architecture, variant, os_version, os_features };
    Ok(Digest::of(to_ordered_json("exec key", &document)?))
}

fn canonical(op: &pb::ExecOp) -> Exec {
    let pb::ExecOp { meta, mounts, network, security, secretenv, cdi_devices } = op;
    // A single plain root mount is left out: old caches were made so, and every plain RUN would miss otherwise.
    let mounts = if lone_root(mounts) { Vec::new() } else { mounts.iter().map(canonical_mount).collect() };
    Exec {
        meta: meta.as_ref().map(canonical_meta),
        mounts,
        network: *network,
        security: *security,
        secretenv: secretenv
            .iter()
            .map(|pb::SecretEnv { id, name, optional }| SecretEnv {
                id: id.clone(),
                name: name.clone(),
                optional: *optional,
            })
            .collect(),
        cdi_devices: cdi_devices
            .iter()
            .map(|pb::CdiDevice { name, optional }| Device { name: name.clone(), optional: *optional })
            .collect(),
    }
}

fn lone_root(mounts: &[pb::Mount]) -> bool {
    let [mount] = mounts else { return false };
    mount.dest == "/"
        && !mount.readonly
        && mount.mount_type == pb::MountType::Bind as i32
        && mount.cache_opt.is_none()
        && mount.ssh_opt.is_none()
        && mount.secret_opt.is_none()
        && mount.result_id.is_empty()
}

fn canonical_meta(meta: &pb::Meta) -> Meta {
    let pb::Meta {
        args,
        env,
        cwd,
        user,
        proxy_env: _,
        extra_hosts,
        hostname,
        ulimit,
        cgroup_parent,
        remove_mount_stubs_recursive,
        valid_exit_codes,
    } = meta;
    Meta {
        args: args.clone(),
        env: env.clone(),
        cwd: cwd.clone(),
        user: user.clone(),
        extra_hosts: extra_hosts.iter().map(|pb::HostIp { host, ip: _ }| Host { host: host.clone() }).collect(),
        hostname: hostname.clone(),
        ulimit: ulimit
            .iter()
            .map(|pb::Ulimit { name, soft, hard }| Ulimit { name: name.clone(), soft: *soft, hard: *hard })
            .collect(),
        cgroup_parent: cgroup_parent.clone(),
        remove_mount_stubs_recursive: *remove_mount_stubs_recursive,
        valid_exit_codes: valid_exit_codes.clone(),
    }
}

fn canonical_mount(mount: &pb::Mount) -> Mount {
    let pb::Mount {
        input,
        selector: _,
        dest,
        output,
        readonly,
        mount_type,
        tmpfs_opt,
        cache_opt,
        secret_opt,
        ssh_opt,
        result_id,
        content_cache,
    } = mount;
    let cache = cache_opt.as_ref().map(|pb::CacheOpt { id, sharing }| {
        if default_cache_id(id, dest, *sharing) {
            Cache { id: id.clone(), sharing: *sharing }
        } else {
            Cache { id: String::new(), sharing: 0 }
        }
    });
    Mount {
        input: *input,
        dest: dest.clone(),
        output: *output,
        readonly: *readonly,
        mount_type: *mount_type,
        tmpfs: tmpfs_opt.as_ref().map(|pb::TmpfsOpt { size }| Tmpfs { size: *size }),
        cache,
        secret: secret_opt.as_ref().map(|pb::SecretOpt { id, uid, gid, mode, optional }| Credential {
            id: id.clone(),
            uid: *uid,
            gid: *gid,
            mode: *mode,
            optional: *optional,
        }),
        ssh: ssh_opt.as_ref().map(|pb::SshOpt { id, uid, gid, mode, optional }| Credential {
            id: id.clone(),
            uid: *uid,
            gid: *gid,
            mode: *mode,
            optional: *optional,
        }),
        result_id: result_id.clone(),
        content_cache: *content_cache,
    }
}

/// Tells whether a cache mount's id is what a Dockerfile gives by default: its target, perhaps below a namespace.
fn default_cache_id(id: &str, dest: &str, sharing: i32) -> bool {
    sharing == 0 && (id == dest || id.split_once('/').is_some_and(|(_, rest)| rest == dest))
}

/// Returns how each of `inputs` inputs enters the key; none when a mount names an input that is not there.
pub fn inputs(op: &pb::ExecOp, inputs: usize) -> Option<Vec<InputKey>> {
    let mut keys = vec![InputKey { selectors: Vec::new(), by_content: true }; inputs];
    for mount in &op.mounts {
        let no_content = [pb::MountType::Secret, pb::MountType::Ssh, pb::MountType::Tmpfs];
        if mount.input < 0 || no_content.iter().any(|kind| *kind as i32 == mount.mount_type) {
            continue;
        }
        let key = keys.get_mut(usize::try_from(mount.input).ok()?)?;
        let selector = format!("/{}", crate::paths::clean_relative(&mount.selector));
        // Content keys are safe where what is not selected cannot leak into an output.
        let safe = mount.output == -1 || mount.readonly || selector == "/";
        key.selectors.push(selector);
        key.by_content &= match pb::MountContentCache::try_from(mount.content_cache) {
            Ok(pb::MountContentCache::On) => safe,
            Ok(pb::MountContentCache::Off) => false,
            _ => safe && mount.dest != "/",
        };
    }
    for key in &mut keys {
        key.by_content &= !key.selectors.is_empty();
    }
    Some(keys)
}
