//! What the environment of the client says of remote caches: a workflow's cache service, keys of AWS, places.

use super::cache::CacheEntry;
use crate::env::Env;

/// Fills in what the environment has and an attribute does not say. A cache of GitHub Actions outside of a workflow is
/// left out, as other clients do, so that one command serves on both sides.
pub fn fill(entries: Vec<CacheEntry>, env: &Env) -> Vec<CacheEntry> {
    let filled = entries.into_iter().map(|entry| places(aws(github(entry, env), env), env));
    filled.filter(|entry| entry.kind != "gha" || is_active(entry)).collect()
}

/// Fills in what a workflow's environment says of its cache.
pub fn github(mut entry: CacheEntry, env: &Env) -> CacheEntry {
    if entry.kind != "gha" {
        return entry;
    }
    let second = match entry.attrs.get("version") {
        Some(version) => version == "2",
        None => env.flag("ACTIONS_CACHE_SERVICE_V2"),
    };
    for (attr, names) in [
        ("token", &["ACTIONS_RUNTIME_TOKEN"][..]),
        ("url_v2", &["ACTIONS_RESULTS_URL"]),
        ("url", &["ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL"]),
    ] {
        if (attr != "url_v2" || second)
            && let Some(value) = names.iter().find_map(|name| env.var(name))
        {
            entry.attrs.entry(attr.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    entry
}

fn is_active(entry: &CacheEntry) -> bool {
    let given = |name: &str| entry.attrs.get(name).is_some_and(|text| !text.is_empty());
    given("token") && (given("url") || given("url_v2"))
}

fn aws(mut entry: CacheEntry, env: &Env) -> CacheEntry {
    let own = entry.attrs.contains_key("access_key_id") && entry.attrs.contains_key("secret_access_key");
    if entry.kind != "s3" || own {
        return entry;
    }
    if let Some(key) = kiln_objects::aws_key(&|name| env.var(name).map(str::to_owned)) {
        let secret = String::from_utf8_lossy(key.secret.expose()).into_owned();
        let values =
            [("access_key_id", Some(key.id)), ("secret_access_key", Some(secret)), ("session_token", key.token)];
        for (name, value) in values {
            if let Some(value) = value {
                entry.attrs.entry(name.to_owned()).or_insert(value);
            }
        }
    }
    entry
}

/// The engine may have been started by somebody with another environment.
fn places(mut entry: CacheEntry, env: &Env) -> CacheEntry {
    let names: &[(&str, &str)] = match entry.kind.as_str() {
        "s3" => &[("bucket", "AWS_BUCKET"), ("region", "AWS_REGION")],
        "azblob" => &[
            ("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"),
            ("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME"),
            ("container", "BUILDKIT_AZURE_STORAGE_CONTAINER"),
            ("prefix", "BUILDKIT_AZURE_STORAGE_PREFIX"),
        ],
        _ => &[],
    };
    for (attr, name) in names {
        if let Some(value) = env.var(name) {
            entry.attrs.entry((*attr).to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn filled(value: &str, env: &[(&str, &str)]) -> Vec<String> {
        let entries = super::super::cache::parse(&[value.to_owned()]).expect("value");
        let env = Env::of(env, Path::new("/"));
        fill(entries, &env).into_iter().map(|entry| format!("{:?}", entry.attrs)).collect()
    }

    #[test]
    fn a_workflow_says_where_its_cache_is() {
        let env = [("ACTIONS_RUNTIME_TOKEN", "t"), ("ACTIONS_RESULTS_URL", "r"), ("ACTIONS_CACHE_SERVICE_V2", "true")];
        assert_eq!(filled("type=gha", &env), [r#"{"token": "t", "url": "r", "url_v2": "r"}"#]);
        assert_eq!(filled("type=gha,token=x,version=1", &env), [r#"{"token": "x", "url": "r", "version": "1"}"#]);
        assert_eq!(filled("type=gha", &env[..1]), [""; 0]);
    }

    #[test]
    fn keys_of_the_environment_do_not_mix_with_given_ones() {
        let env = [
            ("AWS_ACCESS_KEY_ID", "i"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_SESSION_TOKEN", "t"),
            ("AWS_REGION", "r"),
        ];
        let want =
            r#"{"access_key_id": "i", "bucket": "b", "region": "r", "secret_access_key": "s", "session_token": "t"}"#;
        assert_eq!(filled("type=s3,bucket=b", &env), [want]);
        let given = "type=s3,bucket=b,region=x,access_key_id=1,secret_access_key=2";
        assert_eq!(
            filled(given, &env),
            [r#"{"access_key_id": "1", "bucket": "b", "region": "x", "secret_access_key": "2"}"#]
        );
    }

    #[test]
    fn azure_has_its_place_from_the_environment() {
        let env = [("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "u"), ("AWS_REGION", "r")];
        assert_eq!(filled("type=azblob,container=c", &env), [r#"{"account_url": "u", "container": "c"}"#]);
    }
}
