//! A filter on opening devices, attached to a v2 control group: a step may make any device node but open only those that
//! every sandbox has. Without it root in a sandbox could make a node for the host's disk and read it.

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Character devices a step may open: number, and minor or all minors.
const ALLOWED: &[(i32, Option<i32>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Insn {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    value: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;

/// `struct bpf_cgroup_dev_ctx` is in register 1: access and type in one word, then major and minor number.
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const ACCESS_MKNOD: i32 = 1;
const KIND_CHARACTER: i32 = 2;

fn insn(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> Insn {
    Insn { code, registers: destination | source << 4, offset, value }
}

/// Returns the program: register 0 says whether the access is allowed.
fn program() -> Vec<Insn> {
    let mut body = vec![
        insn(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        insn(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        insn(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        insn(COPY, KIND, ACCESS, 0, 0),
        insn(AND, KIND, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, ACCESS, 0, 0, 16),
    ];
    // Jumps to the end are filled in below, when its place is known.
    let mut to_allow = vec![body.len()];
    body.push(insn(JUMP_EQUAL, ACCESS, 0, 0, ACCESS_MKNOD));
    let mut to_deny = vec![body.len()];
    body.push(insn(JUMP_UNEQUAL, KIND, 0, 0, KIND_CHARACTER));
    for &(major, minor) in ALLOWED {
        match minor {
            Some(minor) => {
                body.push(insn(JUMP_UNEQUAL, MAJOR, 0, 1, major));
                to_allow.push(body.len());
                body.push(insn(JUMP_EQUAL, MINOR, 0, 0, minor));
            }
            None => {
                to_allow.push(body.len());
                body.push(insn(JUMP_EQUAL, MAJOR, 0, 0, major));
            }
        }
    }
    to_deny.push(body.len());
    body.push(insn(JUMP, 0, 0, 0, 0));
    let allow = body.len();
    body.extend([insn(MOVE, 0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)]);
    let deny = body.len();
    body.extend([insn(MOVE, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    for (places, target) in [(to_allow, allow), (to_deny, deny)] {
        for place in places {
            body[place].offset = (target - place - 1) as i16;
        }
    }
    body
}

/// The loaded program.
#[derive(Debug)]
pub(super) struct Filter(OwnedFd);

impl Filter {
    /// Loads the program into the kernel.
    ///
    /// # Errors
    /// The kernel's answer where BPF is forbidden or not built in.
    pub(super) fn load() -> io::Result<Self> {
        const PROG_LOAD: libc::c_int = 5;
        const TYPE_CGROUP_DEVICE: u32 = 15;
        // The first fields of `union bpf_attr` for BPF_PROG_LOAD.
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kernel_version: u32,
            flags: u32,
        }
        let program = program();
        let load = Load {
            kind: TYPE_CGROUP_DEVICE,
            count: program.len() as u32,
            insns: program.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kernel_version: 0,
            flags: 0,
        };
        let fd = bpf(PROG_LOAD, &load)?;
        // SAFETY: the kernel returned a new descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it to a control group, whose descendants it then holds for too.
    pub(super) fn attach(&self, group: &OwnedFd) -> io::Result<()> {
        const PROG_ATTACH: libc::c_int = 8;
        const CGROUP_DEVICE: u32 = 6;
        const ALLOW_MULTI: u32 = 2;
        #[repr(C)]
        struct Attach {
            target: u32,
            program: u32,
            kind: u32,
            flags: u32,
        }
        let attach = Attach {
            target: group.as_raw_fd() as u32,
            program: self.0.as_raw_fd() as u32,
            kind: CGROUP_DEVICE,
            flags: ALLOW_MULTI,
        };
        bpf(PROG_ATTACH, &attach).map(drop)
    }
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<RawFd> {
    // SAFETY: `attr` is a live prefix of `union bpf_attr` and its size is passed; the kernel takes the rest as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn allowed(access: i32, kind: i32, major: i32, minor: i32) -> bool {
        let program = program();
        let mut registers = [0i32; 11];
        let mut at = 0;
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            at += 1;
            match step.code {
                LOAD_WORD => registers[to] = [access << 16 | kind, major, minor][step.offset as usize / 4],
                COPY => registers[to] = registers[from],
                MOVE => registers[to] = step.value,
                AND => registers[to] &= step.value,
                SHIFT_RIGHT => registers[to] >>= step.value,
                JUMP_EQUAL if registers[to] != step.value => {}
                JUMP_UNEQUAL if registers[to] == step.value => {}
                JUMP | JUMP_EQUAL | JUMP_UNEQUAL => at += step.offset as usize,
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn nodes_may_be_made_but_only_harmless_ones_opened() {
        let (mknod, read, write, block, character) = (1, 2, 4, 1, 2);
        assert!(allowed(mknod, block, 8, 0) && allowed(mknod, character, 10, 200));
        assert!(allowed(read | write, character, 1, 3) && allowed(read, character, 1, 9));
        assert!(allowed(write, character, 136, 77) && allowed(read | write, character, 5, 2));
        assert!(!allowed(read, block, 8, 0) && !allowed(read, block, 1, 3));
        assert!(
            !allowed(read, character, 1, 1) && !allowed(write, character, 10, 200) && !allowed(read, character, 5, 3)
        );
    }
}
