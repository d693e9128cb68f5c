//! Any server that keeps what it is sent: `BLOB = BASE/blobs/sha256/HEX`, `MANIFEST = BASE/manifests/NAME`, read by GET,
//! looked for by HEAD, written by PUT, with a bearer token where one is given.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::{Digest, Secret};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, Url};

use crate::attrs::{Attrs, given, names, timeout};
use crate::client::{Body, Call, Client, Opened, Sign};
use crate::error::config;
use crate::limits::Limits;
use crate::{MANIFEST_MAX, ObjectStore, Stored, keys};

/// A place below an address.
pub(crate) struct HttpStore {
    client: Client,
    /// Ends with a slash.
    base: String,
    name: String,
    manifests: Vec<String>,
    token: Bearer,
}

/// A token that goes with each request.
pub(crate) struct Bearer(pub(crate) Option<Secret>);

impl Sign for Bearer {
    fn sign(&self, _: &Call, _: Timestamp, headers: &mut HeaderMap) -> Result<(), ErrorKind> {
        if let Some(token) = &self.0 {
            let text = [b"Bearer ", token.expose().trim_ascii()].concat();
            let mut value = HeaderValue::from_bytes(&text).map_err(|_| config("the token cannot be sent"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(())
    }
}

impl HttpStore {
    pub(crate) fn new(attrs: &Attrs, mut limits: Limits) -> Result<Self, ErrorKind> {
        let url = given(attrs, "url").ok_or_else(|| config("http cache needs an address: url=https://HOST/PATH"))?;
        let url = keys::base("url", url)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(config("url has a `?` or `#`, which no address of a directory has"));
        }
        if let Some(wait) = timeout(attrs)? {
            limits.set_wait(wait);
        }
        let manifests = names(attrs, "kiln");
        for name in &manifests {
            keys::check("name", name)?;
            if name.trim_matches('/').is_empty() {
                return Err(config("name is empty"));
            }
        }
        let name = url.as_str().trim_end_matches('/').to_owned();
        let token = Bearer(given(attrs, "token").map(Secret::new));
        Ok(Self { client: Client::new(&url, limits, true)?, base: format!("{name}/"), name, manifests, token })
    }

    fn blob(&self, digest: &Digest) -> Result<Url, ErrorKind> {
        keys::address(&self.base, &format!("blobs/sha256/{}", digest.hex()), "")
    }

    fn manifest(&self, name: &str) -> Result<Url, ErrorKind> {
        keys::address(&self.base, &format!("manifests/{name}"), "")
    }
}

#[async_trait]
impl ObjectStore for HttpStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &Limits {
        &self.client.limits
    }

    async fn has(&self, digest: &Digest) -> Result<bool, ErrorKind> {
        match self.client.send(&Call::new(Method::HEAD, self.blob(digest)?), &self.token).await {
            Ok(_) => Ok(true),
            Err(ErrorKind::NotFound) => Ok(false),
            Err(kind) => Err(kind),
        }
    }

    async fn put(&self, digest: &Digest, size: u64, source: Arc<dyn BlobSource>) -> Result<Stored, ErrorKind> {
        let body = Body::Upload { source, digest: *digest, size };
        let call = Call::new(Method::PUT, self.blob(digest)?).carrying(body);
        self.client.send(&call, &self.token).await.map(|_| Stored::There)
    }

    async fn open(&self, digest: &Digest, offset: u64) -> Result<Opened, ErrorKind> {
        let call = Call::new(Method::GET, self.blob(digest)?).at_offset(offset)?;
        self.client.send(&call, &self.token).await.map(Opened)
    }

    async fn manifests(&self) -> Result<Vec<Bytes>, ErrorKind> {
        let mut found = Vec::new();
        for name in &self.manifests {
            match self.client.ask(&Call::new(Method::GET, self.manifest(name)?), &self.token, MANIFEST_MAX).await {
                Ok(bytes) => found.push(bytes),
                Err(ErrorKind::NotFound) => {}
                Err(kind) => return Err(kind),
            }
        }
        if found.is_empty() { Err(ErrorKind::NotFound) } else { Ok(found) }
    }

    async fn put_manifest(&self, manifest: Bytes) -> Result<(), ErrorKind> {
        for name in &self.manifests {
            let call = Call::new(Method::PUT, self.manifest(name)?).with("content-type", "application/json")?;
            self.client.send(&call.carrying(Body::Bytes(manifest.clone())), &self.token).await?;
        }
        Ok(())
    }
}
