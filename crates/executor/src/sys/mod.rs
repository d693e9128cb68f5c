//! Thin, typed wrappers of the system calls a sandbox needs.

pub(crate) mod fds;
pub(crate) mod mount;
pub(crate) mod process;
