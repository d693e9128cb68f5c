//! The default filter: which calls are allowed on which architecture, and which by their arguments.

use std::collections::BTreeMap;

use super::bpf::{
    ALLOW, ARCH, Code, ENOSYS, EPERM, Insn, NR, Range, and, arg_low, if_any_bit, if_at_least, if_equal, load, ret,
    search,
};
use super::table::{self, NO};

/// A system call convention; its number is the column of [`table::Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each machine uses its own two; the tests use all")]
pub(super) enum Abi {
    X86_64 = 0,
    I386 = 1,
    Aarch64 = 2,
    Arm = 3,
}

impl Abi {
    /// Returns the `AUDIT_ARCH_*` value of `linux/audit.h`.
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Returns the numbers of `clone`, `clone3`, `personality` and `socket`.
    fn checked_calls(self) -> [u32; 4] {
        match self {
            Self::X86_64 => [56, 435, 135, 41],
            Self::I386 => [120, 435, 136, 359],
            Self::Aarch64 => [220, 435, 92, 198],
            Self::Arm => [120, 435, 136, 281],
        }
    }
}

/// The conventions the kernel of this build's machine understands.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: &[Abi] = &[Abi::X86_64, Abi::I386];
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: &[Abi] = &[Abi::Aarch64, Abi::Arm];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const NATIVE: &[Abi] = &[];

/// Set in the number of a call by the x32 convention.
const X32_BIT: u32 = 0x4000_0000;
/// The calls that x32 numbers differently from x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`), and of these the ones
/// that load a kernel or move pages of other processes.
const X32_OWN: std::ops::RangeInclusive<u32> = 512..=547;
const X32_DENIED: [u32; 2] = [528, 533];

/// `CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}`.
pub(super) const NAMESPACES: u32 = 0x7e02_0000;
/// The personalities that change nothing a sandbox relies on: Linux, Linux32, each with `UNAME26`, and the query.
pub(super) const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];
/// Address families that reach outside of any namespace (`AF_ALG` the kernel's crypto, `AF_VSOCK` the hypervisor).
pub(super) const FAMILIES_DENIED: [u32; 2] = [38, 40];

/// Returns the filter for processes with Docker's default capabilities, or `None` on a machine it is not written for.
pub(crate) fn default_program() -> Option<Vec<Insn>> {
    program(NATIVE)
}

pub(super) fn program(abis: &[Abi]) -> Option<Vec<Insn>> {
    if abis.is_empty() {
        return None;
    }
    let mut code = vec![ret(EPERM)];
    for &abi in abis.iter().rev() {
        code = if_equal(abi.audit_arch(), dispatch(abi), code);
    }
    code.insert(0, load(ARCH));
    Some(code)
}

/// Returns the code for one architecture; it loads the number itself.
fn dispatch(abi: Abi) -> Code {
    let known = search(&ranges(numbers(abi), table::NEWEST));
    let mut code = vec![load(NR)];
    if abi == Abi::X86_64 {
        // The plain tree serves x32 too, with the bit taken off, but for the numbers that only x32 has.
        let mut own = BTreeMap::new();
        for nr in X32_OWN.filter(|nr| !X32_DENIED.contains(nr)) {
            own.insert(nr, vec![ret(ALLOW)]);
        }
        let own = search(&ranges(own, *X32_OWN.end()));
        let mut x32 = vec![and(!X32_BIT)];
        x32.extend(if_at_least(*X32_OWN.start(), own, known.clone()));
        code.extend(if_any_bit(X32_BIT, x32, known));
    } else {
        code.extend(known);
    }
    code
}

/// Returns what to do for each number that is not simply refused.
fn numbers(abi: Abi) -> BTreeMap<u32, Code> {
    let mut calls: BTreeMap<u32, Code> = table::rows()
        .map(|(_, numbers)| numbers[abi as usize])
        .filter(|&nr| nr != NO)
        .map(|nr| (nr, vec![ret(ALLOW)]))
        .collect();
    let [clone, clone3, personality, socket] = abi.checked_calls();
    calls.insert(clone, check_clone());
    // The filter cannot look behind the pointer that clone3 takes; ENOSYS makes libc use clone instead.
    calls.insert(clone3, vec![ret(ENOSYS)]);
    calls.insert(personality, one_of(&PERSONALITIES, ALLOW, EPERM));
    calls.insert(socket, one_of(&FAMILIES_DENIED, EPERM, ALLOW));
    calls
}

fn check_clone() -> Code {
    let mut code = vec![load(arg_low(0))];
    code.extend(if_any_bit(NAMESPACES, vec![ret(EPERM)], vec![ret(ALLOW)]));
    code
}

/// Returns `yes` when the first argument is one of `values`. The kernel reads these arguments as 32-bit numbers.
fn one_of(values: &[u32], yes: u32, no: u32) -> Code {
    let mut tail = vec![ret(no)];
    for &value in values.iter().rev() {
        tail = if_equal(value, vec![ret(yes)], tail);
    }
    tail.insert(0, load(arg_low(0)));
    tail
}

/// Covers the whole number line: gaps up to `newest` are refused, what is above it does not exist.
fn ranges(calls: BTreeMap<u32, Code>, newest: u32) -> Vec<Range> {
    let gap = |nr: u32| vec![ret(if nr > newest { ENOSYS } else { EPERM })];
    let mut starts = BTreeMap::from([(0, gap(0)), (newest + 1, gap(newest + 1))]);
    for nr in calls.keys() {
        starts.insert(nr + 1, gap(nr + 1));
    }
    starts.extend(calls);
    let mut out: Vec<Range> = Vec::with_capacity(starts.len());
    for (start, code) in starts {
        if out.last().is_none_or(|last| last.code != code) {
            out.push(Range { start, code });
        }
    }
    out
}
