//! What the builder makes: digests as BuildKit's own client library computes them for the same calls, and a round
//! trip through the loader.

use kiln_oci::Platform;
use kiln_stdx::Digest;

use super::*;
use crate::graph::{Graph, LoadOptions};
use crate::op::{CopyMode, HostIp, NetMode, Op, ProxyEnv, Sharing, Ulimit};
use crate::print::print;

fn builder() -> Builder {
    // BuildKit's client does not normalise the platform it is given either.
    let arm =
        Platform { os: "linux".into(), architecture: "arm64".into(), variant: "v8".into(), ..Platform::default() };
    Builder::new(arm).with_unique_id("fixed-id")
}

fn base(b: &mut Builder) -> Output {
    let options = ImageOptions { resolve_mode: ResolveMode::Pull, ..ImageOptions::default() };
    b.image("busybox", &options, Meta::named("base image")).unwrap()
}

fn context(b: &mut Builder) -> Output {
    let options = LocalOptions {
        session: Some("s1".into()),
        follow_paths: vec!["src".into(), "a<b".into()],
        exclude_patterns: vec!["*.tmp".into()],
        shared_key_hint: Some("context".into()),
        ..LocalOptions::default()
    };
    b.local("context", &options, Meta::default())
}

fn step(b: &mut Builder) -> (Output, Output, ExecOutputs) {
    let (image, ctx) = (base(b), context(b));
    let map = b.source_map(SourceMap {
        filename: "Kilnfile".into(),
        language: "Dockerfile".into(),
        data: "FROM x\nRUN y\n".into(),
        definition: None,
    });
    let mut exec = Exec::new(image, vec!["/bin/sh".into(), "-c".into(), "make all".into()]);
    for (key, value) in [("B", "1"), ("A", "2"), ("B", "3")] {
        exec.env.set(key, value);
    }
    exec.cwd = "/work".into();
    exec.user = "app".into();
    exec.mounts = vec![
        ExecMount { selector: "sub".into(), ..ExecMount::readonly("/src", ctx) },
        ExecMount::bind("/out", Output::SCRATCH),
        ExecMount::cache("/cache", CacheMount { id: "cid".into(), sharing: Sharing::Locked, base: Output::SCRATCH }),
        ExecMount::tmpfs("/tmp", 4096),
    ];
    let secret = SecretSpec {
        id: "tok".into(),
        target: Some("/run/secrets/tok".into()),
        env: None,
        uid: 5,
        gid: 6,
        mode: 0o440,
        optional: false,
    };
    let variable =
        SecretSpec { id: "tok2".into(), target: None, env: Some("TOK".into()), optional: true, ..secret.clone() };
    exec.secrets = vec![secret, variable];
    exec.ssh = vec![SshSpec { id: "default".into(), target: None, uid: 0, gid: 0, mode: 0o600, optional: false }];
    exec.extra_hosts = vec![HostIp { host: "db".into(), ip: "10.0.0.7".into() }];
    exec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 10, hard: 20 }];
    exec.network = NetMode::None;
    exec.valid_exit_codes = vec![0, 3];
    exec.proxy = Some(ProxyEnv { http: "http://p".into(), ..ProxyEnv::default() });
    let meta = Meta::default().ignore_cache(true).location(map, vec![range(2, 2)]);
    (image, ctx, b.exec(exec, meta).unwrap())
}

fn files(b: &mut Builder, ctx: Output, step: &ExecOutputs) -> Output {
    let owned = MkdirOptions { parents: true, owner: Some(OwnerSpec::parse("app:7")), timestamp: None };
    let copy = CopyOptions {
        dir_contents_only: true,
        create_dest_path: true,
        allow_wildcard: true,
        include_patterns: vec!["x".into()],
        mode: Some(CopyMode::Symbolic("u+x".into())),
        owner: Some(OwnerSpec { user: Some(NameOrId::Id(3)), group: None }),
        ..CopyOptions::default()
    };
    let actions = FileActions::new()
        .cwd("/work")
        .mkdir("d/e", 0o755, owned)
        .copy(ctx, "/a/./b", "to/", copy)
        .mkfile("/f", 0o600, "hi", FileOptions::default())
        .copy(step.mount("/out").unwrap(), "/bin", "/.", CopyOptions::default())
        .symlink("f", "/link", FileOptions::default())
        .rm("/gone", RmOptions { allow_not_found: true, allow_wildcard: false });
    b.file(step.root(), actions, Meta::named("files"))
}

fn digests(b: &Builder, output: Output) -> Vec<String> {
    b.definition(output).unwrap().ops.iter().map(|o| Digest::of(o).hex()[..16].to_owned()).collect()
}

#[test]
fn digests_are_those_of_buildkits_client() {
    let mut b = builder();
    let (image, ctx, run) = step(&mut b);
    let image_digest = "c962f2d44ebb47b8";
    assert_eq!(digests(&b, image), [image_digest, "6b1d198b5349af53"]);
    let (ctx_digest, exec_digest) = ("82ff897b9011f200", "329ce2d1f2cab9d8");
    assert_eq!(digests(&b, run.root()), [image_digest, ctx_digest, exec_digest, "3fb659d57860cd8a"]);
    let out = run.mount("/out").unwrap();
    assert_eq!(digests(&b, out).last().unwrap(), "71de88882f8566db");
    let file = files(&mut b, ctx, &run);
    let file_digest = "328f11a427d1156f";
    assert_eq!(digests(&b, file), [image_digest, ctx_digest, exec_digest, file_digest, "917593e723f56dfc"]);
    let diff = b.diff(image, file, Meta::default());
    let merged = b.merge(&[image, Output::SCRATCH, diff, out], Meta::default());
    assert_eq!(
        digests(&b, merged),
        [
            image_digest,
            ctx_digest,
            exec_digest,
            file_digest,
            "4eeac908a5e2e2e2",
            "2cb36b40f4a7cf2d",
            "3466873c6ffa7abd"
        ]
    );
}

#[test]
fn source_digests_are_those_of_buildkits_client() {
    let mut b = builder();
    let loose = b.local("other", &LocalOptions::default(), Meta::default());
    assert_eq!(digests(&b, loose)[0], "328207bc536fccdf");
    let git = GitOptions { keep_git_dir: true, checksum: Some("abc".into()), ..GitOptions::default() };
    let git = b.git("https://forge.test/g/app.git", "v1:sub", &git, Meta::default()).unwrap();
    assert_eq!(digests(&b, git)[0], "763814ca321f64cc");
    let x = Digest::of("x");
    let http = HttpOptions {
        checksum: Some(x),
        filename: Some("y".into()),
        mode: Some(0o640),
        uid: 1,
        gid: 2,
        ..HttpOptions::default()
    };
    let http = b.http("https://forge.test/x.tgz", &http, Meta::default());
    assert_eq!(digests(&b, http)[0], "a90c473bf13845b4");
    let oci = OciLayoutOptions { session: Some("s1".into()), store: Some("st".into()), layer_limit: None };
    let oci = b.oci_layout(&format!("x@{x}"), &oci, Meta::default());
    assert_eq!(digests(&b, oci)[0], "19fb7202ed466e7c");
    let image = base(&mut b);
    let grouped = b.passthrough("grp", &[(image, true), (loose, false)], Meta::default()).unwrap();
    assert_eq!(digests(&b, grouped[0])[2], "f7c36cccf80371fc");
}

#[test]
fn metadata_names_the_capabilities_that_are_needed() {
    let mut b = builder();
    let (_, _, run) = step(&mut b);
    let definition = b.definition(run.root()).unwrap();
    let of = |i: usize| &definition.metadata[&Digest::of(&definition.ops[i]).to_string()];
    let caps = |i: usize| of(i).caps.keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(caps(0), ["source.image", "source.image.resolvemode"]);
    assert_eq!(
        caps(2),
        [
            "exec.meta.base",
            "exec.meta.network",
            "exec.meta.proxyenv",
            "exec.meta.setsdefaultpath",
            "exec.meta.ulimit",
            "exec.mount.bind",
            "exec.mount.cache",
            "exec.mount.cache.sharing",
            "exec.mount.secret",
            "exec.mount.selector",
            "exec.mount.ssh",
            "exec.mount.tmpfs",
            "exec.mount.tmpfs.size",
            "exec.secretenv",
            "exec.validexitcode",
        ]
    );
    assert!(of(2).ignore_cache);
    assert_eq!(caps(3), ["constraints", "meta.description", "meta.ignorecache", "platform"]);
    let source = definition.source.as_ref().unwrap();
    assert_eq!(source.infos.len(), 1);
    assert_eq!(source.locations.len(), 3, "every operation has an entry, if an empty one");
}

#[test]
fn what_is_built_loads_and_prints() {
    let mut b = builder();
    let (_, ctx, run) = step(&mut b);
    let file = files(&mut b, ctx, &run);
    let graph = Graph::load(&b.definition(file).unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!(graph.vertices().len(), 4);
    let exec = &graph.vertices()[2];
    assert_eq!(exec.name, "/bin/sh -c make all");
    assert_eq!(graph.locations(&exec.digest)[0].0.filename, "Kilnfile");
    let Op::Exec(op) = &exec.op else { panic!("{:?}", exec.op) };
    assert_eq!(op.meta.env, ["A=2", "B=3", "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"]);
    assert_eq!(graph.vertices()[3].name, "files");
    let text = print(&graph);
    assert!(text.contains("mount /cache cache(cid,locked) in=- out=-"), "{text}");
    assert!(text.contains("act0 copy in1:/a/b -> /work/to/"), "{text}");
}

#[test]
fn importing_keeps_bytes_metadata_and_locations() {
    let mut b = builder();
    let (_, _, run) = step(&mut b);
    let before = b.definition(run.root()).unwrap();
    let mut other = Builder::new(Platform::new("linux", "amd64", ""));
    let imported = other.import(&before).unwrap();
    assert_eq!(other.definition(imported).unwrap(), before);
    assert_eq!(other.import(&Definition::default()).unwrap(), Output::SCRATCH);
}

#[test]
fn patterns_of_a_context_can_be_set_last() {
    let mut b = builder();
    let ctx = b.local("context", &LocalOptions::default(), Meta::default());
    let actions = FileActions::new().copy(ctx, "/a", "/", CopyOptions::default());
    let out = b.file(Output::SCRATCH, actions, Meta::default());
    let before = digests(&b, out);
    let options = LocalOptions { include_patterns: vec!["a".into()], ..LocalOptions::default() };
    b.set_local(ctx, &options);
    assert_ne!(digests(&b, out), before);
    let graph = Graph::load(&b.definition(out).unwrap(), &LoadOptions::default()).unwrap();
    let Op::Source(source) = &graph.vertices()[0].op else { panic!() };
    assert_eq!(source.attr("local.includepattern"), Some(r#"["a"]"#));
    assert_eq!(source.attr("local.unique"), Some("fixed-id"));
}

#[test]
fn the_empty_file_system_is_an_empty_definition() {
    let mut b = builder();
    assert!(b.definition(Output::SCRATCH).unwrap().is_empty());
    assert_eq!(b.merge(&[Output::SCRATCH], Meta::default()), Output::SCRATCH);
    let image = base(&mut b);
    assert_eq!(b.diff(Output::SCRATCH, image, Meta::default()), image);
    assert_eq!(b.file(image, FileActions::new(), Meta::default()), image);
}

#[test]
fn long_chains_need_no_stack() {
    let mut b = builder();
    let mut out = base(&mut b);
    for i in 0..20_000 {
        let actions = FileActions::new().mkfile(&format!("/{i}"), 0o644, "", FileOptions::default());
        out = b.file(out, actions, Meta::default());
    }
    let graph = Graph::load(&b.definition(out).unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!(graph.vertices().len(), 20_001);
}

#[test]
fn wrong_calls_are_refused() {
    let mut b = builder();
    let image = base(&mut b);
    assert!(b.exec(Exec::new(image, Vec::new()), Meta::default()).is_err());
    assert!(b.image("Not A Ref", &ImageOptions::default(), Meta::default()).is_err());
    assert!(b.git("ftp://x/y", "", &GitOptions::default(), Meta::default()).is_err());
    let nameless = CacheMount { id: String::new(), sharing: Sharing::Shared, base: Output::SCRATCH };
    let mut exec = Exec::new(image, vec!["x".into()]);
    exec.mounts.push(ExecMount::cache("/c", nameless));
    assert!(b.exec(exec, Meta::default()).is_err());
}
