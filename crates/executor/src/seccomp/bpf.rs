//! Classic BPF as the kernel's seccomp takes it (`linux/filter.h`): instructions, and a decision tree over numbers.

/// One instruction; the layout is the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JMP_JA: u16 = 0x05;
const JMP_JEQ_K: u16 = 0x15;
const JMP_JGE_K: u16 = 0x35;
const JMP_JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

/// Offsets into `struct seccomp_data`.
pub(super) const NR: u32 = 0;
pub(super) const ARCH: u32 = 4;

/// Returns the offset of the low half of argument `n`; both supported machines are little-endian.
pub(super) const fn arg_low(n: u32) -> u32 {
    16 + 8 * n
}

pub(super) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
pub(super) const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
pub(super) const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Code that can stand anywhere: every jump is relative and forward, every path ends in a return.
pub(super) type Code = Vec<Insn>;

pub(super) fn load(offset: u32) -> Insn {
    Insn { code: LD_W_ABS, jt: 0, jf: 0, k: offset }
}

pub(super) fn and(mask: u32) -> Insn {
    Insn { code: ALU_AND_K, jt: 0, jf: 0, k: mask }
}

pub(super) fn ret(action: u32) -> Insn {
    Insn { code: RET_K, jt: 0, jf: 0, k: action }
}

/// Returns `if acc >= k { yes } else { no }`.
pub(super) fn if_at_least(k: u32, yes: Code, no: Code) -> Code {
    branch(JMP_JGE_K, k, yes, no)
}

/// Returns `if acc == k { yes } else { no }`.
pub(super) fn if_equal(k: u32, yes: Code, no: Code) -> Code {
    branch(JMP_JEQ_K, k, yes, no)
}

/// Returns `if acc & k != 0 { yes } else { no }`.
pub(super) fn if_any_bit(k: u32, yes: Code, no: Code) -> Code {
    branch(JMP_JSET_K, k, yes, no)
}

/// A conditional jump reaches 255 instructions; farther targets go by way of an unconditional one.
fn branch(code: u16, k: u32, yes: Code, no: Code) -> Code {
    let mut out = Vec::with_capacity(yes.len() + no.len() + 2);
    match u8::try_from(no.len()) {
        Ok(skip) => out.push(Insn { code, jt: skip, jf: 0, k }),
        Err(_) => {
            out.push(Insn { code, jt: 0, jf: 1, k });
            out.push(Insn { code: JMP_JA, jt: 0, jf: 0, k: no.len() as u32 });
        }
    }
    out.extend(no);
    out.extend(yes);
    out
}

/// What happens to the numbers from `start` up to the next range.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub start: u32,
    pub code: Code,
}

/// Returns a binary search over `ranges`, which are sorted and begin at 0.
pub(super) fn search(ranges: &[Range]) -> Code {
    match ranges {
        [] => vec![ret(EPERM)],
        [only] => only.code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            if_at_least(high[0].start, search(high), search(low))
        }
    }
}
