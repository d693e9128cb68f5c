//! `--offline`: what earlier builds brought is enough, nobody is asked, and what is missing is named.

use std::path::Path;

use kiln_oci::Manifest;
use kiln_testkit::registry::FakeRegistry;
use kiln_testkit::{FileServer, Finished, TestEnv, git_repository};

use crate::busybox_in;

/// Puts another image under the tag: the same layers, and a variable.
fn move_tag(registry: &FakeRegistry, repository: &str, tag: &str) {
    let (config, layers) = {
        let holdings = registry.holdings();
        let (_, manifest) = &holdings.manifests[&(repository.to_owned(), tag.to_owned())];
        let manifest = Manifest::from_json(manifest).expect("manifest");
        let blob = |digest: &kiln_stdx::Digest| holdings.blobs[&(repository.to_owned(), digest.to_string())].clone();
        let config = String::from_utf8(blob(&manifest.config.digest)).expect("config");
        let layers: Vec<Vec<u8>> = manifest.layers.iter().map(|layer| blob(&layer.digest)).collect();
        (config.replace(r#""Env":["#, r#""Env":["MOVED=1","#), layers)
    };
    registry.put_image(repository, tag, config.as_bytes(), &layers);
}

fn cached(done: &Finished, step: &str) -> bool {
    let text = done.err();
    let number = text.lines().find(|line| line.starts_with('#') && line.contains(step));
    let number = number.and_then(|line| line.split_whitespace().next()).unwrap_or_else(|| panic!("no {step}: {text}"));
    text.lines().any(|line| line == format!("{number} CACHED"))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[test]
fn what_was_built_once_is_built_again_without_a_request() {
    let registry = FakeRegistry::start();
    let _layers = busybox_in!(registry, "base");
    let env = crate::env();
    let web = env.path().join("web");
    std::fs::create_dir(&web).expect("mkdir");
    write(&web.join("data"), "first");
    let server = FileServer::start(&web);
    let text = |mode: &str| {
        format!(
            "FROM {}/base\nADD {mode}{}/data /data\nCOPY f /f\nRUN cat /f /data > /out\n",
            registry.host, server.address
        )
    };
    env.context(&[("Dockerfile", &text("")), ("f", "1")]);
    let (first, _) = env.build_image(&[]);
    assert_eq!(first.text("out"), "1first");
    let _ = (registry.take_lines(), server.take_log());

    // The world moves on, the engine is started anew, and sources are edited, how the download is put there too.
    move_tag(&registry, "base", "latest");
    write(&web.join("data"), "second");
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    env.context(&[("Dockerfile", &text("--chmod=640 ")), ("f", "2")]);
    let (again, _) = env.build_image(&["--offline"]);
    assert_eq!(again.text("out"), "2first");
    assert_eq!(again.root()[b"data".as_slice()].mode & 0o777, 0o640);
    let base = |image: &kiln_testkit::Image| (image.config.config.env.clone(), image.manifest.layers[0].digest);
    assert_eq!(base(&again), base(&first));
    assert_eq!((registry.take_lines(), server.take_log()), (vec![], vec![]));

    // What is put out is asked for by name, and goes out; nothing else is asked.
    let target = format!("{}/me/app:1", registry.host);
    let _ = env.build(&["--offline", "-t", &target, "--push"]).ok();
    let lines = registry.take_lines();
    assert!(lines.iter().any(|line| line.starts_with("PUT ")), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("/me/app/") || line.ends_with("/v2/")), "{lines:?}");

    let (online, _) = env.build_image(&[]);
    assert_eq!(online.text("out"), "2second");
    assert!(online.config.config.env.contains(&"MOVED=1".to_owned()), "{:?}", online.config.config.env);
    let _ = (registry.take_lines(), server.take_log());
    let (last, _) = env.build_image(&["--offline"]);
    assert_eq!(last.config_digest, online.config_digest, "offline is what was seen last");
    assert_eq!((registry.take_lines(), server.take_log()), (vec![], vec![]));
}

#[test]
fn repositories_are_checked_out_of_the_copy_that_is_here() {
    let (env, base) = crate::env_with_base!();
    let Some(web) = git_repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let server = FileServer::start(&web);
    let url = format!("{}/repo.git", server.address);
    let build = |text: &str, more: &[&str]| {
        env.context(&[("Dockerfile", &format!("FROM base\n{text}"))]);
        let mut args = vec!["--build-context", base.as_str()];
        args.extend(more);
        env.build_image(&args).0
    };
    let first = build(&format!("ADD {url}#trunk /r\nADD {url}#v1 /old\n"), &[]);
    assert_eq!(first.text("r/file"), "two");
    let _ = server.take_log();
    // Another directory of the same commit is not in the cache, but in the copy.
    let second = build(&format!("ADD {url}#trunk:docs /d\nADD --keep-git-dir=true {url}#v1 /old\n"), &["--offline"]);
    assert_eq!((second.text("d/page"), second.text("old/file")), ("words".to_owned(), "one".to_owned()));
    env.context(&[("Dockerfile", &format!("FROM base\nADD {url}#other /r\nADD {url} /head\n"))]);
    let done = env.build(&["--build-context", &base, "--offline", "-o", "type=cacheonly"]);
    let done = done.fails_with(&format!("ref other of {url} is not here, and the build is offline"));
    assert!(done.err().contains(&format!("the default branch of {url} is not here")), "{}", done.report());
    assert_eq!(server.take_log(), Vec::<String>::new());
}

#[test]
fn all_that_is_missing_is_named_and_nothing_is_left() {
    let registry = FakeRegistry::start();
    let env = crate::env();
    let server = FileServer::start(env.path());
    let (host, web) = (registry.host.clone(), server.address.clone());
    let out = env.out("image.tar");
    let output = format!("type=oci,dest={}", out.display());
    let fails = |text: &str, names: &[String]| {
        env.context(&[("Dockerfile", text)]);
        let done = env.build(&["--offline", "-o", &output]).fails_with("build once without --offline");
        for name in names {
            let line = format!("{name} is not here, and the build is offline");
            assert!(done.err().contains(&line), "{line}\n{}", done.report());
        }
        assert!(!out.exists());
        done
    };
    let done = fails(
        &format!("FROM {host}/one AS a\nFROM {host}/two:x\nCOPY --from=a / /\nCOPY --from={host}/three / /\n"),
        &[format!("image {host}/one:latest"), format!("image {host}/two:x"), format!("image {host}/three:latest")],
    );
    assert!(done.err().contains("Dockerfile:1") && done.err().contains("Dockerfile:2"), "{}", done.report());
    let done = fails(
        &format!("FROM scratch\nADD {web}/data /\nADD {web}/other /\nADD {web}/repo.git#v1 /r\n"),
        &[format!("{web}/data"), format!("{web}/other"), format!("ref v1 of {web}/repo.git")],
    );
    assert!(done.err().contains("Dockerfile:2"), "{}", done.report());
    fails(&format!("# syntax={host}/frontend:1\nFROM scratch\n"), &[format!("image {host}/frontend:1")]);
    let digest = format!("sha256:{}", "0".repeat(64));
    fails(&format!("FROM {host}/one@{digest}\n"), &[format!("image {host}/one@{digest}")]);
    let place = format!("{web}/repo.git#trunk");
    let done = env.kiln(["build", "--offline", "-o", &output, &place]).finish();
    let _ = done.fails_with(&format!("ref trunk of {web}/repo.git is not here, and the build is offline"));
    assert_eq!((registry.take_lines(), server.take_log()), (vec![], vec![]));
}

#[test]
fn a_layer_that_nobody_has_read_is_missing_when_it_is_read() {
    let registry = FakeRegistry::start();
    let layers = busybox_in!(registry, "base");
    let env = crate::env();
    let build = |last: &str, args: &[&str]| {
        env.context(&[("Dockerfile", &format!("FROM {}/base\n{last}\n", registry.host))]);
        env.build(&[args, &["-o", "type=cacheonly"]].concat())
    };
    let _ = build("LABEL a=b", &[]).ok();
    let _ = registry.take_lines();
    let _ = build("LABEL a=c", &["--offline"]).ok();
    let done = build("RUN true", &["--offline"]).fails_with("build once without --offline");
    let named = |layer: &String| done.err().contains(&format!("layer {layer} of {}/base:latest@", registry.host));
    assert!(layers.iter().any(named), "{}", done.report());
    assert_eq!(registry.take_lines(), Vec::<String>::new());
    let _ = build("RUN true", &[]).ok();
    let _ = registry.take_lines();
    let _ = build("RUN echo", &["--offline"]).ok();
    assert_eq!(registry.take_lines(), Vec::<String>::new());
}

#[test]
fn caches_behind_the_network_are_left_out_and_local_ones_are_read() {
    let (env, base) = crate::env_with_base!();
    let registry = FakeRegistry::start();
    let files = [("Dockerfile", "FROM base\nCOPY f /f\nRUN cat /f > /g\n"), ("f", "x")];
    env.context(&files);
    let dir = env.out("cache");
    let to = format!("type=local,dest={},mode=max", dir.display());
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly", "--cache-to", &to]).ok();
    let other = crate::env();
    other.context(&files);
    let build = |env: &TestEnv, from: &str| {
        env.build(&["--offline", "--build-context", &base, "-o", "type=cacheonly", "--cache-from", from]).ok()
    };
    let done = build(&other, &format!("type=registry,ref={}/cache:1", registry.host));
    assert!(done.err().contains("the cache is left out: the build is offline"), "{}", done.report());
    assert!(!cached(&done, "RUN cat"), "{}", done.report());
    let empty = crate::env();
    empty.context(&files);
    let done = build(&empty, &format!("type=local,src={}", dir.display()));
    assert!(cached(&done, "RUN cat"), "{}", done.report());
    assert_eq!(registry.take_lines(), Vec::<String>::new());
}

#[test]
fn asking_and_not_asking_at_once_is_refused() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\n")]);
    let _ = env.build(&["--offline", "--pull"]).fails_with("--offline and --pull contradict each other");
    assert_eq!(env.engine_pid(), None, "nothing was started for it");
}
