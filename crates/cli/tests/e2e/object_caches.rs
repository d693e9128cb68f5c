//! Caches in stores of objects: one engine exports, an empty one imports; broken stores make builds slower, never wrong.

use kiln_testkit::objects::{Objects, Protocol, gha_token};
use kiln_testkit::registry::{Answer, Asked, End};
use kiln_testkit::{Finished, ObjectServer, TestEnv};

const SECRET: &str = "hunter2hunter2hunter2";

/// Two stages, of which an image needs a small part of the first.
pub const DOCKERFILE: &str = "FROM base AS made\n\
    RUN head -c 300000 /dev/urandom > /noise; echo made > /small\n\
    FROM base\n\
    COPY f /f\n\
    RUN cat /f > /copied; echo $$ > /pid\n\
    COPY --from=made /small /small\n";

fn context(env: &TestEnv, dockerfile: &str) {
    env.context(&[("Dockerfile", dockerfile), ("f", "content")]);
}

/// Returns how many steps a build took from the cache, and how many there are.
pub fn steps(done: &Finished) -> (usize, usize) {
    let text = done.err();
    let is_step = |line: &&str| line.starts_with('#') && line.contains("] ") && !line.contains("[internal]");
    let numbers: std::collections::BTreeSet<&str> = text
        .lines()
        .filter(is_step)
        .filter(|line| line.contains(" RUN ") || line.contains(" COPY "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let cached = numbers.iter().filter(|number| text.lines().any(|line| line == format!("{number} CACHED"))).count();
    (cached, numbers.len())
}

fn blobs(log: &[Asked], method: &str) -> Vec<String> {
    let of = |asked: &&Asked| {
        let path = asked.path.replace("%3A", ":");
        asked.method == method && (path.contains("blobs/sha256") || path.contains("blob-1-sha256"))
    };
    log.iter().filter(of).map(|asked| asked.path.clone()).collect()
}

/// One engine exports to the store and another one, empty, imports from it.
fn travels(server: &ObjectServer, attrs: &str, variables: &[(&str, &str)]) {
    let (env, base) = crate::env_with_base!();
    context(&env, DOCKERFILE);
    let run = |env: &TestEnv, args: &[&str]| {
        let ctx = env.ctx();
        let all = ["build", "--progress=plain", "--build-context", &base];
        let all = all.into_iter().chain(args.iter().copied()).chain(ctx.to_str());
        let run = env.kiln(all.collect::<Vec<_>>());
        variables.iter().fold(run, |run, (name, value)| run.env(name, value)).finish()
    };
    let (to, from) = (format!("{attrs},mode=max"), attrs.to_owned());
    let first = run(&env, &["-o", "type=cacheonly", "--cache-to", &to]).ok();
    assert_eq!(steps(&first), (0, 4), "{}", first.report());
    let stored = blobs(&server.take_log(), "PUT").len();
    assert!(stored >= 4, "{}", first.report());
    // What is there is not sent again.
    let again = run(&env, &["-o", "type=cacheonly", "--cache-to", &to]).ok();
    assert_eq!(blobs(&server.take_log(), "PUT"), [""; 0], "{}", again.report());

    let other = crate::env();
    context(&other, DOCKERFILE);
    let second = run(&other, &["-o", "type=cacheonly", "--cache-from", &from]).ok();
    assert_eq!(steps(&second), (4, 4), "{}", second.report());
    assert_eq!(blobs(&server.take_log(), "GET"), [""; 0], "nothing reads them");
    let dest = other.out("files");
    let _ = run(&other, &["-o", dest.to_str().expect("path"), "--cache-from", &from]).ok();
    assert_eq!(std::fs::read_to_string(dest.join("small")).expect("small"), "made\n");
    let read = blobs(&server.take_log(), "GET");
    assert!(!read.is_empty() && read.len() < stored, "the first stage is not read: {read:?}");
    for (env, done) in [(&env, &first), (&env, &again), (&other, &second)] {
        assert!(!(done.err() + &done.out()).contains(SECRET), "{}", done.report());
        let _ = env.kiln(["daemon", "stop"]).finish();
        assert_eq!(files_with(env.root(), SECRET.as_bytes()), [""; 0]);
    }
}

/// Returns the files below `dir` that hold `text`.
fn files_with(dir: &std::path::Path, text: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, text)),
            Ok(kind) if kind.is_file() => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if bytes.windows(text.len()).any(|window| window == text) {
                    found.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_cache_travels_by_a_plain_server() {
    let server = ObjectServer::start(Protocol::Http { token: Some(SECRET.into()) });
    let url = format!("type=http,url={}/team/cache,name=main", server.address);
    travels(&server, &format!("{url},token={SECRET}"), &[]);
}

#[test]
fn a_cache_travels_by_s3() {
    let text = str::to_owned;
    let (bucket, region, id) = (text("b"), text("eu-1"), text("ID"));
    let server = ObjectServer::start(Protocol::S3 { bucket, region, id, secret: SECRET.into() });
    let attrs = format!("type=s3,bucket=b,endpoint_url={},use_path_style=true,prefix=p/", server.address);
    let env = [("AWS_ACCESS_KEY_ID", "ID"), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "eu-1")];
    travels(&server, &attrs, &env);
}

#[test]
fn a_cache_travels_by_the_cache_of_github_actions() {
    let token = gha_token(&[("refs/heads/main", 3)]);
    let server = ObjectServer::start(Protocol::Gha { token: token.clone() });
    let env = [
        ("ACTIONS_RUNTIME_TOKEN", token.as_str()),
        ("ACTIONS_RESULTS_URL", server.address.as_str()),
        ("ACTIONS_CACHE_SERVICE_V2", "1"),
    ];
    travels(&server, "type=gha,scope=app", &env);
}

#[test]
fn a_cache_travels_by_azure() {
    use base64::Engine as _;
    let key = base64::prelude::BASE64_STANDARD.encode(SECRET);
    let server = ObjectServer::start(Protocol::Azure { account: "acc".into(), key: key.clone() });
    let place = format!("type=azblob,account_url={}/acc,account_name=acc", server.address);
    travels(&server, &format!("{place},secret_access_key={key}"), &[]);
}

/// Fills a plain server with the cache of the Dockerfile and returns its address.
fn filled(server: &ObjectServer, base: &str) -> String {
    let env = crate::env();
    context(&env, DOCKERFILE);
    let url = format!("type=http,url={}/c", server.address);
    let to = format!("{url},mode=max");
    let _ = env.build(&["--build-context", base, "-o", "type=cacheonly", "--cache-to", &to]).ok();
    server.take_log();
    url
}

#[test]
fn a_broken_store_gives_a_correct_build() {
    type Fault = fn(&Asked, &Objects) -> Option<Answer>;
    /// Answers with the object, changed.
    fn with(asked: &Asked, objects: &Objects, change: fn(Vec<u8>) -> Answer) -> Option<Answer> {
        let is_blob = asked.method == "GET" && asked.path.contains("/blobs/");
        let bytes = objects.kept.get(asked.path.trim_start_matches('/')).filter(|_| is_blob)?;
        Some(change(bytes.clone()))
    }
    let faults: [(Fault, &str); 7] = [
        (|a, o| with(a, o, |_| Answer::new(500)), "unexpected status 500"),
        (|a, o| with(a, o, |_| Answer::new(429)), "rate limited"),
        (|a, o| with(a, o, |_| Answer::default().ending(End::Reset)), "connection broken"),
        (|a, o| with(a, o, |b| Answer::new(200).body(b).ending(End::Cut(9))), "connection broken"),
        (|a, o| with(a, o, |b| Answer::new(200).body(b).ending(End::Stall(9))), "timed out"),
        (|a, o| with(a, o, |b| Answer::new(200).body(vec![0; b.len()])), "digest mismatch"),
        (|a, o| with(a, o, |_| Answer::new(404)), "not found"),
    ];
    // It holds the base image.
    let (_env, base) = crate::env_with_base!();
    let server = ObjectServer::start(Protocol::Http { token: None });
    let url = filled(&server, &base);
    for (fault, want) in faults {
        server.misbehave(fault);
        let env = crate::env();
        context(&env, DOCKERFILE);
        let from = format!("{url},timeout=1s");
        let (image, done) = env.build_image(&["--build-context", &base, "--cache-from", &from]);
        assert_eq!((image.text("copied"), image.text("small")), ("content".to_owned(), "made\n".to_owned()), "{want}");
        assert!(done.err().contains(want), "{want}: {}", done.report());
    }
}

#[test]
fn what_is_wrong_with_an_import_is_told() {
    let (env, base) = crate::env_with_base!();
    let server = ObjectServer::start(Protocol::Http { token: Some(SECRET.into()) });
    env.context(&[("Dockerfile", "FROM base\nRUN true\n")]);
    let url = format!("type=http,url={}/c", server.address);
    let told = |more: &str| {
        let from = format!("{url},timeout=1s{more}");
        let done = env.build(&["--build-context", &base, "-o", "type=cacheonly", "--cache-from", &from]).ok();
        assert!(!done.err().contains(SECRET), "{}", done.err());
        done.err()
    };
    assert!(told("").contains("authorization failed"));
    let token = format!(",token={SECRET}");
    assert!(told(&token).contains("not found"));
    server.objects().kept.insert("c/manifests/kiln".into(), b"<html>".to_vec());
    assert!(told(&token).contains("the manifest is damaged"));
    server.misbehave(|_, _| Some(Answer::default().ending(End::Silent)));
    assert!(told(&token).contains("timed out"));
    assert!(told(",name=..").contains("cannot be part of a name"));
}

#[test]
fn an_export_that_fails_is_an_error_unless_it_may() {
    let (env, base) = crate::env_with_base!();
    let server = ObjectServer::start(Protocol::Http { token: Some(SECRET.into()) });
    env.context(&[("Dockerfile", "FROM base\nRUN echo x > /x\n")]);
    let to = format!("type=http,url={}/c", server.address);
    let args = ["--build-context", &base, "-o", "type=cacheonly", "--cache-to"];
    let _ = env.build(&[&args[..], &[&to]].concat()).fails_with("authorization failed");
    let lenient = format!("{to},ignore-error=true");
    let done = env.build(&[&args[..], &[&lenient]].concat()).ok();
    assert!(done.err().contains("the cache was not exported"), "{}", done.report());
    let _ = env.build(&[&args[..], &["type=http"]].concat()).fails_with("url=https://");
    // The token of a secret does not stand on the command line.
    std::fs::write(env.path().join("token"), format!("{SECRET}\n")).expect("write");
    let secret = format!("id=tok,src={}", env.path().join("token").display());
    let by_secret = format!("{to},token_secret=tok");
    let _ = env.build(&[&args[..], &[&by_secret, "--secret", &secret]].concat()).ok();
    assert!(server.objects().kept.contains_key("c/manifests/kiln"));
}
