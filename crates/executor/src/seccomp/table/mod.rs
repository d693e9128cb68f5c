//! Numbers of the system calls that sandboxed processes may make, per architecture.

mod file;
mod ipc;
mod process;

pub(super) use file::FILE;
pub(super) use ipc::{IPC, NETWORK};
pub(super) use process::{IDENTITY, MEMORY, PROCESS, SIGNAL, TIME};

/// The call does not exist on the architecture.
pub(super) const NO: u32 = u32::MAX;

/// A system call's name and its numbers in the order of [`super::profile::Abi`].
pub(super) type Row = (&'static str, [u32; 4]);

/// Returns every unconditionally allowed call.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    [PROCESS, IDENTITY, SIGNAL, MEMORY, TIME, IPC, NETWORK, FILE].into_iter().flatten()
}

/// The newest call of the list; every number above it was given out later, on every architecture alike since Linux 5.1.
pub(super) const NEWEST: u32 = 466;
