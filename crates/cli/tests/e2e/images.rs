//! kiln's own image store: images are built on by name, without a registry; `--load` without and with a docker engine.

use std::os::unix::fs::PermissionsExt;

/// Returns the names in the image store's index.
fn names(env: &kiln_testkit::TestEnv) -> Vec<String> {
    let json = std::fs::read(env.root().join("images/index.json")).unwrap_or_default();
    let index: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let entries = index["manifests"].as_array().cloned().unwrap_or_default();
    let name = |e: &serde_json::Value| e["annotations"]["io.containerd.image.name"].as_str().map(str::to_owned);
    entries.iter().filter_map(name).collect()
}

#[test]
fn a_name_of_the_image_store_is_a_base() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo one > /one\n")]);
    let _ = env.build(&["--build-context", &base, "-t", "me/first", "-t", "me/again:2"]).ok();
    assert_eq!(names(&env), ["docker.io/me/first:latest", "docker.io/me/again:2"]);
    env.context(&[("Dockerfile", "FROM me/again:2\nRUN cat /one > /two\n")]);
    let (image, done) = env.build_image(&[]);
    assert_eq!(image.text("two"), "one\n");
    assert!(!done.err().contains("extracting"), "the layers are here already: {}", done.err());
    assert_eq!(image.layers.len(), 3);
    // The registry is asked only on request, and there is none of that name.
    env.context(&[("Dockerfile", "FROM 127.0.0.1:9/me/gone\nRUN true\n")]);
    let _ = env.build(&["--pull"]).fails_with("127.0.0.1:9/me/gone");
}

#[test]
fn names_move_and_are_pinned() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "1")]);
    let _ = env.build(&["-o", "type=image,name=a,name-canonical=true"]).ok();
    let before = names(&env);
    assert!(before.len() == 2 && before[1].starts_with("docker.io/library/a:latest@sha256:"), "{before:?}");
    env.context(&[("f", "2")]);
    let _ = env.build(&["-t", "a"]).ok();
    let _ = env.build(&["-o", "type=image,dangling-name-prefix=local/x"]).ok();
    let after = names(&env);
    assert!(after.iter().any(|n| n.starts_with("docker.io/local/x@sha256:")), "{after:?}");
    assert_eq!(after.iter().filter(|n| *n == "docker.io/library/a:latest").count(), 1, "{after:?}");
    let _ = env.build(&["-o", "type=image,name=b,store=false"]).ok();
    assert!(!names(&env).iter().any(|n| n.contains("/b:")));
}

#[test]
fn an_image_can_be_unpacked_or_pushed_by_digest() {
    let registry = kiln_testkit::FakeRegistry::start();
    let layers = crate::busybox_in!(registry, "base");
    let env = crate::env();
    env.context(&[("Dockerfile", &format!("FROM {}/base\nLABEL a=b\n", registry.host))]);
    let done = env.build(&["-o", "type=image,name=a,unpack=true"]).ok();
    assert!(done.err().matches("extracting sha256:").count() >= layers.len(), "{}", done.err());
    let output = format!("type=image,name={}/app,push-by-digest=true,push=true,store=false", registry.host);
    let _ = env.build(&["-o", &output]).ok();
    let tags: Vec<String> =
        registry.holdings().manifests.keys().filter(|(r, _)| r == "app").map(|(_, t)| t.clone()).collect();
    assert!(tags.len() == 1 && tags[0].starts_with("sha256:"), "{tags:?}");
    let _ = env.build(&["--push"]).fails_with("tag is needed when pushing to registry");
}

#[test]
fn annotations_and_media_types() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "1")]);
    let (image, _) = env.build_image(&["--annotation", "org.test.a=b", "--annotation", "manifest-descriptor:d=e"]);
    assert_eq!(image.manifest.annotations.get("org.test.a").map(String::as_str), Some("b"));
    let dest = env.out("docker-types.tar");
    let output = format!("type=oci,dest={},oci-mediatypes=false", dest.display());
    let _ = env.build(&["-o", &output]).ok();
    let media = kiln_testkit::Image::read(&dest).manifest.layers[0].media_type.clone();
    assert_eq!(media, "application/vnd.docker.image.rootfs.diff.tar.gzip");
}

#[test]
fn loading_without_a_docker_engine_keeps_the_image() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "1")]);
    let ctx = env.ctx();
    let args = ["build", "--progress=plain", "--load", "-t", "kept"];
    let done = env
        .kiln(args.iter().map(std::ffi::OsStr::new).chain([ctx.as_os_str()]))
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .finish()
        .ok();
    assert!(done.err().contains("no docker engine answers; the image stays in kiln's image store"), "{}", done.err());
    assert_eq!(names(&env), ["docker.io/library/kept:latest"]);
}

#[test]
fn loading_hands_a_docker_engine_an_archive() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "1")]);
    let bin = env.out("bin");
    std::fs::create_dir(&bin).expect("mkdir");
    let took = env.out("took.tar");
    let script = |load: &str| {
        let text = format!("#!/bin/sh\ncase $1 in\nversion) echo 1.0;;\nload) {load};;\nesac\n");
        std::fs::write(bin.join("docker"), text).expect("write");
        std::fs::set_permissions(bin.join("docker"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    };
    let ctx = env.ctx();
    let run = || {
        let args = ["build", "--progress=plain", "--load", "-t", "loaded:1"];
        let path = format!("{}:/usr/bin:/bin", bin.display());
        env.kiln(args.iter().map(std::ffi::OsStr::new).chain([ctx.as_os_str()])).env("PATH", path).finish()
    };
    script(&format!("cat > {}", took.display()));
    let _ = run().ok();
    let mut archive = tar::Archive::new(std::fs::File::open(&took).expect("archive"));
    let names: Vec<String> =
        archive.entries().expect("tar").flatten().filter_map(|e| Some(e.path().ok()?.display().to_string())).collect();
    assert!(names.iter().any(|n| n == "manifest.json"), "{names:?}");
    assert_eq!(crate::images::names(&env), Vec::<String>::new(), "it went to the docker engine only");
    script("cat > /dev/null; echo no room >&2; exit 1");
    let _ = run().fails_with("docker load: no room");
}

#[test]
fn what_was_put_out_can_be_written_to() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "content")]);
    let layout = env.out("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let (before, _) = env.build_image(&["-t", "x"]);
    let _ = env.build(&["-t", "x", "-o", &output]).ok();
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).expect("blobs").flatten() {
        std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o644)).expect("chmod");
        std::fs::write(entry.path(), "scribbled over").expect("write");
    }
    std::fs::write(env.out("image.tar"), "scribbled over").expect("write");
    let (after, _) = env.build_image(&["-t", "x"]);
    assert_eq!((after.digest, after.text("f").as_str()), (before.digest, "content"));
    let _ = env.kiln(["cache", "verify"]).finish().ok();
}
