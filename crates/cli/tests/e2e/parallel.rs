//! Steps side by side, work shared by builds at once, and what a cancelled build leaves to the others.

use std::time::Duration;

use kiln_testkit::{Finished, Gate, Running, TestEnv};
use rustix::process::Signal;

/// How long a step may outlive the build that wanted it.
const CANCEL: Duration = Duration::from_secs(1);

fn start(env: &TestEnv, args: &[&str]) -> Running {
    let ctx = env.ctx();
    let all = ["build", "--progress=plain"].iter().chain(args).map(std::ffi::OsStr::new);
    env.kiln(all.chain([ctx.as_os_str()])).start()
}

/// A step that counts its runs in a cache mount and then waits at a gate.
fn gated(gate: &Gate) -> String {
    format!("FROM base\nRUN --mount=type=cache,target=/c echo run >> /c/runs; {} && cp /c/runs /runs\n", gate.command())
}

#[track_caller]
fn canceled(done: &Finished) {
    assert!(done.code.is_some_and(|code| code != 0) && !done.timed_out, "{}", done.report());
    assert!(done.err().lines().any(|line| line.starts_with('#') && line.ends_with(" CANCELED")), "{}", done.report());
}

#[test]
fn stages_run_side_by_side() {
    let (env, base) = crate::env_with_base!();
    let (one, two) = (Gate::new(), Gate::new());
    env.context(&[(
        "Dockerfile",
        &format!(
            "FROM base AS one\nRUN {} && echo 1 > /one\nFROM base AS two\nRUN {} && echo 2 > /two\n\
             FROM base AS unneeded\nRUN exit 3\n\
             FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n",
            one.command(),
            two.command()
        ),
    )]);
    let build = start(&env, &["--build-context", &base, "-o", "type=cacheonly"]);
    // Both are there before either may go on.
    let (first, second) = (one.wait(), two.wait());
    first.release();
    second.release();
    let done = build.finish().ok();
    assert!(!done.err().contains("exit 3"), "{}", done.report());
}

#[test]
fn two_equal_builds_at_once_run_each_step_once() {
    let (env, base) = crate::env_with_base!();
    let gate = Gate::new();
    env.context(&[("Dockerfile", &gated(&gate))]);
    let (a, b) = (env.out("a.tar"), env.out("b.tar"));
    let output = |path: &std::path::Path| format!("type=oci,dest={}", path.display());
    let first = start(&env, &["--build-context", &base, "-o", &output(&a)]);
    let held = gate.wait();
    let second = start(&env, &["--build-context", &base, "-o", &output(&b)]);
    second.wait_for("RUN --mount=type=cache");
    held.release();
    let (first, second) = (first.finish().ok(), second.finish().ok());
    assert!(gate.poll().is_none(), "the step ran twice\n{}\n{}", first.report(), second.report());
    let (a, b) = (kiln_testkit::Image::read(&a), kiln_testkit::Image::read(&b));
    assert_eq!(a.text("runs"), "run\n");
    assert_eq!(a.manifest.layers, b.manifest.layers);
}

#[test]
fn an_interrupt_ends_the_step() {
    let (env, base) = crate::env_with_base!();
    for signal in [Signal::INT, Signal::TERM] {
        let gate = Gate::new();
        env.context(&[("Dockerfile", &gated(&gate))]);
        let dest = env.out("never.tar");
        let output = format!("type=oci,dest={}", dest.display());
        let build = start(&env, &["--build-context", &base, "-o", &output]);
        let mut held = gate.wait();
        // The client shows the step before it can be interrupted in it.
        build.wait_for("RUN --mount=type=cache");
        build.signal(signal);
        assert!(held.dies_within(CANCEL), "the step goes on");
        canceled(&build.finish());
        let left: Vec<_> = std::fs::read_dir(env.path().join("out")).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_client_that_dies_takes_its_step_along() {
    let (env, base) = crate::env_with_base!();
    let gate = Gate::new();
    env.context(&[("Dockerfile", &gated(&gate))]);
    let build = start(&env, &["--build-context", &base, "-o", "type=cacheonly"]);
    let mut held = gate.wait();
    build.signal(Signal::KILL);
    assert!(held.dies_within(CANCEL), "the step goes on");
    // The engine is as good as before.
    env.context(&[("Dockerfile", "FROM base\nRUN true\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).ok();
}

#[test]
fn a_cancelled_build_leaves_a_shared_step_to_the_other() {
    let (env, base) = crate::env_with_base!();
    for signal in [Signal::INT, Signal::KILL] {
        let gate = Gate::new();
        env.context(&[("Dockerfile", &gated(&gate))]);
        let first = start(&env, &["--build-context", &base, "-o", "type=cacheonly"]);
        let mut held = gate.wait();
        first.wait_for("RUN --mount=type=cache");
        let second = start(&env, &["--build-context", &base, "-o", "type=cacheonly"]);
        second.wait_for("RUN --mount=type=cache");
        first.signal(signal);
        let first = first.finish();
        assert_ne!(first.code, Some(0), "{}", first.report());
        assert!(!held.dies_within(CANCEL), "the step died with the build that began it");
        held.release();
        let second = second.finish().ok();
        assert!(gate.poll().is_none(), "the step ran twice\n{}", second.report());
    }
}

#[test]
fn the_failure_of_one_stage_ends_the_other() {
    let (env, base) = crate::env_with_base!();
    let (fails, waits) = (Gate::new(), Gate::new());
    env.context(&[(
        "Dockerfile",
        &format!(
            "FROM base AS one\nRUN {} && exit 9\nFROM base AS two\nRUN {} && echo 2 > /two\n\
             FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n",
            fails.command(),
            waits.command()
        ),
    )]);
    let build = start(&env, &["--build-context", &base, "-o", "type=cacheonly"]);
    let (one, mut two) = (fails.wait(), waits.wait());
    build.wait_for(&waits.command());
    one.release();
    assert!(two.dies_within(CANCEL), "the other stage goes on");
    let done = build.finish().fails_with("exit code: 9");
    canceled(&done);
}
