//! Bad input is refused by the command itself: one clear error, a non-zero exit, nothing written, no engine started.

use kiln_testkit::TestEnv;

fn env() -> TestEnv {
    TestEnv::new(env!("CARGO_BIN_EXE_kiln"))
}

/// Runs a refused command line; returns what it said.
#[track_caller]
fn refused(env: &TestEnv, args: &[&str]) -> String {
    let before = listing(env);
    let done = env.kiln(args).finish();
    assert_eq!(done.code, Some(1), "{args:?}: {}", done.err());
    assert_eq!(done.out(), "", "{args:?}");
    assert_eq!(listing(env), before, "{args:?} wrote something");
    assert!(!env.root().exists(), "{args:?} made a state root");
    done.err()
}

fn listing(env: &TestEnv) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![env.path().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            out.push(entry.path().display().to_string());
            if entry.path().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    out.sort();
    out
}

#[test]
fn each_error_is_one_line_and_a_hint() {
    let env = env();
    env.context(&[("Dockerfle", "FROM scratch\n"), ("file", "x")]);
    let ctx = env.ctx();
    let ctx = ctx.to_str().expect("path");
    for (args, want) in [
        (
            vec!["build"],
            "ERROR: please specify build context (e.g. \".\" for the current directory)\nhint: kiln build [OPTIONS] PATH | URL | -\n".to_owned(),
        ),
        (vec!["build", "nowhere"], "ERROR: unable to prepare context: path \"nowhere\" not found\n".to_owned()),
        (
            vec!["build", ctx],
            format!(
                "ERROR: failed to read dockerfile: open Dockerfile: no such file or directory\nhint: did you mean `Dockerfle`? Name it with -f {ctx}/Dockerfle\n"
            ),
        ),
        (
            vec!["build", "--tga", "x", ctx],
            "ERROR: unknown flag: --tga\nhint: did you mean --tag?\nhint: see 'kiln build --help'\n".to_owned(),
        ),
        (
            vec!["build", "-o", "type=ocy,dest=x", ctx],
            "ERROR: unknown output type `ocy`\nhint: did you mean `oci`?\n".to_owned(),
        ),
        (
            vec!["build", "-o", "type=oci,dest=ctx", ctx],
            "ERROR: destination file ctx is a directory\n".to_owned(),
        ),
        (
            vec!["build", "--secret", "id=a,src=gone", ctx],
            "ERROR: failed to stat gone: no such file or directory\nhint: secret a is read from this file\n".to_owned(),
        ),
        (
            vec!["build", "--iidfile", "ctx", ctx],
            "ERROR: image ID file ctx is a directory\n".to_owned(),
        ),
    ] {
        assert_eq!(refused(&env, &args), want, "{args:?}");
    }
}

#[test]
fn a_destination_that_cannot_be_written() {
    let env = env();
    env.context(&[("Dockerfile", "FROM scratch\n")]);
    let ctx = env.ctx();
    let ctx = ctx.to_str().expect("path");
    let said = refused(&env, &["build", "-o", "type=oci,dest=ctx/Dockerfile/x.tar", ctx]);
    assert_eq!(said, "ERROR: invalid destination file: ctx/Dockerfile/x.tar: not a directory\n");
    // Root may do nearly everything, but nobody can make files there.
    let said = refused(&env, &["build", "-o", "/proc/sys/out", ctx]);
    assert!(said.starts_with("ERROR: cannot write /proc/sys/out: "), "{said}");
}

#[test]
fn standard_input_has_one_use() {
    let env = env();
    env.context(&[("Dockerfile", "FROM scratch\n")]);
    let done = env.kiln(["build", "-f", "-", "-"]).stdin("FROM scratch\n").finish();
    assert_eq!(done.err(), "ERROR: invalid argument: can't use stdin for both build context and dockerfile\n");
    let done = env.kiln(["build", "-f", "Dockerfile", "-"]).stdin("FROM scratch\n").finish();
    assert_eq!(done.err(), "ERROR: ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles\n");
}

#[test]
fn help_and_version_are_data() {
    let env = env();
    for args in [vec!["--help"], vec!["build", "--help"], vec!["version"], vec!["--version"]] {
        let done = env.kiln(&args).finish();
        assert_eq!((done.code, done.err()), (Some(0), String::new()), "{args:?}");
        assert!(done.out().contains("kiln"), "{args:?}");
    }
}
