//! The binary under the name `buildctl`: what it shows is what that client shows of the same engine, byte by byte.

use std::path::PathBuf;

use kiln_testkit::{Finished, Run, TestEnv, program};

/// Returns the program under the name `buildctl`.
fn own(env: &TestEnv) -> PathBuf {
    let path = env.path().join("buildctl");
    if !path.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &path).expect("link");
    }
    path
}

fn run(env: &TestEnv, program: &PathBuf, args: &[&str]) -> Run {
    let address = format!("unix://{}", env.root().join("engine.sock").display());
    Run::new(program)
        .args(["--addr", &address])
        .args(args)
        .env("HOME", env.path().join("home"))
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .dir(env.path())
}

/// Runs a command by both clients; the output is the same, without the dates of the moment where it has any.
fn same(env: &TestEnv, other: &PathBuf, args: &[&str]) -> Finished {
    let (ours, theirs) = (run(env, &own(env), args).finish(), run(env, other, args).finish());
    assert_eq!(ours.code, theirs.code, "{args:?}\n{}\n{}", ours.report(), theirs.report());
    assert_eq!(ours.out(), theirs.out(), "{args:?}");
    ours
}

fn build_args<'a>(context: &'a str, dockerfile: &'a str, output: &'a str) -> Vec<&'a str> {
    vec![
        "build",
        "--progress=plain",
        "--frontend",
        "dockerfile.v0",
        "--local",
        context,
        "--local",
        dockerfile,
        "--output",
        output,
    ]
}

#[test]
fn what_it_shows_is_what_the_other_shows() {
    let (env, base) = crate::env_with_base!();
    let Some(other) = program("buildctl") else { kiln_testkit::skip!("no buildctl on PATH") };
    env.context(&[(
        "Dockerfile",
        "FROM base\nRUN --mount=type=cache,target=/c echo x > /c/x && head -c 5000 /dev/zero > /big\n",
    )]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).ok();
    env.context(&[("Dockerfile", "FROM base\nRUN false\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]);

    for args in [
        &["du"][..],
        &["du", "-v"],
        &["du", "--filter", "type==exec.cachemount"],
        &["du", "--format", "json"],
        &["du", "--format", "{{range .}}{{.ID}} {{.Size}} {{.Mutable}};{{end}}"],
        &["debug", "workers"],
        &["debug", "workers", "-v"],
        &["debug", "workers", "--format", "{{json .}}"],
        &["debug", "info"],
        &["debug", "info", "--format", "json"],
        &["debug", "histories"],
        &["debug", "ctl"],
        &["debug", "ctl", "--pin"],
        &["debug", "get", "nonsense"],
        &["debug", "logs", "none-such"],
    ] {
        let _ = same(&env, &other, args);
    }
    let histories = run(&env, &own(&env), &["debug", "histories", "--format", "{{.Record.Ref}}"]).finish().ok().out();
    assert_eq!(histories.lines().count(), 2, "{histories}");
    let reference = histories.lines().next().expect("a record").to_owned();
    let _ = run(&env, &own(&env), &["debug", "ctl", "--pin", &reference]).finish().ok();
    let shown = same(&env, &other, &["debug", "histories"]).out();
    assert!(shown.lines().any(|l| l.contains(&reference) && l.ends_with('*')), "{shown}");
    let _ = run(&env, &own(&env), &["prune-histories"]).finish().ok();
    let left = run(&env, &own(&env), &["debug", "histories", "--format", "{{.Record.Ref}}"]).finish().ok().out();
    assert_eq!(left.lines().collect::<Vec<_>>(), [reference.as_str()], "the pinned one stays");

    let pruned = run(&env, &own(&env), &["prune", "--all"]).finish().ok().out();
    assert!(pruned.starts_with("ID\t") && pruned.contains("\nTotal:\t"), "{pruned}");
    let _ = same(&env, &other, &["du"]);
    assert_eq!(same(&env, &other, &["prune"]).out(), "Total:\t0B\n");
}

#[test]
fn it_builds_by_frontend_with_caches_and_metadata() {
    let (env, _base) = crate::env_with_base!();
    let _ = env.kiln(["du"]).finish().ok();
    env.context(&[
        ("Dockerfile", "FROM scratch AS one\nARG A=none\nCOPY a /\nFROM scratch\nCOPY --from=one /a /\nLABEL a=$A\n"),
        ("a", "x"),
    ]);
    let (context, dockerfile) =
        (format!("context={}", env.ctx().display()), format!("dockerfile={}", env.ctx().display()));
    let mut digests = Vec::new();
    for client in [Some(own(&env)), program("buildctl")].into_iter().flatten() {
        let output = "type=oci,dest=out.tar,name=example.test/x:1";
        let mut args = build_args(&context, &dockerfile, output);
        args.extend(["--opt", "build-arg:A=b", "--metadata-file", "meta.json", "--ref-file", "ref"]);
        args.extend(["--export-cache", "type=local,dest=cache"]);
        let _ = run(&env, &client, &args).finish().ok();
        let metadata: serde_json::Value =
            serde_json::from_slice(&std::fs::read(env.path().join("meta.json")).expect("metadata")).expect("JSON");
        digests.push(metadata["containerimage.digest"].as_str().expect("digest").to_owned());
        assert!(metadata["containerimage.descriptor"].is_object(), "{metadata}");
        assert!(!std::fs::read_to_string(env.path().join("ref")).expect("ref").is_empty());
        assert!(env.path().join("cache/index.json").exists());
        std::fs::remove_file(env.path().join("out.tar")).expect("archive");
        std::fs::remove_dir_all(env.path().join("cache")).expect("cache");
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");

    // A question to the frontend has an answer and leaves no output.
    let mut args = build_args(&context, &dockerfile, "type=local,dest=asked");
    args.extend(["--opt", "requestid=frontend.targets", "--trace", "trace.json"]);
    let done = run(&env, &own(&env), &args).finish().ok();
    assert!(done.out().starts_with("TARGET") && done.out().contains("one"), "{}", done.report());
    if let Some(other) = program("buildctl") {
        assert_eq!(run(&env, &other, &args).finish().ok().out(), done.out());
    }
    assert!(std::fs::read_to_string(env.path().join("trace.json")).expect("trace").lines().count() > 0);

    env.context(&[("Dockerfile", "FROM scratch\nCOPY none /\n")]);
    let done = run(&env, &own(&env), &build_args(&context, &dockerfile, "type=local,dest=failed")).finish();
    let _ = done.fails_with("failed to solve").fails_with("\"/none\": not found").fails_with("Dockerfile:2");
}

#[test]
fn definitions_are_shown_and_built() {
    let env = crate::env();
    let _ = env.kiln(["du"]).finish().ok();
    // A graph of one source: what the name of a directory is encoded to.
    let op = [&[0x1a, 0x0f, 0x0a, 0x0d][..], b"local://files"].concat();
    let definition = [&[0x0a, u8::try_from(op.len()).expect("short")][..], &op].concat();
    let digest = kiln_stdx::Digest::of(&op).to_string();
    let top = [&[0x0a, 0x49, 0x0a, 0x47][..], digest.as_bytes()].concat();
    let definition = [&definition[..], &[0x0a, u8::try_from(top.len()).expect("short")], &top].concat();
    std::fs::create_dir(env.path().join("files")).expect("directory");
    std::fs::write(env.path().join("files/f"), "here").expect("file");

    let args = ["build", "--local", "files=files", "--output", "type=local,dest=built"];
    let done = run(&env, &own(&env), &args).stdin(definition.clone()).finish().ok();
    assert_eq!(std::fs::read_to_string(env.path().join("built/f")).expect("file"), "here", "{}", done.report());
    let done = run(&env, &own(&env), &args).stdin(Vec::new()).finish();
    let _ = done.fails_with("empty definition sent to build");

    std::fs::write(env.path().join("graph"), &definition).expect("graph");
    for args in [&["debug", "dump-llb", "graph"][..], &["debug", "dump-llb", "--dot", "graph"]] {
        let done = run(&env, &own(&env), args).finish().ok();
        assert!(done.out().contains("local://files"), "{}", done.report());
        if let Some(other) = program("buildctl") {
            assert_eq!(run(&env, &other, args).finish().ok().out(), done.out());
        }
    }
    // Metadata is shown once no engine uses it.
    let root = env.root().display().to_string();
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    let done = run(&env, &own(&env), &["debug", "dump-metadata", "--root", &root]).finish().ok();
    assert!(done.out().contains("===== ") && done.out().contains("bucket "), "{}", done.report());
}

/// A client that reaches the engine by way of standard input and output of `dial-stdio`.
#[test]
fn standard_input_and_output_become_a_connection() {
    let env = crate::env();
    let _ = env.kiln(["du"]).finish().ok();
    // The beginning of HTTP/2: the engine answers with its settings.
    let greeting = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let done = run(&env, &own(&env), &["dial-stdio"]).stdin(greeting).finish();
    assert!(done.code == Some(0) && done.stdout.get(3) == Some(&4), "{}", done.report());
}

#[test]
fn options_of_the_frontend_are_checked_before_anything_is_built() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let _ = env.build(&["-o", "type=cacheonly"]).ok();
    let ctx = env.ctx().display().to_string();
    let (context, dockerfile) = (format!("context={ctx}"), format!("dockerfile={ctx}"));
    let image = env.out("image.tar");
    let output = format!("type=oci,dest={}", image.display());
    let ask = |options: &[&str]| {
        let options = options.iter().flat_map(|option| ["--opt", option]);
        let args: Vec<&str> = build_args(&context, &dockerfile, &output).into_iter().chain(options).collect();
        run(&env, &own(&env), &args).finish()
    };
    for (options, error) in [
        (&["multi-platform=maybe"][..], "invalid boolean value for multi-platform: maybe"),
        (&["multi-platform=false", "platform=linux/amd64,linux/arm64"], "conflicting config"),
        (&["add-hosts=db:10.0.0.1"], "invalid key-value pair db:10.0.0.1"),
        (&["ulimit=nofiles=1"], "invalid ulimit type: nofiles"),
        (&["ulimit=nofile=2:1"], "soft limit must be less than or equal to hard limit"),
        (&["memory=0"], "invalid memory value: 0: must be > 0"),
        (&["cpusetcpus=x"], "invalid cpusetcpus value: x"),
        (&["cache-imports=x"], "failed to unmarshal cache-imports"),
        (&["override-copy-image=x"], "support for \"override-copy-image\" was removed"),
    ] {
        let done = ask(options).fails_with(error);
        assert!(!done.err().contains("COPY"), "{options:?}: {}", done.err());
    }
    let _ = ask(&["build-arg:BUILDKIT_MULTI_PLATFORM=1", "ulimit=nofile=10:20"]).ok();
    assert!(image.exists());
}
