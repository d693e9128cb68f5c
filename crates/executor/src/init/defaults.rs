//! The defaults of a sandbox in the words of the OCI runtime specification.

use rustix::thread::CapabilitySet;

pub(crate) use super::masks::{FROZEN, HIDDEN};
use super::privileges;

/// Names by number, from `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Returns the names of the default capabilities that this process can give.
pub(crate) fn capabilities() -> Vec<String> {
    names(privileges::DEFAULT.intersection(held()))
}

/// Returns the names of all capabilities that this process can give.
pub(crate) fn all_capabilities() -> Vec<String> {
    names(held())
}

fn held() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted)
}

fn names(set: CapabilitySet) -> Vec<String> {
    let numbered = NAMES.iter().enumerate();
    numbered.filter(|(number, _)| set.bits() & (1 << number) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
}
