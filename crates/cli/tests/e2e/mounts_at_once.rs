//! Cache mounts under builds at once, in each way of sharing: nothing is lost, nobody meets whom he should not, all come to
//! an end.

use kiln_testkit::{Gate, Running, TestEnv};

/// Builds at once.
const BUILDS: usize = 6;
/// How often each way of sharing begins with a new mount.
const ROUNDS: usize = 8;

/// Starts a build, which may be one of several at once.
fn start(env: &TestEnv, base: &str, dockerfile: &str, args: &[&str]) -> Running {
    let path = env.path().join(kiln_stdx::Digest::of(dockerfile).hex());
    // Another build may be reading it.
    if !path.exists() {
        std::fs::write(&path, dockerfile).expect("Dockerfile");
    }
    let all = ["build", "--progress=plain", "-o", "type=cacheonly", "--build-context", base, "-f"];
    let (path, ctx) = (path.as_os_str(), env.ctx());
    let args = args.iter().map(std::ffi::OsStr::new);
    let all = all.iter().map(std::ffi::OsStr::new).chain([path]).chain(args).chain([ctx.as_os_str()]);
    env.kiln(all).start()
}

/// Starts the same build `count` times, with numbers that make them differ.
fn start_all(env: &TestEnv, base: &str, dockerfile: &str, round: usize, count: usize) -> Vec<Running> {
    let number = |n: usize| {
        let (who, round) = (format!("--build-arg=WHO={n}"), format!("--build-arg=ROUND={round}"));
        start(env, base, dockerfile, &[&who, &round])
    };
    (0..count).map(number).collect()
}

#[track_caller]
fn end(builds: Vec<Running>) {
    builds.into_iter().for_each(|build| drop(build.finish().ok()));
}

/// Returns what a step that looks into the mount `id` says.
fn look(env: &TestEnv, base: &str, id: &str, command: &str) -> String {
    let file = format!("FROM base\nRUN --mount=type=cache,id={id},target=/c echo $({command}) | sed 's/^/told: /'\n");
    let done = start(env, base, &file, &["--no-cache"]).finish().ok();
    let text = done.err();
    let told = text.lines().find_map(|line| line.split_once(" told: "));
    told.unwrap_or_else(|| panic!("{text}")).1.to_owned()
}

#[test]
fn shared_ones_lose_nothing_from_the_first_use_on() {
    let (env, base) = crate::env_with_base!();
    for round in 0..ROUNDS {
        let gate = Gate::new();
        // A counter under a lock of its own, lines that are appended, and a file for each.
        let file = format!(
            "FROM base\nARG WHO ROUND\nRUN --mount=type=cache,id=m{round},target=/c {} && echo $WHO > /c/own.$WHO && \
             for n in $(seq 10); do echo $WHO.$n >> /c/lines; until mkdir /c/lock 2>/dev/null; do usleep 1000; done; \
             echo $(($(cat /c/count 2>/dev/null || echo 0) + 1)) > /c/count; rmdir /c/lock; done\n",
            gate.command()
        );
        let builds = start_all(&env, &base, &file, round, BUILDS);
        // All have the mount, and none has written to it.
        let held: Vec<_> = builds.iter().map(|_| gate.wait()).collect();
        held.into_iter().for_each(|step| step.release());
        end(builds);
        let told =
            look(&env, &base, &format!("m{round}"), "cat /c/count; sort -u /c/lines | wc -l; ls /c | grep -c own");
        let all = BUILDS * 10;
        assert_eq!(told, format!("{all} {all} {BUILDS}"), "round {round}");
    }
}

#[test]
fn private_ones_are_alone_and_used_again() {
    let (env, base) = crate::env_with_base!();
    for round in 0..ROUNDS {
        let gate = Gate::new();
        let file = format!(
            "FROM base\nARG WHO ROUND\nRUN --mount=type=cache,id=m,target=/c,sharing=private mkdir /c/alone && \
             test $(cat /c/uses 2>/dev/null | wc -l) = $ROUND && echo $WHO >> /c/uses && {} && rmdir /c/alone\n",
            gate.command()
        );
        let builds = start_all(&env, &base, &file, round, 3);
        let held: Vec<_> = builds.iter().map(|_| gate.wait()).collect();
        held.into_iter().for_each(|step| step.release());
        end(builds);
    }
    let listed = env.kiln(["cache", "ls", "--format", "json"]).finish().ok().out();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("json");
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
}

#[test]
fn locked_ones_are_never_two_steps_at_once() {
    let (env, base) = crate::env_with_base!();
    for round in 0..ROUNDS {
        let file = format!(
            "FROM base\nARG WHO ROUND\nRUN --mount=type=cache,id=m{round},target=/c,sharing=locked mkdir /c/alone && \
             n=$(cat /c/count 2>/dev/null || echo 0) && usleep 5000 && echo $((n + 1)) > /c/count && rmdir /c/alone\n"
        );
        end(start_all(&env, &base, &file, round, BUILDS));
        assert_eq!(look(&env, &base, &format!("m{round}"), "cat /c/count"), BUILDS.to_string(), "round {round}");
    }
}

#[test]
fn two_steps_that_want_the_same_locked_ones_do_not_wait_for_each_other() {
    let (env, base) = crate::env_with_base!();
    let mount = |id: &str, target: &str| format!("--mount=type=cache,id={id},target=/{target},sharing=locked");
    for round in 0..ROUNDS {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let gates = [Gate::new(), Gate::new()];
        let holders = [(&a, &gates[0]), (&b, &gates[1])].map(|(id, gate)| {
            let file = format!("FROM base\nRUN {} {} && true {id}\n", mount(id, "c"), gate.command());
            (start(&env, &base, &file, &[]), gate.wait())
        });
        // Were mounts taken in the order of their targets, the holders, which end at the same time, in this order or in
        // that, would leave each step with one mount, waiting for the other's.
        let both = [(&a, &b), (&b, &a)].map(|(one, other)| {
            let file = format!("FROM base\nRUN {} {} echo {one} {other}\n", mount(one, "1"), mount(other, "2"));
            let build = start(&env, &base, &file, &[]);
            build.wait_for("RUN --mount");
            build
        });
        let (first, mut held): (Vec<Running>, Vec<_>) = holders.into_iter().unzip();
        if round % 2 == 0 {
            held.reverse();
        }
        held.into_iter().for_each(|step| step.release());
        end(first.into_iter().chain(both).collect());
    }
}
