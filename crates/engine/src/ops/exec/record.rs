//! The key of an exec op as named fields, for telling what changed. Values of secrets are not among them: an exec op does
//! not have them, and of variables whose names speak of a secret only a trace of the value is kept.

use std::collections::BTreeMap;

use kiln_llb::op::{ExecOp, Mount, MountKind};
use kiln_oci::Platform;
use kiln_solver::KeyRecord;
use kiln_stdx::Digest;

use crate::why::is_secret;

/// Returns the fields of `op`.
pub fn of(op: &ExecOp, platform: &Platform) -> KeyRecord {
    let mut fields = BTreeMap::from([
        ("command".to_owned(), op.meta.args.join(" ")),
        ("working directory".to_owned(), op.meta.cwd.clone()),
        ("user".to_owned(), op.meta.user.clone()),
        ("platform".to_owned(), platform.short()),
        ("network".to_owned(), format!("{:?}", op.network).to_lowercase()),
        ("security".to_owned(), format!("{:?}", op.security).to_lowercase()),
        ("host name".to_owned(), op.meta.hostname.clone()),
    ]);
    for variable in &op.meta.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        fields.insert(format!("variable {name}"), shown(name, value));
    }
    for mount in op.mounts.iter().filter(|m| !m.is_root()) {
        fields.insert(format!("mount {}", mount.dest), described(mount));
    }
    for secret in &op.secret_env {
        fields.insert(format!("variable {}", secret.name), format!("secret {}", secret.id));
    }
    for limit in &op.meta.ulimits {
        fields.insert(format!("limit {}", limit.name), format!("{}:{}", limit.soft, limit.hard));
    }
    for host in &op.meta.extra_hosts {
        fields.insert(format!("host {}", host.host), "named".to_owned());
    }
    for device in &op.devices {
        fields.insert(format!("device {}", device.name), "wanted".to_owned());
    }
    KeyRecord(fields)
}

fn shown(name: &str, value: &str) -> String {
    if !is_secret(name) {
        return value.to_owned();
    }
    let trace = Digest::of(value).hex();
    format!("hidden ({})", trace.get(..8).unwrap_or_default())
}

fn described(mount: &Mount) -> String {
    let access = if mount.readonly { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind => format!("bind {} {access}", mount.selector),
        MountKind::Tmpfs { .. } => "tmpfs".to_owned(),
        // The directory behind it is a place, not an input.
        MountKind::Cache { .. } => format!("cache {access}"),
        MountKind::Secret(secret) => format!("secret {}", secret.id),
        MountKind::Ssh(agent) => format!("ssh {}", agent.id),
    }
}

#[cfg(test)]
mod tests {
    use kiln_llb::op::ExecMeta;

    use super::*;

    #[test]
    fn values_of_what_looks_secret_are_only_traced() {
        let env = |token: &str| vec!["MODE=fast".to_owned(), format!("NPM_TOKEN={token}")];
        let fields = |token: &str| {
            let meta = ExecMeta { env: env(token), ..ExecMeta::default() };
            let op = ExecOp {
                meta,
                mounts: Vec::new(),
                network: Default::default(),
                security: Default::default(),
                secret_env: Vec::new(),
                devices: Vec::new(),
            };
            of(&op, &Platform::host()).0
        };
        let one = fields("hunter2");
        assert_eq!(one["variable MODE"], "fast");
        assert!(!one["variable NPM_TOKEN"].contains("hunter2"));
        assert_ne!(one["variable NPM_TOKEN"], fields("hunter3")["variable NPM_TOKEN"]);
    }
}
