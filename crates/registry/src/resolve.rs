//! Manifests: resolving names to descriptors, and fetching what descriptors name.

use bytes::Bytes;
use kiln_oci::{Descriptor, Reference, media};
use kiln_stdx::{Digest, limits};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response};

use crate::Registry;
use crate::credentials::Credentials;
use crate::error::{ErrorKind, RegistryError};
use crate::host::Endpoint;
use crate::repository::Repository;
use crate::transport::{Body, Call, Target};

/// What this client can do something with. Cache configs and attestations come in these envelopes too.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
const DIGEST_HEADER: &str = "docker-content-digest";

/// A manifest or index with the descriptor that it matches.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
}

impl Registry {
    /// Finds what `reference` names: asks with HEAD, and reads the whole manifest where the answer does not suffice.
    ///
    /// Mirrors are asked first; the error is that of the registry itself. A digest in the reference wins over its tag.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], refusals, and whatever is left after the retries.
    pub async fn resolve(&self, reference: &Reference, credentials: &Credentials) -> Result<Descriptor, RegistryError> {
        let repository = Repository::from(reference);
        let name = wanted(reference);
        let subject = reference.to_string();
        let mut last = None;
        for endpoint in self.endpoints("resolve", &subject, &repository)? {
            match self.resolve_at(&endpoint, &name, reference.digest(), &subject, credentials).await {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| nowhere("resolve", &subject, &repository)))
    }

    /// Fetches the manifest or index that `descriptor` names; its digest is verified, and its size where given.
    ///
    /// # Errors
    /// As [`Self::resolve`]; content that does not match.
    pub async fn fetch_manifest(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        credentials: &Credentials,
    ) -> Result<FetchedManifest, RegistryError> {
        let subject = format!("{repository}@{}", descriptor.digest);
        let mut last = None;
        for endpoint in self.endpoints("fetch manifest", &subject, repository)? {
            let name = descriptor.digest.to_string();
            let fetched = self.get_manifest(&endpoint, "fetch manifest", &name, &subject, credentials).await;
            match fetched.and_then(|f| self.matching(&endpoint, &subject, f, Some(descriptor))) {
                Ok(fetched) => return Ok(fetched),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| nowhere("fetch manifest", &subject, repository)))
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        name: &str,
        pinned: Option<&Digest>,
        subject: &str,
        credentials: &Credentials,
    ) -> Result<Descriptor, RegistryError> {
        let call = manifest_call(endpoint, Method::HEAD, "resolve", name, subject, credentials);
        let found = match self.inner.send(&call).await {
            Ok(response) => from_head(&response, pinned),
            // Some registries and proxies know HEAD badly; GET then tells the truth.
            Err(error) if matches!(error.kind, ErrorKind::Status { status: 400 | 405 | 501, .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(descriptor) = found {
            return Ok(descriptor);
        }
        let fetched = self.get_manifest(endpoint, "resolve", name, subject, credentials).await?;
        let expected = pinned.map(|digest| Descriptor::new("", *digest, 0));
        Ok(self.matching(endpoint, subject, fetched, expected.as_ref())?.descriptor)
    }

    async fn get_manifest(
        &self,
        endpoint: &Endpoint,
        operation: &'static str,
        name: &str,
        subject: &str,
        credentials: &Credentials,
    ) -> Result<FetchedManifest, RegistryError> {
        let call = manifest_call(endpoint, Method::GET, operation, name, subject, credentials);
        let mut retries = crate::retry::Retries::new(&self.inner.config.retry);
        loop {
            let response = self.inner.send(&call).await?;
            let media_type = content_type(&response);
            let bytes = match self.inner.read_all(response, limits::MANIFEST).await {
                Ok(bytes) => bytes,
                Err(kind) => match retries.after(&kind) {
                    Some(wait) => {
                        (self.inner.config.pause)(wait).await;
                        continue;
                    }
                    None => return Err(call.error(kind)),
                },
            };
            let media_type = match media_type {
                Some(given) if known(&given) => given,
                given => sniff(&bytes).or(given).unwrap_or_default(),
            };
            return Ok(FetchedManifest { descriptor: Descriptor::of(media_type, &bytes), bytes });
        }
    }

    /// Compares what came with what was asked for.
    fn matching(
        &self,
        endpoint: &Endpoint,
        subject: &str,
        fetched: FetchedManifest,
        expected: Option<&Descriptor>,
    ) -> Result<FetchedManifest, RegistryError> {
        let Some(expected) = expected else { return Ok(fetched) };
        let got = &fetched.descriptor;
        let kind = if expected.size != 0 && expected.size != got.size {
            ErrorKind::LengthMismatch { expected: expected.size, actual: got.size }
        } else if expected.digest != got.digest {
            ErrorKind::DigestMismatch { expected: expected.digest, actual: got.digest }
        } else {
            return Ok(fetched);
        };
        let host = endpoint.host.authority.as_str().into();
        Err(RegistryError { operation: "fetch manifest", target: subject.into(), host, kind })
    }

    pub(crate) fn endpoints(
        &self,
        operation: &'static str,
        subject: &str,
        repository: &Repository,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let host = repository.host.as_str().into();
        self.inner.hosts.pull(repository).map_err(|kind| RegistryError {
            operation,
            target: subject.into(),
            host,
            kind,
        })
    }
}

pub(crate) fn nowhere(operation: &'static str, subject: &str, repository: &Repository) -> RegistryError {
    let kind = ErrorKind::Config("no endpoint to ask".to_owned());
    RegistryError { operation, target: subject.into(), host: repository.host.as_str().into(), kind }
}

/// Returns what to ask the registry for.
fn wanted(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}

/// Returns the scope that reading `path` needs.
pub(crate) fn pull_scope(path: &str) -> String {
    format!("repository:{path}:pull")
}

fn manifest_call<'a>(
    endpoint: &Endpoint,
    method: Method,
    operation: &'static str,
    name: &str,
    subject: &str,
    credentials: &'a Credentials,
) -> Call<'a> {
    Call {
        operation,
        subject: subject.to_owned(),
        host: endpoint.host.clone(),
        method,
        target: Target::Path(endpoint.path(&format!("manifests/{name}"))),
        headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED))]),
        body: Body::Empty,
        scopes: vec![pull_scope(&endpoint.path)],
        credentials,
    }
}

/// Makes a descriptor of an answer without a body, if it says all that is needed.
fn from_head(response: &Response, pinned: Option<&Digest>) -> Option<Descriptor> {
    let media_type = content_type(response).filter(|t| known(t))?;
    // Not `Response::content_length`, which is about the absent body.
    let size = response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok().filter(|s| *s > 0)?;
    let digest: Digest = response.headers().get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()?;
    pinned.is_none_or(|pinned| *pinned == digest).then(|| Descriptor::new(media_type, digest, size))
}

fn known(media_type: &str) -> bool {
    media::is_manifest(media_type) || media::is_index(media_type)
}

fn content_type(response: &Response) -> Option<String> {
    let text = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next()?.trim().to_ascii_lowercase())
}

/// Tells a manifest's media type from its fields.
fn sniff(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    if let Some(given) = value.get("mediaType").and_then(serde_json::Value::as_str) {
        return Some(given.to_owned());
    }
    if value.get("manifests").is_some() {
        Some(media::OCI_INDEX.to_owned())
    } else if value.get("layers").is_some() && value.get("config").is_some() {
        Some(media::OCI_MANIFEST.to_owned())
    } else {
        None
    }
}
