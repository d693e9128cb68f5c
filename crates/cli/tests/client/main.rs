//! `kiln build` against an engine that follows a script: what the client does when builds succeed, fail, hang or the engine
//! goes away.

mod engine;

use std::time::Duration;

use engine::{Act, ScriptedEngine};
use kiln_testkit::TestEnv;
use tonic::Code;

fn env() -> TestEnv {
    let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln"));
    env.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "x")]);
    env
}

fn args<'a>(env: &'a TestEnv, engine: &'a ScriptedEngine, more: &[&'a str]) -> Vec<String> {
    let mut all = vec!["build".to_owned(), "--addr".to_owned(), engine.address()];
    all.extend(more.iter().map(|a| (*a).to_owned()));
    all.push(env.ctx().display().to_string());
    all
}

#[test]
fn a_good_build_leaves_what_was_asked_for() {
    let env = env();
    let engine = ScriptedEngine::start(Act::Succeed { file: b"archive".to_vec() });
    let done = env
        .kiln(args(
            &env,
            &engine,
            &["-q", "-t", "app", "-o", "type=oci,dest=new/x.tar", "--iidfile", "id", "--metadata-file", "meta"],
        ))
        .finish()
        .ok();
    assert_eq!(done.out(), "sha256:cc\n");
    assert_eq!(done.err(), "");
    let read = |name: &str| std::fs::read_to_string(env.path().join(name)).expect("file");
    assert_eq!(read("new/x.tar"), "archive");
    assert_eq!(read("id"), "sha256:cc");
    assert!(read("meta").contains("\"containerimage.config.digest\": \"sha256:cc\""));
    let request = engine.requests().remove(0);
    assert_eq!(request.frontend, "dockerfile.v0");
    assert_eq!(request.frontend_attrs.get("filename").map(String::as_str), Some("Dockerfile"));
    assert_eq!(request.exporters[0].attrs.get("name").map(String::as_str), Some("app"));
    assert_eq!(request.exporter_deprecated, "oci");
}

#[test]
fn a_failed_build_leaves_nothing() {
    let env = env();
    let engine = ScriptedEngine::start(Act::FailAfterSending { code: Code::Unknown, text: "it broke".into() });
    std::fs::write(env.path().join("id"), "sha256:old").expect("write");
    let before = std::fs::read_dir(env.path()).expect("list").count();
    let done = env.kiln(args(&env, &engine, &["-o", "type=oci,dest=x.tar", "--iidfile", "id"])).finish();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.err().ends_with("ERROR: failed to solve: it broke\n"), "{}", done.err());
    assert!(!env.path().join("x.tar").exists());
    // The id of an earlier build is gone as well, and nothing has come in its place.
    assert_eq!(std::fs::read_dir(env.path()).expect("list").count(), before - 1);
}

#[test]
fn classes_of_failures_have_exit_codes() {
    for (code, exit) in [(Code::Unknown, 1), (Code::NotFound, 1), (Code::Internal, 100), (Code::ResourceExhausted, 102)]
    {
        let env = env();
        let engine = ScriptedEngine::start(Act::FailAfterSending { code, text: "x".into() });
        let done = env.kiln(args(&env, &engine, &["-o", "type=cacheonly"])).finish();
        assert_eq!(done.code, Some(exit), "{code:?}: {}", done.err());
    }
}

#[test]
fn the_first_interrupt_cancels_the_build() {
    let env = env();
    let engine = ScriptedEngine::start(Act::Hang);
    let mut child = env.kiln(args(&env, &engine, &["-o", "type=oci,dest=x.tar"])).spawn();
    engine.wait_solve();
    kill(child.id(), rustix::process::Signal::INT);
    let status = child.wait().expect("wait");
    assert_eq!(status.code(), Some(130));
    assert!(engine.wait_canceled(Duration::from_secs(30)), "the engine was not told");
    assert!(!env.path().join("x.tar").exists());
}

#[test]
fn an_engine_that_goes_away_is_an_error() {
    let env = env();
    let engine = ScriptedEngine::start(Act::Vanish);
    let done = env.kiln(args(&env, &engine, &["-o", "type=oci,dest=x.tar"])).finish();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.err().contains("ERROR: lost the connection to the engine at "), "{}", done.err());
}

#[test]
fn the_engine_may_read_only_what_is_offered() {
    let env = env();
    std::fs::write(env.path().join("token"), "s3cret").expect("write");
    let engine = ScriptedEngine::start(Act::ReadSecrets(vec!["tok".into(), "other".into()]));
    let _ = env.kiln(args(&env, &engine, &["-o", "type=cacheonly", "--secret", "id=tok,src=token"])).finish().ok();
    assert_eq!(engine.secrets(), [Some(b"s3cret".to_vec()), None]);
}

#[test]
fn progress_is_shown_as_it_comes() {
    let env = env();
    let engine = ScriptedEngine::start(Act::Succeed { file: Vec::new() });
    let done = env.kiln(args(&env, &engine, &["--progress=plain", "-o", "type=cacheonly"])).finish().ok();
    assert!(done.err().contains("\n#1 [1/1] COPY a /\n#1 0.250 copied\n#1 DONE 0.5s\n"), "{}", done.err());
    let done = env.kiln(args(&env, &engine, &["--progress=rawjson", "-o", "type=cacheonly"])).finish().ok();
    for line in done.err().lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
    assert!(done.err().contains("\"name\":\"[1/1] COPY a /\""), "{}", done.err());
    let done = env.kiln(args(&env, &engine, &["--progress=none", "-o", "type=cacheonly"])).finish().ok();
    assert_eq!((done.out(), done.err()), (String::new(), String::new()));
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("pid");
    rustix::process::kill_process(pid, signal).expect("kill");
}
