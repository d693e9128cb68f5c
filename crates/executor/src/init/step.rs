//! One step, seen from outside its sandbox: prepare, clone, watch, tidy up, report.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::{self, Plan};
use super::files::Files;
use super::stubs::Stubs;
use super::{felt, identity, join, mounts, runtime, server, userns};
use crate::exit::Usage;
use crate::seccomp::Insn;
use crate::sys::fds;
use crate::sys::process::{self, Cloned};
use crate::wire::{self, Failure, Order, Report, WireNetwork, WireSpec};

/// What a step gets besides its spec.
pub(super) struct Kit<'a> {
    /// To the engine: reports out, orders in. Its end is the order to kill.
    pub socket: OwnedFd,
    pub stdio: [OwnedFd; 3],
    pub netns: Option<OwnedFd>,
    pub filter: Option<&'a [Insn]>,
}

/// Runs the step and ends this process.
pub(super) fn run(spec: OwnedFd, kit: Kit<'_>) -> ! {
    let Ok(socket) = kit.socket.try_clone() else { process::exit_now(1) };
    let _ = send(&socket, &Report::Accepted, &[]);
    let report = match supervise(spec, kit, &socket) {
        Ok((status, usage)) => Report::Exited { status, usage },
        Err(failure) => Report::Failed(failure),
    };
    let _ = send(&socket, &report, &[]);
    process::exit_now(0)
}

pub(super) fn send(socket: &OwnedFd, report: &Report, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), ()> {
    let json = serde_json::to_vec(report).map_err(drop)?;
    fds::send(socket, &json, descriptors).map_err(drop)
}

fn supervise(spec: OwnedFd, kit: Kit<'_>, socket: &OwnedFd) -> Result<(i32, Usage), Failure> {
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::setup("open /dev/null", errno))?;
    server::hold_standard_streams(&null).map_err(|error| Failure::setup("hold the standard streams", error))?;
    let (spec, contents) = wire::unseal(spec).map_err(|error| Failure::setup("read the process spec", error))?;
    if spec.join {
        return join::supervise(&spec, kit, socket);
    }
    if let Some(maps) = &spec.idmaps {
        userns::enter(maps)?;
    }
    let root = mounts::open_root(&spec)?;
    let user = identity::resolve(&root, &spec.user)?;
    let prepared = spec.mounts.iter().map(mounts::prepare).collect::<Result<Vec<_>, _>>()?;
    let files = Files::new(&spec, &contents, prepared.len())?;
    let mut stubs = Stubs::new(spec.recursive_stubs);
    stubs.create(&root, &spec, &prepared, &user)?;
    // From here on whatever was made in the root is taken away again, also when the step fails to start.
    let keep = root.try_clone().map_err(|error| Failure::setup("duplicate the root", error));
    let result = keep.and_then(|root| {
        let ended = launch(&spec, kit, socket, root, prepared, files, user);
        if ended.is_ok() {
            // The terminal state of the step is decided: orders are not read any more.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
        }
        ended
    });
    stubs.remove(&root);
    drop(root);
    result
}

fn launch(
    spec: &WireSpec,
    kit: Kit<'_>,
    socket: &OwnedFd,
    root: OwnedFd,
    mounts: Vec<mounts::Prepared>,
    files: Files,
    user: identity::Identity,
) -> Result<(i32, Usage), Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Failure::setup("make a pipe", errno));
    let (status, status_out) = pipe()?;
    let (gate, gate_out) = pipe()?;
    let cgroup = match &spec.cgroup.v2 {
        Some(dir) => Some(
            rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| Failure::setup(format!("open control group {}", dir.display()), errno))?,
        ),
        None => None,
    };
    // SAFETY: this process was forked by one with a single thread and made no other since.
    let cloned = unsafe { process::clone(namespaces(spec), cgroup.as_ref().map(AsFd::as_fd)) }
        .map_err(|error| Failure::setup("clone into new namespaces", error))?;
    let (pid, pidfd) = match cloned {
        Cloned::Child => {
            drop((gate_out, status));
            let plan = Plan { spec, kit, root, mounts, files, user, gate };
            child::run(plan, status_out)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    // The engine waits for the end of the output: only the sandbox may hold it open.
    let log = files.mount.try_clone();
    drop((kit, root, mounts, files, status_out, gate));
    let moved = join_v1(spec, pid);
    // It stays open: the process looks at its other end to learn whether this one lives.
    let mut gate_out = std::fs::File::from(gate_out);
    if moved.is_ok() {
        let _ = gate_out.write_all(b"g");
    }
    let started = moved.and_then(|()| await_start(status, socket, &pidfd));
    let mut felt = None;
    if started.is_ok() {
        let _ = send(socket, &Report::Started, &[pidfd.as_fd()]);
        felt = watch(socket, &pidfd);
    } else {
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    }
    let ended = process::wait(pid).map_err(|error| Failure::setup("wait for the process", error));
    let ended = ended.map(|(status, usage)| (felt::status(status, felt), usage));
    drop(gate_out);
    started?;
    match &spec.runtime {
        Some(call) => runtime::translate(call, log.ok(), ended?),
        None => ended,
    }
}

fn namespaces(spec: &WireSpec) -> u64 {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    if spec.runtime.is_none() {
        flags |= libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if spec.network == WireNetwork::Isolated {
            flags |= libc::CLONE_NEWNET;
        }
    }
    flags as u64
}

fn join_v1(spec: &WireSpec, pid: libc::pid_t) -> Result<(), Failure> {
    for (controller, dir) in &spec.cgroup.v1 {
        std::fs::write(dir.join("cgroup.procs"), pid.to_string())
            .map_err(|error| Failure::setup(format!("join the {controller} control group"), error))?;
    }
    Ok(())
}

/// Waits until the child has executed its program (the pipe closes) or says why it could not.
pub(super) fn await_start(status: OwnedFd, socket: &OwnedFd, pidfd: &OwnedFd) -> Result<(), Failure> {
    loop {
        let mut ready = [PollFd::new(&status, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        if poll(&mut ready, None).is_err() {
            continue;
        }
        if !ready[0].revents().is_empty() {
            break;
        }
        if !ready[1].revents().is_empty() && !obey(socket, pidfd, &mut None) {
            break;
        }
    }
    let mut said = Vec::new();
    let _ = std::fs::File::from(status).read_to_end(&mut said);
    if said.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice(&said).unwrap_or_else(|_| Failure::InvalidSpec("the sandbox broke off".to_owned())))
}

/// Obeys the engine until the process is gone. Returns the signal that it was ended for, when it could not feel that.
pub(super) fn watch(socket: &OwnedFd, pidfd: &OwnedFd) -> Option<i32> {
    let mut listening = true;
    let mut felt = None;
    loop {
        let mut ready = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        let count = if listening { 2 } else { 1 };
        if poll(&mut ready[..count], None).is_err() {
            continue;
        }
        if !ready[0].revents().is_empty() {
            return felt;
        }
        if listening && !ready[1].revents().is_empty() {
            listening = obey(socket, pidfd, &mut felt);
        }
    }
}

/// Takes one order. Returns false when the engine is gone or ordered the end: the sandbox is then being killed.
fn obey(socket: &OwnedFd, pidfd: &OwnedFd, felt: &mut Option<i32>) -> bool {
    let order = match fds::receive(socket) {
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
        Ok(message) => serde_json::from_slice(&message.data).unwrap_or(Order::Kill),
        Err(_) => Order::Kill,
    };
    match order {
        Order::Signal(number) => {
            process::signal(pidfd.as_fd(), number);
            true
        }
        Order::Felt(number) => {
            if felt::send(pidfd, number) {
                *felt = Some(number);
            }
            true
        }
        Order::Kill => {
            process::signal(pidfd.as_fd(), libc::SIGKILL);
            false
        }
    }
}
