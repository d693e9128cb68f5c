//! The same filter in the words of the OCI runtime specification, for runtimes that bring their own compiler.

use serde_json::{Value, json};

use super::profile::{Abi, FAMILIES_DENIED, NAMESPACES, NATIVE, PERSONALITIES};
use super::table;

/// Returns the `linux.seccomp` object of a config.
pub(crate) fn oci_profile() -> Value {
    let names: Vec<&str> = table::rows().map(|(name, _)| *name).collect();
    let mut calls = vec![json!({ "names": names, "action": "SCMP_ACT_ALLOW" })];
    for value in PERSONALITIES {
        calls.push(by_argument("personality", "SCMP_CMP_EQ", u64::from(value)));
    }
    // Several rules for one call are alternatives, so the families are allowed by ranges around the refused two.
    let [low, high] = FAMILIES_DENIED.map(u64::from);
    calls.push(by_argument("socket", "SCMP_CMP_LT", low));
    for family in low + 1..high {
        calls.push(by_argument("socket", "SCMP_CMP_EQ", family));
    }
    calls.push(by_argument("socket", "SCMP_CMP_GT", high));
    calls.push(json!({
        "names": ["clone"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
    }));
    calls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": architectures(),
        "syscalls": calls,
    })
}

fn by_argument(name: &str, op: &str, value: u64) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": value, "op": op }] })
}

fn architectures() -> Vec<&'static str> {
    let mut names = Vec::new();
    for abi in NATIVE {
        match abi {
            Abi::X86_64 => names.extend(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]),
            Abi::I386 => names.push("SCMP_ARCH_X86"),
            Abi::Aarch64 => names.push("SCMP_ARCH_AARCH64"),
            Abi::Arm => names.push("SCMP_ARCH_ARM"),
        }
    }
    names
}
