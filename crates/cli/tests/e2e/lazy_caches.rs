//! Results of imported caches stay where they are until something reads them, and none that cannot be had fails a build.

use std::sync::{Arc, Mutex};

use kiln_testkit::objects::Protocol;
use kiln_testkit::registry::{Answer, Asked, End, FakeRegistry, Holdings};
use kiln_testkit::{Finished, ObjectServer, Run, TestEnv};

/// What a server answers to a GET of a layer instead of the layer.
type Fault = fn(&[u8]) -> Answer;

const WARNING: &str = "a result cannot be taken from cache";

/// Faults by what is told of them.
const FAULTS: [(Fault, &str); 9] = [
    (|_| Answer::new(404), "not found"),
    (|_| Answer::new(403).body(r#"{"errors":[{"code":"DENIED"}]}"#), "denied"),
    (|_| Answer::new(503), "status 503"),
    (|bytes| Answer::new(200).body(bytes).ending(End::Cut(9)), "connection broken"),
    (|bytes| Answer::new(200).body(vec![b'x'; bytes.len()]), "digest mismatch"),
    (|bytes| Answer::new(200).body(bytes).ending(End::Stall(9)), "timed out"),
    (|bytes| Answer::new(200).body(bytes).ending(End::Drip(9)), "timed out"),
    (|_| Answer::default().ending(End::Reset), "connection broken"),
    (|_| Answer::new(429).with("Retry-After", 3600), "rate limited"),
];

fn dockerfile(base: &str) -> String {
    let one = "RUN echo one > /one; echo costly $((1 + 1))";
    let two = "RUN echo two > /two; echo dear $((1 + 1))";
    format!("FROM {base} AS made\n{one}\nFROM {base} AS other\n{two}\nFROM made AS more\nRUN cat /one > /more\n")
}

/// Tells whether the step of a stage ran.
fn ran(done: &Finished, stage: &str) -> bool {
    let printed = if stage == "made" { " costly 2" } else { " dear 2" };
    done.err().lines().any(|line| line.ends_with(printed))
}

fn warnings(done: &Finished) -> Vec<String> {
    let mut all: Vec<String> = done.err().lines().filter(|line| line.contains(WARNING)).map(str::to_owned).collect();
    all.sort();
    all.dedup_by_key(|line| line.split_once(WARNING).map(|(_, why)| why.to_owned()));
    all
}

/// A registry with a base image and a cache, whose answers to a GET of a layer of the cache can be replaced.
struct Cached {
    registry: FakeRegistry,
    fault: Arc<Mutex<Option<Fault>>>,
    dockerfile: String,
    /// The layers of the base image, and what the steps of the stages `made` and `other` left.
    base: Vec<String>,
    made: String,
    other: String,
}

impl Cached {
    fn start() -> Option<Self> {
        let fault: Arc<Mutex<Option<Fault>>> = Arc::default();
        let chosen = fault.clone();
        let registry = FakeRegistry::scripted(move |asked: &Asked, holdings: &mut Holdings| {
            let digest = asked.path.strip_prefix("/v2/cache/blobs/").filter(|_| asked.method == "GET")?;
            let fault = (*chosen.lock().expect("lock"))?;
            let bytes = holdings.blobs.get(&("cache".to_owned(), digest.to_owned()))?;
            // Layers are archives, the config of the cache is not.
            (bytes.first() != Some(&b'{')).then(|| fault(bytes))
        });
        let base: Vec<String> = registry.put_busybox("base", "latest")?.iter().map(ToString::to_string).collect();
        let dockerfile = dockerfile(&format!("{}/base", registry.host));
        let mut this = Self { registry, fault, dockerfile, base, made: String::new(), other: String::new() };
        let env = crate::env();
        this.context(&env);
        for stage in ["made", "other"] {
            let to = format!("type=registry,ref={}/cache:{stage},mode=max", this.registry.host);
            let _ = env.build(&["--target", stage, "-o", "type=cacheonly", "--cache-to", &to]).ok();
        }
        (this.made, this.other) = (this.last("made"), this.last("other"));
        Some(this)
    }

    fn context(&self, env: &TestEnv) {
        env.context(&[("Dockerfile", &self.dockerfile)]);
    }

    /// Returns the layer of a cache that is no layer of the base.
    fn last(&self, tag: &str) -> String {
        let holdings = self.registry.holdings();
        let (_, manifest) = &holdings.manifests[&("cache".to_owned(), tag.to_owned())];
        let manifest: serde_json::Value = serde_json::from_slice(manifest).expect("manifest");
        let mut layers = manifest["layers"].as_array().expect("layers").iter();
        let own = layers.find(|layer| !self.base.iter().any(|base| layer["digest"] == base.as_str()));
        own.and_then(|layer| layer["digest"].as_str()).expect("a layer of its own").to_owned()
    }

    fn from(&self, tag: &str) -> String {
        format!("type=registry,ref={}/cache:{tag}", self.registry.host)
    }

    fn misbehave(&self, fault: Option<Fault>) {
        *self.fault.lock().expect("lock") = fault;
    }

    /// Returns how often layers were fetched since the last call: those of the base, of `made` and of `other`.
    fn fetched(&self) -> (usize, usize, usize) {
        let lines = self.registry.take_lines();
        let of =
            |digest: &String| lines.iter().filter(|l| l.starts_with("GET ") && l.ends_with(digest.as_str())).count();
        (self.base.iter().map(of).sum(), of(&self.made), of(&self.other))
    }
}

macro_rules! cached {
    () => {
        match Cached::start() {
            Some(cached) => cached,
            None => kiln_testkit::skip!("no static busybox on this host"),
        }
    };
}

#[test]
fn layers_of_a_cache_are_fetched_when_something_reads_them() {
    let cached = cached!();
    let (made, other) = (cached.from("made"), cached.from("other"));
    let imports = ["--cache-from", made.as_str(), "--cache-from", other.as_str()];
    let env = crate::env();
    cached.context(&env);
    let _ = cached.fetched();
    for stage in ["made", "other"] {
        let done = env.build(&[&["--target", stage, "-o", "type=cacheonly"], &imports[..]].concat()).ok();
        assert!(!ran(&done, stage) && warnings(&done).is_empty(), "{}", done.report());
    }
    assert_eq!(cached.fetched(), (0, 0, 0), "nothing reads them");

    // A push to where they are reads nothing either.
    let name = format!("{}/pushed", cached.registry.host);
    let _ = env.build(&[&["--target", "made", "-t", &name, "--push"], &imports[..]].concat()).ok();
    assert_eq!(cached.fetched(), (0, 0, 0));
    assert!(cached.registry.holdings().blobs.contains_key(&("pushed".to_owned(), cached.made.clone())));

    // Another cache that is made of it gets what it lacks.
    let copy = env.out("copy");
    let to = format!("type=local,dest={},mode=max", copy.display());
    let done =
        env.build(&[&["--target", "other", "-o", "type=cacheonly", "--cache-to", &to], &imports[..]].concat()).ok();
    assert!(!ran(&done, "other"), "{}", done.report());
    assert_eq!(cached.fetched().2, 1);
    let hex = cached.other.strip_prefix("sha256:").expect("digest");
    assert!(copy.join("blobs/sha256").join(hex).is_file());

    // A step on top of one stage reads that stage.
    let done = env.build(&[&["-o", "type=cacheonly"], &imports[..]].concat()).ok();
    assert!(!ran(&done, "made"), "{}", done.report());
    assert_eq!(cached.fetched(), (0, 1, 0), "the base is here since the copy was made");

    // An archive reads what it is made of.
    let env = crate::env();
    cached.context(&env);
    let (image, done) = env.build_image(&[&["--target", "made"], &imports[..]].concat());
    assert_eq!(image.text("one"), "one\n");
    assert!(!ran(&done, "made"), "{}", done.report());
    assert_eq!(cached.fetched(), (cached.base.len(), 1, 0));
}

#[test]
fn a_result_that_cannot_be_had_is_made() {
    let cached = cached!();
    for (fault, want) in FAULTS {
        let env = crate::env();
        cached.context(&env);
        // Attempts to have it in spite of all take longer than that.
        let limit = if want == "timed out" { ",timeout=1s" } else { "" };
        let from = cached.from("made") + limit;
        let import = ["--cache-from", from.as_str()];
        cached.misbehave(Some(fault));
        // The first build finds out when it reads, the second one knows.
        for round in ["first", "second"] {
            let (image, done) = env.build_image(&import);
            assert_eq!((image.text("one"), image.text("more")), ("one\n".to_owned(), "one\n".to_owned()), "{want}");
            assert!(ran(&done, "made"), "{want}, {round}: {}", done.report());
            let told = warnings(&done);
            assert_eq!(told.len(), 1, "{want}, {round}: {}", done.report());
            assert!(told[0].contains(want) && told[0].contains("/cache:made"), "{want}, {round}: {told:?}");
            let _ = env.kiln(["prune", "-a", "-f"]).finish().ok();
        }
        // Once it is well again it is used.
        cached.misbehave(None);
        let (image, done) = env.build_image(&import);
        assert!(!ran(&done, "made") && warnings(&done).is_empty(), "{want}: {}", done.report());
        assert_eq!(image.text("more"), "one\n", "{want}");
    }
}

#[test]
fn without_its_cache_a_result_is_as_good_as_none() {
    let cached = cached!();
    let env = crate::env();
    cached.context(&env);
    let from = cached.from("made");
    let lazy = |args: &[&str]| env.build(&[&["-o", "type=cacheonly"], args].concat()).ok();
    let imported = || {
        let done = lazy(&["--target", "made", "--cache-from", &from]);
        assert!(!ran(&done, "made"), "{}", done.report());
    };
    imported();
    cached.misbehave(Some(FAULTS[1].0));
    let done = lazy(&["--target", "made"]);
    assert!(ran(&done, "made") && warnings(&done).is_empty(), "{}", done.report());
    // What was built on it meanwhile is there.
    let done = lazy(&[]);
    assert!(!ran(&done, "made"), "{}", done.report());

    // The whole cache goes away, and an engine that knows only what it was told starts anew.
    let _ = env.kiln(["prune", "-a", "-f"]).finish().ok();
    cached.misbehave(None);
    imported();
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    cached.registry.holdings().blobs.retain(|(repository, _), _| repository != "cache");
    let done = lazy(&[]);
    assert!(ran(&done, "made"), "{}", done.report());
}

#[test]
fn results_in_directories_and_stores_stay_there_too() {
    let (first, base) = crate::env_with_base!();
    let dockerfile = dockerfile("base");
    first.context(&[("Dockerfile", &dockerfile)]);
    let server = ObjectServer::start(Protocol::Http { token: None });
    let dir = first.out("cache");
    let url = format!("type=http,url={}/c", server.address);
    let args = ["--target", "made", "--build-context", &base, "-o", "type=cacheonly", "--cache-to"];
    let _ = first.build(&[&args[..], &[&format!("type=local,dest={},mode=max", dir.display())]].concat()).ok();
    let _ = first.build(&[&args[..], &[&format!("{url},mode=max")]].concat()).ok();
    // Every layer of both has its length, but other bytes.
    for entry in std::fs::read_dir(dir.join("blobs/sha256")).expect("blobs") {
        let path = entry.expect("entry").path();
        let bytes = std::fs::read(&path).expect("read");
        if bytes.first() != Some(&b'{') {
            std::fs::remove_file(&path).expect("remove");
            std::fs::write(&path, vec![b'x'; bytes.len()]).expect("write");
        }
    }
    for (_, bytes) in server.objects().kept.iter_mut().filter(|(name, _)| name.contains("/blobs/")) {
        bytes.fill(b'x');
    }
    for from in [format!("type=local,src={}", dir.display()), url] {
        let env = crate::env();
        env.context(&[("Dockerfile", &dockerfile)]);
        let args = ["--build-context", &base, "--cache-from", &from];
        let _ = server.take_log();
        let done = env.build(&[&args[..], &["--target", "made", "-o", "type=cacheonly"]].concat()).ok();
        assert!(!ran(&done, "made") && warnings(&done).is_empty(), "{from}: {}", done.report());
        assert!(
            !server.take_log().iter().any(|asked| asked.method == "GET" && asked.path.contains("/blobs/")),
            "{from}"
        );
        for _ in 0..2 {
            let (image, done) = env.build_image(&args);
            assert_eq!(image.text("more"), "one\n", "{from}");
            assert!(ran(&done, "made"), "{from}: {}", done.report());
            let told = warnings(&done);
            assert!(told.len() == 1 && told[0].contains("mismatch"), "{from}: {}", done.report());
            let _ = env.kiln(["prune", "-a", "-f"]).finish().ok();
        }
    }
}

#[test]
fn an_imported_result_is_as_old_as_it_was() {
    let (env, base) = crate::env_with_base!();
    let dockerfile = dockerfile("base");
    env.context(&[("Dockerfile", &dockerfile)]);
    let from = format!("type=local,src={}", env.out("cache").display());
    let fixed = ["--target", "made", "--build-context", &base, "-o", "type=cacheonly"];
    let to = format!("type=local,dest={},mode=max", env.out("cache").display());
    let _ = env.build(&[&fixed[..], &["--cache-to", &to]].concat()).ok();
    for (age, again) in [("1h", false), ("0", true), ("1h", false)] {
        let other = crate::env();
        other.context(&[("Dockerfile", &dockerfile)]);
        let done = other.build(&[&fixed[..], &["--cache-from", &from, "--max-age", age]].concat()).ok();
        assert_eq!(ran(&done, "made"), again, "{age}: {}", done.report());
    }
}

/// A client that drives its build holds results while these turn out to be of no use.
#[test]
fn a_client_that_drives_its_build_gets_what_is_made_instead() {
    let Some(buildx) = kiln_testkit::program("docker-buildx") else { kiln_testkit::skip!("no docker-buildx here") };
    let cached = cached!();
    let env = crate::env();
    cached.context(&env);
    let _ = env.kiln(["du"]).finish().ok();
    let home = env.path().join("home");
    let run = |args: &[&str]| Run::new(&buildx).args(args).env("HOME", &home).dir(env.path()).finish();
    let address = format!("unix://{}", env.root().join("engine.sock").display());
    let _ = run(&["create", "--name", "engine", "--driver", "remote", &address]).ok();
    let (from, ctx, dest) = (cached.from("made"), env.ctx(), env.out("files"));
    let output = format!("type=local,dest={}", dest.display());
    let fixed = ["build", "--builder", "engine", "--progress=plain", "--provenance=false", "--cache-from", &from];
    let build = |args: &[&str]| run(&[&fixed[..], args, &[ctx.to_str().expect("path")]].concat()).ok();
    let _ = cached.fetched();
    let done = build(&["--target", "made"]);
    assert!(!ran(&done, "made"), "{}", done.report());
    assert_eq!(cached.fetched(), (0, 0, 0), "nothing reads it");
    cached.misbehave(Some(FAULTS[1].0));
    let done = build(&["-o", &output]);
    assert!(ran(&done, "made"), "{}", done.report());
    assert_eq!(std::fs::read_to_string(dest.join("more")).expect("more"), "one\n");
}

#[test]
fn a_result_that_is_lost_when_it_is_put_out_is_made() {
    let cached = cached!();
    let from = cached.from("made");
    cached.misbehave(Some(FAULTS[4].0));
    for archive in [false, true] {
        let env = crate::env();
        cached.context(&env);
        let dest = env.out("files");
        let output = format!("type={},dest={}", if archive { "tar" } else { "local" }, dest.display());
        let done = env.build(&["--target", "made", "--cache-from", &from, "-o", &output]).ok();
        assert!(ran(&done, "made") && warnings(&done).len() == 1, "{}", done.report());
        if !archive {
            assert_eq!(std::fs::read_to_string(dest.join("one")).expect("one"), "one\n");
        }
    }
}
