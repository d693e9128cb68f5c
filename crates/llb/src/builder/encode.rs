//! One node of the arena to the bytes of its operation.

use kiln_stdx::Digest;

use super::exec::{Exec, MountSource};
use super::file::{Action, FileActions, NameOrId, OwnerSpec};
use super::{Body, Builder, Node, Output};
use crate::attr;
use crate::op::CopyMode;
use crate::pb;

/// Where the inputs' digests come from.
pub(super) type Digests<'a> = &'a dyn Fn(Output) -> Option<pb::Input>;

/// Collects an operation's inputs without repeats.
struct Inputs<'a> {
    list: Vec<pb::Input>,
    digests: Digests<'a>,
}

impl<'a> Inputs<'a> {
    fn new(digests: Digests<'a>) -> Self {
        Self { list: Vec::new(), digests }
    }

    /// Returns the index of `output`, -1 for the empty file system.
    fn index(&mut self, output: Output) -> i64 {
        let Some(input) = (self.digests)(output) else { return -1 };
        let at = self.list.iter().position(|i| *i == input).unwrap_or_else(|| {
            self.list.push(input);
            self.list.len() - 1
        });
        at as i64
    }

    /// As `index`, but equal inputs are listed each time.
    fn push(&mut self, output: Output) -> i64 {
        let Some(input) = (self.digests)(output) else { return -1 };
        self.list.push(input);
        self.list.len() as i64 - 1
    }
}

impl Builder {
    /// Returns the operation of a node that is not an imported one.
    pub(super) fn operation(&self, node: &Node, digests: Digests<'_>) -> pb::Op {
        let mut inputs = Inputs::new(digests);
        let mut for_platform = false;
        let op = match &node.body {
            Body::Source { identifier, attrs } => {
                for_platform =
                    identifier.starts_with(attr::scheme::IMAGE) || identifier.starts_with(attr::scheme::OCI_LAYOUT);
                let mut attrs = attrs.clone();
                if identifier.starts_with(attr::scheme::LOCAL) && !attrs.contains_key(attr::LOCAL_SESSION) {
                    attrs.insert(attr::LOCAL_UNIQUE.into(), self.unique.clone());
                }
                pb::op::Op::Source(pb::SourceOp { identifier: identifier.clone(), attrs })
            }
            Body::Exec(exec) => {
                for_platform = true;
                pb::op::Op::Exec(exec_op(exec, &mut inputs))
            }
            Body::File { base, actions } => pb::op::Op::File(file_op(*base, actions, &mut inputs)),
            Body::Merge(list) => {
                let list = list.iter().map(|&o| pb::MergeInput { input: inputs.push(o) }).collect();
                pb::op::Op::Merge(pb::MergeOp { inputs: list })
            }
            Body::Diff { lower, upper } => pb::op::Op::Diff(pb::DiffOp {
                lower: Some(pb::LowerDiffInput { input: inputs.push(*lower) }),
                upper: Some(pb::UpperDiffInput { input: inputs.push(*upper) }),
            }),
            Body::Passthrough { id, inputs: list } => {
                let mut outputs = Vec::new();
                for &(input, is_output) in list {
                    let index = inputs.push(input);
                    if is_output {
                        outputs.push(index);
                    }
                }
                pb::op::Op::Passthrough(pb::PassthroughOp { id: id.clone(), outputs })
            }
            // Imported operations are never encoded again.
            Body::Raw { .. } => return pb::Op::default(),
        };
        let platform = for_platform.then(|| node.meta.platform.as_ref().unwrap_or(&self.platform).into());
        pb::Op {
            inputs: inputs.list,
            op: Some(op),
            platform,
            constraints: Some(pb::WorkerConstraints { filter: node.meta.filters.clone() }),
        }
    }
}

fn exec_op(exec: &Exec, inputs: &mut Inputs<'_>) -> pb::ExecOp {
    let meta = pb::Meta {
        args: exec.args.clone(),
        env: exec.env.to_vec(),
        cwd: exec.cwd.clone(),
        user: exec.user.clone(),
        proxy_env: exec.proxy.as_ref().map(|p| pb::ProxyEnv {
            http_proxy: p.http.clone(),
            https_proxy: p.https.clone(),
            ftp_proxy: p.ftp.clone(),
            no_proxy: p.no.clone(),
            all_proxy: p.all.clone(),
        }),
        extra_hosts: exec.extra_hosts.iter().map(|h| pb::HostIp { host: h.host.clone(), ip: h.ip.clone() }).collect(),
        hostname: exec.hostname.clone(),
        ulimit: exec.ulimits.iter().map(|u| pb::Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect(),
        cgroup_parent: exec.cgroup_parent.clone(),
        remove_mount_stubs_recursive: true,
        valid_exit_codes: exec.valid_exit_codes.clone(),
    };
    pb::ExecOp {
        meta: Some(meta),
        mounts: mounts(exec, inputs),
        network: exec.network.into(),
        security: exec.security.into(),
        secretenv: exec
            .secrets
            .iter()
            .filter_map(|s| {
                s.env.as_ref().map(|name| pb::SecretEnv { id: s.id.clone(), name: name.clone(), optional: s.optional })
            })
            .collect(),
        cdi_devices: exec
            .devices
            .iter()
            .map(|d| pb::CdiDevice { name: d.name.clone(), optional: d.optional })
            .collect(),
    }
}

fn mounts(exec: &Exec, inputs: &mut Inputs<'_>) -> Vec<pb::Mount> {
    let mut next = 0;
    let mut list: Vec<pb::Mount> = exec
        .mounts
        .iter()
        .map(|m| {
            let mut out = pb::Mount {
                input: inputs.index(m.input()),
                selector: m.selector.clone(),
                dest: m.dest.clone(),
                output: Exec::output_index(m, &mut next),
                readonly: m.readonly,
                content_cache: m.content_cache.into(),
                ..pb::Mount::default()
            };
            match &m.source {
                MountSource::Bind(_) => {}
                MountSource::Tmpfs { size } => {
                    out.mount_type = pb::MountType::Tmpfs.into();
                    out.tmpfs_opt = Some(pb::TmpfsOpt { size: *size });
                }
                MountSource::Cache(cache) => {
                    out.mount_type = pb::MountType::Cache.into();
                    out.cache_opt = Some(pb::CacheOpt { id: cache.id.clone(), sharing: cache.sharing.into() });
                }
            }
            out
        })
        .collect();
    // Secrets and sockets leave the output field at its default, as BuildKit's client does.
    for secret in &exec.secrets {
        let Some(target) = &secret.target else { continue };
        list.push(pb::Mount {
            input: -1,
            dest: target.clone(),
            mount_type: pb::MountType::Secret.into(),
            secret_opt: Some(pb::SecretOpt {
                id: secret.id.clone(),
                uid: secret.uid,
                gid: secret.gid,
                mode: secret.mode,
                optional: secret.optional,
            }),
            ..pb::Mount::default()
        });
    }
    for ssh in &exec.ssh {
        list.push(pb::Mount {
            input: -1,
            dest: ssh.target.clone().unwrap_or_default(),
            mount_type: pb::MountType::Ssh.into(),
            ssh_opt: Some(pb::SshOpt {
                id: ssh.id.clone(),
                uid: ssh.uid,
                gid: ssh.gid,
                mode: ssh.mode,
                optional: ssh.optional,
            }),
            ..pb::Mount::default()
        });
    }
    list
}

fn file_op(base: Output, actions: &FileActions, inputs: &mut Inputs<'_>) -> pb::FileOp {
    let base = inputs.index(base);
    let sources: Vec<i64> = actions
        .list
        .iter()
        .map(|a| match a {
            Action::Copy { from, .. } => inputs.index(*from),
            _ => -1,
        })
        .collect();
    let count = inputs.list.len() as i64;
    let last = actions.list.len() - 1;
    let list = actions
        .list
        .iter()
        .zip(sources)
        .enumerate()
        .map(|(i, (action, source))| pb::FileAction {
            input: if i == 0 { base } else { count + i as i64 - 1 },
            secondary_input: source,
            output: if i == last { 0 } else { -1 },
            action: Some(file_action(action, base)),
        })
        .collect();
    pb::FileOp { actions: list }
}

fn file_action(action: &Action, base: i64) -> pb::file_action::Action {
    use pb::file_action::Action as Wire;
    let own = |o: &Option<OwnerSpec>| o.as_ref().map(|o| owner(o, base));
    match action {
        Action::Copy { src, dest, options: o, .. } => {
            let (mode, mode_str) = match &o.mode {
                None => (-1, String::new()),
                Some(CopyMode::Bits(bits)) => (bits.cast_signed(), String::new()),
                Some(CopyMode::Symbolic(text)) => (0, text.clone()),
            };
            Wire::Copy(pb::FileActionCopy {
                src: src.clone(),
                dest: dest.clone(),
                owner: own(&o.owner),
                mode,
                mode_str,
                follow_symlink: o.follow_symlinks,
                dir_copy_contents: o.dir_contents_only,
                attempt_unpack_docker_compatibility: o.unpack,
                create_dest_path: o.create_dest_path,
                allow_wildcard: o.allow_wildcard,
                allow_empty_wildcard: o.allow_empty_wildcard,
                timestamp: o.timestamp.unwrap_or(-1),
                include_patterns: o.include_patterns.clone(),
                exclude_patterns: o.exclude_patterns.clone(),
                required_paths: o.required_paths.clone(),
                always_replace_existing_dest_paths: o.always_replace,
            })
        }
        Action::Mkfile { path, mode, data, options } => Wire::Mkfile(pb::FileActionMkFile {
            path: path.clone(),
            mode: mode.cast_signed(),
            data: data.clone(),
            owner: own(&options.owner),
            timestamp: options.timestamp.unwrap_or(-1),
        }),
        Action::Mkdir { path, mode, options } => Wire::Mkdir(pb::FileActionMkDir {
            path: path.clone(),
            mode: mode.cast_signed(),
            make_parents: options.parents,
            owner: own(&options.owner),
            timestamp: options.timestamp.unwrap_or(-1),
        }),
        Action::Rm { path, options } => Wire::Rm(pb::FileActionRm {
            path: path.clone(),
            allow_not_found: options.allow_not_found,
            allow_wildcard: options.allow_wildcard,
        }),
        Action::Symlink { target, link, options } => Wire::Symlink(pb::FileActionSymlink {
            oldpath: target.clone(),
            newpath: link.clone(),
            owner: own(&options.owner),
            timestamp: options.timestamp.unwrap_or(-1),
        }),
    }
}

fn owner(spec: &OwnerSpec, base: i64) -> pb::ChownOpt {
    use pb::user_opt::User;
    let one = |who: &Option<NameOrId>| {
        who.as_ref().map(|who| pb::UserOpt {
            user: Some(match who {
                NameOrId::Id(id) => User::ById(*id),
                NameOrId::Name(name) => User::ByName(pb::NamedUserOpt { name: name.clone(), input: base }),
            }),
        })
    };
    pb::ChownOpt { user: one(&spec.user), group: one(&spec.group) }
}

/// Makes the input message of an output.
pub(super) fn input(digest: &Digest, index: u32) -> pb::Input {
    pb::Input { digest: digest.to_string(), index: i64::from(index) }
}
