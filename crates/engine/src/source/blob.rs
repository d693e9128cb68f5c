//! Single blobs, by their digest, of a registry's repository or of an OCI layout that a client offers.

use std::sync::Arc;

use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_oci::{Descriptor, Reference};
use kiln_session::Session;
use kiln_solver::OpContext;
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::Blob;

use super::fetch::transfer;
use super::layout::LayoutImage;
use super::offline::missing;
use super::pins::Pins;
use super::registry::RegistryImage;
use super::resolve::ImageOrigin;
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session::{self, SessionCredentials};

/// What is known of the content: nothing.
const MEDIA_TYPE: &str = "application/octet-stream";

/// One blob and where it is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSource {
    /// Name and digest, as they were given.
    pub name: String,
    pub digest: Digest,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Registry(Reference),
    Layout { layout: String, session: Option<String> },
}

impl BlobSource {
    /// Reads a locator, `docker-image+blob://NAME@DIGEST` or `oci-layout+blob://NAME@DIGEST`; `op` says of a layout which
    /// client has it and what that calls it.
    ///
    /// # Errors
    /// Another scheme, a malformed name, no digest.
    pub fn new(locator: &str, op: &SourceOp) -> Result<Self, EngineError> {
        let bad = |why: &str| EngineError::user(format!("invalid blob {locator:?}: {why}"));
        let (scheme, name) = locator.split_once("://").ok_or_else(|| bad("missing scheme"))?;
        let (path, digest) = name.rsplit_once('@').ok_or_else(|| bad("object required"))?;
        let digest = digest.parse().map_err(|_| bad("invalid reference digest"))?;
        let given = |key: &str| op.attr(key).filter(|value| !value.is_empty()).map(str::to_owned);
        let place = match scheme {
            "docker-image+blob" => Place::Registry(Reference::parse(name).map_err(|e| bad(&e.to_string()))?),
            "oci-layout+blob" => Place::Layout {
                layout: given(attr::OCI_STORE).unwrap_or_else(|| path.to_owned()),
                session: given(attr::OCI_SESSION),
            },
            _ => return Err(bad("expected docker-image+blob:// or oci-layout+blob://")),
        };
        Ok(Self { name: name.to_owned(), digest, place })
    }

    /// Tells whether it comes from a client and not from a registry.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Layout { .. })
    }

    /// Brings the blob into the store. Whoever has it is asked even when it is there, since only who may read it there may
    /// read it here; offline it is enough that it was brought from there before.
    ///
    /// # Errors
    /// It does not exist there, cannot be reached, or is not what the digest says.
    pub async fn bring(&self, parts: &Parts, cx: &OpContext) -> Result<Blob, EngineError> {
        if self.is_local() {
            return self.fetched(parts, cx).await;
        }
        let pins = Pins::new(&parts.store);
        if Progress::new(cx).offline() {
            let here = pins.has_blob(&self.name).then(|| parts.store.blob(&self.digest)).flatten();
            return here.ok_or_else(|| missing(format!("blob {}", self.name)));
        }
        let blob = self.fetched(parts, cx).await?;
        pins.set_blob(&self.name);
        Ok(blob)
    }

    async fn fetched(&self, parts: &Parts, cx: &OpContext) -> Result<Blob, EngineError> {
        let work = async {
            loop {
                let session = self.session(parts, cx).await?;
                match self.bring_by(parts, cx, session.clone()).await {
                    // Another build's session takes over from one that ended.
                    Err(_) if session::lost(session.as_deref(), &session::open_sessions(parts, cx)) => {}
                    other => return other,
                }
            }
        };
        tokio::select! {
            brought = work => brought,
            () = cx.cancel().cancelled() => Err(EngineError::canceled()),
        }
    }

    async fn session(&self, parts: &Parts, cx: &OpContext) -> Result<Option<Arc<Session>>, EngineError> {
        let Place::Layout { session, .. } = &self.place else {
            return Ok(session::sessions(parts, cx).await.into_iter().next());
        };
        match session.as_ref().and_then(|id| parts.sessions.try_get(id)) {
            Some(session) => Ok(Some(session)),
            None => session::any_session(parts, cx).await.map(Some),
        }
    }

    async fn bring_by(
        &self,
        parts: &Parts,
        cx: &OpContext,
        session: Option<Arc<Session>>,
    ) -> Result<Blob, EngineError> {
        let (origin, size): (Arc<dyn ImageOrigin>, u64) = match (&self.place, session) {
            (Place::Registry(reference), session) => {
                let login = SessionCredentials::new(session);
                let image = RegistryImage::new(parts.registry.clone(), parts.store.clone(), reference.clone(), login);
                match image.blob_size(&self.digest).await? {
                    Some(size) => (image, size),
                    None => return self.document(parts, image.as_ref()).await,
                }
            }
            (Place::Layout { layout, .. }, Some(session)) => {
                let found = session.content(&format!("oci:{layout}")).info(&self.digest).await?;
                let name = format!("oci-layout+blob://{}", self.name);
                let gone = || EngineError::user(format!("{name}: blob {} is not in the OCI layout", self.digest));
                let size = found.ok_or_else(gone)?.size;
                (LayoutImage::new(&session, parts.store.clone(), layout, name, self.digest), size)
            }
            (Place::Layout { .. }, None) => return Err(EngineError::user("no active sessions")),
        };
        if let Some(blob) = parts.store.blob(&self.digest) {
            return Ok(blob);
        }
        let descriptor = Descriptor::new(MEDIA_TYPE, self.digest, size);
        let progress = Progress::new(cx);
        parts.fetches.run(self.digest, transfer(parts, &progress, origin.as_ref(), &descriptor, &|_| ())).await
    }

    /// Brings what a registry has as a manifest and not as a blob.
    async fn document(&self, parts: &Parts, image: &RegistryImage) -> Result<Blob, EngineError> {
        let root = image.root().await?;
        let _ = image.document(&root).await?;
        let gone = || EngineError::new(ErrorClass::Damage, format!("blob {} is gone again", self.digest));
        parts.store.blob(&self.digest).ok_or_else(gone)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn blob(locator: &str, attrs: &[(&str, &str)]) -> Result<BlobSource, String> {
        let attrs: BTreeMap<_, _> = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let op = SourceOp { identifier: locator.to_owned(), attrs };
        BlobSource::new(locator, &op).map_err(|e| e.to_string())
    }

    #[test]
    fn locators_name_a_place_and_a_digest() {
        let digest = Digest::of("x");
        let remote = blob(&format!("docker-image+blob://r.test/a@{digest}"), &[]).unwrap();
        assert_eq!((remote.digest, remote.is_local()), (digest, false));
        let local =
            blob(&format!("oci-layout+blob://a/b@{digest}"), &[("oci.store", ""), ("oci.session", "s")]).unwrap();
        let place = Place::Layout { layout: "a/b".to_owned(), session: Some("s".to_owned()) };
        assert_eq!((local.place, local.name), (place, format!("a/b@{digest}")));
        let named = blob(&format!("oci-layout+blob://a@{digest}"), &[("oci.store", "mine")]).unwrap();
        assert_eq!(named.place, Place::Layout { layout: "mine".to_owned(), session: None });
    }

    #[test]
    fn locators_that_name_no_blob_are_refused() {
        let digest = Digest::of("x");
        for (locator, word) in [
            (format!("r.test/a@{digest}"), "scheme"),
            ("docker-image+blob://r.test/a:1".to_owned(), "object required"),
            ("oci-layout+blob://a@sha256:12".to_owned(), "digest"),
            (format!("https://r.test/a@{digest}"), "expected docker-image+blob"),
            (format!("docker-image+blob://r.test/A B@{digest}"), "invalid"),
        ] {
            let error = blob(&locator, &[]).unwrap_err();
            assert!(error.contains(word), "{locator}: {error}");
        }
    }
}
