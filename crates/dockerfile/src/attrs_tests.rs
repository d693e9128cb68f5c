//! Options of requests: what they mean, and which are refused.

use super::*;

fn parse(pairs: &[(&str, &str)]) -> Result<FrontendOptions, String> {
    let attrs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    FrontendOptions::parse(&attrs, "ses", vec![Platform::new("linux", "amd64", "")]).map_err(|e| e.to_string())
}

#[test]
fn options_are_read() {
    let options = parse(&[
        ("build-arg:A", "1"),
        ("label:x.y", "z"),
        ("platform", "linux/arm64,linux/arm/v7"),
        ("no-cache", "a,B"),
        ("add-hosts", "DB=10.0.0.1,v6=::1"),
        ("ulimit", "nofile=10:20"),
        ("memory", "1024"),
        ("context:base", "docker-image://debian"),
        ("cache-from", "r.test/c,,d"),
        ("cache-imports", r#"[{"Type":"local","Attrs":{"src":"/c"}},{"Type":"gha"}]"#),
        ("input-metadata:base", r#"{"containerimage.config":"eyJvcyI6ImxpbnV4IiwiYXJjaGl0ZWN0dXJlIjoiYXJtNjQifQ=="}"#),
        ("build-arg:BUILDKIT_SANDBOX_HOSTNAME", "box"),
        ("hostname", "other"),
    ])
    .unwrap();
    assert_eq!(options.platforms.len(), 2);
    assert!(options.build.multi_platform);
    assert!(options.build.no_cache.covers("b") && !options.build.no_cache.covers("c"));
    let hosts: Vec<_> = options.build.extra_hosts.iter().map(|h| format!("{}={}", h.host, h.ip)).collect();
    assert_eq!(hosts, ["db=10.0.0.1", "v6=::1"]);
    assert_eq!(options.build.ulimits[0].hard, 20);
    assert_eq!(options.build.linux_resources.as_ref().unwrap().memory, 1024);
    assert_eq!(options.cache_from, ["r.test/c", "d"]);
    assert_eq!(options.input_configs["base"].architecture, "arm64");
    assert_eq!(options.build.hostname, "box");
    assert_eq!(options.build.contexts["base"], "docker-image://debian");
    assert_eq!(options.main_context().unwrap(), MainContext::Local { name: "context".into() });
}

#[test]
fn remote_contexts_are_found() {
    let options = parse(&[
        ("context", "https://h.test/r.git#main:dir"),
        ("contextsubdir", "sub"),
        ("build-arg:SOURCE_DATE_EPOCH", "context"),
    ])
    .unwrap();
    let MainContext::Git(git) = options.main_context().unwrap() else { panic!() };
    assert!(git.commit_mtime);
    assert_eq!((git.git.reference.as_str(), git.scope.as_deref()), ("main", Some("sub")));
    let options = parse(&[("context", "https://h.test/r.tgz")]).unwrap();
    assert!(matches!(options.main_context().unwrap(), MainContext::Http { archive: false, .. }));
}

#[test]
fn bad_options_are_refused() {
    for (key, value, want) in [
        ("platform", "linux/", "failed to parse target platform linux/"),
        ("force-network-mode", "bridge", "invalid netmode bridge"),
        ("image-resolve-mode", "x", "invalid image-resolve-mode: x"),
        ("add-hosts", "a", "failed to parse additional hosts: invalid key-value pair a"),
        ("add-hosts", "a=b", "failed to parse additional hosts: failed to parse IP b"),
        ("ulimit", "nofiles=1", "failed to parse ulimit: invalid ulimit type: nofiles (did you mean nofile?)"),
        ("ulimit", "nofile=9:1", "ulimit soft limit must be less than or equal to hard limit: 9 > 1"),
        ("memory", "-1", "failed to parse resource limits: invalid memory value: -1: must be > 0"),
        ("memswap", "0", "must be -1 (unlimited) or > 0"),
        ("cpusetcpus", "3-1", "invalid cpusetcpus value: 3-1"),
        ("shm-size", "x", "failed to parse shm size"),
        ("multi-platform", "x", "invalid boolean value for multi-platform: x"),
        ("cache-imports", "{", "failed to unmarshal cache-imports"),
        ("build-arg:BUILDKIT_DISABLE_FILEOP", "1", "was removed"),
        ("build-arg:BUILDKIT_DOCKERFILE_CHECK", "skip", "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK"),
    ] {
        let error = parse(&[(key, value)]).unwrap_err();
        assert!(error.contains(want), "{key}: {error}");
    }
    let both = parse(&[("platform", "linux/amd64,linux/arm64"), ("multi-platform", "false")]).unwrap_err();
    assert!(both.starts_with("conflicting config"));
}
