//! What the process may not do.

use kiln_executor::{ExecError, Resources, SecurityMode};

use super::fixture::{Fixture, skip};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP.
const DEFAULT: &str = "00000000a80425fb";

async fn capabilities(f: &Fixture, user: &str, security: SecurityMode) -> Vec<(String, String)> {
    let mut spec = f.shell("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
    spec.user = user.to_owned();
    spec.security = security;
    let out = f.output_of(spec).await;
    out.lines()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn value<'a>(found: &'a [(String, String)], name: &str) -> &'a str {
    &found.iter().find(|(known, _)| known == name).unwrap().1
}

pub async fn capabilities_are_the_default_ones(f: &Fixture) {
    let found = capabilities(f, "", SecurityMode::Sandbox).await;
    for (name, expected) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", DEFAULT),
        ("CapEff", DEFAULT),
        ("CapBnd", DEFAULT),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "0"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(value(&found, name), expected, "{name}");
    }
}

pub async fn the_host_is_out_of_reach(f: &Fixture) {
    let out = f.output("ls /..; echo; ls /; echo; cat /proc/self/mountinfo").await;
    let parts: Vec<&str> = out.split("\n\n").collect();
    assert_eq!(parts[0], parts[1], "`/..` must be `/`");
    let mut places: Vec<&str> = parts[2].lines().filter_map(|line| line.split(' ').nth(4)).collect();
    places.retain(|place| !place.starts_with("/proc/") && !place.starts_with("/sys/"));
    places.sort_unstable();
    assert_eq!(
        places,
        ["/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/etc/hosts", "/etc/resolv.conf", "/proc", "/sys"],
        "nothing of the host is mounted"
    );
    assert_eq!(
        f.output("ls /proc/self/fd | wc -l").await.trim(),
        "4",
        "no descriptor but the streams and that of `ls`"
    );
}

pub async fn users_have_no_capabilities(f: &Fixture) {
    let found = capabilities(f, "app", SecurityMode::Sandbox).await;
    for (name, expected) in [("CapPrm", "0000000000000000"), ("CapEff", "0000000000000000"), ("CapBnd", DEFAULT)] {
        assert_eq!(value(&found, name), expected, "{name}");
    }
}

pub async fn insecure_has_all_capabilities(f: &Fixture) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap().to_owned();
    for user in ["", "app"] {
        let found = capabilities(f, user, SecurityMode::Insecure).await;
        assert_eq!(value(&found, "CapEff"), own, "{user}");
        assert_eq!(value(&found, "Seccomp"), "0");
    }
    let mut spec = f.shell("mkdir /m && mount -t tmpfs x /m && touch /m/y && echo done");
    spec.security = SecurityMode::Insecure;
    assert_eq!(f.output_of(spec).await, "done");
}

#[cfg(target_arch = "x86_64")]
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("mount", &["165"]),
    ("umount2", &["166"]),
    ("pivot_root", &["155"]),
    ("unshare of a user namespace", &["272", "0x10000000"]),
    ("setns", &["308"]),
    ("clone with a user namespace", &["56", "0x10000011"]),
    ("add_key", &["248"]),
    ("keyctl", &["250"]),
    ("bpf", &["321"]),
    ("init_module", &["175"]),
    ("kexec_load", &["246"]),
    ("userfaultfd", &["323"]),
    ("io_uring_setup", &["425"]),
    ("open_by_handle_at", &["304"]),
    ("personality with ADDR_NO_RANDOMIZE", &["135", "0x40000"]),
    ("socket of AF_VSOCK", &["41", "40", "1"]),
    ("socket of AF_ALG", &["41", "38", "5"]),
];

#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN: &[(&str, &[&str])] =
    &[("mount", &["40"]), ("umount2", &["39"]), ("keyctl", &["219"]), ("bpf", &["280"])];

pub async fn forbidden_calls_fail_with_eperm(f: &Fixture) {
    for (name, call) in FORBIDDEN {
        assert_eq!(f.errno(&[&["syscall"], *call].concat()).await, libc::EPERM, "{name}");
    }
    for script in ["unshare -U true", "unshare -m true", "mount -t tmpfs x /tmp"] {
        assert_ne!(f.run(f.shell(script)).await.unwrap().exit.code, 0, "{script}");
    }
}

pub async fn unknown_and_structured_calls_fail_with_enosys(f: &Fixture) {
    // clone3, whose flags no filter can see.
    assert_eq!(f.errno(&["syscall", "435"]).await, libc::ENOSYS);
    // A number that no kernel knows yet; crun's filter has only one answer for all that is not listed.
    let unknown = if f.executor.name() == "crun" { libc::EPERM } else { libc::ENOSYS };
    assert_eq!(f.errno(&["syscall", "1000"]).await, unknown);
}

pub async fn thirty_two_bit_calls_work_and_are_filtered(f: &Fixture) {
    if cfg!(not(target_arch = "x86_64")) {
        return skip("only x86-64 has another convention that one program can use").unwrap_or(());
    }
    // getpid, then mount, then socket of AF_VSOCK.
    assert_eq!(f.errno(&["int80", "20"]).await, 0);
    assert_eq!(f.errno(&["int80", "21"]).await, libc::EPERM);
    assert_eq!(f.errno(&["int80", "359", "40", "1"]).await, libc::EPERM);
}

pub async fn memory_limit_is_kept_and_reported(f: &Fixture) {
    let mut spec = f.shell("x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo survived");
    spec.args = ["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"].map(str::to_owned).to_vec();
    spec.resources = Resources { memory: Some(32 << 20), ..Resources::default() };
    match f.run(spec).await {
        Err(ExecError::NoController { controller, .. }) => skip(&format!("no {controller} controller")).unwrap_or(()),
        ended => {
            let ran = ended.unwrap();
            assert_eq!((ran.exit.code, ran.exit.oom), (137, true), "{ran:?}");
        }
    }
}

pub async fn process_limit_is_kept(f: &Fixture) {
    let mut spec = f.shell("for n in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; echo all");
    spec.resources = Resources { pids: Some(5), ..Resources::default() };
    match f.run(spec).await {
        Err(ExecError::NoController { controller, .. }) => skip(&format!("no {controller} controller")).unwrap_or(()),
        ended => {
            let ran = ended.unwrap();
            assert_ne!(ran.exit.code, 0, "{ran:?}");
            assert!(ran.err.contains("fork"), "{ran:?}");
        }
    }
}
