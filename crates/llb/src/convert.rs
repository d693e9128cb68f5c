//! Wire messages to typed operations, checking every field that a program later relies on.

use kiln_oci::Platform;

use crate::attr;
use crate::op::{
    BuildOp, Copy, CopyMode, Device, DiffOp, ExecMeta, ExecOp, FileAction, FileChange, FileInput, FileOp, HostIp,
    MergeOp, Mkdir, Mkfile, Mount, MountKind, Op, Owner, PassthroughOp, ProxyEnv, Rm, SecretEnv, SessionFile, SourceOp,
    Symlink, Ulimit, UserSpec,
};
use crate::pb;

/// The text of what is wrong; the caller adds the vertex.
type Checked<T> = Result<T, String>;

/// Turns a decoded message into an operation.
pub(crate) fn op(message: pb::Op) -> Checked<Op> {
    let inputs = message.inputs.len();
    match message.op.ok_or("invalid nil op")? {
        pb::op::Op::Source(source) => source_op(source).map(Op::Source),
        pb::op::Op::Exec(exec) => exec_op(exec, inputs).map(|e| Op::Exec(Box::new(e))),
        pb::op::Op::File(file) => file_op(file, inputs).map(Op::File),
        pb::op::Op::Build(build) => build_op(build, inputs).map(|b| Op::Build(Box::new(b))),
        pb::op::Op::Merge(merge) => merge_op(&merge, inputs).map(Op::Merge),
        pb::op::Op::Diff(diff) => diff_op(&diff, inputs).map(Op::Diff),
        pb::op::Op::Passthrough(pass) => passthrough_op(pass, inputs).map(Op::Passthrough),
    }
}

/// Turns a platform message into the vocabulary's type, as it is.
pub(crate) fn platform(message: pb::Platform) -> Platform {
    Platform {
        architecture: message.architecture,
        os: message.os,
        os_version: message.os_version,
        os_features: message.os_features,
        variant: message.variant,
    }
}

impl From<&Platform> for pb::Platform {
    fn from(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
        }
    }
}

impl From<pb::Platform> for Platform {
    fn from(message: pb::Platform) -> Self {
        platform(message)
    }
}

/// -1 is "none"; everything else must be an input.
fn index(value: i64, inputs: usize, what: &str) -> Checked<Option<usize>> {
    if value == -1 {
        return Ok(None);
    }
    match usize::try_from(value) {
        Ok(i) if i < inputs => Ok(Some(i)),
        _ => Err(format!("invalid {what} input index {value}")),
    }
}

fn source_op(source: pb::SourceOp) -> Checked<SourceOp> {
    if !source.identifier.contains("://") {
        return Err(format!("failed to parse source identifier {:?}: no scheme", source.identifier));
    }
    Ok(SourceOp { identifier: source.identifier, attrs: source.attrs })
}

fn exec_op(exec: pb::ExecOp, inputs: usize) -> Checked<ExecOp> {
    let meta = exec.meta.ok_or("invalid exec op with no meta")?;
    if meta.args.is_empty() {
        return Err("invalid exec op with no args".into());
    }
    if exec.mounts.is_empty() {
        return Err("invalid exec op with no mounts".into());
    }
    let mut outputs = 0;
    let mounts = exec.mounts.into_iter().map(|m| mount(m, inputs, &mut outputs)).collect::<Checked<Vec<_>>>()?;
    match mounts.iter().filter(|m| m.is_root()).count() {
        0 => return Err("invalid exec op with no rootfs".into()),
        1 => {}
        n => return Err(format!("invalid exec op with {n} root mounts")),
    }
    Ok(ExecOp {
        network: pb::NetMode::try_from(exec.network).map_err(|_| format!("unknown network mode {}", exec.network))?,
        security: pb::SecurityMode::try_from(exec.security)
            .map_err(|_| format!("invalid security mode {}", exec.security))?,
        secret_env: exec
            .secretenv
            .into_iter()
            .map(|s| SecretEnv { id: s.id, name: s.name, optional: s.optional })
            .collect(),
        devices: exec.cdi_devices.into_iter().map(|d| Device { name: d.name, optional: d.optional }).collect(),
        meta: exec_meta(meta)?,
        mounts,
    })
}

/// Checks that a text can be handed to a process.
pub(crate) fn passable(text: &str) -> Checked<()> {
    match text.contains('\0') {
        true => Err(format!("a NUL byte in {text:?} cannot be passed to a process")),
        false => Ok(()),
    }
}

/// Reads the settings of a process; the gateway's containers use the same message.
fn exec_meta(meta: pb::Meta) -> Checked<ExecMeta> {
    meta.args.iter().chain(&meta.env).chain([&meta.cwd]).try_for_each(|text| passable(text))?;
    Ok(ExecMeta {
        args: meta.args,
        env: meta.env,
        cwd: meta.cwd,
        user: meta.user,
        proxy: meta.proxy_env.map(|p| ProxyEnv {
            http: p.http_proxy,
            https: p.https_proxy,
            ftp: p.ftp_proxy,
            no: p.no_proxy,
            all: p.all_proxy,
        }),
        extra_hosts: meta.extra_hosts.into_iter().map(|h| HostIp { host: h.host, ip: h.ip }).collect(),
        hostname: meta.hostname,
        ulimits: meta.ulimit.into_iter().map(|u| Ulimit { name: u.name, soft: u.soft, hard: u.hard }).collect(),
        cgroup_parent: meta.cgroup_parent,
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        valid_exit_codes: meta.valid_exit_codes,
    })
}

impl TryFrom<pb::Meta> for ExecMeta {
    type Error = String;

    fn try_from(meta: pb::Meta) -> Result<Self, String> {
        exec_meta(meta)
    }
}

fn mount(mount: pb::Mount, inputs: usize, outputs: &mut usize) -> Checked<Mount> {
    let bad = |what: &str| format!("invalid {what} mount at {}", mount.dest);
    if mount.dest.is_empty() || mount.dest.contains('\0') {
        return Err(bad("empty or malformed"));
    }
    let input = index(mount.input, inputs, "mount")?;
    let kind = match pb::MountType::try_from(mount.mount_type).map_err(|_| bad("unknown kind of"))? {
        pb::MountType::Bind => MountKind::Bind,
        pb::MountType::Tmpfs => {
            let size = mount.tmpfs_opt.as_ref().map_or(0, |t| t.size);
            let size = u64::try_from(size).map_err(|_| bad("negatively sized"))?;
            MountKind::Tmpfs { size: (size > 0).then_some(size) }
        }
        pb::MountType::Cache => {
            let opt = mount.cache_opt.clone().ok_or_else(|| bad("cache without options:"))?;
            let sharing = pb::CacheSharingOpt::try_from(opt.sharing).map_err(|_| bad("unknown sharing of"))?;
            MountKind::Cache { id: if opt.id.is_empty() { mount.dest.clone() } else { opt.id }, sharing }
        }
        pb::MountType::Secret => {
            let opt = mount.secret_opt.clone().ok_or_else(|| bad("secret without options:"))?;
            if opt.id.is_empty() {
                return Err("secret ID missing from mount options".into());
            }
            MountKind::Secret(SessionFile {
                id: opt.id,
                uid: opt.uid,
                gid: opt.gid,
                mode: opt.mode,
                optional: opt.optional,
            })
        }
        pb::MountType::Ssh => {
            let opt = mount.ssh_opt.clone().ok_or_else(|| bad("ssh without options:"))?;
            MountKind::Ssh(SessionFile {
                // A Dockerfile's mount without id is sent without one.
                id: if opt.id.is_empty() { "default".to_owned() } else { opt.id },
                uid: opt.uid,
                gid: opt.gid,
                mode: opt.mode,
                optional: opt.optional,
            })
        }
    };
    // Clients leave the output of secrets and sockets at 0: only a bind has one. Results are numbered by mount order.
    let output = match (&kind, mount.output) {
        (MountKind::Bind, 0..) => {
            *outputs += 1;
            Some(*outputs - 1)
        }
        _ => None,
    };
    Ok(Mount {
        input,
        output,
        kind,
        readonly: mount.readonly,
        content_cache: pb::MountContentCache::try_from(mount.content_cache)
            .map_err(|_| bad("unknown content cache mode of"))?,
        dest: mount.dest,
        selector: mount.selector,
        result_id: mount.result_id,
    })
}

/// Reads a mount of a gateway container, whose input names no operation.
///
/// # Errors
/// The text of what is wrong with it.
pub fn gateway_mount(message: pb::Mount) -> Result<Mount, String> {
    let message = pb::Mount { input: -1, ..message };
    let mut outputs = 0;
    mount(message, 0, &mut outputs)
}

fn file_op(file: pb::FileOp, inputs: usize) -> Checked<FileOp> {
    if file.actions.is_empty() {
        return Err("invalid file op with no actions".into());
    }
    let mut outputs = 0;
    let actions = file
        .actions
        .into_iter()
        .enumerate()
        .map(|(i, a)| file_action(a, &Scope { inputs, earlier: i }, &mut outputs))
        .collect::<Checked<Vec<_>>>()?;
    if outputs == 0 {
        return Err("invalid file op with no output".into());
    }
    Ok(FileOp { actions })
}

/// What an action may refer to.
struct Scope {
    inputs: usize,
    earlier: usize,
}

impl Scope {
    fn resolve(&self, value: i64) -> Checked<FileInput> {
        if value == -1 {
            return Ok(FileInput::Empty);
        }
        match usize::try_from(value) {
            Ok(i) if i < self.inputs => Ok(FileInput::Input(i)),
            Ok(i) if i - self.inputs < self.earlier => Ok(FileInput::Action(i - self.inputs)),
            _ => Err(format!("invalid input index {value} of a file action")),
        }
    }
}

fn file_action(action: pb::FileAction, scope: &Scope, outputs: &mut usize) -> Checked<FileAction> {
    use pb::file_action::Action;
    let change = match action.action.ok_or("invalid nil file action")? {
        Action::Copy(c) => FileChange::Copy(Box::new(copy(c, scope)?)),
        Action::Mkfile(m) => FileChange::Mkfile(Mkfile {
            path: m.path,
            mode: permissions(m.mode),
            data: m.data,
            owner: owner(m.owner, scope)?,
            timestamp: timestamp(m.timestamp),
        }),
        Action::Mkdir(m) => FileChange::Mkdir(Mkdir {
            path: m.path,
            mode: permissions(m.mode),
            make_parents: m.make_parents,
            owner: owner(m.owner, scope)?,
            timestamp: timestamp(m.timestamp),
        }),
        Action::Rm(r) => {
            FileChange::Rm(Rm { path: r.path, allow_not_found: r.allow_not_found, allow_wildcard: r.allow_wildcard })
        }
        Action::Symlink(s) => FileChange::Symlink(Symlink {
            target: s.oldpath,
            link: s.newpath,
            owner: owner(s.owner, scope)?,
            timestamp: timestamp(s.timestamp),
        }),
    };
    let output = (action.output >= 0).then(|| {
        *outputs += 1;
        *outputs - 1
    });
    let secondary = match change {
        FileChange::Copy(_) => scope.resolve(action.secondary_input)?,
        _ => FileInput::Empty,
    };
    Ok(FileAction { input: scope.resolve(action.input)?, secondary, output, change })
}

fn copy(c: pb::FileActionCopy, scope: &Scope) -> Checked<Copy> {
    let mode = match (c.mode_str.is_empty(), c.mode) {
        (false, _) => Some(CopyMode::Symbolic(c.mode_str)),
        (true, 0..) => Some(CopyMode::Bits(c.mode.cast_unsigned() & 0o7777)),
        (true, _) => None,
    };
    Ok(Copy {
        src: c.src,
        dest: c.dest,
        owner: owner(c.owner, scope)?,
        mode,
        follow_symlink: c.follow_symlink,
        dir_contents_only: c.dir_copy_contents,
        unpack: c.attempt_unpack_docker_compatibility,
        create_dest_path: c.create_dest_path,
        allow_wildcard: c.allow_wildcard,
        allow_empty_wildcard: c.allow_empty_wildcard,
        timestamp: timestamp(c.timestamp),
        include_patterns: c.include_patterns,
        exclude_patterns: c.exclude_patterns,
        required_paths: c.required_paths,
        always_replace: c.always_replace_existing_dest_paths,
    })
}

fn permissions(mode: i32) -> u32 {
    mode.cast_unsigned() & 0o777
}

fn timestamp(nanos: i64) -> Option<i64> {
    (nanos != -1).then_some(nanos)
}

fn owner(message: Option<pb::ChownOpt>, scope: &Scope) -> Checked<Owner> {
    let Some(message) = message else { return Ok(Owner::default()) };
    Ok(Owner { user: user(message.user, scope)?, group: user(message.group, scope)? })
}

fn user(message: Option<pb::UserOpt>, scope: &Scope) -> Checked<Option<UserSpec>> {
    use pb::user_opt::User;
    match message.and_then(|m| m.user) {
        None => Ok(None),
        Some(User::ById(id)) => Ok(Some(UserSpec::Id(id))),
        Some(User::ByName(named)) => Ok(Some(UserSpec::Name { input: scope.resolve(named.input)?, name: named.name })),
    }
}

fn build_op(build: pb::BuildOp, inputs: usize) -> Checked<BuildOp> {
    if build.builder != -1 {
        return Err("invalid build op: only nested definitions are supported".into());
    }
    let input = match build.inputs.get(attr::LLB_DEFINITION_INPUT) {
        Some(input) => index(input.input, inputs, "build")?,
        None => None,
    };
    if input.is_none() && build.def.is_none() {
        return Err("invalid build op without a definition".into());
    }
    Ok(BuildOp { input, definition: build.def.map(Into::into), attrs: build.attrs })
}

fn merge_op(merge: &pb::MergeOp, inputs: usize) -> Checked<MergeOp> {
    let list = merge
        .inputs
        .iter()
        .map(|i| index(i.input, inputs, "merge")?.ok_or_else(|| "invalid merge with an empty input".to_owned()))
        .collect::<Checked<Vec<_>>>()?;
    if list.len() < 2 {
        return Err(format!("invalid merge op with {} inputs, at least two are needed", list.len()));
    }
    Ok(MergeOp { inputs: list })
}

fn diff_op(diff: &pb::DiffOp, inputs: usize) -> Checked<DiffOp> {
    let missing = "invalid diff op with nil lower or upper input";
    Ok(DiffOp {
        lower: index(diff.lower.ok_or(missing)?.input, inputs, "diff")?,
        upper: index(diff.upper.ok_or(missing)?.input, inputs, "diff")?,
    })
}

fn passthrough_op(pass: pb::PassthroughOp, inputs: usize) -> Checked<PassthroughOp> {
    if pass.id.is_empty() {
        return Err("invalid passthrough op with no id".into());
    }
    if pass.outputs.is_empty() {
        return Err("invalid passthrough op with no outputs".into());
    }
    let outputs = pass
        .outputs
        .iter()
        .map(|&i| index(i, inputs, "passthrough")?.ok_or_else(|| format!("invalid passthrough output input index {i}")))
        .collect::<Checked<Vec<_>>>()?;
    Ok(PassthroughOp { id: pass.id, outputs })
}
