//! Sandboxes of an engine that is not root.

#[allow(dead_code, reason = "only the fixture is used here")]
mod suite;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use suite::fixture::{Fixture, PROGRAM, skip};

/// A user that has no account and so no subordinate ids.
const USER: u32 = 64_242;

fn run(fixture: &Fixture, script: &str) -> Output {
    let path = |name: &str| fixture.path(name).into_os_string();
    Command::new(fixture.path("program"))
        .args(["rootless".into(), path("base"), path("upper"), path("work"), "sh".into(), "-c".into(), script.into()])
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap()
}

/// Gives everything to the user; returns nothing where that user can have no namespace.
fn prepare() -> Option<Fixture> {
    let fixture = Fixture::sandbox()?;
    std::fs::copy(PROGRAM, fixture.path("program")).unwrap();
    std::fs::set_permissions(fixture.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut pending = vec![fixture.dir.path().to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_symlink() {
            continue;
        }
        chown(&path, Some(USER), Some(USER)).unwrap();
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let allowed = Command::new("unshare").args(["-Ur", "true"]).uid(USER).gid(USER).status();
    if !allowed.is_ok_and(|status| status.success()) {
        return skip("this host lets no ordinary user make a user namespace");
    }
    Some(fixture)
}

#[test]
fn a_user_is_root_in_its_own_sandbox() {
    let Some(fixture) = prepare() else { return };
    let ran = run(
        &fixture,
        "echo $$ $(id -u):$(id -g); echo made > /new; ls /proc/self/fd | wc -l; echo x > /dev/null; exit 7",
    );
    let out = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(ran.status.code(), Some(7), "{out}");
    assert_eq!(out.replace(' ', "").lines().collect::<Vec<_>>(), ["10:0", "4"]);
    let made = std::fs::metadata(fixture.path("upper/new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (USER, USER));
}

#[test]
fn the_same_limits_hold() {
    let Some(fixture) = prepare() else { return };
    let script = "grep -E '^(CapEff|Seccomp:)' /proc/self/status; mount -t tmpfs x /tmp 2>/dev/null || echo refused; \
                  mknod /tmp/mem c 1 1 2>/dev/null || echo refused; ls -d /..";
    let ran = run(&fixture, script);
    let out = String::from_utf8_lossy(&ran.stdout);
    let lines: Vec<&str> = out.lines().collect();
    // The default capabilities but for MKNOD, which has no use here.
    assert_eq!(lines, ["CapEff:\t00000000a00425fb", "Seccomp:\t2", "refused", "refused", "/.."]);
}
