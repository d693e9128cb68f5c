//! One run of an exec op: mounts, process, layers.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kiln_executor::hints::Cause;
use kiln_executor::{ExtraHost, NetworkMode, ProcessSpec, Resources, SecurityMode, Ulimit};
use kiln_llb::op::{ExecMeta, NetMode, ProxyEnv};
use kiln_solver::OpContext;
use kiln_stdx::{ErrorClass, fault, rand_id};
use kiln_store::{ImmutableRef, WriteEnd};

use super::Exec;
use super::log::LogPump;
use super::mounts::{Needs, Prepared};
use crate::error::EngineError;
use crate::parts::builds;
use crate::provenance;
use crate::session;
use crate::source::lazy;
use crate::wreck::Wreck;

/// Where commands are looked for when the environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A disk with less room than this is full, in bytes.
const FULL: u64 = 1 << 20;

/// Runs the step and returns its outputs in order.
pub async fn run(exec: &Exec, cx: &OpContext, inputs: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, EngineError> {
    lazy::unpack_inputs(&exec.parts, cx, inputs).await?;
    let needs = Needs {
        parts: &exec.parts,
        cx,
        mounts: &exec.op.mounts,
        cwd: &exec.op.meta.cwd,
        inputs,
        platform: &exec.platform,
        ignore_cache: exec.ignore_cache,
    };
    let mut prepared = Prepared::new(&needs).await?;
    let mut secrets = std::mem::take(&mut prepared.secrets);
    let mut spec = spec(exec, cx, &mut prepared)?;
    for wanted in &exec.op.secret_env {
        match session::secret(&exec.parts, cx, &wanted.id).await? {
            Some(value) => {
                let text = String::from_utf8_lossy(value.expose()).into_owned();
                spec.env.push((wanted.name.clone(), text));
                secrets.push(value);
            }
            // The variable is there all the same, as with other builders.
            None if wanted.optional => spec.env.push((wanted.name.clone(), String::new())),
            None => return Err(EngineError::user(format!("secret {}: not found", wanted.id))),
        }
    }
    fault::point("engine.step.start")?;
    let (io, pump) = LogPump::start(cx, &secrets);
    prepared.begin_writes();
    let watched = exec.parts.running.watch(exec.op.meta.args.join(" "), prepared.written(), cx.cancel());
    let ran = exec.parts.executor.run(spec, io, watched.cancel()).await;
    let tail = pump.finish().await;
    drop(secrets);
    if let Some(error) = watched.verdict() {
        prepared.end_writes(WriteEnd::CutOff("ran out of space"));
        return Err(error);
    }
    drop(watched);
    let exit = match ran {
        Ok(exit) => exit,
        Err(_) if cx.cancel().is_cancelled() => return Err(EngineError::canceled()),
        Err(e) => {
            if e.exit_code().is_some() {
                prepared.end_writes(WriteEnd::Failed);
            }
            return Err(not_started(exec, e));
        }
    };
    if cx.cancel().is_cancelled() {
        return Err(EngineError::canceled());
    }
    fault::point("engine.step.end")?;
    if exit.is_success(&exec.op.meta.valid_exit_codes) {
        prepared.end_writes(WriteEnd::Well);
    } else {
        let cut_off = cut_off(exec, &exit, &tail);
        prepared.end_writes(cut_off.as_deref().map_or(WriteEnd::Failed, WriteEnd::CutOff));
        let mut error = failed(exec, &exit, &tail);
        error.hint = doubts(error.hint, &prepared);
        if builds(cx).iter().any(|build| build.settings.keeps_wrecks) {
            error.further_mut().wreck = Some(Arc::new(wreck(exec, prepared, inputs)));
        }
        return Err(error);
    }
    prepared.commit(&exec.parts, exec.op.meta.args.join(" ")).await
}

/// Returns what the step leaves for a client to look at.
fn wreck(exec: &Exec, prepared: Prepared, inputs: &[ImmutableRef]) -> Wreck {
    let mounts = &exec.op.mounts;
    let came = mounts.iter().map(|mount| inputs.get(mount.input?).cloned()).collect();
    let command = exec.op.meta.args.join(" ");
    Wreck::new(exec.parts.clone(), exec.raw.clone(), command, came, prepared.wreck(mounts.len()))
}

/// Describes the process; the mounts have been prepared.
fn spec(exec: &Exec, cx: &OpContext, prepared: &mut Prepared) -> Result<ProcessSpec, EngineError> {
    let meta = &exec.op.meta;
    let builds = builds(cx);
    let root = prepared.root.take().ok_or_else(|| EngineError::user("the step has no root mount"))?;
    let mut spec = ProcessSpec::new(rand_id(), root, meta.args.clone());
    spec.root_readonly = prepared.root_readonly;
    spec.env = environment(meta);
    if !meta.cwd.is_empty() {
        spec.cwd.clone_from(&meta.cwd);
    }
    spec.user.clone_from(&meta.user);
    spec.hostname = (!meta.hostname.is_empty()).then(|| meta.hostname.clone());
    spec.mounts = std::mem::take(&mut prepared.mounts);
    spec.network = match exec.op.network {
        NetMode::Host => NetworkMode::Host,
        NetMode::None => NetworkMode::None,
        _ => NetworkMode::Auto,
    };
    spec.security = match exec.op.security {
        kiln_llb::op::SecurityMode::Insecure => SecurityMode::Insecure,
        _ => SecurityMode::Sandbox,
    };
    spec.ulimits = meta.ulimits.iter().map(|u| Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect();
    spec.extra_hosts = extra_hosts(&meta.extra_hosts)?;
    spec.shm_size = prepared.shm_size.or_else(|| builds.iter().find_map(|b| b.settings.shm_size));
    let parent = (!meta.cgroup_parent.is_empty()).then(|| meta.cgroup_parent.clone());
    spec.cgroup_parent = parent.or_else(|| exec.parts.steps.cgroup_parent.clone());
    spec.resolv_conf.clone_from(&exec.parts.steps.resolv_conf);
    spec.resources = resources(exec);
    spec.ca_bundle = builds.iter().find_map(|b| b.ca_bundle.get().map(|path| path.to_path_buf()));
    spec.remove_stubs_recursive = meta.remove_mount_stubs_recursive;
    spec.valid_exit_codes.clone_from(&meta.valid_exit_codes);
    Ok(spec)
}

pub fn environment(meta: &ExecMeta) -> Vec<(String, String)> {
    let split = |variable: &String| {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        (name.to_owned(), value.to_owned())
    };
    let mut env: Vec<(String, String)> = meta.env.iter().map(split).collect();
    if let Some(ProxyEnv { http, https, ftp, no, all }) = &meta.proxy {
        for (name, value) in
            [("HTTP_PROXY", http), ("HTTPS_PROXY", https), ("FTP_PROXY", ftp), ("NO_PROXY", no), ("ALL_PROXY", all)]
        {
            if !value.is_empty() {
                env.push((name.to_owned(), value.clone()));
                env.push((name.to_lowercase(), value.clone()));
            }
        }
    }
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    env
}

pub fn extra_hosts(hosts: &[kiln_llb::op::HostIp]) -> Result<Vec<ExtraHost>, EngineError> {
    hosts
        .iter()
        .map(|host| {
            let ip = host.ip.parse().map_err(|_| {
                EngineError::user(format!(
                    "failed to parse IP for extra host: invalid IP {} for host {}",
                    host.ip, host.host
                ))
            })?;
            Ok(ExtraHost { host: host.host.clone(), ip })
        })
        .collect()
}

fn resources(exec: &Exec) -> Resources {
    let Some(limits) = &exec.resources else { return Resources::default() };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Resources {
        memory: u64::try_from(limits.memory).ok().filter(|v| *v > 0),
        memory_swap: Some(limits.memory_swap).filter(|v| *v != 0),
        cpu_shares: Some(limits.cpu_shares).filter(|v| *v > 0),
        cpu_quota: Some(limits.cpu_quota).filter(|v| *v > 0),
        cpu_period: Some(limits.cpu_period).filter(|v| *v > 0),
        cpuset_cpus: some(&limits.cpuset_cpus),
        cpuset_mems: some(&limits.cpuset_mems),
        pids: None,
    }
}

/// The error of a process that never ran: a bad mount, a limit that the host forbids, no such command.
fn not_started(exec: &Exec, error: kiln_executor::ExecError) -> EngineError {
    let code = error.exit_code();
    let text = crate::error::chain(&error);
    let command = exec.op.meta.args.join(" ");
    let message = match code {
        Some(code) => format!("process {command:?} did not complete successfully: exit code: {code}: {text}"),
        None => format!("process {command:?} did not complete successfully: {text}"),
    };
    let mut result = EngineError::new(error.class(), message);
    result.exit_code = code;
    if let kiln_executor::ExecError::NotStarted { reason, .. } = &error {
        result.hint = Some(start_hint(*reason, exec));
    }
    result
}

fn start_hint(reason: kiln_executor::StartFailure, exec: &Exec) -> String {
    use kiln_executor::StartFailure::{Format, NotExecutable, NotFound, WorkingDirectory};
    let meta = &exec.op.meta;
    let name = meta.args.first().map_or("", String::as_str);
    match reason {
        NotFound => format!(
            "`{name}`, or the interpreter it needs, is not in the image or not in PATH; install it in an earlier step, or \
             check its spelling"
        ),
        NotExecutable => format!("make it executable: COPY --chmod=755, or chmod +x {name} in an earlier step"),
        Format => format!("`{name}` is no program of this platform, nor a script with a #! line"),
        WorkingDirectory => format!("check WORKDIR {} and who may enter it", meta.cwd),
    }
}

/// Tells whether a disk has no room; what a failed step has written is still there.
fn is_full(path: &std::path::Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < FULL)
}

/// Returns what cut a failed step off in the middle of its writing, if anything did, to follow on `the last writer`.
fn cut_off(exec: &Exec, exit: &kiln_executor::Exit, tail: &[u8]) -> Option<String> {
    if exit.oom {
        return Some("ran out of memory".to_owned());
    }
    // A shell tells of its child's signal in the same way.
    if let Some(signal) = exit.signal.or((129..160).contains(&exit.code).then(|| exit.code - 128)) {
        return Some(format!("was killed by signal {signal}"));
    }
    let told = kiln_executor::hints::explain(&exec.op.meta.args, exit, &String::from_utf8_lossy(tail));
    let full = told.is_some_and(|hint| hint.cause == Cause::DiskFull) || is_full(exec.parts.store.root());
    full.then(|| "ran out of space".to_owned())
}

/// Adds the cache mounts that may be why the step failed to a hint.
fn doubts(hint: Option<String>, prepared: &Prepared) -> Option<String> {
    let doubt = |(id, mark): (&str, &kiln_store::Mark)| {
        let at = provenance::seconds(UNIX_EPOCH + Duration::from_secs(mark.at));
        let id = shell_word(id);
        format!(
            "the cache mount {id} may be damaged: its last writer {} at {at}; empty it with: kiln cache rm {id}",
            mark.why
        )
    };
    let hints: Vec<String> = hint.into_iter().chain(prepared.marked().map(doubt)).collect();
    (!hints.is_empty()).then(|| hints.join("\nhint: "))
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@=+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The error of a process that ran and failed, with a hint when the cause is a known one.
fn failed(exec: &Exec, exit: &kiln_executor::Exit, tail: &[u8]) -> EngineError {
    let command = exec.op.meta.args.join(" ");
    let mut message = format!("process {command:?} did not complete successfully: exit code: {}", exit.code);
    if exit.oom {
        message.push_str(": cannot allocate memory");
    }
    let mut error = EngineError::new(ErrorClass::UserInput, message);
    error.exit_code = Some(exit.code);
    let tail = String::from_utf8_lossy(tail);
    error.hint = kiln_executor::hints::explain(&exec.op.meta.args, exit, &tail).map(|hint| hint.text);
    if error.hint.is_none() && is_full(exec.parts.store.root()) {
        error.hint = Some(format!(
            "no space left on device: the disk of {} is full; free space there, or with `kiln prune`",
            exec.parts.store.root().display()
        ));
    }
    error
}
