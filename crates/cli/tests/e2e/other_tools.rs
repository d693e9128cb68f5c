//! kiln among other tools: a real registry between it and skopeo, buildah and podman, both ways.

use kiln_testkit::{DebianRegistry, Image, Run, TestEnv, program};

macro_rules! real_registry {
    ($env:expr) => {
        match DebianRegistry::start($env.path()) {
            Some(registry) => registry,
            None => kiln_testkit::skip!("no docker-registry"),
        }
    };
}

/// Prepares a tool with its own state below the test's directory; none where the host does not have it.
fn tool(env: &TestEnv, name: &str) -> Option<Run> {
    let run = Run::new(program(name)?).env("HOME", env.path().join("home")).dir(env.path());
    let at = |dir: &str| env.path().join(dir).display().to_string();
    Some(match name {
        "buildah" | "podman" => {
            let (graph, run_root) = (at(&format!("{name}-graph")), at(&format!("{name}-run")));
            run.args(["--root", &graph, "--runroot", &run_root, "--storage-driver", "vfs"])
        }
        _ => run,
    })
}

#[test]
fn what_kiln_pushes_others_pull() {
    let (env, base) = crate::env_with_base!();
    let registry = real_registry!(env);
    env.context(&[("Dockerfile", "FROM base\nRUN echo made by kiln > /made && ln -s made /soft\n")]);
    for (tag, attrs) in [
        ("gzip", "force-compression=true"),
        ("zstd", "compression=zstd,force-compression=true,compression-level=7"),
        ("plain", "compression=uncompressed,force-compression=true"),
        ("docker", "oci-mediatypes=false"),
    ] {
        let name = format!("{}/me/app:{tag}", registry.host);
        let output = format!("type=image,name={name},push=true,{attrs}");
        let _ = env.build(&["--build-context", &base, "-o", &output]).ok();
        let remote = format!("docker://{name}");
        if let Some(skopeo) = tool(&env, "skopeo") {
            let dest = env.out(&format!("skopeo-{tag}"));
            let local = format!("oci:{}:latest", dest.display());
            let _ = skopeo.args(["copy", "--src-tls-verify=false", &remote, &local]).finish().ok();
            assert_eq!(Image::read(&dest).text("made"), "made by kiln\n", "{tag}");
        }
        for name_of_tool in ["buildah", "podman"] {
            let Some(puller) = tool(&env, name_of_tool) else { continue };
            let _ = puller.args(["pull", "--tls-verify=false", &remote]).finish().ok();
            let dest = env.out(&format!("{name_of_tool}-{tag}"));
            let local = format!("oci:{}:latest", dest.display());
            let again = tool(&env, name_of_tool).expect("it was here before");
            let _ = again.args(["push", &name, &local]).finish().ok();
            assert_eq!(Image::read(&dest).text("made"), "made by kiln\n", "{name_of_tool} {tag}");
        }
    }
}

#[test]
fn what_others_push_kiln_builds_on() {
    let (env, base) = crate::env_with_base!();
    let registry = real_registry!(env);
    let layout = base.strip_prefix("base=oci-layout://").expect("layout").to_owned();
    let mut names = Vec::new();
    if let Some(skopeo) = tool(&env, "skopeo") {
        let name = format!("{}/by/skopeo:1", registry.host);
        let (from, to) = (format!("oci:{layout}:latest"), format!("docker://{name}"));
        let _ = skopeo.args(["copy", "--dest-tls-verify=false", &from, &to]).finish().ok();
        names.push(name);
    }
    if let (Some(_), Some(from)) = (tool(&env, "buildah"), names.first().cloned()) {
        let buildah = |args: &[&str]| tool(&env, "buildah").expect("buildah").args(args).finish().ok();
        let container = buildah(&["from", "--tls-verify=false", &format!("docker://{from}")]).out().trim().to_owned();
        std::fs::write(env.path().join("note"), "from buildah").expect("write");
        let note = env.path().join("note").display().to_string();
        let _ = buildah(&["copy", &container, &note, "/note"]);
        for format in ["oci", "docker"] {
            let name = format!("{}/by/buildah:{format}", registry.host);
            let _ = buildah(&["commit", "--format", format, &container, "made"]);
            let _ = buildah(&[
                "push",
                "--tls-verify=false",
                "--format",
                if format == "oci" { "oci" } else { "v2s2" },
                "made",
                &format!("docker://{name}"),
            ]);
            names.push(name);
        }
    }
    if let (Some(podman), Some(from)) = (tool(&env, "podman"), names.first().cloned()) {
        let name = format!("{}/by/podman:1", registry.host);
        let dir = env.path().join("podman");
        kiln_testkit::write_tree(
            &dir,
            &[("Dockerfile", &format!("FROM {from}\nCOPY note /\n")), ("note", "from podman")],
        );
        let at = dir.display().to_string();
        let _ = podman.args(["build", "--tls-verify=false", "-t", &name, &at]).finish().ok();
        let again = tool(&env, "podman").expect("it was here before");
        let _ = again.args(["push", "--tls-verify=false", &name]).finish().ok();
        names.push(name);
    }
    if names.is_empty() {
        kiln_testkit::skip!("neither skopeo nor buildah");
    }
    for name in names {
        env.context(&[(
            "Dockerfile",
            &format!("FROM {name}\nRUN cat /note > /seen 2>/dev/null || echo none > /seen\n"),
        )]);
        let (image, _) = env.build_image(&[]);
        let makers = ["buildah", "podman"].into_iter().find(|maker| name.contains(&format!("by/{maker}")));
        let want = makers.map_or("none\n".to_owned(), |maker| format!("from {maker}"));
        assert_eq!(image.text("seen"), want, "{name}");
    }
}

#[test]
fn a_real_registry_takes_mounts_and_unchanged_images() {
    let (env, base) = crate::env_with_base!();
    let registry = real_registry!(env);
    env.context(&[("Dockerfile", "FROM base\nRUN echo a > /a\n")]);
    let first = format!("{}/me/one", registry.host);
    let second = format!("{}/me/two", registry.host);
    for _ in 0..2 {
        let _ = env.build(&["--build-context", &base, "-t", &first, "-t", &second, "--push"]).ok();
    }
    // Another engine, which has nothing: labels on what is there, pushed beside it.
    let other = crate::env();
    other.context(&[("Dockerfile", &format!("FROM {first}\nLABEL x=y\n"))]);
    let third = format!("{}/me/three", registry.host);
    let _ = other.build(&["-t", &third, "--push"]).ok();
    other.context(&[("Dockerfile", &format!("FROM {third}\nRUN cat /a > /b\n"))]);
    let (image, _) = other.build_image(&["--pull"]);
    assert_eq!(image.text("b"), "a\n");
    assert_eq!(image.config.config.labels.get("x").map(String::as_str), Some("y"));
}
