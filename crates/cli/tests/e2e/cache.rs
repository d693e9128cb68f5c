//! What runs again and what does not.

use kiln_testkit::{Finished, TestEnv};

/// Counts the lines `#N CACHED` and `#N DONE` of steps, by their names.
fn cached(done: &Finished, step: &str) -> bool {
    let text = done.err();
    let number = text
        .lines()
        .find(|line| line.starts_with('#') && line.contains(step))
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_else(|| panic!("no step `{step}` in\n{text}"));
    text.lines().any(|line| line == format!("{number} CACHED"))
}

fn build(env: &TestEnv, base: &str, more: &[&str]) -> Finished {
    let mut args = vec!["--build-context", base, "-o", "type=cacheonly"];
    args.extend(more);
    env.build(&args).ok()
}

#[test]
fn a_second_build_runs_nothing() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nCOPY f /f\nRUN cat /f > /g\n"), ("f", "1")]);
    let first = build(&env, &base, &[]);
    assert!(!cached(&first, "RUN cat"));
    let second = build(&env, &base, &[]);
    assert!(cached(&second, "RUN cat") && cached(&second, "COPY f"), "{}", second.report());
}

#[test]
fn the_cache_survives_a_restart_of_the_engine() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo x > /x\n")]);
    build(&env, &base, &[]);
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    let second = build(&env, &base, &[]);
    assert!(cached(&second, "RUN echo x"), "{}", second.report());
}

#[test]
fn an_edit_runs_only_the_tail() {
    let (env, base) = crate::env_with_base!();
    env.context(&[
        (
            "Dockerfile",
            "FROM base\nCOPY deps /deps\nRUN cat /deps > /installed\nCOPY src /src\nRUN cat /src > /built\n",
        ),
        ("deps", "1"),
        ("src", "1"),
    ]);
    build(&env, &base, &[]);
    std::fs::write(env.ctx().join("src"), "2").unwrap();
    let second = build(&env, &base, &[]);
    assert!(cached(&second, "RUN cat /deps"), "{}", second.report());
    assert!(!cached(&second, "RUN cat /src"), "{}", second.report());
}

#[test]
fn touching_a_file_changes_nothing_but_a_hidden_edit_does() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nCOPY f /f\nRUN cat /f\n"), ("f", "aaaa")]);
    build(&env, &base, &[]);
    let path = env.ctx().join("f");
    let times = std::fs::metadata(&path).unwrap().modified().unwrap();
    let touched = std::fs::File::options().write(true).open(&path).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(cached(&build(&env, &base, &[]), "RUN cat"));
    std::fs::write(&path, "bbbb").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    assert!(!cached(&build(&env, &base, &[]), "RUN cat"), "an edit of equal size with its time put back");
}

#[test]
fn no_cache_runs_everything_again() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo x\n")]);
    build(&env, &base, &[]);
    assert!(!cached(&build(&env, &base, &["--no-cache"]), "RUN echo x"));
    assert!(cached(&build(&env, &base, &[]), "RUN echo x"));
}

#[test]
fn cache_mounts_are_emptied_once_a_build() {
    let (env, base) = crate::env_with_base!();
    let mount = "--mount=type=cache,target=/c";
    let dockerfile = format!("FROM base\nRUN {mount} echo line >> /c/f\nRUN {mount} wc -l < /c/f > /lines\n");
    env.context(&[("Dockerfile", &dockerfile)]);
    let lines = |args: &[&str]| {
        let (image, _) = env.build_image(&[&["--build-context", base.as_str()], args].concat());
        image.text("lines").trim().to_owned()
    };
    assert_eq!(lines(&[]), "1");
    assert_eq!(
        lines(&["--no-cache=mounts"]),
        "1",
        "it is empty for the first step, and the second sees what that has left"
    );
    assert_eq!(lines(&["--no-cache-filter", "other"]), "1");
}

#[test]
fn good_steps_of_a_failed_build_are_kept() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo good\nRUN exit 1\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).fails_with("exit code: 1");
    env.context(&[("Dockerfile", "FROM base\nRUN echo good\nRUN exit 0\n")]);
    assert!(cached(&build(&env, &base, &[]), "RUN echo good"));
}

#[test]
fn an_argument_counts_only_where_it_is_declared() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo before\nARG v\nRUN echo after\n")]);
    build(&env, &base, &["--build-arg", "v=1"]);
    let second = build(&env, &base, &["--build-arg", "v=2"]);
    assert!(cached(&second, "RUN echo before") && !cached(&second, "RUN echo after"), "{}", second.report());
}

#[test]
fn a_stage_that_nothing_needs_never_starts() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base AS unused\nRUN exit 1\nFROM base\nRUN true\n")]);
    let done = build(&env, &base, &[]);
    assert!(!done.err().contains("RUN exit 1"), "{}", done.report());
}

#[test]
fn a_local_cache_serves_an_empty_engine() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo $$ > /pid; echo costly\n")]);
    let cache = env.out("cache");
    let to = format!("type=local,dest={},mode=max", cache.display());
    let from = format!("type=local,src={}", cache.display());
    build(&env, &base, &["--cache-to", &to]);
    let other = crate::env();
    other.context(&[("Dockerfile", "FROM base\nRUN echo $$ > /pid; echo costly\n")]);
    let second = build(&other, &base, &["--cache-from", &from]);
    assert!(cached(&second, "RUN echo $$"), "{}", second.report());
}

#[test]
fn results_that_are_too_old_are_made_again() {
    let (env, base) = crate::env_with_base!();
    let told = |dockerfile: &str, args: &[&str]| {
        env.context(&[("Dockerfile", dockerfile), ("f", "f")]);
        let fixed = ["--why", "--build-context", &base, "-o", "type=cacheonly"];
        let done = env.build(&[&fixed[..], args].concat()).ok();
        done.err().lines().filter_map(|l| l.split_once(" WHY: ")).map(|(_, why)| why.to_owned()).collect::<Vec<_>>()
    };
    let plain = "FROM base\nRUN echo one\nCOPY f /\nRUN echo two\n";
    assert_eq!(told(plain, &[]).len(), 4, "with the base image");
    assert_eq!(told(plain, &["--max-age", "1h"]), [""; 0]);
    let all = told(plain, &["--max-age", "0"]);
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all.iter().all(|why| why.contains("the earlier result is older than 0s")), "{all:?}");
    assert_eq!(told(plain, &["--max-age", "1h"]), [""; 0], "what was made again is young");
    // The comment is part of no key.
    assert_eq!(told(&plain.replace("RUN echo two", "# kiln: max-age=7d\nRUN echo two"), &[]), [""; 0]);
    let last = told(&plain.replace("RUN echo two", "# kiln: max-age=0s\nRUN echo two"), &[]);
    assert_eq!(last, ["the earlier result is older than 0s"]);
    for (comment, message) in [
        ("# kiln: max-age=soon\nRUN true", "invalid max-age \"soon\""),
        ("# kiln: maxage=7d\nRUN true", "unknown setting in a comment for kiln: \"maxage\""),
        ("# kiln: max-age=7d\nCOPY f /", "`# kiln: max-age` stands before COPY, and is for RUN only"),
    ] {
        env.context(&[("Dockerfile", &format!("FROM base\n{comment}\n"))]);
        let done = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).fails_with(message);
        assert!(done.err().contains(">>>") && done.err().contains("hint: "), "{}", done.report());
    }
}
