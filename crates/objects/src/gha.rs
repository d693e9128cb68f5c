//! The cache service of GitHub Actions, version 2: three calls that give signed addresses of blobs. Keys are
//! `buildkit-blob-1-<digest>` and `index-<scope>-1-<hash of the branch>#<number>`; what is written under a key stays,
//! so that each manifest gets the next number.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::{Clock as _, Digest, Secret, SystemClock};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::attrs::{Attrs, given, timeout};
use crate::azure::{self, Upload};
use crate::client::{Body, Call, Client, Opened, Unsigned};
use crate::error::{config, protocol};
use crate::http::Bearer;
use crate::limits::Limits;
use crate::{MANIFEST_MAX, ObjectStore, Stored, keys};

/// Path of the service below its address.
const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService/";
/// Most bytes of an answer.
const ANSWER: u64 = 32 << 10;
/// Most numbers of manifests that are tried: others may be writing theirs.
const NUMBERS: u32 = 16;
/// What a token's scope allows.
const WRITE: u64 = 2;

/// The cache of one repository.
pub(crate) struct GhaStore {
    client: Client,
    token: Bearer,
    /// Address of the service, with a slash at its end.
    base: String,
    name: String,
    /// Keys of manifests that may be read.
    read: Vec<String>,
    /// Key of the manifest that may be written.
    write: Option<String>,
}

impl GhaStore {
    pub(crate) fn new(attrs: &Attrs, mut limits: Limits) -> Result<Self, ErrorKind> {
        let token = given(attrs, "token").ok_or_else(|| config("token not set for github actions cache"))?;
        let version = match attrs.get("version").map(|text| text.parse::<u32>()) {
            None => 0,
            Some(Ok(version)) => version,
            Some(Err(_)) => return Err(config("version of the github actions cache is no positive number")),
        };
        let second = given(attrs, "url_v2").filter(|_| version != 1);
        let url =
            second.or_else(|| given(attrs, "url")).ok_or_else(|| config("url not set for github actions cache"))?;
        // Clients that know nothing of versions still name the host of the second.
        let is_second = second.is_some() || version > 1 || (version == 0 && url.contains("results-receiver."));
        if !is_second {
            return Err(config("this is version 1 of the github actions cache, and version 2 is needed: set url_v2"));
        }
        let url = keys::base("url", url)?;
        if let Some(total) = timeout(attrs)? {
            limits.set_total(total);
        }
        let scope = attrs.get("scope").map_or("buildkit", String::as_str);
        let scopes = scopes(token, SystemClock.unix())?;
        let key = |of: &str| format!("index-{scope}-1-{}", &Digest::of(of).hex()[..8]);
        Ok(Self {
            client: Client::new(&url, limits, false)?,
            token: Bearer(Some(Secret::new(token))),
            base: format!("{}/{SERVICE}", url.as_str().trim_end_matches('/')),
            name: format!("gha://{scope}"),
            read: scopes.iter().map(|(name, _)| key(name)).collect(),
            write: scopes.iter().rev().find(|(_, allowed)| allowed & WRITE != 0).map(|(name, _)| key(name)),
        })
    }

    async fn call(&self, method: &str, body: &Value) -> Result<Value, ErrorKind> {
        let url = Url::parse(&format!("{}{method}", self.base)).map_err(|_| config("url is no address"))?;
        let call = Call::new(Method::POST, url).with("content-type", "application/json")?;
        let call = call.carrying(Body::Bytes(body.to_string().into()));
        let answer = self.client.ask(&call, &self.token, ANSWER).await?;
        serde_json::from_slice(&answer).map_err(|_| protocol("the service did not answer in JSON"))
    }

    /// Returns where the newest entry whose key begins with `prefix` can be read, and its whole key.
    async fn find(&self, prefix: &str) -> Result<Option<(String, Url)>, ErrorKind> {
        let body = json!({"key": prefix, "restore_keys": [prefix], "version": version()});
        let answer = match self.call("GetCacheEntryDownloadURL", &body).await {
            Err(ErrorKind::NotFound) => return Ok(None),
            answer => answer?,
        };
        if answer["ok"].as_bool() != Some(true) {
            return Ok(None);
        }
        let key = answer["matched_key"].as_str().unwrap_or_default().to_owned();
        Ok(Some((key, address(&answer["signed_download_url"])?)))
    }

    /// Returns where a blob can be read. What is found by its beginning only is another one.
    async fn blob(&self, digest: &Digest) -> Result<Option<Url>, ErrorKind> {
        let wanted = blob_key(digest);
        Ok(self.find(&wanted).await?.filter(|(key, _)| *key == wanted).map(|(_, url)| url))
    }

    /// Writes an entry; tells whether it did, or somebody else has or does. A writer that was cut off holds its key until
    /// the service forgets it; nobody reads what it left, and nobody else can write it.
    async fn write(&self, key: &str, size: u64, upload: &Upload<'_>) -> Result<bool, ErrorKind> {
        let answer = match self.call("CreateCacheEntry", &json!({"key": key, "version": version()})).await {
            Err(ErrorKind::Status { status: 409, .. }) => return Ok(false),
            answer => answer?,
        };
        if answer["ok"].as_bool() != Some(true) {
            return Ok(false);
        }
        let url = address(&answer["signed_upload_url"])?;
        azure::put(&self.client, &Unsigned, &url, upload).await?;
        let body = json!({"key": key, "size_bytes": size, "version": version()});
        let refused = match self.call("FinalizeCacheEntryUpload", &body).await {
            Ok(answer) if answer["ok"].as_bool() == Some(true) => return Ok(true),
            Ok(_) => protocol("the service did not finish an entry"),
            Err(kind) => kind,
        };
        // Where the answer was lost, and not what it answers, the entry is finished.
        if matches!(self.find(key).await, Ok(Some((found, _))) if found == key) { Ok(true) } else { Err(refused) }
    }
}

/// Returns what BuildKit says in place of the paths that the service's own clients hash.
fn version() -> String {
    Digest::of("|go-actionscache-1.0").hex()
}

fn blob_key(digest: &Digest) -> String {
    format!("buildkit-blob-1-{digest}")
}

fn address(value: &Value) -> Result<Url, ErrorKind> {
    let url = value.as_str().and_then(|text| Url::parse(text).ok()).filter(|u| matches!(u.scheme(), "http" | "https"));
    url.ok_or_else(|| protocol("the service gave no address"))
}

/// Reads the scopes of a token with what they allow; the signature is the service's to check.
fn scopes(token: &str, now: u64) -> Result<Vec<(String, u64)>, ErrorKind> {
    let bad = |why: &str| config(format!("token of the github actions cache: {why}"));
    let payload = token.split('.').nth(1).ok_or_else(|| bad("it has no claims"))?;
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).map_err(|_| bad("it has no claims"))?;
    let claims: Value = serde_json::from_slice(&payload).map_err(|_| bad("its claims cannot be read"))?;
    let expires = claims["exp"].as_f64().ok_or_else(|| bad("it does not say when it expires"))?;
    if (now as f64) > expires {
        return Err(ErrorKind::Unauthorized("the token of the github actions cache has expired".to_owned()));
    }
    let scopes = claims["ac"].as_str().ok_or_else(|| bad("it gives no access"))?;
    let scopes: Vec<Value> = serde_json::from_str(scopes).map_err(|_| bad("its scopes cannot be read"))?;
    let scope = |s: &Value| Some((s["Scope"].as_str()?.to_owned(), s["Permission"].as_u64().unwrap_or(0)));
    Ok(scopes.iter().filter_map(scope).collect())
}

#[async_trait]
impl ObjectStore for GhaStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &Limits {
        &self.client.limits
    }

    async fn has(&self, digest: &Digest) -> Result<bool, ErrorKind> {
        Ok(self.blob(digest).await?.is_some())
    }

    async fn put(&self, digest: &Digest, size: u64, source: Arc<dyn BlobSource>) -> Result<Stored, ErrorKind> {
        let upload = Upload::Blob { source: &source, digest, size };
        let there = self.write(&blob_key(digest), size, &upload).await? || self.has(digest).await?;
        Ok(if there { Stored::There } else { Stored::Awaited })
    }

    async fn open(&self, digest: &Digest, offset: u64) -> Result<Opened, ErrorKind> {
        let url = self.blob(digest).await?.ok_or(ErrorKind::NotFound)?;
        let call = Call::new(Method::GET, url).at_offset(offset)?;
        self.client.send(&call, &Unsigned).await.map(Opened)
    }

    async fn manifests(&self) -> Result<Vec<Bytes>, ErrorKind> {
        let mut found = Vec::new();
        for key in &self.read {
            if let Some((_, url)) = self.find(&format!("{key}#")).await? {
                found.push(self.client.ask(&Call::new(Method::GET, url), &Unsigned, MANIFEST_MAX).await?);
            }
        }
        if found.is_empty() { Err(ErrorKind::NotFound) } else { Ok(found) }
    }

    async fn put_manifest(&self, manifest: Bytes) -> Result<(), ErrorKind> {
        let denied = || ErrorKind::Denied("the token of the github actions cache does not allow writing".to_owned());
        let key = self.write.as_ref().ok_or_else(denied)?;
        let newest = self.find(&format!("{key}#")).await?;
        let number = newest.and_then(|(found, _)| found.rsplit_once('#')?.1.parse::<u32>().ok()).unwrap_or(0);
        for next in 1..=NUMBERS {
            let key = format!("{key}#{}", number.saturating_add(next));
            if self.write(&key, manifest.len() as u64, &Upload::Document(&manifest)).await? {
                return Ok(());
            }
        }
        Err(protocol("exports that have not finished hold all keys of the manifest; use another scope"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims))
    }

    const CLAIMS: &str = r#"{"exp":4102444800,"nbf":1,"ac":"[{\"Scope\":\"refs/heads/topic\",\"Permission\":3},{\"Scope\":\"refs/heads/main\",\"Permission\":1}]"}"#;

    fn store(attrs: &[(&str, &str)]) -> Result<GhaStore, String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        GhaStore::new(&attrs, Limits::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn scopes_become_keys() {
        let token = token(CLAIMS);
        let store = store(&[("token", &token), ("url_v2", "https://r.test/"), ("scope", "app")]).unwrap();
        let hash = |text: &str| Digest::of(text).hex()[..8].to_owned();
        let (topic, main) = (hash("refs/heads/topic"), hash("refs/heads/main"));
        assert_eq!(store.read, [format!("index-app-1-{topic}"), format!("index-app-1-{main}")]);
        assert_eq!(store.write, Some(format!("index-app-1-{topic}")));
        assert_eq!(store.base, format!("https://r.test/{SERVICE}"));
    }

    #[test]
    fn what_is_wrong_is_named_and_the_token_is_not() {
        let good = token(CLAIMS);
        let old = token(r#"{"exp":5,"ac":"[]"}"#);
        for (attrs, want) in [
            (vec![], "token not set"),
            (vec![("token", good.as_str())], "url not set"),
            (vec![("token", &good), ("url", "https://artifactcache.test/")], "version 2 is needed"),
            (vec![("token", &good), ("url_v2", "https://r.test"), ("version", "x")], "no positive number"),
            (vec![("token", "hunter2"), ("url_v2", "https://r.test")], "no claims"),
            (vec![("token", &old), ("url_v2", "https://r.test")], "has expired"),
        ] {
            let error = store(&attrs).map(drop).unwrap_err();
            assert!(error.contains(want) && !error.contains("hunter2") && !error.contains(&good), "{error}");
        }
    }
}
