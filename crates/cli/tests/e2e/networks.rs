//! Networks that keep steps apart from the host: what they reach, and what is left of them. The host is a network
//! namespace of the test's own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kiln_testkit::{Run, Running, TestEnv, program};
use rustix::process::Signal;

/// Addresses of the host towards the outside, and of the outside (from blocks for documentation).
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Puts the calling thread into a network namespace of its own; false where that is not allowed.
fn own_network() -> bool {
    // SAFETY: only this thread's view of the network changes.
    unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
}

fn ip(line: &str) {
    let _ = Run::new("ip").args(line.split_whitespace()).finish().ok();
}

/// Answers every connection with the address it comes from.
fn answer(listener: &TcpListener) {
    while let Ok((mut stream, peer)) = listener.accept() {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let _ = stream.read(&mut [0; 1024]);
        let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{}\n", peer.ip());
    }
}

/// Makes a host that reaches an outside, where a server listens; returns its port. None where that is not possible.
fn host(forwards: bool) -> Option<u16> {
    if program("ip").is_none() || !own_network() {
        return None;
    }
    ip("link set lo up");
    let (thread, begun) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let (port, ready) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = thread.send(own_network().then(|| rustix::thread::gettid().as_raw_nonzero()));
        if wait.recv().is_err() {
            return;
        }
        ip("link set lo up");
        ip(&format!("address add {OUTSIDE}/24 dev outside"));
        ip("link set outside up");
        let listener = TcpListener::bind((OUTSIDE, 0)).expect("bind");
        let _ = port.send(listener.local_addr().expect("address").port());
        answer(&listener);
    });
    let thread = begun.recv().ok()??;
    ip(&format!("link add way type veth peer name outside netns {thread}"));
    ip(&format!("address add {HOST}/24 dev way"));
    ip("link set way up");
    let _ = go.send(());
    std::fs::write("/proc/sys/net/ipv4/ip_forward", if forwards { "1" } else { "0" }).ok()?;
    ready.recv().ok()
}

/// An engine with a kind of network, in the network of the calling thread.
fn engine(env: &TestEnv, mode: &str) -> (Running, String) {
    let path: PathBuf = env.path().join("buildkitd");
    if !path.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &path).expect("link");
    }
    let address = format!("unix://{}", env.path().join("d.sock").display());
    let root = env.path().join("state").display().to_string();
    let daemon = Run::new(path)
        .args(["--root", &root, "--addr", &address, "--oci-worker-net", mode, "--oci-cni-pool-size", "2"])
        .env("HOME", env.path().join("home"))
        .start();
    daemon.wait_for("running server on");
    (daemon, address)
}

/// Builds three steps that run at once; each says what the server answered, its resolver and its links.
fn build(env: &TestEnv, address: &str, base: &str, port: u16, round: &str) -> Vec<String> {
    let step = |n: usize| {
        format!(
            "FROM base AS s{n}\nRUN mkdir /o && echo {round} && wget -qO /o/{n} http://{OUTSIDE}:{port}/ && \
             cat /etc/resolv.conf >> /o/{n} && ls /sys/class/net >> /o/{n}\n"
        )
    };
    let mut text: String = (0..3).map(step).collect();
    text.push_str("FROM scratch\nCOPY --from=s0 /o /\nCOPY --from=s1 /o /\nCOPY --from=s2 /o /\n");
    env.context(&[("Dockerfile", &text)]);
    let context = env.ctx().display().to_string();
    let args = [
        "build",
        "--addr",
        address,
        "--build-context",
        base,
        "--progress=plain",
        "-o",
        "type=local,dest=out",
        &context,
    ];
    let _ = env.kiln(args).finish().ok();
    (0..3).map(|n| std::fs::read_to_string(env.path().join(format!("out/{n}"))).expect("file")).collect()
}

/// Returns the links and rules of the test's host.
fn left() -> (Vec<String>, String) {
    let links = Run::new("ip").args(["-o", "link"]).finish().ok().out();
    let mut links: Vec<String> = links
        .lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()))
        .filter(|name| !matches!(name.as_str(), "lo" | "way"))
        .collect();
    links.sort();
    let rules =
        program("nft").map_or_else(String::new, |nft| Run::new(nft).args(["list", "ruleset"]).finish().ok().out());
    (links, rules)
}

/// Waits until nothing is left: the kernel takes namespaces down after their last holder is gone.
#[track_caller]
fn nothing_is_left() {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let left = left();
        if left == (Vec::new(), String::new()) {
            return;
        }
        assert!(Instant::now() < deadline, "left: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn steps_behind_a_bridge_go_by_the_hosts_address() {
    let (env, base) = crate::env_with_base!();
    let Some(port) = host(true) else { kiln_testkit::skip!("no network of the test's own can be made") };
    let (daemon, address) = engine(&env, "bridge");
    for text in build(&env, &address, &base, port, "one") {
        assert_eq!(text.lines().next(), Some("192.0.2.1"), "{text}");
        assert!(text.contains("nameserver ") && !text.contains("nameserver 127."), "{text}");
        assert!(text.ends_with("eth0\nlo\n"), "{text}");
    }
    let (links, rules) = left();
    assert_eq!(links.len(), 1, "{links:?}");
    assert!(program("nft").is_none() || rules.contains("masquerade"), "{rules}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.finish().code, Some(0));
    nothing_is_left();

    // Killed, an engine leaves nothing either, and the next one begins at once.
    let (daemon, _) = engine(&env, "bridge");
    daemon.signal(Signal::KILL);
    let _ = daemon.finish();
    let (daemon, address) = engine(&env, "isolated");
    assert_eq!(build(&env, &address, &base, port, "two")[0].lines().next(), Some("192.0.2.1"));
    daemon.signal(Signal::KILL);
    let _ = daemon.finish();
    nothing_is_left();
}

#[test]
fn a_host_that_does_not_forward_has_no_bridge() {
    let env = crate::env();
    let Some(_) = host(false) else { kiln_testkit::skip!("no network of the test's own can be made") };
    let path = env.path().join("buildkitd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &path).expect("link");
    let root = env.path().join("state").display().to_string();
    let address = format!("unix://{}", env.path().join("d.sock").display());
    let done = Run::new(path).args(["--root", &root, "--addr", &address, "--oci-worker-net=bridge"]).finish();
    let _ = done.fails_with("this host does not forward packets");
    nothing_is_left();
}

#[test]
fn steps_reach_the_outside_by_slirp() {
    let (env, base) = crate::env_with_base!();
    if program("slirp4netns").is_none() || !std::path::Path::new("/dev/net/tun").exists() {
        kiln_testkit::skip!("no slirp4netns or no /dev/net/tun");
    }
    let Some(port) = host(false) else { kiln_testkit::skip!("no network of the test's own can be made") };
    let (daemon, address) = engine(&env, "isolated");
    for text in build(&env, &address, &base, port, "one") {
        assert_eq!(text.lines().next(), Some("192.0.2.1"), "{text}");
        assert!(text.contains("nameserver 10.0.2.3"), "{text}");
        assert!(text.ends_with("lo\ntap0\n"), "{text}");
    }
    let children = children_named(daemon.id(), "slirp4netns");
    assert!(!children.is_empty(), "some are kept ready");
    daemon.signal(Signal::KILL);
    let _ = daemon.finish();
    let deadline = Instant::now() + Duration::from_secs(30);
    while children.iter().any(|pid| name_of(*pid).as_deref() == Some("slirp4netns")) {
        assert!(Instant::now() < deadline, "a process is left");
        std::thread::sleep(Duration::from_millis(20));
    }
    nothing_is_left();
}

fn name_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = stat.rsplit_once(')')?;
    // One that has ended and was not waited for is gone.
    (!rest.trim_start().starts_with('Z')).then(|| head.split_once('(').map(|(_, name)| name.to_owned()))?
}

fn children_named(parent: u32, name: &str) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).expect("tasks");
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let all: Vec<u32> =
        lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect();
    all.into_iter().filter(|pid| name_of(*pid).as_deref() == Some(name)).collect()
}
