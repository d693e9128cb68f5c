//! Cache mounts that travel: one engine exports them with its cache, an empty one begins with them.

use kiln_testkit::objects::{Protocol, gha_token};
use kiln_testkit::{FakeRegistry, Finished, ObjectServer, TestEnv};

/// A mount with files of each kind that matters, some of them long.
const FILL: &str = "for i in 1 2 3 4 5 6 7 8; do head -c 400000 /dev/urandom > /c/noise$i; done; \
    mkdir /c/sub && echo one > /c/sub/word && chmod 640 /c/sub/word && ln -s sub/word /c/link && \
    ln /c/sub/word /c/again && touch -d '2001-02-03 04:05:06' /c/sub/word";
/// What a step sees of it.
const LOOK: &str = "echo \"seen: $(cat /c/link 2>/dev/null) $(stat -c '%a %h %Y' /c/again 2>/dev/null)\"";
/// What it sees where all came.
const SEEN: &str = " seen: one 640 2 981173106";

fn build(env: &TestEnv, base: &str, step: &str, args: &[&str], variables: &[(&str, &str)]) -> Finished {
    let file = format!("FROM base\nRUN --mount=type=cache,id=deps,target=/c {step}\n");
    env.context(&[("Dockerfile", &file)]);
    let dir = env.ctx();
    let fixed = ["build", "--progress=plain", "-o", "type=cacheonly", "--build-context", base];
    let run = env.kiln(fixed.into_iter().chain(args.iter().copied()).chain(dir.to_str()).collect::<Vec<_>>());
    variables.iter().fold(run, |run, (name, value)| run.env(name, value)).finish()
}

/// An engine exports a mount to the cache, another one, empty, has a step that finds it there.
fn travels(to: &str, from: &str, variables: &[(&str, &str)]) {
    let (env, base) = crate::env_with_base!();
    let to = format!("{to},mounts=all");
    let first = build(&env, &base, FILL, &["--cache-to", &to], variables).ok();
    assert!(first.err().contains("exporting cache mounts"), "{}", first.report());

    let other = crate::env();
    let from = format!("{from},mounts=deps");
    let second = build(&other, &base, LOOK, &["--cache-from", &from], variables).ok();
    assert!(second.err().contains(SEEN), "{}", second.report());
    let listed = other.kiln(["cache", "ls"]).finish().ok().out();
    assert!(listed.contains("\ndeps "), "{listed}");
    // What is here is not asked for again, and not replaced.
    let third = build(&other, &base, &format!("echo mine > /c/link; {LOOK}"), &["--cache-from", &from], variables).ok();
    assert!(third.err().contains(" seen: mine "), "{}", third.report());
    assert!(!third.err().contains("importing cache mount"), "{}", third.report());
    // An engine that has nothing of it leaves it there.
    let (third, bare) = (crate::env(), from.replace(",mounts=deps", ""));
    let third = build(&third, &base, FILL, &["--cache-from", &bare, "--cache-to", &to], variables).ok();
    assert!(third.err().contains(" CACHED"), "{}", third.report());
    let fourth = build(&crate::env(), &base, LOOK, &["--cache-from", &from], variables).ok();
    assert!(fourth.err().contains(SEEN), "{}", fourth.report());
}

#[test]
fn by_a_directory() {
    let home = tempfile::tempdir().expect("temporary directory");
    let dir = home.path().join("cache");
    travels(&format!("type=local,dest={}", dir.display()), &format!("type=local,src={}", dir.display()), &[]);
}

#[test]
fn by_a_registry() {
    let registry = FakeRegistry::start();
    let attrs = format!("type=registry,ref={}/team/app:cache", registry.host);
    travels(&attrs, &attrs, &[]);
}

#[test]
fn by_a_plain_server() {
    let server = ObjectServer::start(Protocol::Http { token: None });
    let attrs = format!("type=http,url={}/team/cache", server.address);
    travels(&attrs, &attrs, &[]);
}

#[test]
fn by_s3() {
    let text = str::to_owned;
    let (bucket, region, id) = (text("b"), text("eu-1"), text("ID"));
    let server = ObjectServer::start(Protocol::S3 { bucket, region, id, secret: text("hunter2") });
    let attrs = format!("type=s3,bucket=b,endpoint_url={},use_path_style=true", server.address);
    let env = [("AWS_ACCESS_KEY_ID", "ID"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_REGION", "eu-1")];
    travels(&attrs, &attrs, &env);
}

#[test]
fn by_the_cache_of_github_actions() {
    let token = gha_token(&[("refs/heads/main", 3)]);
    let server = ObjectServer::start(Protocol::Gha { token: token.clone() });
    let env = [
        ("ACTIONS_RUNTIME_TOKEN", token.as_str()),
        ("ACTIONS_RESULTS_URL", server.address.as_str()),
        ("ACTIONS_CACHE_SERVICE_V2", "1"),
    ];
    travels("type=gha", "type=gha", &env);
}

/// Bytes that came to the registry since the last look.
fn sent(registry: &FakeRegistry) -> usize {
    registry.take_log().iter().filter(|asked| asked.path.contains("/blobs/")).map(|asked| asked.body.len()).sum()
}

#[test]
fn a_small_change_is_sent_alone() {
    let (env, base) = crate::env_with_base!();
    let registry = FakeRegistry::start();
    let to = format!("type=registry,ref={}/team/app:cache,mounts=all", registry.host);
    let fill = "for i in $(seq 100); do head -c 100000 /dev/urandom > /c/file$i; done";
    let run = |step: &str| {
        let _ = build(&env, &base, step, &["--cache-to", &to], &[]).ok();
        sent(&registry)
    };
    let first = run(fill);
    assert!(first > 10_000_000, "{first} bytes of noise");
    let again = run("true");
    assert!(again < 100_000, "{again} bytes although nothing changed");
    let change = run("head -c 100000 /dev/urandom > /c/file50");
    assert!(change > 100_000 && change < 300_000, "{change} bytes for one file of a hundred");
}

#[test]
fn what_is_broken_is_a_warning() {
    let (env, base) = crate::env_with_base!();
    let registry = FakeRegistry::start();
    let cache = format!("type=registry,ref={}/team/app:cache,mounts=all", registry.host);
    let _ = build(&env, &base, FILL, &["--cache-to", &cache], &[]).ok();
    let empty = |why: &str| {
        let other = crate::env();
        let done =
            build(&other, &base, &format!("{LOOK}; ls -A /c | sed 's/^/left: /'"), &["--cache-from", &cache], &[]);
        let done = done.ok();
        assert!(done.err().contains("cache mount deps begins empty, it cannot be imported: "), "{}", done.report());
        assert!(done.err().contains(why), "{}", done.report());
        assert!(done.err().contains(" seen: ") && !done.err().contains(" left: "), "{}", done.report());
    };
    let largest = || {
        let holdings = registry.holdings();
        let found = holdings.blobs.iter().max_by_key(|(_, bytes)| bytes.len());
        found.map(|(name, _)| name.clone()).expect("a pack")
    };
    let pack = largest();
    if let Some(bytes) = registry.holdings().blobs.get_mut(&pack) {
        bytes[1000] ^= 1;
    }
    empty("mismatch");
    let _ = registry.holdings().blobs.remove(&pack);
    empty("not found");
    // The next export sends what is missing.
    let _ = build(&env, &base, "true", &["--cache-to", &cache], &[]).ok();
    let done = build(&crate::env(), &base, LOOK, &["--cache-from", &cache], &[]).ok();
    assert!(done.err().contains(SEEN), "{}", done.report());
}

#[test]
fn what_cannot_travel_is_told() {
    let (env, base) = crate::env_with_base!();
    let refused = |to: &str, why: &str| {
        let _ = build(&env, &base, "true", &["--cache-to", to], &[]).fails_with(why);
    };
    refused("type=inline,mounts=all", "an inline cache holds no cache mounts");
    refused("type=http,url=http://127.0.0.1:9/x,mounts=a;", "an id is empty");
    // One that a killed step has written stays at home.
    let home = tempfile::tempdir().expect("temporary directory");
    let to = format!("type=local,dest={},mounts=deps;other", home.path().display());
    let _ = build(&env, &base, "echo half > /c/x; sh -c 'kill -9 $$'; exit $?", &[], &[]).fails_with("137");
    env.context(&[("Dockerfile", "FROM base\nRUN --mount=type=cache,id=deps,target=/c,readonly true\n")]);
    let done = env.build(&["-o", "type=cacheonly", "--build-context", &base, "--cache-to", &to]).ok();
    let told = "cache mount deps is not exported: its last writer was killed by signal 9";
    assert!(done.err().contains(told), "{}", done.report());
    assert!(done.err().contains("no step of this build has a cache mount other"), "{}", done.report());
}
