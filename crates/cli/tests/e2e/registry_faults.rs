//! Pushes and exports that are cut off: what is there stays as it was, and the next attempt goes on. TLS as configured.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use kiln_testkit::registry::{Answer, Asked, End, FakeRegistry, Holdings};
use kiln_testkit::{Certificates, DebianRegistry, TestEnv};
use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn spawn(env: &TestEnv, args: &[&str]) -> Child {
    let ctx = env.ctx();
    let all = ["build", "--progress=plain"].into_iter().chain(args.iter().copied()).map(OsStr::new);
    env.kiln(all.chain([ctx.as_os_str()])).spawn()
}

/// Returns bytes that do not compress, as text.
fn noise(length: usize) -> String {
    let mut seed = 11u64;
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + u8::try_from((seed >> 33) % 90).unwrap_or(0))
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn kill(pid: i32) {
    let process = Pid::from_raw(pid).expect("pid");
    kill_process(process, Signal::KILL).unwrap_or_else(|e| panic!("kill {pid}: {e}"));
}

/// A registry that does not answer uploads of more than half a megabyte while the switch is on, and tells of each.
fn stuck_registry() -> (FakeRegistry, Arc<AtomicBool>, mpsc::Receiver<()>) {
    let (tell, told) = mpsc::channel();
    let (tell, stuck) = (Mutex::new(tell), Arc::new(AtomicBool::new(true)));
    let switch = stuck.clone();
    let registry = FakeRegistry::scripted(move |asked: &Asked, _: &mut Holdings| {
        let large = asked.method == "PUT" && asked.body.len() > 500_000;
        if !large || !switch.load(Ordering::SeqCst) {
            return None;
        }
        let _ = tell.lock().map(|tell| tell.send(()));
        Some(Answer::default().ending(End::Silent))
    });
    (registry, stuck, told)
}

#[test]
fn a_push_that_was_killed_goes_on_where_it_was() {
    for engine in [true, false] {
        let (registry, stuck, told) = stuck_registry();
        let env = crate::env();
        let large = noise(1_500_000);
        env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\nCOPY g /\n"), ("f", "small"), ("g", &large)]);
        let name = format!("{}/me/app:1", registry.host);
        let mut child = spawn(&env, &["-t", &name, "--push"]);
        told.recv_timeout(PATIENCE).expect("the upload began");
        match engine {
            true => kill(env.engine_pid().expect("engine")),
            false => kill(i32::try_from(child.id()).expect("pid")),
        }
        let mut said = String::new();
        let _ = child.stderr.take().expect("pipe").read_to_string(&mut said);
        assert!(!child.wait().expect("wait").success(), "{said}");
        assert!(registry.holdings().manifests.is_empty(), "a manifest came before its layers");
        let there: BTreeSet<String> = registry.holdings().blobs.keys().map(|(_, digest)| digest.clone()).collect();
        stuck.store(false, Ordering::SeqCst);
        registry.take_log();
        let _ = env.build(&["-t", &name, "--push"]).ok();
        let sent: BTreeSet<String> =
            registry.take_log().iter().filter(|a| a.method == "PUT").filter_map(|a| a.parameter("digest")).collect();
        assert_eq!(sent.intersection(&there).count(), 0, "{sent:?} {there:?}");
        assert!(!sent.is_empty() && registry.holdings().manifests.contains_key(&("me/app".into(), "1".into())));
    }
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_was() {
    let stuck = Arc::new(AtomicBool::new(true));
    let switch = stuck.clone();
    let registry = FakeRegistry::scripted(move |asked: &Asked, holdings: &mut Holdings| {
        let digest = asked.path.strip_prefix("/v2/base/blobs/")?;
        let bytes = holdings.blobs.get(&("base".to_owned(), digest.to_owned()))?;
        let stalls = switch.load(Ordering::SeqCst) && bytes.len() > 1_250_000;
        stalls.then(|| Answer::new(200).body(bytes.clone()).ending(End::Stall(1_200_000)))
    });
    let _ = crate::busybox_in!(registry, "base");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/base\nRUN sha256sum /noise > /sum\n", registry.host))]);
    let mut child = spawn(&env, &["-o", "type=cacheonly"]);
    let begun = std::time::Instant::now();
    let arrived = || {
        let files = std::fs::read_dir(env.root().join("partial")).into_iter().flatten().flatten();
        files.filter_map(|f| f.metadata().ok()).any(|meta| meta.len() >= 1_200_000)
    };
    while !arrived() {
        assert!(begun.elapsed() < PATIENCE, "nothing came");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(env.engine_pid().expect("engine"));
    let _ = child.wait();
    stuck.store(false, Ordering::SeqCst);
    registry.take_log();
    let (image, _) = env.build_image(&[]);
    assert!(image.text("sum").ends_with("/noise\n"));
    let ranges: Vec<String> = registry.take_log().iter().map(|a| a.header("range").to_owned()).collect();
    assert_eq!(ranges.iter().filter(|r| *r == "bytes=1200000-").count(), 1, "{ranges:?}");
}

#[test]
fn a_fetch_outlives_the_build_that_began_it() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(Some(tell));
    let registry = FakeRegistry::scripted(move |asked: &Asked, holdings: &mut Holdings| {
        let digest = asked.path.strip_prefix("/v2/base/blobs/")?;
        let bytes = holdings.blobs.get(&("base".to_owned(), digest.to_owned()))?;
        let first = bytes.len() > 1_250_000 && tell.lock().ok()?.take().is_some_and(|tell| tell.send(()).is_ok());
        first.then(|| Answer::new(200).body(bytes.clone()).ending(End::Stall(600_000)))
    });
    let _ = crate::busybox_in!(registry, "base");
    let env = crate::env();
    let dockerfile = |step: &str| format!("FROM {}/base\nRUN echo {step} > /step\n", registry.host);
    env.context(&[("Dockerfile", &dockerfile("one"))]);
    let mut one = spawn(&env, &["-o", "type=cacheonly"]);
    told.recv_timeout(PATIENCE).expect("the fetch began");
    env.context(&[("Dockerfile", &dockerfile("two"))]);
    let dest = env.out("two.tar");
    let output = format!("type=oci,dest={}", dest.display());
    let mut two = spawn(&env, &["-o", &output]);
    kill(i32::try_from(one.id()).expect("pid"));
    let _ = one.wait();
    assert!(two.wait().expect("wait").success());
    assert_eq!(kiln_testkit::Image::read(&dest).text("step"), "two\n");
}

/// A small file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, size: &str) -> Option<Disk> {
        std::fs::create_dir_all(path).ok()?;
        let options = format!("size={size}");
        let done = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(path).output();
        done.is_ok_and(|o| o.status.success()).then(|| Disk(path.to_owned()))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let done = std::process::Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(done.is_ok_and(|s| s.success()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_the_destination_as_it_was() {
    let env = crate::env();
    let Some(disk) = Disk::mount(&env.out("disk"), "1m") else {
        kiln_testkit::skip!("no right to mount a file system");
    };
    env.context(&[("Dockerfile", "FROM scratch\nCOPY g /\n"), ("g", &noise(3_000_000))]);
    let archive = disk.0.join("image.tar");
    std::fs::write(&archive, "what was there").expect("write");
    let output = format!("type=oci,dest={}", archive.display());
    let _ = env.build(&["-o", &output]).fails_with("No space left on device");
    assert_eq!(std::fs::read(&archive).expect("read"), b"what was there");
    assert_eq!(std::fs::read_dir(&disk.0).expect("list").count(), 1, "nothing is left beside it");
    let dir = disk.0.join("files");
    let _ = env.build(&["-o", dir.to_str().expect("path")]).fails_with("No space left on device");
    assert!(!dir.exists());
    disk.resize("32m");
    let _ = env.build(&["-o", &output]).ok();
    assert_eq!(kiln_testkit::Image::read(&archive).text("g").len(), 3_000_000);
}

#[test]
fn own_authorities_and_client_certificates() {
    let env = crate::env();
    let Some(certificates) = Certificates::make(&env.out("")) else {
        kiln_testkit::skip!("no openssl");
    };
    let Some(registry) = DebianRegistry::start_tls(env.path(), &certificates) else {
        kiln_testkit::skip!("no docker-registry");
    };
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "x")]);
    let name = format!("{}/me/app:1", registry.host);
    let config = env.out("kiln.toml");
    let file = |name: &str| certificates.dir.join(name).display().to_string();
    let table = format!("[registry.\"{}\"]\nca = [\"{}\"]\n", registry.host, file("ca.pem"));
    let pair = format!("keypair = [{{ key = \"{}\", cert = \"{}\" }}]\n", file("client.key"), file("client.pem"));
    let push = |text: &str| {
        std::fs::write(&config, text).expect("write");
        let _ = env.kiln(["daemon", "stop"]).finish();
        let ctx = env.ctx();
        let args = ["build", "--progress=plain", "-t", &name, "--push"].map(OsStr::new);
        env.kiln(args.into_iter().chain([ctx.as_os_str()])).env("KILN_CONFIG", &config).finish()
    };
    let _ = push(&format!("[registry.\"{}\"]\nhttp = false\n", registry.host)).fails_with("certificate");
    let _ = push(&table).fails_with("failed to push");
    let _ = push(&format!("{table}{pair}")).ok();
    // Among several pairs that one is taken whose authority the registry knows.
    let other_dir = env.out("other");
    std::fs::create_dir(&other_dir).expect("mkdir");
    let other = Certificates::make(&other_dir).expect("openssl was here before");
    let foreign = |name: &str| other.dir.join(name).display().to_string();
    let foreign = format!("{{ key = \"{}\", cert = \"{}\" }}", foreign("client.key"), foreign("client.pem"));
    let _ = push(&format!("{table}keypair = [{foreign}]\n")).fails_with("failed to push");
    let _ = push(&format!("{table}{}", pair.replace("= [", &format!("= [{foreign}, ")))).ok();
}

#[test]
fn a_layer_is_unpacked_while_it_comes_and_nothing_of_a_broken_one_stays() {
    let stall = Arc::new(AtomicBool::new(true));
    let stalls = stall.clone();
    let registry = FakeRegistry::scripted(move |asked: &Asked, holdings: &mut Holdings| {
        let digest = asked.path.strip_prefix("/v2/base/blobs/")?;
        let bytes = holdings.blobs.get(&("base".to_owned(), digest.to_owned()))?;
        // The config is left alone.
        let stalls = bytes.len() > 4096 && stalls.load(Ordering::SeqCst);
        stalls.then(|| Answer::new(200).body(bytes.clone()).ending(End::Stall(bytes.len() - 100)))
    });
    let layers = crate::busybox_in!(registry, "base");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/base\nRUN sha256sum /noise > /sum\n", registry.host))]);
    let (args, context) = (["build", "--progress=rawjson", "-o", "type=cacheonly"].map(OsStr::new), env.ctx());
    let build = env.kiln(args.into_iter().chain([context.as_os_str()])).start();
    build.wait_for(&format!("extracting {}", layers[0]));
    build.signal(Signal::INT);
    assert_ne!(build.finish().code, Some(0));
    stall.store(false, Ordering::SeqCst);
    let (image, _) = env.build_image(&[]);
    assert!(image.text("sum").ends_with("/noise\n"));
}
