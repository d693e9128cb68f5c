//! Results that turn out to be damaged after they were taken from the cache: a build goes on until all of them are good.

use std::path::PathBuf;

use kiln_testkit::{Gate, Running, TestEnv};

fn start(env: &TestEnv, args: &[&str]) -> Running {
    let ctx = env.ctx();
    let all = ["build", "--progress=plain"].iter().chain(args).map(std::ffi::OsStr::new);
    env.kiln(all.chain([ctx.as_os_str()])).start()
}

/// A chain of three steps, as a stage of its own, and one on top of it that waits at the gate when it has read them.
fn dockerfile(gate: &Gate) -> String {
    let steps: String =
        ["one", "two", "three"].iter().map(|n| format!("RUN echo {n} > /{n}; echo made $((0)){n}\n")).collect();
    format!("FROM base AS made\n{steps}FROM made\nRUN cat /one /two /three > /all && {}\n", gate.command())
}

/// Removes a file from the layers that have it; the next thing that reads it finds out.
fn spoil(env: &TestEnv, name: &str) {
    layer_files(env, name).iter().for_each(|file| std::fs::remove_file(file).expect("a file of a layer"));
}

/// Returns where the layers that have a file have it.
fn layer_files(env: &TestEnv, name: &str) -> Vec<PathBuf> {
    let layers = std::fs::read_dir(env.root().join("layers")).expect("layers");
    let mut files: Vec<PathBuf> = layers.flatten().map(|layer| layer.path().join("fs").join(name)).collect();
    files.retain(|file| file.exists());
    assert!(!files.is_empty(), "no layer has {name}");
    files
}

fn output(env: &TestEnv, name: &str) -> (String, PathBuf) {
    let dest = env.out(name);
    (format!("type=tar,dest={}", dest.display()), dest)
}

fn text(archive: &std::path::Path, name: &str) -> String {
    let files = kiln_testkit::image::read_layer(&std::fs::read(archive).expect("archive"));
    let file = files.get(name.as_bytes()).unwrap_or_else(|| panic!("no {name} in the archive"));
    String::from_utf8_lossy(&file.content).into_owned()
}

#[test]
fn results_that_are_damaged_one_after_the_other_are_made_again() {
    let (env, base) = crate::env_with_base!();
    let gate = Gate::new();
    env.context(&[("Dockerfile", &dockerfile(&gate))]);
    let (output, dest) = output(&env, "files");
    let build = start(&env, &["--build-context", &base, "-o", &output]);
    // Each time the last step has read what it needs, and the output does not get what it needs.
    for name in ["one", "two", "three"] {
        let held = gate.wait();
        spoil(&env, name);
        held.release();
    }
    gate.wait().release();
    let done = build.finish().ok();
    assert!(gate.poll().is_none(), "it goes on\n{}", done.report());
    assert_eq!(text(&dest, "one") + &text(&dest, "two") + &text(&dest, "three"), "one\ntwo\nthree\n");
    assert_eq!(text(&dest, "all"), "one\ntwo\nthree\n");
    // What is damaged is made again with all that stands on it, and nothing else.
    let made = |name: &str| done.err().lines().filter(|line| line.ends_with(&format!(" made 0{name}"))).count();
    assert_eq!((made("one"), made("two"), made("three")), (2, 3, 4), "{}", done.report());
}

#[test]
fn a_build_looks_again_at_what_the_one_before_used() {
    let (env, base) = crate::env_with_base!();
    let made = "FROM base\nRUN echo one > /one\n";
    env.context(&[("Dockerfile", made)]);
    let (first, dest) = output(&env, "first");
    let _ = env.build(&["--build-context", &base, "-o", &first]).ok();
    assert_eq!(text(&dest, "one"), "one\n");
    for file in layer_files(&env, "one") {
        std::fs::write(&file, "bad\n").expect("a file of a layer");
    }
    env.context(&[("Dockerfile", &format!("{made}RUN cat /one > /all\n"))]);
    let (second, dest) = output(&env, "second");
    let _ = env.build(&["--build-context", &base, "-o", &second]).ok();
    assert_eq!(text(&dest, "one") + &text(&dest, "all"), "one\none\n");
}

#[test]
fn a_step_that_fails_for_want_of_a_damaged_file_is_run_again() {
    let (env, base) = crate::env_with_base!();
    let gate = Gate::new();
    let read = format!("FROM base\nRUN echo one > /one\nRUN {} && cat /one > /all\n", gate.command());
    env.context(&[("Dockerfile", &read)]);
    let (output, dest) = output(&env, "files");
    let build = start(&env, &["--build-context", &base, "-o", &output]);
    let held = gate.wait();
    spoil(&env, "one");
    held.release();
    gate.wait().release();
    let _ = build.finish().ok();
    assert_eq!(text(&dest, "all"), "one\n");
}

#[test]
fn a_damaged_result_that_another_build_has_in_hand_is_made_again() {
    let (env, base) = crate::env_with_base!();
    let gate = Gate::new();
    env.context(&[("Dockerfile", &dockerfile(&gate))]);
    let (all, all_dest) = output(&env, "all");
    let other = start(&env, &["--build-context", &base, "-o", &all]);
    let held = gate.wait();
    for (round, name) in ["one", "two"].into_iter().enumerate() {
        spoil(&env, name);
        let (output, dest) = output(&env, &round.to_string());
        let done = env.build(&["--build-context", &base, "--target", "made", "-o", &output]).ok();
        assert!(done.err().lines().any(|line| line.ends_with(&format!(" made 0{name}"))), "{}", done.report());
        assert_eq!(text(&dest, "one") + &text(&dest, "two"), "one\ntwo\n");
    }
    // What the other one stands on is gone, so it has to come again.
    held.release();
    gate.wait().release();
    let _ = other.finish().ok();
    assert_eq!(text(&all_dest, "all"), "one\ntwo\nthree\n");
}
