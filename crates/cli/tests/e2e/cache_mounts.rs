//! Cache mounts as people look after them: listed, read, removed; kept and emptied; marked when a writer was cut off.

use std::path::Path;

use kiln_testkit::{Run, TestEnv};

const ARGS: &[&str] = &["-o", "type=cacheonly", "--build-context"];

fn build(env: &TestEnv, base: &str, dockerfile: &str, more: &[&str]) -> kiln_testkit::Finished {
    env.context(&[("Dockerfile", dockerfile)]);
    env.build(&[ARGS, &[base], more].concat())
}

#[test]
fn they_are_listed_read_and_removed() {
    let (env, base) = crate::env_with_base!();
    let file = "FROM base\nRUN --mount=type=cache,id=tools,target=/c mkdir -p /c/sub && echo hello > /c/sub/file && \
                ln -s sub/file /c/in && ln -s ../../../version /c/out\n\
                RUN --mount=type=cache,target=/root/.cache true\n";
    let _ = build(&env, &base, file, &[]).ok();
    let kiln = |args: &[&str]| env.kiln(args).finish();
    let listed = kiln(&["cache", "ls"]).ok().out();
    assert!(listed.starts_with("ID"), "{listed}");
    assert!(listed.contains("\ntools ") && listed.contains("\n/root/.cache "), "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&kiln(&["cache", "ls", "--format", "json"]).ok().out()).expect("json");
    assert_eq!((json[1]["id"].as_str(), json[1]["inUse"].as_bool()), (Some("tools"), Some(false)), "{json}");
    assert!(json[1]["size"].as_u64() > Some(0) && json[1]["marked"].is_null(), "{json}");
    let platform = json[1]["platform"].as_str().expect("platform").to_owned();
    assert!(platform.starts_with("linux/"), "{platform}");

    let names = |place: &str| kiln(&["cache", "ls", place]).ok().out();
    assert!(names("tools:/").contains(" in -> sub/file\n"), "{}", names("tools"));
    assert!(names("tools:/sub").ends_with(" file\n"), "{}", names("tools:/sub"));
    assert_eq!(names("/root/.cache"), "");
    for place in ["tools:/sub/file", "tools:/in"] {
        assert_eq!(kiln(&["cache", "cat", place]).ok().out(), "hello\n");
    }
    let _ = kiln(&["cache", "cat", "tools:/out"]).fails_with("leads out of the cache mount");
    let _ = kiln(&["cache", "cat", "tools:/../info"]).fails_with("has no meaning in a cache mount");
    let _ = kiln(&["cache", "cat", "tools:/none"]).fails_with("not found");
    let _ = kiln(&["cache", "rm", "toosl"]).fails_with("did you mean `tools`?");
    let told = kiln(&["cache", "inspect", "tools"]).ok().out();
    assert!(told.contains(&format!("Platform:   {platform}\n")) && told.contains("Uses:       1\n"), "{told}");

    let _ = kiln(&["cache", "rm", "tools"]).ok();
    let left = kiln(&["cache", "ls"]).ok().out();
    assert!(!left.contains("tools") && left.contains("/root/.cache"), "{left}");
}

#[test]
fn each_way_to_ignore_the_cache_has_its_own_way_with_mounts() {
    let (env, base) = crate::env_with_base!();
    let file = "FROM base AS one\nRUN --mount=type=cache,id=m,target=/c echo x >> /c/log && wc -l < /c/log | sed 's/^/lines: /'\n\
                RUN echo other\n";
    let lines = |more: &[&str]| {
        let done = build(&env, &base, file, &[&["--progress=plain"], more].concat()).ok();
        let text = done.err();
        let found = text.lines().find_map(|l| l.split_once(" lines: ")).map(|(_, n)| n.trim().to_owned());
        (found, text)
    };
    let expect = |more: &[&str], want: Option<&str>| {
        let (found, text) = lines(more);
        assert_eq!(found.as_deref(), want, "{more:?}: {text}");
        text
    };
    expect(&[], Some("1"));
    expect(&[], None);
    expect(&["--no-cache"], Some("2"));
    expect(&["--no-cache-filter", "one"], Some("3"));
    let text = expect(&["--no-cache=mounts", "--why"], Some("1"));
    assert!(text.contains("asked for by --no-cache=mounts"), "{text}");
    assert!(!text.contains("other\n") || text.contains("CACHED"), "{text}");
    expect(&["--no-cache"], Some("2"));
    // A client that knows nothing of kiln empties the mounts of what it ignores.
    let done = by_buildctl(&env, &base).ok();
    assert!(done.err().contains(" lines: 1"), "{}", done.report());
}

/// Builds the context without cache as a client does that knows nothing of kiln.
fn by_buildctl(env: &TestEnv, base: &str) -> kiln_testkit::Finished {
    let layout = base.strip_prefix("base=oci-layout://").expect("a layout");
    let index = std::fs::read(Path::new(layout).join("index.json")).expect("index");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("json");
    let digest = index["manifests"][0]["digest"].as_str().expect("digest");
    let program = env.path().join("buildctl");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &program).expect("link");
    let dir = env.ctx();
    Run::new(&program)
        .args([format!("--addr=unix://{}", env.root().join("engine.sock").display())])
        .args(["build", "--progress=plain", "--frontend=dockerfile.v0", "--no-cache"])
        .args([format!("--local=context={}", dir.display()), format!("--local=dockerfile={}", dir.display())])
        .args([format!("--oci-layout=layout={layout}"), format!("--opt=context:base=oci-layout://layout@{digest}")])
        .env("HOME", env.path().join("home"))
        .dir(env.path())
        .finish()
}

#[test]
fn a_writer_that_was_cut_off_leaves_a_mark_that_the_next_failure_tells_of() {
    let (env, base) = crate::env_with_base!();
    let step = |what: &str| format!("FROM base\nRUN --mount=type=cache,id=m,target=/c {what}\n");
    let hint = "empty it with: kiln cache rm m";
    let done = build(&env, &base, &step("echo half > /c/x; false"), &[]).fails_with("exit code: 1");
    assert!(!done.err().contains(hint), "{}", done.report());
    let done =
        build(&env, &base, &step("echo half > /c/x; sh -c 'kill -9 $$'; exit $?"), &[]).fails_with("exit code: 137");
    assert!(!done.err().contains(hint), "it is told to the next one: {}", done.report());
    let listed = env.kiln(["cache", "ls"]).finish().ok().out();
    assert!(listed.contains("was killed by signal 9"), "{listed}");
    // The engine forgets nothing of that.
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    let done = build(&env, &base, &step("grep whole /c/x"), &[]).fails_with(hint);
    assert!(done.err().contains("its last writer was killed by signal 9"), "{}", done.report());
    let _ = build(&env, &base, &step("echo whole > /c/x"), &[]).ok();
    let done = build(&env, &base, &step("echo again; false"), &[]).fails_with("exit code: 1");
    assert!(!done.err().contains(hint), "{}", done.report());
}
