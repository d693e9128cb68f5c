//! Checks a [`ProcessSpec`] and puts it into the form the helper reads.

use std::fmt::Write as _;
use std::net::IpAddr;

use kiln_snapshot::Mount;

use crate::idmap::IdMaps;
use crate::wire::{WireCgroup, WireMount, WireNetwork, WireRuntime, WireSandboxMount, WireSource, WireSpec};
use crate::{
    DEFAULT_HOSTNAME, DEFAULT_SHM_SIZE, ExecError, ExtraHost, MountSource, Namespace, NetworkMode, ProcessSpec,
    SandboxMount, SecurityMode, ca, ulimit,
};

/// The host's resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the runner found out about where the process goes.
pub(super) struct Place<'a> {
    pub network: &'a Namespace,
    pub resolv_conf: Option<Vec<u8>>,
    pub cgroup: WireCgroup,
    pub devices_guarded: bool,
    pub runtime: Option<WireRuntime>,
}

/// Refuses a spec that could not run anywhere.
pub(super) fn check(spec: &ProcessSpec) -> Result<(), ExecError> {
    let invalid = |text: String| Err(ExecError::InvalidSpec(text));
    let id_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if spec.id.is_empty() || spec.id.len() > 200 || spec.id.starts_with('.') || !spec.id.chars().all(id_ok) {
        return invalid(format!("id `{}` is not made of letters, digits, `-`, `_` and `.`", spec.id));
    }
    if spec.args.is_empty() {
        return invalid("no command given".to_owned());
    }
    if !spec.cwd.starts_with('/') {
        return invalid(format!("working directory `{}` is not absolute", spec.cwd));
    }
    for mount in &spec.mounts {
        if !mount.dest.starts_with('/') || mount.dest.split('/').all(|part| part.is_empty() || part == ".") {
            return invalid(format!("mount target `{}` is not an absolute path below the root", mount.dest));
        }
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return invalid(format!("environment variable `{name}` is malformed"));
        }
    }
    if spec.args.iter().any(|arg| arg.contains('\0')) {
        return invalid("an argument contains a NUL character".to_owned());
    }
    Ok(())
}

/// Returns what the helper reads, and the contents of the files that follow it.
pub(super) fn wire(spec: ProcessSpec, place: Place<'_>) -> Result<(WireSpec, Vec<u8>), ExecError> {
    let hostname = spec.hostname.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_HOSTNAME.to_owned());
    let mut files = Contents::default();
    let mut mounts = Vec::with_capacity(spec.mounts.len() + 3);
    let has = |dest: &str| spec.mounts.iter().any(|mount| mount.dest == dest);
    if !has("/etc/hosts") {
        mounts.push(files.readonly("/etc/hosts", &hosts(&hostname, &spec.extra_hosts)));
    }
    if !has(RESOLV_CONF) {
        let isolated = spec.network == NetworkMode::None;
        let text = spec.resolv_conf.or(place.resolv_conf).unwrap_or_else(|| host_resolv_conf(isolated));
        mounts.push(files.readonly(RESOLV_CONF, &text));
    }
    let mut env = spec.env;
    if let Some(bundle) = spec.ca_bundle {
        mounts.push(WireSandboxMount {
            dest: ca::PATH.to_owned(),
            source: WireSource::Path(bundle),
            subpath: String::new(),
            readonly: true,
        });
        ca::add_variables(&mut env);
    }
    mounts.extend(spec.mounts.into_iter().map(|mount| files.mount(mount)));
    // Parents before what is mounted inside them; equals keep their order, so that the later one is on top.
    mounts.sort_by_key(|mount| mount.dest.split('/').filter(|part| !part.is_empty() && *part != ".").count());
    let wire = WireSpec {
        args: spec.args,
        env,
        cwd: spec.cwd,
        user: spec.user,
        hostname,
        root: mount(spec.root),
        root_readonly: spec.root_readonly,
        mounts,
        network: match place.network {
            Namespace::Host => WireNetwork::Host,
            Namespace::Isolated => WireNetwork::Isolated,
            Namespace::Existing(_) => WireNetwork::Existing,
        },
        insecure: spec.security == SecurityMode::Insecure,
        devices_guarded: place.devices_guarded,
        rlimits: ulimit::resolve(&spec.ulimits)?,
        shm_size: spec.shm_size.filter(|&size| size > 0).unwrap_or(DEFAULT_SHM_SIZE),
        tty: spec.tty,
        recursive_stubs: spec.remove_stubs_recursive,
        cgroup: place.cgroup,
        idmaps: IdMaps::detect(),
        runtime: place.runtime,
        join: false,
    };
    Ok((wire, files.0))
}

/// The contents of all files of a spec, one after the other.
#[derive(Default)]
struct Contents(Vec<u8>);

impl Contents {
    fn file(&mut self, content: &[u8], mode: u32, owner: (u32, u32)) -> WireSource {
        let offset = self.0.len();
        self.0.extend_from_slice(content);
        WireSource::File { offset, len: content.len(), mode, uid: owner.0, gid: owner.1 }
    }

    fn readonly(&mut self, dest: &str, content: &[u8]) -> WireSandboxMount {
        let source = self.file(content, 0o644, (0, 0));
        WireSandboxMount { dest: dest.to_owned(), source, subpath: String::new(), readonly: true }
    }

    fn mount(&mut self, wanted: SandboxMount) -> WireSandboxMount {
        let source = match wanted.source {
            MountSource::Mount(description) => WireSource::Mount(mount(description)),
            MountSource::File { content, mode, uid, gid } => self.file(content.expose(), mode, (uid, gid)),
            MountSource::Socket(path) => WireSource::Path(path),
        };
        WireSandboxMount { dest: wanted.dest, source, subpath: wanted.subpath, readonly: wanted.readonly }
    }
}

fn mount(description: Mount) -> WireMount {
    match description {
        Mount::Overlay { lowers, upper, work } => WireMount::Overlay { lowers, upper, work },
        Mount::Bind { source, readonly } => WireMount::Bind { source, readonly },
        Mount::Tmpfs { size, mode } => WireMount::Tmpfs { size, mode },
    }
}

fn hosts(hostname: &str, extra: &[ExtraHost]) -> Vec<u8> {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for line in extra {
        let _ = writeln!(text, "{}\t{}", line.ip, line.host);
    }
    text.into_bytes()
}

/// Returns the host's file; in a network of its own a step cannot reach resolvers on the host's loopback.
fn host_resolv_conf(isolated: bool) -> Vec<u8> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    if isolated { without_loopback(&text).into_bytes() } else { text.into_bytes() }
}

fn without_loopback(text: &str) -> String {
    let local = |line: &str| {
        let address = line.strip_prefix("nameserver").map(str::trim);
        address.and_then(|address| address.parse::<IpAddr>().ok()).is_some_and(|address| address.is_loopback())
    };
    text.lines().filter(|line| !local(line)).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ProcessSpec {
        ProcessSpec::new("id", Mount::Bind { source: "/".into(), readonly: true }, ["true"])
    }

    #[test]
    fn malformed_specs_are_refused_with_the_field_named() {
        type Break = fn(&mut ProcessSpec);
        let broken: [(&str, Break); 6] = [
            ("id", |spec| spec.id = "a/b".to_owned()),
            ("command", |spec| spec.args.clear()),
            ("working directory", |spec| spec.cwd = "relative".to_owned()),
            ("environment", |spec| spec.env.push(("A=B".to_owned(), String::new()))),
            ("NUL", |spec| spec.args.push("a\0".to_owned())),
            ("target `/./`", |spec| {
                let source = MountSource::Socket("/x".into());
                spec.mounts.push(SandboxMount {
                    dest: "/./".to_owned(),
                    source,
                    subpath: String::new(),
                    readonly: true,
                });
            }),
        ];
        assert!(check(&spec()).is_ok());
        for (word, change) in broken {
            let mut spec = spec();
            change(&mut spec);
            assert!(check(&spec).unwrap_err().to_string().contains(word), "{word}");
        }
    }

    #[test]
    fn hosts_and_resolver() {
        let extra = [ExtraHost { host: "db".to_owned(), ip: "10.0.0.1".parse().unwrap() }];
        let text = String::from_utf8(hosts("box", &extra)).unwrap();
        assert_eq!(text, "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n");
        let conf = "search x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\n";
        assert_eq!(without_loopback(conf), "search x\nnameserver 10.0.0.2\n");
    }

    #[test]
    fn mounts_come_parents_first_and_keep_their_order() {
        let mut spec = spec();
        for dest in ["/a/b/c", "/z", "/a/b", "/y"] {
            let source = MountSource::Socket("/x".into());
            spec.mounts.push(SandboxMount { dest: dest.to_owned(), source, subpath: String::new(), readonly: true });
        }
        let place = Place {
            network: &Namespace::Host,
            resolv_conf: None,
            cgroup: WireCgroup::default(),
            devices_guarded: true,
            runtime: None,
        };
        let (wire, _) = wire(spec, place).unwrap();
        let order: Vec<&str> = wire.mounts.iter().map(|mount| mount.dest.as_str()).collect();
        assert_eq!(order, ["/z", "/y", "/etc/hosts", "/etc/resolv.conf", "/a/b", "/a/b/c"]);
    }
}
