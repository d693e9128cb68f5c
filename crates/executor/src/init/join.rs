//! A further process in a sandbox that runs: it enters the namespaces of the sandbox's first process, and everything
//! else it is given there is what the first one was given.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::ThreadNameSpaceType;

use super::step::{self, Kit};
use super::{child, identity, launch, privileges, terminal};
use crate::exit::Usage;
use crate::sys::process::{self, Cloned};
use crate::wire::{Failure, Report, WireSpec};

/// Runs the process and waits for its end.
pub(super) fn supervise(spec: &WireSpec, kit: Kit<'_>, socket: &OwnedFd) -> Result<(i32, Usage), Failure> {
    enter(spec, &kit)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Failure::setup("make a pipe", errno));
    let (status, status_out) = pipe()?;
    let (gate, gate_out) = pipe()?;
    // The new process id namespace holds for children alone.
    // SAFETY: this process was forked by one with a single thread and made no other since.
    let cloned = unsafe { process::clone(0, None) }.map_err(|error| Failure::setup("clone into the sandbox", error))?;
    let (pid, pidfd) = match cloned {
        Cloned::Child => {
            drop((gate_out, status));
            let Err(failure) = become_command(spec, kit, &gate);
            let said = serde_json::to_vec(&failure).unwrap_or_default();
            let _ = std::fs::File::from(status_out).write_all(&said);
            process::exit_now(1)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((kit, status_out, gate));
    // It stays open: the process looks at its other end to learn whether this one lives.
    let mut gate_out = std::fs::File::from(gate_out);
    let _ = gate_out.write_all(b"g");
    let started = step::await_start(status, socket, &pidfd);
    if started.is_ok() {
        let _ = step::send(socket, &Report::Started, &[pidfd.as_fd()]);
        let _ = step::watch(socket, &pidfd);
    } else {
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    }
    let ended = process::wait(pid).map_err(|error| Failure::setup("wait for the process", error));
    started?;
    if ended.is_ok() {
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
    }
    ended
}

/// Enters all namespaces of the sandbox at once; its root becomes the root.
fn enter(spec: &WireSpec, kit: &Kit<'_>) -> Result<(), Failure> {
    let Some(first) = &kit.netns else {
        return Err(Failure::InvalidSpec("the sandbox to join was not passed".to_owned()));
    };
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK;
    if spec.cgroup.unified {
        all |= ThreadNameSpaceType::CONTROL_GROUP;
    }
    if spec.idmaps.is_some() {
        all |= ThreadNameSpaceType::USER;
    }
    rustix::thread::move_into_thread_name_spaces(first.as_fd(), all)
        .map_err(|errno| Failure::setup("join the sandbox", errno))
}

fn become_command(spec: &WireSpec, kit: Kit<'_>, gate: &OwnedFd) -> Result<std::convert::Infallible, Failure> {
    child::await_gate(gate)?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());
    child::own_keyring();
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::setup("open the sandbox's root", errno))?;
    let user = identity::resolve(&root, &spec.user)?;
    let streams = match spec.tty {
        Some(size) => terminal::open(&kit.socket, size, user.uid),
        None => kit.stdio.iter().enumerate().try_for_each(|(number, stream)| {
            process::redirect(stream.as_fd(), i32::try_from(number).unwrap_or(i32::MAX))
        }),
    };
    streams.map_err(|error| Failure::setup("open the standard streams", error))?;
    drop(root);
    child::change_directory(spec)?;
    privileges::drop_all(spec, &kit, &user)?;
    drop(kit);
    process::reset_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    child::die_with_helper(gate)?;
    Err(launch::execute(spec, &user.home))
}
