//! Flags to request: one row per flag.

use super::*;
use crate::env::Env;
use crate::progress::ProgressEnv;

fn request(line: &str) -> Result<BuildRequest, CliError> {
    let args: Vec<std::ffi::OsString> =
        ["kiln", "build"].into_iter().chain(line.split_whitespace()).chain(["."]).map(Into::into).collect();
    let env = Env::of(&[], &std::env::temp_dir());
    let crate::parse::Parsed::Run(cli) = crate::parse::parse(&args)? else { panic!("help") };
    let crate::args::Command::Build(flags) = cli.command else { panic!("not a build") };
    let options = BuildOptions::new(*flags, &env, &ProgressEnv::read(|_| None, false))?;
    build(&options, &Inputs::default(), None, Vec::new(), Vec::new())
}

#[test]
fn frontend_attributes() {
    let table: &[(&str, &[(&str, &str)])] = &[
        ("", &[]),
        ("--add-host a:1.2.3.4 --add-host b=::1", &[("add-hosts", "a=1.2.3.4,b=::1")]),
        ("--build-arg A=1 --build-arg B=", &[("build-arg:A", "1"), ("build-arg:B", "")]),
        ("--label x.y=z --label bare", &[("label:bare", ""), ("label:x.y", "z")]),
        ("--network none", &[("force-network-mode", "none")]),
        ("--network default", &[]),
        ("--no-cache", &[("kiln:cache-mounts", "keep"), ("no-cache", "")]),
        ("--no-cache=mounts", &[("kiln:cache-mounts", "empty")]),
        ("--max-age 7d", &[("kiln:max-age", "604800")]),
        ("--offline", &[("kiln:offline", "true")]),
        ("--offline=false --pull", &[("image-resolve-mode", "pull")]),
        ("--no-cache=false", &[]),
        ("--no-cache-filter a --no-cache-filter b", &[("kiln:cache-mounts", "keep"), ("no-cache", "a,b")]),
        ("--platform linux/arm/v7", &[("platform", "linux/arm/v7")]),
        ("--provenance=mode=max --sbom=true", &[("attest:provenance", "mode=max"), ("attest:sbom", "")]),
        ("--provenance=false --sbom=false", &[]),
        ("--pull", &[("image-resolve-mode", "pull")]),
        ("--shm-size 64m", &[("shm-size", "67108864")]),
        ("--target final", &[("target", "final")]),
        ("--ulimit nofile=10:20 --ulimit core=0", &[("ulimit", "core=0:0,nofile=10:20")]),
        (
            "--build-arg BUILDKIT_MULTI_PLATFORM=1",
            &[("build-arg:BUILDKIT_MULTI_PLATFORM", "1"), ("multi-platform", "true")],
        ),
        (
            "--build-arg BUILDKIT_SYNTAX=docker/dockerfile:1",
            &[
                ("build-arg:BUILDKIT_SYNTAX", "docker/dockerfile:1"),
                ("cmdline", "docker/dockerfile:1"),
                ("source", "docker/dockerfile:1"),
            ],
        ),
    ];
    for (line, want) in table {
        let got = request(line).expect("accepted");
        let attrs: Vec<(&str, &str)> = got.attrs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(attrs, *want, "{line}");
    }
}

#[test]
fn frontends() {
    assert_eq!(request("").map(|r| r.frontend).ok(), Some("dockerfile.v0".into()));
    assert_eq!(request("--build-arg BUILDKIT_SYNTAX=x/y").map(|r| r.frontend).ok(), Some("gateway.v0".into()));
    let error = request("--build-arg BUILDKIT_SYNTAX=").expect_err("empty");
    assert!(error.message().starts_with("empty BUILDKIT_SYNTAX build-arg is invalid"));
}

#[test]
fn exporters_and_names() {
    for (line, want) in [
        ("", "image"),
        ("-t a -t b:2", "image name=a,b:2"),
        ("-o type=cacheonly", ""),
        ("-t a -o type=oci,dest=x.tar -o type=local,dest=y", "oci name=a; local"),
        ("-t a -o type=docker,dest=x.tar,name=z", "docker name=a"),
        ("-t a -o type=image,push=true", "image name=a push=true"),
        ("--build-arg SOURCE_DATE_EPOCH=7", "image rewrite-timestamp=true"),
        ("--build-arg SOURCE_DATE_EPOCH=", "image"),
        ("--build-arg SOURCE_DATE_EPOCH=7 -o type=oci,rewrite-timestamp=false,dest=x", "oci rewrite-timestamp=false"),
        ("--build-arg SOURCE_DATE_EPOCH=7 -o type=image,unpack=true", "image unpack=true"),
        ("--build-arg SOURCE_DATE_EPOCH=7 -o type=oci,source-date-epoch=,dest=x", "oci source-date-epoch="),
        ("-o type=oci,source-date-epoch=7,dest=x", "oci rewrite-timestamp=true source-date-epoch=7"),
        ("--build-arg SOURCE_DATE_EPOCH=7 -o type=local,dest=x", "local"),
    ] {
        let got = request(line).expect("accepted");
        let shown: Vec<String> = got
            .exporters
            .iter()
            .map(|e| e.attrs.iter().fold(e.kind.clone(), |text, (k, v)| format!("{text} {k}={v}")))
            .collect();
        assert_eq!(shown.join("; "), want, "{line}");
    }
    let error = request("-o type=registry").expect_err("no name");
    assert_eq!(error.message(), "tag is needed when pushing to registry");
}

#[test]
fn entitlements_and_inline_cache() {
    let got = request("--network host --allow security.insecure").expect("accepted");
    assert_eq!(got.entitlements, ["security.insecure", "network.host"]);
    let got = request("--network host --allow network.host").expect("accepted");
    assert_eq!(got.entitlements, ["network.host"]);
    let got = request("--build-arg BUILDKIT_INLINE_CACHE=1").expect("accepted");
    assert_eq!(got.exports.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["inline"]);
}

#[test]
fn cache_imports_travel_with_the_frontend_too() {
    let imports =
        vec![CacheOption { kind: "registry".into(), attrs: BTreeMap::from([("ref".to_owned(), "a/b".to_owned())]) }];
    let env = Env::of(&[], std::path::Path::new("/"));
    let flags = crate::build::flags::BuildFlags { context: vec![".".into()], ..Default::default() };
    let options = BuildOptions::new(flags, &env, &ProgressEnv::read(|_| None, false)).expect("accepted");
    let got = build(&options, &Inputs::default(), Some("http://buildkit-session/x"), imports, Vec::new());
    let got = got.expect("accepted");
    assert_eq!(
        got.attrs.get("cache-imports").map(String::as_str),
        Some(r#"[{"Type":"registry","Attrs":{"ref":"a/b"}}]"#)
    );
    assert_eq!(got.attrs.get("context").map(String::as_str), Some("http://buildkit-session/x"));
}
