//! Azure Blob Storage: blobs of a container, `<prefix>/<blobs_prefix>/<digest>` and `<prefix>/<manifests_prefix>/<name>`,
//! by the key of the account or by a signed address (SAS).

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::{Digest, Secret};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};

use crate::attrs::{Attrs, Environment, given, names, timeout};
use crate::blocks::Blocks;
use crate::client::{Body, Call, Client, Opened, Sign, Unsigned};
use crate::error::config;
use crate::limits::Limits;
use crate::{MANIFEST_MAX, ObjectStore, Stored, keys};

/// Version of the service's protocol; the signature depends on it.
const VERSION: &str = "2021-08-06";

/// Blobs of one container.
pub(crate) struct AzureStore {
    client: Client,
    sign: Box<dyn Sign>,
    /// Address of the container, with a slash at its end.
    base: String,
    /// What signs addresses; empty where requests are signed.
    query: String,
    name: String,
    blobs: String,
    manifests: Vec<String>,
}

impl AzureStore {
    pub(crate) fn new(attrs: &Attrs, env: Environment<'_>, mut limits: Limits) -> Result<Self, ErrorKind> {
        let from = |name: &str, variable: &str| {
            attrs.get(name).cloned().or_else(|| env(&format!("BUILDKIT_AZURE_STORAGE_{variable}")))
        };
        let given_url = from("account_url", "ACCOUNT_URL").filter(|url| !url.is_empty()).ok_or_else(|| {
            config("either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url attribute is required for azblob cache")
        })?;
        let mut url = keys::base("account_url", &given_url)?;
        let query = url.query().unwrap_or_default().to_owned();
        url.set_query(None);
        url.set_fragment(None);
        let host = url.host_str().unwrap_or_default().split('.').next().unwrap_or_default().to_owned();
        let account = from("account_name", "ACCOUNT_NAME").unwrap_or(host);
        let container = from("container", "CONTAINER").unwrap_or_else(|| "buildkit-cache".to_owned());
        let prefix = from("prefix", "PREFIX").unwrap_or_default();
        let part = |name: &str, fallback: &str| attrs.get(name).map_or(fallback, String::as_str).to_owned();
        let (blobs, manifests) = (part("blobs_prefix", "blobs"), part("manifests_prefix", "manifests"));
        let blobs = joined(&[&prefix, &blobs]);
        let manifests: Vec<String> =
            names(attrs, "buildkit").iter().map(|name| joined(&[&prefix, &manifests, name])).collect();
        for key in manifests.iter().chain([&blobs, &container]) {
            keys::check("key", key)?;
        }
        if let Some(wait) = timeout(attrs)? {
            limits.set_wait(wait);
        }
        let key = given(attrs, "secret_access_key");
        let sign: Box<dyn Sign> = match key.map(|text| STANDARD.decode(text)) {
            Some(Ok(key)) => Box::new(SharedKey { account: account.clone(), key: Secret::new(key) }),
            Some(Err(_)) => return Err(config("secret_access_key is not in base64")),
            None if !query.is_empty() => Box::new(Unsigned),
            None => return Err(config("azblob cache needs secret_access_key, or an account_url that is signed (SAS)")),
        };
        let query = if key.is_some() { String::new() } else { query };
        let name = format!("azblob://{account}/{container}");
        let base = format!("{}/{}/", url.as_str().trim_end_matches('/'), keys::escape(&container, true));
        Ok(Self { client: Client::new(&url, limits, false)?, sign, base, query, name, blobs, manifests })
    }

    fn key(&self, digest: &Digest) -> String {
        joined(&[&self.blobs, &digest.to_string()])
    }

    fn url(&self, key: &str) -> Result<Url, ErrorKind> {
        keys::address(&self.base, key, &self.query)
    }

    async fn upload(&self, key: &str, upload: &Upload<'_>) -> Result<(), ErrorKind> {
        let url = self.url(key)?;
        match put(&self.client, self.sign.as_ref(), &url, upload).await {
            // The service does not tell apart a container that is not there from a blob that is not.
            Err(ErrorKind::NotFound) => {
                self.create_container().await?;
                put(&self.client, self.sign.as_ref(), &url, upload).await
            }
            outcome => outcome,
        }
    }

    async fn create_container(&self) -> Result<(), ErrorKind> {
        let query = [self.query.as_str(), "restype=container"].join("&");
        let address = format!("{}?{}", self.base.trim_end_matches('/'), query.trim_start_matches('&'));
        let url = Url::parse(&address).map_err(|_| config("container cannot be part of an address"))?;
        match self.client.send(&Call::new(Method::PUT, url).with("x-ms-version", VERSION)?, self.sign.as_ref()).await {
            Err(ErrorKind::Status { status: 409, .. }) | Ok(_) => Ok(()),
            Err(kind) => Err(kind),
        }
    }
}

/// Joins the parts of a key as paths are joined: without empty parts.
fn joined(parts: &[&str]) -> String {
    let parts = parts.iter().flat_map(|part| part.split('/')).filter(|part| !part.is_empty() && *part != ".");
    parts.collect::<Vec<_>>().join("/")
}

/// What is sent to one address.
pub(crate) enum Upload<'a> {
    /// In place of what may be there.
    Document(&'a Bytes),
    /// Content that is as good as what may be there.
    Blob { source: &'a Arc<dyn BlobSource>, digest: &'a Digest, size: u64 },
}

/// Writes a blob at a signed address, or with a signature.
pub(crate) async fn put(client: &Client, sign: &dyn Sign, url: &Url, upload: &Upload<'_>) -> Result<(), ErrorKind> {
    let outcome = match upload {
        Upload::Blob { source, digest, size } if *size > client.limits.whole => {
            put_blocks(client, sign, url, (source, digest, *size)).await
        }
        _ => {
            let mut call = Call::new(Method::PUT, url.clone()).with("x-ms-version", VERSION)?;
            call = call.with("x-ms-blob-type", "BlockBlob")?;
            call = match upload {
                Upload::Document(bytes) => call.carrying(Body::Bytes((*bytes).clone())),
                Upload::Blob { source, digest, size } => {
                    let body = Body::Upload { source: (*source).clone(), digest: **digest, size: *size };
                    call.with("if-none-match", "*")?.carrying(body)
                }
            };
            client.send(&call, sign).await.map(drop)
        }
    };
    match (outcome, upload) {
        // Somebody else was faster.
        (Err(ErrorKind::Status { status: 409 | 412, .. }), Upload::Blob { .. }) => Ok(()),
        (outcome, _) => outcome,
    }
}

async fn put_blocks(
    client: &Client,
    sign: &dyn Sign,
    url: &Url,
    (source, digest, size): (&Arc<dyn BlobSource>, &Digest, u64),
) -> Result<(), ErrorKind> {
    let mut blocks = Blocks::open(source, digest, size, client.limits.part_of(size)).await?;
    let mut list = "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>".to_owned();
    let mut number = 0u32;
    while let Some(part) = blocks.next().await? {
        // All ids of a blob have one length, and what stands in one is the digest's: uploads side by side do not mix.
        let id = STANDARD.encode(format!("{}-{number:06}", &digest.hex()[..16]));
        let mut at = url.clone();
        at.query_pairs_mut().append_pair("comp", "block").append_pair("blockid", &id);
        let (digest, size) = (Digest::of(&part), part.len() as u64);
        let call = Call::new(Method::PUT, at).with("x-ms-version", VERSION)?;
        client.send(&call.carrying(Body::Upload { source: Arc::new(part), digest, size }), sign).await?;
        list.push_str(&format!("<Latest>{id}</Latest>"));
        number += 1;
    }
    list.push_str("</BlockList>");
    let mut at = url.clone();
    at.query_pairs_mut().append_pair("comp", "blocklist");
    let call = Call::new(Method::PUT, at).with("x-ms-version", VERSION)?;
    client.send(&call.carrying(Body::Bytes(list.into())), sign).await.map(drop)
}

#[async_trait]
impl ObjectStore for AzureStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &Limits {
        &self.client.limits
    }

    async fn has(&self, digest: &Digest) -> Result<bool, ErrorKind> {
        let call = Call::new(Method::HEAD, self.url(&self.key(digest))?).with("x-ms-version", VERSION)?;
        match self.client.send(&call, self.sign.as_ref()).await {
            Ok(_) => Ok(true),
            Err(ErrorKind::NotFound) => Ok(false),
            Err(kind) => Err(kind),
        }
    }

    async fn put(&self, digest: &Digest, size: u64, source: Arc<dyn BlobSource>) -> Result<Stored, ErrorKind> {
        let upload = Upload::Blob { source: &source, digest, size };
        self.upload(&self.key(digest), &upload).await.map(|()| Stored::There)
    }

    async fn open(&self, digest: &Digest, offset: u64) -> Result<Opened, ErrorKind> {
        let call = Call::new(Method::GET, self.url(&self.key(digest))?).with("x-ms-version", VERSION)?;
        self.client.send(&call.at_offset(offset)?, self.sign.as_ref()).await.map(Opened)
    }

    async fn manifests(&self) -> Result<Vec<Bytes>, ErrorKind> {
        let mut found = Vec::new();
        for key in &self.manifests {
            let call = Call::new(Method::GET, self.url(key)?).with("x-ms-version", VERSION)?;
            match self.client.ask(&call, self.sign.as_ref(), MANIFEST_MAX).await {
                Ok(bytes) => found.push(bytes),
                Err(ErrorKind::NotFound) => {}
                Err(kind) => return Err(kind),
            }
        }
        if found.is_empty() { Err(ErrorKind::NotFound) } else { Ok(found) }
    }

    async fn put_manifest(&self, manifest: Bytes) -> Result<(), ErrorKind> {
        for key in &self.manifests {
            self.upload(key, &Upload::Document(&manifest)).await?;
        }
        Ok(())
    }
}

/// Signs with the key of an account (the service's "Authorize with Shared Key").
struct SharedKey {
    account: String,
    key: Secret,
}

impl Sign for SharedKey {
    fn sign(&self, call: &Call, now: Timestamp, headers: &mut HeaderMap) -> Result<(), ErrorKind> {
        let date = now.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let date = HeaderValue::from_str(&date).map_err(|_| config("bad clock"))?;
        headers.insert(HeaderName::from_static("x-ms-date"), date);
        let text = self.text(call, headers);
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.key.expose()), text.as_bytes());
        let value = format!("SharedKey {}:{}", self.account, STANDARD.encode(signature.as_ref()));
        let mut value = HeaderValue::from_str(&value).map_err(|_| config("account_name cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(())
    }
}

impl SharedKey {
    /// Returns what is signed.
    fn text(&self, call: &Call, headers: &HeaderMap) -> String {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let length = match call.length() {
            0 => String::new(),
            length => length.to_string(),
        };
        // Encoding, language, length, MD5, type, date, the four conditions, range.
        let fixed =
            ["", "", &length, "", header("content-type"), "", "", "", header("if-none-match"), "", header("range")];
        let mut own: Vec<(&str, &str)> = headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?.trim())))
            .collect();
        own.sort_unstable();
        let own: String = own.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let mut query: Vec<(String, String)> =
            call.url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect();
        query.sort();
        let query: String = query.iter().map(|(name, value)| format!("\n{name}:{value}")).collect();
        format!("{}\n{}\n{own}/{}{}{query}", call.method, fixed.join("\n"), self.account, call.url.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(attrs: &[(&str, &str)]) -> Result<AzureStore, String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        AzureStore::new(&attrs, &|_| None, Limits::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_are_joined_as_paths() {
        let key = ("secret_access_key", "aHVudGVyMg==");
        let url = ("account_url", "https://acc.blob.test");
        let plain = store(&[url, key]).unwrap();
        let digest = Digest::of("x");
        assert_eq!(plain.key(&digest), format!("blobs/{digest}"));
        assert_eq!(plain.manifests, ["manifests/buildkit"]);
        assert_eq!(
            (plain.base.as_str(), plain.name.as_str()),
            ("https://acc.blob.test/buildkit-cache/", "azblob://acc/buildkit-cache")
        );
        let other = store(&[url, key, ("prefix", "/p//q/"), ("name", "a;b"), ("container", "c")]).unwrap();
        assert_eq!(other.manifests, ["p/q/manifests/a", "p/q/manifests/b"]);
        assert_eq!(other.base, "https://acc.blob.test/c/");
    }

    #[test]
    fn a_signed_address_needs_no_key_and_shows_nowhere() {
        let store = store(&[("account_url", "https://acc.blob.test/?sv=1&sig=hunter2")]).unwrap();
        assert!(store.url("k").unwrap().as_str().ends_with("/buildkit-cache/k?sv=1&sig=hunter2"));
        assert!(!store.name.contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (attrs, want) in [
            (vec![], "account_url attribute is required"),
            (vec![("account_url", "https://a.test")], "needs secret_access_key"),
            (vec![("account_url", "https://a.test"), ("secret_access_key", "?")], "not in base64"),
        ] {
            let error = store(&attrs).map(drop).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn what_is_signed() {
        let url = Url::parse("http://127.0.0.1:1/acc/c/b?comp=block&blockid=eA%3D%3D").unwrap();
        let call = Call::new(Method::PUT, url).with("x-ms-version", VERSION).unwrap();
        let call = call.carrying(Body::Bytes(Bytes::from_static(b"12345")));
        let key = SharedKey { account: "acc".into(), key: Secret::new("k") };
        let want =
            format!("PUT\n\n\n5\n\n\n\n\n\n\n\n\nx-ms-version:{VERSION}\n/acc/acc/c/b\nblockid:eA==\ncomp:block");
        assert_eq!(key.text(&call, &call.headers), want);
    }
}
