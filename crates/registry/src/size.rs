//! How long a blob is, for those who know its digest only.

use kiln_stdx::Digest;
use reqwest::header::{CONTENT_LENGTH, HeaderMap};
use reqwest::{Method, Response};

use crate::Registry;
use crate::credentials::Credentials;
use crate::error::{ErrorKind, RegistryError};
use crate::host::Endpoint;
use crate::repository::Repository;
use crate::resolve::{nowhere, pull_scope};
use crate::transport::{Body, Call, Target};

const OPERATION: &str = "look up blob";

impl Registry {
    /// Returns the length in bytes of the blob `digest`, which also tells that these credentials may read it. Mirrors are
    /// asked first; the error is that of the registry itself.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], refusals, what is left after the retries, and a registry that does not say.
    pub async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
        credentials: &Credentials,
    ) -> Result<u64, RegistryError> {
        let subject = format!("{repository}@{digest}");
        let mut last = None;
        for endpoint in self.endpoints(OPERATION, &subject, repository)? {
            match self.size_at(&endpoint, &subject, digest, credentials).await {
                Ok(size) => return Ok(size),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| nowhere(OPERATION, &subject, repository)))
    }

    async fn size_at(
        &self,
        endpoint: &Endpoint,
        subject: &str,
        digest: &Digest,
        credentials: &Credentials,
    ) -> Result<u64, RegistryError> {
        let mut call = Call {
            operation: OPERATION,
            subject: subject.to_owned(),
            host: endpoint.host.clone(),
            method: Method::HEAD,
            target: Target::Path(endpoint.path(&format!("blobs/{digest}"))),
            headers: HeaderMap::new(),
            body: Body::Empty,
            scopes: vec![pull_scope(&endpoint.path)],
            credentials,
        };
        match self.inner.send(&call).await {
            Ok(response) => {
                if let Some(size) = told(&response) {
                    return Ok(size);
                }
            }
            // Some registries and proxies know HEAD badly.
            Err(error) if matches!(error.kind, ErrorKind::Status { status: 400 | 405 | 501, .. }) => {}
            Err(error) => return Err(error),
        }
        // The head of the answer is enough: its body is let go.
        call.method = Method::GET;
        let size = told(&self.inner.send(&call).await?);
        size.ok_or_else(|| call.error(ErrorKind::Protocol("the length of a blob is not told".to_owned())))
    }
}

/// Not `Response::content_length`, which is about the absent body.
fn told(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
