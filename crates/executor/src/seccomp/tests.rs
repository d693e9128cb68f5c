//! Runs the generated programs in a small interpreter and asks them about single calls.

use super::bpf::{ALLOW, ENOSYS, EPERM, Insn};
use super::profile::{Abi, program};
use super::table;

fn run(code: &[Insn], abi: Abi, nr: u32, arg0: u64) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&nr.to_le_bytes());
    data[4..8].copy_from_slice(&abi.audit_arch().to_le_bytes());
    data[16..24].copy_from_slice(&arg0.to_le_bytes());
    let (mut pc, mut acc) = (0usize, 0u32);
    for _ in 0..code.len() {
        let insn = code[pc];
        pc += 1;
        let jump = |taken: bool| usize::from(if taken { insn.jt } else { insn.jf });
        match insn.code {
            0x20 => {
                let at = insn.k as usize;
                acc = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            }
            0x54 => acc &= insn.k,
            0x05 => pc += insn.k as usize,
            0x15 => pc += jump(acc == insn.k),
            0x35 => pc += jump(acc >= insn.k),
            0x45 => pc += jump(acc & insn.k != 0),
            0x06 => return insn.k,
            other => panic!("instruction {other:#x} is not one the emitter makes"),
        }
    }
    panic!("the program does not end");
}

const X86: &[Abi] = &[Abi::X86_64, Abi::I386];
const ARM: &[Abi] = &[Abi::Aarch64, Abi::Arm];

#[test]
fn every_listed_call_is_allowed_on_its_architecture() {
    for abis in [X86, ARM] {
        let code = program(abis).unwrap();
        assert!(code.len() < 4096, "the kernel takes 4096 instructions, these are {}", code.len());
        for &abi in abis {
            for (name, numbers) in table::rows() {
                let nr = numbers[abi as usize];
                if nr != table::NO {
                    assert_eq!(run(&code, abi, nr, 0), ALLOW, "{name} on {abi:?}");
                }
            }
        }
    }
}

#[test]
fn numbers_between_the_listed_ones_are_refused_and_newer_ones_unknown() {
    for abis in [X86, ARM] {
        let code = program(abis).unwrap();
        for &abi in abis {
            let listed: Vec<u32> = table::rows().map(|(_, n)| n[abi as usize]).collect();
            let checked = [41, 56, 120, 135, 136, 92, 198, 220, 281, 359, 435];
            for nr in 0..=table::NEWEST {
                if !listed.contains(&nr) && !checked.contains(&nr) {
                    assert_eq!(run(&code, abi, nr, 0), EPERM, "{nr} on {abi:?}");
                }
            }
            for nr in [table::NEWEST + 1, 500, 5000] {
                assert_eq!(run(&code, abi, nr, 0), ENOSYS, "{nr} on {abi:?}");
            }
        }
    }
}

#[test]
fn arguments_decide_for_clone_personality_and_socket() {
    let code = program(X86).unwrap();
    for (clone, socket, personality, abi) in [(56, 41, 135, Abi::X86_64), (120, 359, 136, Abi::I386)] {
        assert_eq!(run(&code, abi, clone, 0x0001_1200), ALLOW);
        for namespace in [0x2_0000u64, 0x0200_0000, 0x1000_0000, 0x4000_0000, 0x4000_0011] {
            assert_eq!(run(&code, abi, clone, namespace), EPERM, "{namespace:#x}");
        }
        assert_eq!(run(&code, abi, 435, 0), ENOSYS);
        for (family, action) in
            [(1, ALLOW), (2, ALLOW), (16, ALLOW), (38, EPERM), (39, ALLOW), (40, EPERM), (41, ALLOW)]
        {
            assert_eq!(run(&code, abi, socket, family), action, "family {family}");
        }
        for (persona, action) in [(0, ALLOW), (8, ALLOW), (0x2_0000, ALLOW), (0xffff_ffff, ALLOW), (0x4_0000, EPERM)] {
            assert_eq!(run(&code, abi, personality, persona), action, "personality {persona:#x}");
        }
    }
}

#[test]
fn dangerous_calls_are_refused() {
    let code = program(X86).unwrap();
    // mount, umount2, unshare, setns, keyctl, add_key, bpf, init_module, kexec_load, reboot, userfaultfd, io_uring_setup
    for nr in [165, 166, 272, 308, 250, 248, 321, 175, 246, 169, 323, 425] {
        assert_eq!(run(&code, Abi::X86_64, nr, 0), EPERM, "{nr}");
    }
}

#[test]
fn x32_uses_the_same_list_and_its_own_numbers() {
    let code = program(X86).unwrap();
    let x32 = |nr: u32, arg: u64| run(&code, Abi::X86_64, 0x4000_0000 | nr, arg);
    assert_eq!(x32(1, 0), ALLOW);
    assert_eq!(x32(165, 0), EPERM);
    assert_eq!(x32(56, 0x1000_0000), EPERM);
    assert_eq!(x32(520, 0), ALLOW);
    assert_eq!(x32(528, 0), EPERM);
    assert_eq!(x32(548, 0), ENOSYS);
}

#[test]
fn private_calls_of_arm_stay_reachable() {
    let code = program(ARM).unwrap();
    assert_eq!(run(&code, Abi::Arm, 0xf0005, 0), ALLOW);
    assert_eq!(run(&code, Abi::Arm, 0xf0006, 0), ENOSYS);
}

#[test]
fn a_foreign_architecture_is_refused() {
    let code = program(X86).unwrap();
    assert_eq!(run(&code, Abi::Arm, 1, 0), EPERM);
}
