//! Registries: pushing, building on what is there, layers that nothing reads, and servers that misbehave.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_testkit::registry::{Answer, Asked, End, FakeRegistry, Holdings};
use kiln_testkit::{Finished, TestEnv};

/// Builds the context with this output and name.
fn build(env: &TestEnv, args: &[&str]) -> Finished {
    env.build(args)
}

/// Returns the requests that carry a layer or a manifest to the registry.
fn bodies(lines: &[String]) -> Vec<&String> {
    lines.iter().filter(|l| !l.starts_with("GET ") && !l.starts_with("HEAD ")).collect()
}

fn fetches(lines: &[String], digest: &str) -> usize {
    lines.iter().filter(|l| l.starts_with("GET ") && l.ends_with(digest)).count()
}

#[macro_export]
macro_rules! busybox_in {
    ($registry:expr, $name:expr) => {
        match $registry.put_busybox($name, "latest") {
            Some(layers) => layers.iter().map(ToString::to_string).collect::<Vec<String>>(),
            None => kiln_testkit::skip!("no static busybox on this host"),
        }
    };
}

#[test]
fn an_unchanged_image_is_pushed_without_a_body() {
    let registry = FakeRegistry::start();
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\nCOPY g /\n"), ("f", "one"), ("g", "two")]);
    let (first, second) = (format!("{}/me/app:1", registry.host), format!("{}/me/app:2", registry.host));
    let _ = build(&env, &["-t", &first, "-t", &second, "--push"]).ok();
    let lines = registry.take_lines();
    let puts = |what: &str| lines.iter().filter(|l| l.starts_with("PUT ") && l.contains(what)).count();
    assert_eq!((puts("/blobs/"), puts("/manifests/")), (3, 2), "each blob once for both names: {lines:?}");
    let _ = build(&env, &["-t", &first, "-t", &second, "--push"]).ok();
    let lines = registry.take_lines();
    assert_eq!(bodies(&lines), Vec::<&String>::new());
    env.context(&[("g", "changed")]);
    let _ = build(&env, &["-t", &first, "--push"]).ok();
    let lines = registry.take_lines();
    let puts: Vec<_> = lines.iter().filter(|l| l.starts_with("PUT ")).collect();
    assert_eq!(puts.len(), 3, "one layer, one config, one manifest: {lines:?}");
}

#[test]
fn layers_that_nothing_reads_are_never_fetched() {
    let registry = FakeRegistry::start();
    let layers = busybox_in!(registry, "base/big");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/base/big\nLABEL a=b\n", registry.host))]);
    let target = format!("{}/me/app:1", registry.host);
    let _ = build(&env, &["-t", &target, "--push"]).ok();
    let lines = registry.take_lines();
    for layer in &layers {
        assert_eq!(fetches(&lines, layer), 0, "{lines:?}");
        assert!(registry.holdings().blobs.contains_key(&("me/app".to_owned(), layer.clone())));
    }
    let puts = lines.iter().filter(|l| l.starts_with("PUT ") && l.contains("/blobs/")).count();
    assert_eq!(puts, 1, "the config; the layers are mounted: {lines:?}");

    // A step of the same image reads them: both are fetched, once, and not for the next step again.
    env.context(&[(
        "Dockerfile",
        &format!(
            "FROM {0}/base/big AS a\nRUN echo a > /a\nFROM {0}/base/big AS b\nRUN echo b > /b\n\
             FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
            registry.host
        ),
    )]);
    let (image, _) = env.build_image(&[]);
    assert_eq!((image.text("a"), image.text("b")), ("a\n".to_owned(), "b\n".to_owned()));
    let lines = registry.take_lines();
    for layer in &layers {
        assert_eq!(fetches(&lines, layer), 1, "{lines:?}");
    }
}

#[test]
fn lazy_layers_are_put_out_where_bytes_are_needed() {
    let registry = FakeRegistry::start();
    let layers = busybox_in!(registry, "base/big");
    let env = crate::env();
    env.context(&[
        ("Dockerfile", &format!("FROM {}/base/big\nCOPY --link f /f\nLABEL a=b\n", registry.host)),
        ("f", "x"),
    ]);
    let (image, _) = env.build_image(&[]);
    assert_eq!((image.layers.len(), image.text("f").as_str()), (3, "x"));
    let lines = registry.take_lines();
    assert!(layers.iter().all(|l| fetches(&lines, l) == 1), "{lines:?}");
    let dest = env.out("dir");
    let _ = build(&env, &["-o", dest.to_str().expect("path")]).ok();
    assert_eq!(std::fs::metadata(dest.join("noise")).expect("noise").len(), 1 << 20);
    assert_eq!(registry.take_lines().iter().filter(|l| l.starts_with("GET ") && l.contains("/blobs/")).count(), 0);
}

#[test]
fn a_base_that_can_no_longer_be_fetched_is_made_from_its_files() {
    let registry = FakeRegistry::start();
    let layers = busybox_in!(registry, "base");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/base\nRUN echo a > /a\n", registry.host))]);
    let (before, _) = env.build_image(&[]);
    for layer in &layers {
        let hex = layer.strip_prefix("sha256:").expect("digest");
        let blobs = env.root().join("blobs/sha256");
        std::fs::remove_file(blobs.join(&hex[..2]).join(hex)).expect("the blob is here");
    }
    registry.holdings().blobs.clear();
    let args = ["build", "--progress=plain", "-o"];
    let dest = env.out("again.tar");
    let output = format!("type=oci,dest={}", dest.display());
    let ctx = env.ctx();
    let all = args.iter().map(OsStr::new).chain([OsStr::new(&output), ctx.as_os_str()]);
    let done = env.kiln(all).finish().ok();
    assert!(done.err().contains("cannot be fetched again and is made from its files"), "{}", done.err());
    let after = kiln_testkit::Image::read(&dest);
    assert_eq!(after.root().keys().collect::<Vec<_>>(), before.root().keys().collect::<Vec<_>>());
    assert_eq!(after.text("a"), "a\n");
}

#[test]
fn a_recompressed_base_is_fetched_once_and_pushed() {
    let registry = FakeRegistry::start();
    let layers = busybox_in!(registry, "base");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/base\nLABEL a=b\n", registry.host))]);
    let output =
        format!("type=image,name={}/app,push=true,store=false,compression=zstd,force-compression=true", registry.host);
    for fetched in [1, 0] {
        let _ = build(&env, &["-o", &output]).ok();
        let lines = registry.take_lines();
        assert!(layers.iter().all(|l| fetches(&lines, l) == fetched), "{lines:?}");
    }
    let holdings = registry.holdings();
    let (_, manifest) = &holdings.manifests[&("app".to_owned(), "latest".to_owned())];
    assert_eq!(String::from_utf8_lossy(manifest).matches("tar+zstd").count(), 2);
}

#[test]
fn a_registry_that_stumbles_is_borne_with() {
    type Stumble = fn(usize) -> Option<Answer>;
    let cases: [(&str, Stumble); 5] = [
        ("429", |n| (n < 2).then(|| Answer::new(429).with("Retry-After", 0))),
        ("503", |n| (n < 2).then(|| Answer::new(503))),
        ("reset", |n| (n < 2).then(|| Answer::default().ending(End::Reset))),
        ("gone for a moment", |n| (n == 0).then(|| Answer::new(502).body("<html>bad gateway</html>"))),
        ("timeout", |n| (n == 0).then(|| Answer::new(408))),
    ];
    for (name, stumble) in cases {
        let count = AtomicUsize::new(0);
        let registry = FakeRegistry::scripted(move |asked: &Asked, _: &mut Holdings| {
            asked.path.contains("/blobs/sha256").then(|| stumble(count.fetch_add(1, Ordering::SeqCst)))?
        });
        let _ = busybox_in!(registry, "base");
        let env = crate::env();
        env.context(&[("Dockerfile", &format!("FROM {}/base\nRUN sha256sum /noise > /sum\n", registry.host))]);
        let (image, _) = env.build_image(&[]);
        assert!(image.text("sum").ends_with("/noise\n"), "{name}");
    }
}

/// Every way in which bytes can come wrong or not at all.
#[test]
fn wrong_bytes_never_become_a_layer() {
    /// Of the how many-eth request for this blob, the request, and the right bytes.
    type Twist = fn(usize, &Asked, &[u8]) -> Option<Answer>;
    let cases: [(&str, Twist, Option<&str>); 6] = [
        (
            "cut, ranges served",
            |n, _, b| (n == 0).then(|| Answer::new(200).body(b).ending(End::Cut(b.len() / 2))),
            None,
        ),
        (
            "cut, ranges ignored",
            |n, _, b| Some(Answer::new(200).body(b).ending(if n == 0 { End::Cut(b.len() / 2) } else { End::Whole })),
            None,
        ),
        (
            "cut, ranges refused",
            |n, asked, b| match (n, asked.header("range")) {
                (0, _) => Some(Answer::new(200).body(b).ending(End::Cut(b.len() / 2))),
                (_, "") => None,
                _ => Some(Answer::new(416)),
            },
            None,
        ),
        ("other bytes", |_, _, b| Some(Answer::new(200).body(vec![b'x'; b.len()])), Some("digest mismatch")),
        ("too long", |_, _, b| Some(Answer::new(200).body([b, b"more"].concat())), Some("length mismatch")),
        ("too short", |_, _, b| Some(Answer::new(200).body(&b[..b.len() - 1])), Some("length mismatch")),
    ];
    for (name, twist, error) in cases {
        let counts = Mutex::new(BTreeMap::<String, usize>::new());
        let registry = FakeRegistry::scripted(move |asked: &Asked, holdings: &mut Holdings| {
            let digest = asked.path.strip_prefix("/v2/base/blobs/")?;
            let bytes = holdings.blobs.get(&("base".to_owned(), digest.to_owned()))?;
            let mut counts = counts.lock().expect("counts");
            let count = counts.entry(digest.to_owned()).or_default();
            *count += 1;
            // The config is left alone.
            (bytes.len() > 4096).then(|| twist(*count - 1, asked, bytes))?
        });
        let layers = busybox_in!(registry, "base");
        let env = crate::env();
        env.context(&[("Dockerfile", &format!("FROM {}/base\nRUN sha256sum /noise > /sum\n", registry.host))]);
        match error {
            None => {
                let (image, _) = env.build_image(&[]);
                assert!(image.text("sum").ends_with("/noise\n"), "{name}");
            }
            Some(text) => {
                let done = build(&env, &["-o", "type=cacheonly"]).fails_with(text);
                assert_eq!(
                    done.err().lines().filter(|l| l.starts_with("ERROR: ")).count(),
                    1,
                    "{name}: {}",
                    done.err()
                );
                assert!(done.err().contains(&layers[0]) || done.err().contains(&layers[1]), "{name}: {}", done.err());
            }
        }
    }
}

#[test]
fn a_login_opens_the_registry_and_shows_nowhere() {
    let registry = FakeRegistry::scripted(|asked: &Asked, _: &mut Holdings| {
        if asked.path == "/token" {
            // `me:hunter2` in base64.
            let known = asked.header("authorization") == "Basic bWU6aHVudGVyMg==";
            return Some(match known {
                true => Answer::new(200).body(r#"{"token":"t0ken-of-one-build","expires_in":300}"#),
                false => Answer::new(401).body(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#),
            });
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"fake\"", asked.header("host"));
        (asked.header("authorization") != "Bearer t0ken-of-one-build")
            .then(|| Answer::new(401).with("WWW-Authenticate", realm))
    });
    let _ = busybox_in!(registry, "private/base");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/private/base\nRUN true\n", registry.host))]);
    let target = format!("{}/private/app", registry.host);
    let args = ["--debug", "-t", target.as_str(), "--push"];
    let refused = build(&env, &args).fails_with("authorization failed");
    assert!(refused.err().contains("docker login"), "{}", refused.err());
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"bWU6aHVudGVyMg=="}}}}}}"#, registry.host);
    std::fs::create_dir(env.path().join("home/.docker")).expect("mkdir");
    std::fs::write(env.path().join("home/.docker/config.json"), config).expect("write");
    let done = build(&env, &args).ok();
    let log = std::fs::read_to_string(env.root().join("engine.log")).unwrap_or_default();
    let history = std::fs::read(env.root().join("history.db")).unwrap_or_default();
    for text in ["hunter2", "bWU6aHVudGVyMg", "t0ken-of-one-build"] {
        for (place, shown) in [("output", done.err()), ("log", log.clone()), ("refusal", refused.err())] {
            assert!(!shown.contains(text), "{text} in the {place}");
        }
        assert!(!history.windows(text.len()).any(|w| w == text.as_bytes()), "{text} in the history");
    }
    let scopes: BTreeMap<String, usize> =
        registry.take_log().iter().filter_map(|a| a.parameter("scope")).fold(BTreeMap::new(), |mut all, scope| {
            *all.entry(scope).or_default() += 1;
            all
        });
    assert!(!scopes.is_empty());
}

#[test]
fn a_helper_gives_an_identity_token() {
    let registry = FakeRegistry::scripted(|asked: &Asked, _: &mut Holdings| {
        if asked.path == "/token" {
            let form = String::from_utf8_lossy(&asked.body).into_owned();
            let known = asked.method == "POST" && form.contains("refresh_token=kept-by-the-helper");
            let status = if known { 200 } else { 401 };
            return Some(Answer::new(status).body(r#"{"access_token":"opened","expires_in":300}"#));
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"fake\"", asked.header("host"));
        let opened = asked.header("authorization") == "Bearer opened";
        (!opened).then(|| Answer::new(401).with("WWW-Authenticate", realm))
    });
    let env = crate::env();
    let bin = env.out("bin");
    std::fs::create_dir_all(&bin).expect("mkdir");
    let helper = bin.join("docker-credential-drawer");
    let text = "#!/bin/sh\nread host\necho '{\"Username\":\"<token>\",\"Secret\":\"kept-by-the-helper\"}'\n";
    std::fs::write(&helper, text).expect("write");
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    std::fs::create_dir(env.path().join("home/.docker")).expect("mkdir");
    std::fs::write(env.path().join("home/.docker/config.json"), r#"{"credsStore":"drawer"}"#).expect("write");
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "x")]);
    let (ctx, target) = (env.ctx(), format!("{}/private/app", registry.host));
    let args = ["build", "--progress=plain", "--push", "-t", target.as_str()].map(OsStr::new);
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let _ = env.kiln(args.into_iter().chain([ctx.as_os_str()])).env("PATH", path).finish().ok();
    assert!(registry.holdings().manifests.contains_key(&("private/app".into(), "latest".into())));
}

#[test]
fn mirrors_come_first_and_fail_over() {
    let mirror = FakeRegistry::start();
    let origin = FakeRegistry::start();
    let _ = busybox_in!(mirror, "hub/base");
    let _ = busybox_in!(origin, "hub/base");
    let env = crate::env();
    let config = env.out("kiln.toml");
    let text = format!("[registry.\"{}\"]\nmirrors = [\"{}\"]\n", origin.host, mirror.host);
    std::fs::write(&config, text).expect("write");
    env.context(&[("Dockerfile", &format!("FROM {}/hub/base\nRUN true\n", origin.host))]);
    let ctx = env.ctx();
    let run = || {
        let args = ["build", "--progress=plain", "-o", "type=cacheonly"];
        let args = args.iter().map(OsStr::new).chain([ctx.as_os_str()]);
        env.kiln(args).env("KILN_CONFIG", &config).finish().ok()
    };
    let _ = run();
    assert_eq!(origin.take_lines(), Vec::<String>::new());
    assert!(mirror.take_lines().iter().any(|l| l.contains("/blobs/")));
    // A mirror that gives other bytes.
    for blob in mirror.holdings().blobs.values_mut().filter(|blob| blob.len() > 4096) {
        blob.fill(b'x');
    }
    let _ = env.kiln(["prune", "-a", "-f"]).finish().ok();
    let _ = run();
    let lines = origin.take_lines();
    assert!(
        lines.iter().any(|l| l.contains("/blobs/")) && !lines.iter().any(|l| l.contains("/manifests/")),
        "{lines:?}"
    );
    // A mirror that lost what it had.
    *mirror.holdings() = Holdings::default();
    let _ = env.kiln(["prune", "-a", "-f"]).finish().ok();
    let _ = run();
    assert!(origin.take_lines().iter().any(|l| l.contains("/manifests/")));
}

#[test]
fn a_configuration_with_a_mistake_is_told() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\n")]);
    let config = env.out("kiln.toml");
    std::fs::write(&config, "[regsitry.x]\n").expect("write");
    let done = env.kiln(["daemon", "run", "--config"]).args([config.as_os_str()]).finish();
    assert_eq!(done.code, Some(1));
    assert!(done.err().contains("unknown setting `regsitry`, did you mean `registry`?"), "{}", done.err());
}
