//! Running the step by an OCI runtime: kiln makes the mounts, in a mount and PID namespace around the runtime, so that a kill
//! takes the runtime, its container and every mount at once, whatever state they are in.
//!
//! Bundle, config and the runtime's own state lie on the sandbox's tmpfs, since they hold the step's environment.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;

use super::child::{self, Plan};
use super::files::{self, ROOT};
use super::tree::{self, NODEV, NOEXEC, NOSUID};
use crate::StartFailure;
use crate::exit::Usage;
use crate::oci_config;
use crate::sys::{mount, process};
use crate::wire::{Failure, WireNetwork, WireRuntime};

/// The runtime's log on the tmpfs.
const LOG: &str = "log.json";
/// The longest log that is looked at, in bytes.
const MAX_LOG: u64 = 256 << 10;

/// Prepares the bundle and becomes the runtime.
pub(super) fn run(plan: Plan<'_>) -> Result<Infallible, Failure> {
    let Some(call) = &plan.spec.runtime else {
        return Err(Failure::InvalidSpec("no runtime given".to_owned()));
    };
    child::await_gate(&plan.gate)?;
    let _ = rustix::process::setsid();
    let host = tree::isolate()?;
    let setup = |error: io::Error| Failure::setup("prepare the bundle", error);
    own_proc().map_err(setup)?;
    if let Some(v2) = &call.hidden_v2 {
        rustix::mount::unmount(v2, UnmountFlags::DETACH).map_err(|errno| setup(errno.into()))?;
    }
    let sources = assemble(&plan, call).map_err(setup)?;
    let config = oci_config::build(plan.spec, &plan.user.as_process_user(), &sources, call);
    write_config(&plan, &config).map_err(setup)?;
    for (number, stream) in plan.kit.stdio.iter().enumerate() {
        process::redirect(stream.as_fd(), number as i32).map_err(setup)?;
    }
    drop(host);
    process::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Err(execute(call))
}

/// The runtime looks at itself in `/proc`, which must be that of its own PID namespace.
fn own_proc() -> io::Result<()> {
    let proc = mount::new_fs("proc", &[], NOSUID | NODEV | NOEXEC)?;
    let place = rustix::fs::open(c"/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(proc, place)
}

/// Attaches the tmpfs at the bundle's path and in it the root and every mount. Returns where each mount's source is.
fn assemble(plan: &Plan<'_>, call: &WireRuntime) -> io::Result<oci_config::Sources> {
    let top = &plan.files.mount;
    let bundle = rustix::fs::open(&call.bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(top, bundle)?;
    mount::attach(&plan.root, rustix::fs::openat(top, ROOT, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    let mut mounts = Vec::with_capacity(plan.mounts.len());
    for (number, prepared) in plan.mounts.iter().enumerate() {
        let name = match (&prepared.mount, &prepared.subpath) {
            (None, _) => files::file_name(number),
            (Some(whole), subpath) => {
                let shown = format!("p{number}");
                let place = tree::target(top, &shown, prepared.is_dir)?;
                match subpath {
                    None => mount::attach(whole, place)?,
                    Some(subpath) => {
                        mount::attach(whole, mount::locate(top, files::place_name(number).as_str())?)?;
                        let part = mount::clone_tree(mount::locate(whole, subpath.as_str())?, c"", false)?;
                        mount::attach(part, place)?;
                    }
                }
                shown
            }
        };
        mounts.push(call.bundle.join(name));
    }
    Ok(oci_config::Sources { mounts, netns: netns(plan, call)? })
}

fn netns(plan: &Plan<'_>, call: &WireRuntime) -> io::Result<Option<std::path::PathBuf>> {
    let (WireNetwork::Existing, Some(netns)) = (plan.spec.network, &plan.kit.netns) else { return Ok(None) };
    let path = CString::new(format!("/proc/self/fd/{}", netns.as_raw_fd()))?;
    let tree = mount::clone_tree(rustix::fs::CWD, &path, false)?;
    mount::attach(tree, tree::target(&plan.files.mount, "netns", false)?)?;
    Ok(Some(call.bundle.join("netns")))
}

fn write_config(plan: &Plan<'_>, config: &serde_json::Value) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&plan.files.mount, "config.json", flags, Mode::RUSR | Mode::WUSR)?;
    File::from(file).write_all(&serde_json::to_vec(config)?)
}

fn execute(call: &WireRuntime) -> Failure {
    let bundle = call.bundle.as_os_str().as_bytes();
    let below = |name: &str| CString::new([bundle, b"/", name.as_bytes()].concat());
    let args = || -> Result<Vec<CString>, std::ffi::NulError> {
        Ok(vec![
            CString::new(call.program.as_os_str().as_bytes())?,
            CString::new("--root")?,
            below("state")?,
            CString::new("--log")?,
            below(LOG)?,
            CString::new("--log-format")?,
            CString::new("json")?,
            CString::new("run")?,
            CString::new("--bundle")?,
            CString::new(bundle)?,
            CString::new(call.id.as_str())?,
        ])
    };
    let Ok(args) = args() else { return Failure::InvalidSpec("a path contains a NUL character".to_owned()) };
    let argv: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let env = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), std::ptr::null()];
    // SAFETY: both arrays end with null and their strings live through the call.
    unsafe { libc::execve(args[0].as_ptr(), argv.as_ptr(), env.as_ptr()) };
    let message = io::Error::last_os_error().to_string();
    Failure::Runtime { runtime: call.program.display().to_string(), message }
}

/// Tells the step's own end from a runtime that could not start it; both are the end of the runtime's process.
pub(super) fn translate(
    call: &WireRuntime,
    files: Option<OwnedFd>,
    ended: (i32, Usage),
) -> Result<(i32, Usage), Failure> {
    let failed = libc::WIFEXITED(ended.0) && libc::WEXITSTATUS(ended.0) != 0;
    let message = files.filter(|_| failed).and_then(|files| last_error(&files));
    match message {
        None => Ok(ended),
        Some(message) => Err(classify(call, message)),
    }
}

fn last_error(files: &OwnedFd) -> Option<String> {
    let log = rustix::fs::openat(files, LOG, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(log).take(MAX_LOG).read_to_string(&mut text).ok()?;
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut errors = lines.filter(|line| matches!(line["level"].as_str(), Some("error" | "fatal")));
    errors.find_map(|line| line["msg"].as_str().map(str::to_owned))
}

fn classify(call: &WireRuntime, message: String) -> Failure {
    let not_started = |reason, message: &str| Failure::NotStarted { reason, message: message.to_owned() };
    // Both runc and crun end their chain of causes with the one that matters.
    let cause = message.find("exec").map_or(message.as_str(), |at| &message[at..]);
    let found = [
        ("executable file not found in", StartFailure::NotFound),
        ("executable file `", StartFailure::NotFound),
        ("no such file or directory", StartFailure::NotFound),
        ("ermission denied", StartFailure::NotExecutable),
        ("exec format error", StartFailure::Format),
        ("Exec format error", StartFailure::Format),
    ];
    if message.contains("exec") {
        for (text, reason) in found {
            if cause.contains(text) {
                return not_started(reason, cause);
            }
        }
    }
    if message.contains("chdir") {
        return not_started(StartFailure::WorkingDirectory, &message);
    }
    Failure::Runtime { runtime: call.program.display().to_string(), message }
}
