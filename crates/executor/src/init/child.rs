//! PID 1 of a sandbox, from its first instruction in the new namespaces until it becomes the step's command.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::files::Files;
use super::identity::Identity;
use super::mounts::Prepared;
use super::step::Kit;
use super::{launch, privileges, runtime, stubs, terminal, tree};
use crate::StartFailure;
use crate::sys::{mount, process};
use crate::wire::{Failure, WireNetwork, WireSpec};

/// Everything PID 1 needs; descriptors are all that leads back to the host.
pub(super) struct Plan<'a> {
    pub spec: &'a WireSpec,
    pub kit: Kit<'a>,
    pub root: OwnedFd,
    pub mounts: Vec<Prepared>,
    pub files: Files,
    pub user: Identity,
    /// Opened by the helper when the process is in its control groups.
    pub gate: OwnedFd,
}

/// Becomes the step's command, or says on `status` why it could not.
pub(super) fn run(plan: Plan<'_>, status: OwnedFd) -> ! {
    let outcome = if plan.spec.runtime.is_some() { runtime::run(plan) } else { become_command(plan) };
    let Err(failure) = outcome;
    let said = serde_json::to_vec(&failure).unwrap_or_default();
    let _ = File::from(status).write_all(&said);
    process::exit_now(1)
}

fn become_command(plan: Plan<'_>) -> Result<std::convert::Infallible, Failure> {
    await_gate(&plan.gate)?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());
    join_network(&plan)?;
    rustix::system::sethostname(plan.spec.hostname.as_bytes())
        .map_err(|errno| Failure::setup("set the host name", errno))?;
    own_keyring();
    tree::enter(&plan)?;
    standard_streams(&plan).map_err(|error| Failure::setup("open the standard streams", error))?;
    // A relative path or a link of /proc must not lead back to the host through a descriptor that is still open.
    let Plan { spec, kit, root, mounts, files, user, gate } = plan;
    drop((root, mounts, files));
    Rest { spec, kit, user, gate }.finish()
}

/// What is left to do inside the new root.
struct Rest<'a> {
    spec: &'a WireSpec,
    kit: Kit<'a>,
    user: Identity,
    gate: OwnedFd,
}

impl Rest<'_> {
    fn finish(self) -> Result<std::convert::Infallible, Failure> {
        let Self { spec, kit, user, gate } = self;
        change_directory(spec)?;
        privileges::drop_all(spec, &kit, &user)?;
        drop(kit);
        process::reset_signals();
        rustix::process::umask(Mode::from_raw_mode(0o022));
        die_with_helper(&gate)?;
        Err(launch::execute(spec, &user.home))
    }
}

/// Waits for the helper's leave. Its end without one means the helper failed and reports itself.
pub(super) fn await_gate(gate: &OwnedFd) -> Result<(), Failure> {
    let mut byte = [0u8; 1];
    match gate.try_clone().and_then(|gate| File::from(gate).read(&mut byte)) {
        Ok(1) => Ok(()),
        _ => process::exit_now(1),
    }
}

fn join_network(plan: &Plan<'_>) -> Result<(), Failure> {
    match plan.spec.network {
        WireNetwork::Host => Ok(()),
        WireNetwork::Isolated => {
            raise_loopback().map_err(|error| Failure::setup("raise the loopback interface", error))
        }
        WireNetwork::Existing => {
            let Some(netns) = &plan.kit.netns else {
                return Err(Failure::InvalidSpec("the network namespace was not passed".to_owned()));
            };
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
                .map_err(|errno| Failure::setup("join the network namespace", errno))
        }
    }
}

fn raise_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all fields are plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, letter) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *letter as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request is a live `ifreq`, as SIOCSIFFLAGS wants.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Leaves the engine's session keyring behind. Kernels without keyrings refuse, and have nothing to leave.
pub(super) fn own_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
}

fn standard_streams(plan: &Plan<'_>) -> io::Result<()> {
    if let Some(size) = plan.spec.tty {
        return terminal::open(&plan.kit.socket, size, plan.user.uid);
    }
    for (number, stream) in plan.kit.stdio.iter().enumerate() {
        process::redirect(stream.as_fd(), number as i32)?;
    }
    Ok(())
}

pub(super) fn change_directory(spec: &WireSpec) -> Result<(), Failure> {
    let fail = |error: io::Error| Failure::NotStarted {
        reason: StartFailure::WorkingDirectory,
        message: format!("chdir to cwd ({:?}): {error}", spec.cwd),
    };
    let open = || -> io::Result<OwnedFd> {
        let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match mount::open_in_root(&root, spec.cwd.as_str(), OFlags::PATH | OFlags::DIRECTORY) {
            // It lies inside a mount: in the root itself it was made before.
            Err(rustix::io::Errno::NOENT) => {
                stubs::make_all(&root, &stubs::resolve(&root, &spec.cwd)?, true)?;
                Ok(mount::open_in_root(&root, spec.cwd.as_str(), OFlags::PATH | OFlags::DIRECTORY)?)
            }
            found => Ok(found?),
        }
    };
    let dir = open().map_err(fail)?;
    rustix::process::fchdir(dir).map_err(|errno| fail(errno.into()))
}

/// Makes the kernel kill this process when the helper dies. It comes after every change of identity, which would undo it.
pub(super) fn die_with_helper(gate: &OwnedFd) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|errno| Failure::setup("bind the process to its helper", errno))?;
    // The helper holds the other end as long as it lives: if it died before the call, nobody is left to send the signal.
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut held = [rustix::event::PollFd::new(gate, rustix::event::PollFlags::empty())];
    match rustix::event::poll(&mut held, Some(&now)) {
        Ok(0) => Ok(()),
        _ => process::exit_now(1),
    }
}
