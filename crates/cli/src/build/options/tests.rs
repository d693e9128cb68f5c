//! Flags and what is refused about them.

use super::*;

fn options(line: &str, vars: &[(&str, &str)]) -> Result<BuildOptions, CliError> {
    let args: Vec<std::ffi::OsString> =
        ["kiln", "build"].into_iter().chain(line.split_whitespace()).map(Into::into).collect();
    let env = Env::of(vars, std::path::Path::new("/"));
    let progress = ProgressEnv::read(|n| env.var(n).map(str::to_owned), false);
    match crate::parse::parse(&args)? {
        crate::parse::Parsed::Run(cli) => match cli.command {
            crate::args::Command::Build(flags) => BuildOptions::new(*flags, &env, &progress),
            _ => panic!("not a build"),
        },
        crate::parse::Parsed::Show(text) => panic!("{text}"),
    }
}

#[test]
fn refused() {
    for (line, want) in [
        ("", "please specify build context (e.g. \".\" for the current directory)"),
        ("a b", "\"kiln build\" requires 1 argument, but 2 were given"),
        ("--no-cache --no-cache-filter a .", "--no-cache and --no-cache-filter cannot currently be used together"),
        (
            "--network bridge .",
            "network mode \"bridge\" not supported by buildkit - you can define a custom network for your builder using the network driver-opt in buildx create",
        ),
        ("--pull --offline .", "--offline and --pull contradict each other"),
        ("--label =x .", "invalid key-value pair \"=x\": empty key"),
        ("--shm-size lots .", "invalid --shm-size: invalid size: 'lots'"),
        ("--platform linux/amd64,linux/arm64 .", "building for several platforms at once is not supported"),
        ("--platform l/i/n/u/x .", "invalid platform \"l/i/n/u/x\""),
        ("-q --progress=plain .", "progress=plain and quiet cannot be used together"),
        ("--build-context x .", "invalid context value: x, expected key=value"),
        ("--build-context x= .", "invalid context value: x=, the value is empty"),
        ("-o out --iidfile id .", "local and tar exporters are incompatible with image ID file"),
        ("--iidfile /proc .", "image ID file /proc is a directory"),
        ("--sbom=generator .", "invalid value generator"),
        ("--progress=fancy .", "invalid progress mode fancy"),
    ] {
        let got = options(line, &[]).map(|_| ()).map_err(|e| e.message().to_owned());
        assert_eq!(got, Err(want.to_owned()), "{line}");
    }
    let tag = options("-t UPPER/x:: .", &[]).map(|_| ()).map_err(|e| e.message().to_owned());
    assert!(tag.is_err_and(|m| m.starts_with("invalid tag \"UPPER/x::\": ")));
}

#[test]
fn the_environment_has_a_say() {
    let vars = [("SOURCE_DATE_EPOCH", "17"), ("TOKEN", "t"), ("DOCKER_DEFAULT_PLATFORM", "linux/arm64")];
    let got = options("--build-arg TOKEN --build-arg ABSENT --build-arg A=b=c .", &vars).expect("accepted");
    let args: Vec<(&str, &str)> = got.build_args.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(args, [("A", "b=c"), ("SOURCE_DATE_EPOCH", "17"), ("TOKEN", "t")]);
    assert_eq!(got.platform.map(|p| p.to_string()).as_deref(), Some("linux/arm64"));
    let got = options("--build-arg SOURCE_DATE_EPOCH=5 --platform local .", &vars).expect("accepted");
    assert_eq!(got.build_args.get("SOURCE_DATE_EPOCH").map(String::as_str), Some("5"));
    assert_eq!(got.platform, Some(Platform::host()));
}

#[test]
fn attestations() {
    let of = |line: &str| options(line, &[]).map(|o| o.attests).map_err(|e| e.message().to_owned());
    assert_eq!(of("--provenance=false --sbom false ."), Ok(BTreeMap::from([("provenance", None), ("sbom", None)])));
    assert_eq!(of("--provenance=mode=max ."), Ok(BTreeMap::from([("provenance", Some("mode=max".to_owned()))])));
    assert_eq!(of("--sbom true ."), Ok(BTreeMap::from([("sbom", Some(String::new()))])));
    assert_eq!(of("--sbom generator=x,disabled=true ."), Ok(BTreeMap::from([("sbom", None)])));
}

#[test]
fn context_names_are_image_names() {
    let got = options("--build-context debian:bookworm=docker-image://x --build-context docker.io/library/a=/b .", &[]);
    let names: Vec<String> = got.expect("accepted").contexts.into_keys().collect();
    assert_eq!(names, ["a", "debian:bookworm"]);
}
