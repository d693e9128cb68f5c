//! Copies of the disk under a working engine, as power loss at that moment would leave it: each mounts, opens and
//! builds what a cold root does.

use std::time::{Duration, Instant};

use kiln_testkit::TestEnv;

use crate::choices::{Choices, number, seed, share};
use crate::client::Client;
use crate::disk::{Disk, isolate};
use crate::project::{DEADLINE, Packing, Project};

/// Copies taken during one build.
const PER_BUILD: usize = 4;

/// Builds, and copies the disk each time the build has printed the next of these many lines; some time before that,
/// now and then, everything is written back. Copies that the build was too short for are made when it has ended.
fn build_and_copy(project: &Project, disk: &Disk, first: usize, choices: &mut Choices) -> Result<(), String> {
    let mut at: Vec<usize> = (0..PER_BUILD).map(|_| 1 + choices.below(110)).collect();
    at.sort_unstable();
    let sync_at = if choices.below(2) == 0 { choices.below(110) } else { usize::MAX };
    let mut client = Client::start(project.build(Packing::ALL[choices.below(3)]));
    let deadline = Instant::now() + DEADLINE;
    let (mut taken, mut synced) = (0, false);
    while !client.ended() {
        client.read(Duration::from_millis(10));
        let lines = client.said.len();
        if lines >= sync_at && !synced {
            synced = true;
            disk.write_back()?;
        }
        while at.get(taken).is_some_and(|at| *at <= lines) {
            disk.copy(first + taken)?;
            taken += 1;
        }
        if Instant::now() > deadline {
            return Err(format!("the build hangs\n{}", client.text()));
        }
    }
    if client.code.flatten() != Some(0) {
        client.read(Duration::from_secs(1));
        return Err(format!("the build fails\n{}\n{}", client.text(), project.engine_log()));
    }
    for n in taken..PER_BUILD {
        disk.copy(first + n)?;
    }
    Ok(())
}

fn set_seeds(project: &Project, value: &str) {
    for name in ["tools", "data", "last"] {
        project.set_seed(name, value);
    }
}

/// Builds on copy `n`, twice: as it was, and with something changed. Tells whether the copy's journal had something to
/// replay, and whether the engine found damage.
fn check_copy(disk: &Disk, n: usize, driver: &'static str, seeds: &str) -> Result<[bool; 2], String> {
    let mut choices = Choices::new(seed(), 8_000 + n as u64);
    let (mounted, replayed) = disk.mount_copy(n)?;
    let outcome = {
        let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln")).with_root(mounted.join("root"));
        let project = Project::new(env, driver).ok_or("no busybox")?;
        set_seeds(&project, seeds);
        let before = damage_told(&project);
        let outcome = project.check(Packing::ALL[choices.below(3)]).and_then(|_| {
            project.set_seed("tools", "another");
            project.check(Packing::ALL[choices.below(3)])
        });
        project.stop();
        outcome.map(|_| damage_told(&project) > before)
    };
    disk.drop_copy(n)?;
    outcome.map(|damaged| [replayed, damaged])
}

/// Returns how often the engines of the root have logged damage.
fn damage_told(project: &Project) -> usize {
    let log = std::fs::read(project.env.root().join("engine.log")).unwrap_or_default();
    String::from_utf8_lossy(&log).matches("store damage").count()
}

fn copies(total: usize) -> Result<String, String> {
    let base = TestEnv::new(env!("CARGO_BIN_EXE_kiln"));
    let disk = Disk::new(base.path())?;
    let mut choices = Choices::new(seed(), 7_000);
    let only = number("KILN_HARNESS_COPY");
    let (mut seen, mut failures) = ([0; 2], Vec::new());
    let mut first = 0;
    while first < total {
        // A driver's steps may have other layers than the other's, so what is asked for again is one driver's.
        let turn = first / PER_BUILD / 3;
        let driver = ["overlay", "copy"][turn % 2];
        let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln")).with_root(disk.state().join("root"));
        let project = Project::new(env, driver).ok_or("no busybox")?;
        // Every few builds all steps run again; what was built before is asked for on the copies too.
        let seeds = turn.to_string();
        set_seeds(&project, &seeds);
        build_and_copy(&project, &disk, first, &mut choices)?;
        drop(project);
        for n in first..first + PER_BUILD {
            let wanted = n < total && only.is_none_or(|only| only == n);
            match if wanted { check_copy(&disk, n, driver, &seeds) } else { Ok([false; 2]) } {
                Ok(found) => seen = [0, 1].map(|i| seen[i] + usize::from(found[i])),
                Err(text) => failures.push(format!("copy {n}, driver {driver}: {text}")),
            }
        }
        first += PER_BUILD;
    }
    if failures.is_empty() {
        let [replayed, damaged] = seen;
        return Ok(format!("{total} copies, {replayed} with a journal to replay, {damaged} with damage"));
    }
    let repeat = format!("KILN_HARNESS_SEED={} KILN_HARNESS_ROUNDS=500", seed());
    Err(format!("{} of {total} copies failed, repeat with {repeat}\n{}", failures.len(), failures.join("\n\n")))
}

#[test]
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn builds_on_copied_disks_are_as_cold_ones() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    // A probe of its own, so that a host without loop devices is told from a disk that fails.
    let probe = || {
        let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln"));
        if isolate() { Disk::new(env.path()).map(drop) } else { Err("no mount namespaces".to_owned()) }
    };
    let lacking = std::thread::scope(|scope| scope.spawn(probe).join());
    if let Ok(Err(why)) = lacking {
        kiln_testkit::skip!("no loop-mounted disks on this host: {}", why.lines().next().unwrap_or_default());
    }
    // The threads' mount namespaces end with them.
    let done = std::thread::scope(|scope| {
        let work = || if isolate() { copies(share(50)) } else { Err("no mount namespaces".to_owned()) };
        scope.spawn(work).join().unwrap_or_else(|_| Err("a panic".to_owned()))
    });
    match done {
        Ok(text) => eprintln!("{text}"),
        Err(text) => panic!("{text}"),
    }
}
