//! The engine as a process: started on demand, shared, left alone by its starter, ended on request.

use std::path::PathBuf;

use kiln_testkit::TestEnv;

fn env() -> TestEnv {
    TestEnv::new(env!("CARGO_BIN_EXE_kiln"))
}

/// Returns the value of a row of `kiln daemon status`.
fn status(env: &TestEnv, row: &str) -> Option<String> {
    let done = env.kiln(["daemon", "status"]).finish();
    if done.code != Some(0) {
        return None;
    }
    let line = done.out().lines().find_map(|l| l.strip_prefix(&format!("{row}:")).map(str::to_owned));
    line.map(|v| v.trim().to_owned())
}

/// Starts an engine by asking for something; the answer does not matter here.
fn wake(env: &TestEnv) {
    let _ = env.kiln(["du"]).finish();
}

#[test]
fn no_engine_is_said_so() {
    let env = env();
    let done = env.kiln(["daemon", "status"]).finish();
    assert_eq!(done.code, Some(1));
    assert!(done.err().starts_with("ERROR: no engine runs for state root "), "{}", done.err());
    assert_eq!(env.kiln(["daemon", "stop"]).finish().code, Some(0));
}

#[test]
fn an_engine_starts_on_demand_and_ends_on_request() {
    let env = env();
    wake(&env);
    let pid = status(&env, "Process").expect("an engine runs");
    wake(&env);
    assert_eq!(status(&env, "Process"), Some(pid.clone()), "a second engine was started");
    assert_eq!(env.kiln(["daemon", "stop"]).finish().code, Some(0));
    assert_eq!(status(&env, "Process"), None);
    assert!(!PathBuf::from(format!("/proc/{pid}/exe")).exists(), "the engine is still there");
}

#[test]
fn many_starters_give_one_engine() {
    let env = env();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| wake(&env));
        }
    });
    let pid = status(&env, "Process").expect("an engine runs");
    let root = env.root().as_os_str().as_encoded_bytes().to_vec();
    let engines: Vec<String> = std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| {
            let line = std::fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
            words.contains(&b"--on-demand".as_slice()) && words.contains(&root.as_slice())
        })
        .collect();
    assert_eq!(engines, [pid]);
}

#[test]
fn an_engine_keeps_nothing_of_its_starter() {
    let env = env();
    let _ = env.kiln(["du"]).env("SSH_AUTH_SOCK", "/run/agent.sock").env("AWS_SECRET_ACCESS_KEY", "canary").finish();
    let pid = status(&env, "Process").expect("an engine runs");
    let environ = std::fs::read(format!("/proc/{pid}/environ")).expect("environ");
    let environ = String::from_utf8_lossy(&environ).into_owned();
    assert!(!environ.contains("canary") && !environ.contains("agent.sock"), "{environ}");
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).expect("link");
    assert_eq!(link("cwd"), PathBuf::from("/"));
    assert_eq!(link("fd/0"), PathBuf::from("/dev/null"));
    assert_eq!(link("fd/1"), link("fd/2"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let after = stat.rsplit_once(')').expect("stat").1;
    let session = after.split_whitespace().nth(3);
    assert_eq!(session, Some(pid.as_str()), "the engine has no session of its own");
    let umask = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(umask.lines().any(|l| l.split_whitespace().eq(["Umask:", "0022"])), "{umask}");
}

#[test]
fn a_long_root_is_no_obstacle() {
    let env = env();
    let long = env.path().join("a".repeat(120)).join("b".repeat(120));
    let env = env.with_root(long);
    wake(&env);
    assert!(status(&env, "Process").is_some());
}

#[test]
fn a_root_that_cannot_be_made_is_told() {
    let env = env();
    std::fs::write(env.path().join("file"), b"x").expect("write");
    let root = env.path().join("file/root");
    let done = env.kiln(["du", "--root"]).args([&root]).finish();
    assert_eq!(done.code, Some(1));
    assert!(done.err().starts_with("ERROR: cannot make state root "), "{}", done.err());
}

#[test]
fn an_engine_that_cannot_start_says_why() {
    let env = env();
    // Something that is no socket is in the way.
    std::fs::create_dir_all(env.root().join("engine.sock/x")).expect("mkdir");
    let done = env.kiln(["du"]).finish();
    assert_eq!(done.code, Some(1));
    assert!(done.err().contains("ERROR: cannot "), "{}", done.err());
    assert!(done.err().contains("hint: "), "{}", done.err());
}

#[test]
fn an_engine_started_by_hand_is_found_while_it_starts() {
    let env = env();
    for _ in 0..3 {
        let by_hand = env.kiln(["daemon", "run"]).start();
        let done = env.kiln(["du"]).finish();
        assert_eq!(done.code, Some(0), "{}", done.report());
        assert_eq!(env.kiln(["daemon", "stop"]).finish().code, Some(0));
        // Either of the two may have been first; the other one says so.
        let _ = by_hand.finish();
    }
}
