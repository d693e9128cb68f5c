//! Proxies of the docker client's configuration, which builds get as build arguments.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::env::Env;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    proxies: BTreeMap<String, Proxy>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Proxy {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

/// Adds the proxies that the user has configured for builds, unless an argument of that name (in any case) is given.
pub fn add(build_args: &mut BTreeMap<String, String>, env: &Env) {
    // A configuration that cannot be read is none; the registry login says so when it needs it.
    let config = env.docker_config().and_then(|dir| std::fs::read(dir.join("config.json")).ok());
    let config: Config = config.and_then(|data| serde_json::from_slice(&data).ok()).unwrap_or_default();
    let Some(proxy) = config.proxies.get("default") else { return };
    let given: Vec<String> = build_args.keys().map(|k| k.to_ascii_uppercase()).collect();
    for (name, value) in [
        ("HTTP_PROXY", &proxy.http_proxy),
        ("HTTPS_PROXY", &proxy.https_proxy),
        ("NO_PROXY", &proxy.no_proxy),
        ("FTP_PROXY", &proxy.ftp_proxy),
        ("ALL_PROXY", &proxy.all_proxy),
    ] {
        if value.is_empty() || given.iter().any(|g| g == name) {
            continue;
        }
        build_args.insert(name.to_owned(), value.clone());
        build_args.insert(name.to_ascii_lowercase(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_proxies_are_defaults() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let json = r#"{"auths":{},"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"x"}}}"#;
        std::fs::write(dir.path().join("config.json"), json).expect("write");
        let env = Env::of(&[("DOCKER_CONFIG", dir.path().to_str().unwrap_or_default())], dir.path());
        let mut args = BTreeMap::from([("http_proxy".to_owned(), "mine".to_owned())]);
        add(&mut args, &env);
        let want = [("NO_PROXY", "x"), ("http_proxy", "mine"), ("no_proxy", "x")];
        assert_eq!(args, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }
}
