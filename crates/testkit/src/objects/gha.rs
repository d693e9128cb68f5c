//! The cache service of GitHub Actions, version 2. Entries are written once; what their signed addresses lead to are
//! Azure's blobs.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Objects, azure, parameter, unescape};
use crate::registry::{Answer, Asked};

/// What signed addresses have in their query.
const SIGNATURE: &str = "c2lnbmVk";

pub fn token(scopes: &[(&str, u32)]) -> String {
    let scopes: Vec<Value> = scopes.iter().map(|(name, may)| json!({"Scope": name, "Permission": may})).collect();
    let claims = json!({"exp": 4_102_444_800_u64, "nbf": 1_700_000_000, "ac": Value::from(scopes).to_string()});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{SIGNATURE}", part(&json!({"alg": "HS256", "typ": "JWT"})), part(&claims))
}

fn reply(value: &Value) -> Answer {
    Answer::new(200).with("Content-Type", "application/json").body(value.to_string())
}

fn refusal(status: u16, code: &str) -> Answer {
    Answer::new(status).body(json!({"code": code, "msg": format!("{code} it is")}).to_string())
}

pub fn answer(asked: &Asked, objects: &mut Objects, token: &str) -> Answer {
    if let Some(name) = asked.path.strip_prefix("/signed/") {
        if parameter(asked, "sig").as_deref() != Some(SIGNATURE) {
            return Answer::new(403).with("x-ms-error-code", "AuthenticationFailed");
        }
        return azure::blob(asked, objects, &unescape(name));
    }
    let Some(method) = asked.path.strip_prefix("/twirp/github.actions.results.api.v1.CacheService/") else {
        return Answer::new(404);
    };
    if asked.header("authorization") != format!("Bearer {token}") {
        return refusal(401, "unauthenticated");
    }
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let key = body["key"].as_str().unwrap_or_default().to_owned();
    // An address names its entry with the number that it has been given.
    let address = |name: &str| {
        let name = name.replace('#', "%23").replace(':', "%3A");
        format!("http://{}/signed/{name}?sig={SIGNATURE}", asked.header("host"))
    };
    match method {
        "CreateCacheEntry" if objects.kept.contains_key(&key) || !objects.open.insert(key.clone()) => {
            refusal(409, "already_exists")
        }
        "CreateCacheEntry" => reply(&json!({"ok": true, "signed_upload_url": address(&key)})),
        "FinalizeCacheEntryUpload" => {
            let size = objects.kept.get(&key).map(|bytes| bytes.len() as u64);
            let done = objects.open.remove(&key) && size.is_some() && size == body["size_bytes"].as_u64();
            reply(&json!({"ok": done, "entry_id": "1"}))
        }
        "GetCacheEntryDownloadURL" => {
            let finished = |name: &&String| !objects.open.contains(*name);
            let restore = body["restore_keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let begins: Vec<&str> = restore.collect();
            let exact = objects.kept.keys().filter(finished).find(|name| **name == key);
            // Of several the newest: numbers grow.
            let newest = objects.kept.keys().filter(finished).filter(|n| begins.iter().any(|b| n.starts_with(b)));
            let newest = newest.max_by_key(|name| (name.len(), (*name).clone()));
            match exact.or(newest) {
                Some(name) => reply(&json!({"ok": true, "matched_key": name, "signed_download_url": address(name)})),
                None => reply(&json!({"ok": false})),
            }
        }
        _ => refusal(404, "bad_route"),
    }
}
