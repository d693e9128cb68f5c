//! Every store of objects with every fault, while blobs are read after an import and while a cache is exported: builds are
//! right, and what went wrong is told once, in words that say what it was.

use kiln_testkit::objects::{Objects, Protocol, gha_token};
use kiln_testkit::registry::{Answer, Asked, End};
use kiln_testkit::{Finished, Image, ObjectServer, TestEnv};

const SECRET: &str = "hunter2hunter2hunter2";
const DOCKERFILE: &str = "FROM base AS made\n\
    RUN echo one > /one; echo costly $((1 + 1))\n\
    FROM made\n\
    RUN cat /one > /more; head -c 20000 /dev/zero > /zeros\n";
/// Most requests about one blob in a build: four attempts, for its place and for its bytes.
const ASKED: usize = 8;

/// A store, and how a client names it.
struct Backend {
    server: ObjectServer,
    attrs: String,
    variables: Vec<(&'static str, String)>,
    /// How messages begin to call it.
    name: &'static str,
}

impl Backend {
    fn http() -> Self {
        let server = ObjectServer::start(Protocol::Http { token: None });
        let attrs = format!("type=http,url={}/c", server.address);
        Self { server, attrs, variables: Vec::new(), name: "http://" }
    }

    fn s3() -> Self {
        let [bucket, region, id, secret] = ["b", "eu-1", "ID", SECRET].map(str::to_owned);
        let server = ObjectServer::start(Protocol::S3 { bucket, region, id, secret });
        let attrs = format!("type=s3,bucket=b,endpoint_url={},use_path_style=true", server.address);
        let variables = [("AWS_ACCESS_KEY_ID", "ID"), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_REGION", "eu-1")];
        let variables = variables.map(|(name, value)| (name, value.to_owned())).to_vec();
        Self { server, attrs, variables, name: "s3://b" }
    }

    fn gha() -> Self {
        let token = gha_token(&[("refs/heads/main", 3)]);
        let server = ObjectServer::start(Protocol::Gha { token: token.clone() });
        let variables = vec![
            ("ACTIONS_RUNTIME_TOKEN", token),
            ("ACTIONS_RESULTS_URL", server.address.clone()),
            ("ACTIONS_CACHE_SERVICE_V2", "1".to_owned()),
        ];
        Self { server, attrs: "type=gha,scope=app".to_owned(), variables, name: "gha://app" }
    }

    fn azure() -> Self {
        use base64::Engine as _;
        let key = base64::prelude::BASE64_STANDARD.encode(SECRET);
        let server = ObjectServer::start(Protocol::Azure { account: "acc".into(), key: key.clone() });
        let place = format!("type=azblob,account_url={}/acc,account_name=acc", server.address);
        Self { server, attrs: format!("{place},secret_access_key={key}"), variables: Vec::new(), name: "azblob://acc" }
    }

    /// Runs a build with the variables that the client takes its keys from.
    fn build(&self, env: &TestEnv, args: &[&str]) -> Finished {
        let ctx = env.ctx();
        let all = ["build", "--progress=plain"].into_iter().chain(args.iter().copied()).chain(ctx.to_str());
        let run = env.kiln(all.collect::<Vec<_>>());
        self.variables.iter().fold(run, |run, (name, value)| run.env(name, value)).finish()
    }

    /// Builds an image in `env`, importing this cache.
    fn image(&self, env: &TestEnv, base: &str) -> (Image, Finished) {
        let dest = env.out("image.tar");
        let output = format!("type=oci,dest={}", dest.display());
        let from = format!("{},timeout=1s", self.attrs);
        let done = self.build(env, &["--build-context", base, "-o", &output, "--cache-from", &from]).ok();
        (Image::read(&dest), done)
    }

    fn export(&self, env: &TestEnv, base: &str, more: &str) -> Finished {
        let to = format!("{},timeout=1s,mode=max{more}", self.attrs);
        self.build(env, &["--build-context", base, "--target", "made", "-o", "type=cacheonly", "--cache-to", &to])
    }

    /// Returns the names of manifests, finished or not.
    fn manifests(&self) -> Vec<String> {
        let is_manifest = |name: &&String| name.contains("manifests/") || name.starts_with("index-");
        self.server.objects().kept.keys().filter(is_manifest).cloned().collect()
    }
}

/// Returns the digits of the blob that a request is about.
fn blob(asked: &Asked) -> Option<String> {
    let is_call = asked.path.starts_with("/twirp/");
    let text = if is_call { String::from_utf8_lossy(&asked.body).into_owned() } else { asked.path.replace("%3A", ":") };
    let (_, rest) = text.split_once("sha256").filter(|_| text.contains("blob"))?;
    rest.get(1..65).map(str::to_owned)
}

/// What a server answers instead of these bytes.
type Fault = fn(&[u8]) -> Answer;

/// Faults by what is told of them.
const READ: [(Fault, &str); 9] = [
    (|_| Answer::new(503), "unexpected status 503"),
    (|_| Answer::new(429).with("Retry-After", 1), "rate limited"),
    (|_| Answer::new(429).with("Retry-After", 3600), "rate limited"),
    (|_| Answer::default().ending(End::Reset), "connection broken"),
    (|bytes| Answer::new(200).body(bytes).ending(End::Cut(9)), "connection broken"),
    (|bytes| Answer::new(200).body(vec![b'x'; bytes.len()]), "digest mismatch"),
    (|bytes| Answer::new(200).body(bytes).ending(End::Stall(9)), "timed out"),
    (|bytes| Answer::new(200).body(bytes).ending(End::Drip(9)), "timed out"),
    (|_| Answer::new(404), "not found"),
];

/// Answers requests for the bytes of blobs.
fn reading(fault: Fault) -> impl Fn(&Asked, &Objects) -> Option<Answer> {
    move |asked, objects| {
        let hex = blob(asked).filter(|_| asked.method == "GET")?;
        objects.kept.iter().find(|(name, _)| name.ends_with(&hex)).map(|(_, bytes)| fault(bytes))
    }
}

fn warnings(done: &Finished) -> Vec<String> {
    let text = done.err();
    let told = text.lines().filter_map(|line| line.split_once("a result cannot be taken from cache"));
    // Of a warning there is a line where it came up, and one at the end.
    let told: std::collections::BTreeSet<&str> = told.map(|(_, why)| why).collect();
    told.into_iter().map(str::to_owned).collect()
}

fn ran(done: &Finished) -> bool {
    done.err().lines().any(|line| line.ends_with(" costly 2"))
}

/// Returns what is in an image, but for times.
fn tree(image: &Image) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
    image.root().into_iter().map(|(path, file)| (path, file.mode, file.content)).collect()
}

fn env(dockerfile: &str) -> TestEnv {
    let env = crate::env();
    env.context(&[("Dockerfile", dockerfile)]);
    env
}

/// Every fault while blobs are read.
fn reads(backend: &Backend) {
    let (first, base) = crate::env_with_base!();
    first.context(&[("Dockerfile", DOCKERFILE)]);
    let _ = backend.export(&first, &base, "").ok();
    let cold = tree(&first.build_image(&["--build-context", &base]).0);
    let other = env(DOCKERFILE);
    for (fault, want) in READ {
        backend.server.misbehave(reading(fault));
        backend.server.take_log();
        let (image, done) = backend.image(&other, &base);
        assert_eq!(tree(&image), cold, "{want}");
        assert!(ran(&done), "{want}: {}", done.report());
        let told = warnings(&done);
        assert_eq!(told.len(), 1, "{want}: {}", done.report());
        assert!(told[0].contains(want) && told[0].contains(backend.name), "{want}: {told:?}");
        let asked = backend.server.take_log().iter().filter(|a| a.method == "GET" && blob(a).is_some()).count();
        let least = if want == "timed out" { 2 } else { 1 };
        assert!((least..=ASKED).contains(&asked), "{want}: asked {asked} times");
        // What is not known any more is looked for again.
        let _ = other.kiln(["prune", "-a", "-f"]).finish().ok();
        let _ = other.kiln(["daemon", "stop"]).finish().ok();
    }
    // Everything that is asked about blobs fails, not only their bytes.
    for (end, want) in [(End::Reset, "connection broken"), (End::Silent, "timed out")] {
        backend.server.misbehave(move |asked, _| blob(asked).map(|_| Answer::default().ending(end)));
        let (image, done) = backend.image(&other, &base);
        assert_eq!(tree(&image), cold, "{want}");
        let told = warnings(&done);
        assert!(ran(&done) && told.len() == 1 && told[0].contains(want), "{want}: {}", done.report());
        let _ = other.kiln(["prune", "-a", "-f"]).finish().ok();
    }
    backend.server.misbehave(|_, _| None);
    let (image, done) = backend.image(&other, &base);
    assert!(!ran(&done) && warnings(&done).is_empty(), "{}", done.report());
    assert_eq!(tree(&image), cold);
}

/// Every fault while a cache is written.
fn writes(backend: &Backend) {
    let (first, base) = crate::env_with_base!();
    first.context(&[("Dockerfile", DOCKERFILE)]);
    let faults: [(Answer, &str); 4] = [
        (Answer::new(503), "unexpected status 503"),
        (Answer::new(429).with("Retry-After", 3600), "rate limited"),
        (Answer::default().ending(End::Reset), "connection broken"),
        (Answer::default().ending(End::Silent), "timed out"),
    ];
    let is_write = |asked: &Asked| asked.method == "PUT";
    let expire = || {
        if backend.name.starts_with("gha") {
            backend.server.objects().expire();
        }
    };
    for (answer, want) in faults {
        let broken = answer.clone();
        backend.server.misbehave(move |asked, _| is_write(asked).then(|| broken.clone()));
        let done = backend.export(&first, &base, "").fails_with(want);
        expire();
        let told = done.err();
        assert!(told.contains(backend.name) && told.contains("layer sha256:"), "{want}: {told}");
        let done = backend.export(&first, &base, ",ignore-error=true").ok();
        let told = format!("the cache was not exported: {}", backend.name);
        assert!(done.err().contains(&told) && done.err().contains(want), "{want}: {}", done.report());
        assert!(backend.manifests().is_empty(), "{want}");
        expire();
    }
    // The blobs come there, and what lists them does not.
    let is_container = |asked: &Asked| asked.query.contains("restype");
    let is_manifest = move |asked: &Asked| is_write(asked) && blob(asked).is_none() && !is_container(asked);
    backend.server.misbehave(move |asked, _| is_manifest(asked).then(|| Answer::default().ending(End::Reset)));
    let done = backend.export(&first, &base, "").fails_with("connection broken");
    assert!(done.err().contains(": manifest: "), "{}", done.report());
    assert!(backend.manifests().is_empty());
    backend.server.misbehave(|_, _| None);
    let other = env(DOCKERFILE);
    let (image, done) = backend.image(&other, &base);
    assert!(done.err().contains("not found") && ran(&done), "{}", done.report());
    assert_eq!(image.text("more"), "one\n");
    // The next export is a whole one, as far as nobody holds what it would write.
    let _ = backend.export(&first, &base, "").ok();
    let (image, _) = backend.image(&env(DOCKERFILE), &base);
    assert_eq!(image.text("more"), "one\n");
}

#[test]
fn blobs_of_a_plain_server_that_cannot_be_read() {
    reads(&Backend::http());
}

#[test]
fn blobs_of_s3_that_cannot_be_read() {
    reads(&Backend::s3());
}

#[test]
fn blobs_of_the_cache_of_github_actions_that_cannot_be_read() {
    reads(&Backend::gha());
}

#[test]
fn blobs_of_azure_that_cannot_be_read() {
    reads(&Backend::azure());
}

#[test]
fn a_plain_server_that_cannot_be_written() {
    writes(&Backend::http());
}

#[test]
fn s3_that_cannot_be_written() {
    writes(&Backend::s3());
}

#[test]
fn the_cache_of_github_actions_that_cannot_be_written() {
    writes(&Backend::gha());
}

#[test]
fn azure_that_cannot_be_written() {
    writes(&Backend::azure());
}

#[test]
fn an_export_that_was_cut_off_does_not_fail_the_next_one() {
    let (first, base) = crate::env_with_base!();
    first.context(&[("Dockerfile", DOCKERFILE)]);
    let backend = Backend::gha();
    backend.server.misbehave(|asked, _| asked.path.ends_with("/FinalizeCacheEntryUpload").then(|| Answer::new(503)));
    let _ = backend.export(&first, &base, "").fails_with("unexpected status 503");
    backend.server.misbehave(|_, _| None);
    let done = backend.export(&first, &base, "").ok();
    assert!(done.err().contains("layers are held by another export"), "{}", done.report());
    let (image, done) = backend.image(&env(DOCKERFILE), &base);
    assert_eq!(image.text("more"), "one\n");
    assert!(ran(&done) && warnings(&done).len() <= 1, "{}", done.report());
}
