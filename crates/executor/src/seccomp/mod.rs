//! The system call filter of sandboxed processes: what container engines allow by default, as a classic BPF program
//! that covers every architecture the machine runs (a 32-bit program must not die in a 64-bit build).
//!
//! Everything that is not listed fails with EPERM; numbers newer than the list fail with ENOSYS, so that programs
//! fall back to what they did before the call existed.

mod bpf;
mod oci;
mod profile;
mod table;

pub(crate) use bpf::Insn;
pub(crate) use oci::oci_profile;
pub(crate) use profile::default_program;

#[cfg(test)]
mod tests;
