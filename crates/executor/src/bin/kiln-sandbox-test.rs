//! What this crate's tests run: the sandbox helper, an engine to be killed, and a probe that makes single system calls.

use std::io::Write;
use std::path::PathBuf;

use kiln_executor::{Executor, ProcessIo, ProcessSpec, SandboxConfig, SandboxExecutor};
use tokio_util::sync::CancellationToken;

fn main() {
    if kiln_executor::is_sandbox_init() {
        kiln_executor::sandbox_init_main();
    }
    let args: Vec<String> = std::env::args().collect();
    let rest: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match rest.as_slice() {
        ["rootless", base, upper, work, command @ ..] => rootless([base, upper, work], command),
        ["engine", root, command @ ..] => engine(root, command),
        ["syscall", numbers @ ..] => std::process::exit(syscall(numbers)),
        ["int80", numbers @ ..] => std::process::exit(int80(numbers)),
        _ => std::process::exit(99),
    }
}

/// Runs a command in a sandbox and waits to be killed.
fn engine(root: &str, command: &[&str]) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let config = SandboxConfig { cgroup_parent: "kiln-test".to_owned(), ..SandboxConfig::default() };
    if let (Ok(runtime), Ok(executor)) = (runtime, SandboxExecutor::new(config)) {
        let root = kiln_snapshot::Mount::Bind { source: PathBuf::from(root), readonly: false };
        let mut spec = ProcessSpec::new(format!("engine-{}", std::process::id()), root, command.iter().copied());
        spec.env.push(("PATH".to_owned(), "/bin".to_owned()));
        let _ = runtime.block_on(executor.run(spec, ProcessIo::default(), CancellationToken::new()));
    }
    std::process::exit(1)
}

/// Runs a command over an overlay as whatever user this is, and ends as it did.
fn rootless([base, upper, work]: [&str; 3], command: &[&str]) -> ! {
    let run = || -> Option<i32> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async {
            let executor = SandboxExecutor::new(SandboxConfig::default()).ok()?;
            let root = kiln_snapshot::Mount::Overlay {
                lowers: vec![base.into()],
                upper: Some(upper.into()),
                work: Some(work.into()),
            };
            let mut spec = ProcessSpec::new("rootless", root, command.iter().copied());
            spec.env.push(("PATH".to_owned(), "/bin".to_owned()));
            let (out, mut read) = tokio::sync::mpsc::channel(4);
            let io = ProcessIo { stdout: kiln_executor::Output::Channel(out), ..ProcessIo::default() };
            let print = async {
                while let Some(piece) = read.recv().await {
                    let _ = std::io::stdout().write_all(&piece);
                }
            };
            let (ended, ()) = tokio::join!(executor.run(spec, io, CancellationToken::new()), print);
            match ended {
                Ok(exit) => Some(exit.code),
                Err(error) => {
                    let _ = writeln!(std::io::stdout(), "{error}");
                    Some(97)
                }
            }
        })
    };
    std::process::exit(run().unwrap_or(96))
}

fn number(text: &str) -> i64 {
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).unwrap_or(-1),
        None => text.parse().unwrap_or(-1),
    }
}

/// Makes a system call and returns its error number, or 0.
fn syscall(numbers: &[&str]) -> i32 {
    let value = |at: usize| numbers.get(at).map_or(0, |text| number(text));
    // SAFETY: the tests pass plain numbers and null pointers to calls that are refused or harmless.
    let result = unsafe { libc::syscall(value(0), value(1), value(2), value(3), value(4), value(5), value(6)) };
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(1) } else { 0 }
}

/// Makes a system call by the convention of 32-bit programs and returns its error number, or 0.
#[cfg(target_arch = "x86_64")]
fn int80(numbers: &[&str]) -> i32 {
    let value = |at: usize| numbers.get(at).map_or(0, |text| number(text));
    let mut result = value(0);
    let first = value(1);
    // SAFETY: as for `syscall`; the call clobbers r8 to r11 and nothing else, and rbx is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inout("rax") result,
            in("rcx") value(2),
            in("rdx") value(3),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The 32-bit result is in the low half.
    let result = result as i32;
    if (-4095..0).contains(&result) { -result } else { 0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn int80(_numbers: &[&str]) -> i32 {
    98
}
