//! Questions about a Dockerfile, lint and advice: with and without an engine, and by another client.

use kiln_testkit::{Run, TestEnv};

const FOUND: &str = "FROM scratch AS Base\nMAINTAINER me\nCOPY a /\n";

#[test]
fn a_check_needs_no_engine_where_no_base_is_needed() {
    let env = crate::env();
    env.context(&[("Dockerfile", FOUND), ("a", "")]);
    let ctx = env.ctx().display().to_string();
    let done = env.kiln(["build", "--check", &ctx]).finish();
    assert_eq!(done.code, Some(1), "{}", done.report());
    let want = "Check complete, 2 warnings have been found!\n\nWARNING: StageNameCasing - \
                https://docs.docker.com/go/dockerfile/rule/stage-name-casing/\n\
                Stage name 'Base' should be lowercase\nDockerfile:1\n--------------------\n   1 | >>> FROM scratch AS Base\n";
    assert!(done.out().starts_with(want), "{}", done.out());
    assert_eq!(env.kiln(["build", "--call=check,ignorestatus=true", &ctx]).finish().code, Some(0));
    let json = env.kiln(["build", "--call=lint,format=json", &ctx]).finish().out();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["warnings"][1]["ruleName"], "MaintainerDeprecated");
    let args = ["build", "--check", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all", &ctx];
    let clean = env.kiln(args).finish().ok();
    assert_eq!(clean.out(), "Check complete, no warnings found.\n");
    assert!(!env.root().exists(), "an engine was started");
}

#[test]
fn targets_and_arguments_are_listed() {
    let env = crate::env();
    env.context(&[(
        "Dockerfile",
        "FROM scratch AS base\n# app what is shipped\nFROM base AS app\n# VERSION of it\nARG VERSION=1\nCOPY a /$VERSION\n",
    )]);
    let ctx = env.ctx().display().to_string();
    let targets = env.kiln(["build", "--call=targets", &ctx]).finish().ok();
    assert_eq!(targets.out(), "TARGET        DESCRIPTION\nbase          \napp (default) what is shipped\n");
    let outline = env.kiln(["build", "--call=outline", "--build-arg", "VERSION=7", &ctx]).finish().ok();
    let want = "TARGET:      app\nDESCRIPTION: what is shipped\n\nBUILD ARG   VALUE   DESCRIPTION\nVERSION     7       of it\n\n";
    assert_eq!(outline.out(), want);
}

#[test]
fn what_takes_a_base_is_asked_of_the_engine() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo $MISING\nENV A=$PAHT\n")]);
    let ctx = env.ctx().display().to_string();
    let done = env.kiln(["build", "--check", "--build-context", &base, &ctx]).finish();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.out().contains("WARNING: UndefinedVar"), "{}", done.report());
    assert!(done.out().contains("did you mean $PATH?"), "{}", done.report());
    let outline = env.kiln(["build", "--call=outline,format=json", "--build-context", &base, &ctx]).finish().ok();
    assert!(outline.out().contains("\"sources\""), "{}", outline.report());
}

#[test]
fn several_errors_are_told_at_once_with_their_places() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPI a /\nRUN --moutn=type=cache x\n")]);
    let done = env.build(&["-o", "type=cacheonly"]).fails_with("unknown instruction: COPI (did you mean COPY?)");
    let text = done.err();
    for part in ["Dockerfile:2", "Dockerfile:3", "     |     ^^^^\n", "unknown flag: --moutn (did you mean mount?)"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let ctx = env.ctx().display().to_string();
    let check = env.kiln(["build", "--check", &ctx]).finish().fails_with("unknown instruction: COPI");
    assert_eq!(check.code, Some(1));
}

/// Stands for npm: says that it ran, and wants its manifest.
const NPM: &str = "#!/bin/sh\ntest -f package.json || exit 9\necho \"the installer runs\"\nmkdir -p node_modules\n";

fn node_project(env: &TestEnv, dockerfile: &str) {
    env.context(&[
        ("Dockerfile", dockerfile),
        ("main.js", "1"),
        ("package.json", "{\"name\": \"x\"}"),
        ("package-lock.json", "{}"),
    ]);
    kiln_testkit::write_tree(&env.path().join("tools"), &[("npm", NPM)]);
}

#[test]
fn the_proposed_file_installs_once() {
    let (env, base) = crate::env_with_base!();
    let text = "FROM base\nCOPY --from=tools --chmod=755 npm /usr/bin/npm\nWORKDIR /app\nCOPY . .\nRUN npm ci\n";
    node_project(&env, text);
    let ctx = env.ctx().display().to_string();
    let tools = format!("tools={}", env.path().join("tools").display());
    let advice = env.kiln(["lint", "--advise", &ctx]).finish();
    assert_eq!(advice.code, Some(1), "{}", advice.report());
    for part in ["copy-before-install", "cache-mount", "+COPY package.json package-lock.json ./"] {
        assert!(advice.out().contains(part), "{part} is missing:\n{}", advice.out());
    }
    let patch = env.kiln(["lint", "--advise", "--format=diff", &ctx]).finish().ok().out();
    let Some(program) = kiln_testkit::program("patch") else { kiln_testkit::skip!("no patch on this host") };
    let _ = Run::new(program).args(["-p1", "-d", &ctx]).stdin(patch).finish().ok();
    let again = env.kiln(["lint", "--advise", &ctx]).finish();
    assert!(!again.out().contains("copy-before-install") && !again.out().contains("cache-mount"), "{}", again.out());
    let build = || env.build(&["--build-context", &base, "--build-context", &tools, "-o", "type=cacheonly"]).ok().err();
    assert!(build().contains("the installer runs"));
    std::fs::write(env.ctx().join("main.js"), "edited").unwrap();
    let text = build();
    assert!(!text.contains("the installer runs"), "{text}");
    assert!(text.contains("COPY . ."), "{text}");
}

#[test]
fn lint_reads_a_file_alone() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM debian:13\nENV a b\nCOPY x /\n")]);
    let ctx = env.ctx().display().to_string();
    let done = env.kiln(["lint", "--format", "json", &ctx]).finish();
    let json: serde_json::Value = serde_json::from_str(&done.out()).unwrap();
    assert_eq!((done.code, json["findings"].as_array().map(Vec::len)), (Some(1), Some(1)), "{json}");
    assert_eq!(json["findings"][0]["name"], "LegacyKeyValueFormat");
    assert_eq!(json["basesKnown"], false);
    let _ = env.kiln(["lint", "--format", "jsno", &ctx]).finish().fails_with("did you mean `json`?");
}

#[test]
fn buildx_asks_the_same_questions() {
    let env = crate::env();
    let Some(program) = kiln_testkit::program("docker-buildx") else {
        kiln_testkit::skip!("no docker-buildx on this host")
    };
    env.context(&[("Dockerfile", FOUND), ("a", "")]);
    // The engine has to be there for a client that starts none.
    let _ = env.build(&["-o", "type=cacheonly"]).ok();
    let ctx = env.ctx();
    let address = format!("unix://{}", env.root().join("engine.sock").display());
    let home = env.path().join("home");
    let buildx = |args: &[&str]| Run::new(&program).args(args).env("HOME", &home).dir(&ctx).finish();
    let _ = buildx(&["create", "--name", "engine", "--driver", "remote", &address]).ok();
    for question in
        ["--check", "--call=lint,format=json", "--call=outline", "--call=targets", "--call=targets,format=json"]
    {
        let theirs = buildx(&["build", "--builder", "engine", question, "."]);
        let ours = env.kiln(["build", question, "."]).dir(&ctx).finish();
        assert_eq!((theirs.code, theirs.out()), (ours.code, ours.out()), "{question}\n{}", theirs.report());
        let asked = env.kiln(["--addr", &address, "build", question, "."]).dir(&ctx).finish();
        assert_eq!((asked.code, asked.out()), (ours.code, ours.out()), "{question} of the engine");
    }
}
