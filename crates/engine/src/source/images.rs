//! Images of the engine's own image store: built or loaded here under a name, and built on without a registry.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_oci::{Descriptor, Reference};
use kiln_stdx::{ErrorClass, limits};
use kiln_store::{Image, Store};

use super::resolve::ImageOrigin;
use super::stack::StackSource;
use crate::error::EngineError;
use crate::parts::Parts;

/// One image of the store.
pub struct StoredImage {
    store: Store,
    name: String,
    image: Image,
}

impl StoredImage {
    /// Returns the image that `reference` names: by its name, or, for one with a digest, any image of that digest under a
    /// name of the same repository. None where the store has no such image.
    ///
    /// # Errors
    /// The image store cannot be read.
    pub async fn find(parts: &Parts, reference: &Reference) -> Result<Option<Arc<Self>>, EngineError> {
        let (store, wanted) = (parts.store.clone(), reference.clone());
        let found = tokio::task::spawn_blocking(move || -> Result<_, EngineError> {
            let Some(image) = matching(store.images()?, &wanted) else { return Ok(None) };
            // An image that lost a blob for good is as good as none: the registry may have it whole.
            Ok(store.check_image(&image).is_ok().then_some(image))
        });
        let found = found.await.map_err(|e| EngineError::new(ErrorClass::Bug, format!("a task panicked: {e}")))??;
        let (store, name) = (parts.store.clone(), reference.to_string());
        Ok(found.map(|image| Arc::new(Self { store, name, image })))
    }
}

/// Returns the image that `wanted` names.
fn matching(images: Vec<Image>, wanted: &Reference) -> Option<Image> {
    let name = wanted.to_string();
    let same_repository = |image: &Image| {
        let reference = image.name.as_deref().and_then(|name| Reference::parse(name).ok());
        reference.is_some_and(|r| (r.host(), r.path()) == (wanted.host(), wanted.path()))
    };
    match wanted.digest() {
        Some(digest) => images.into_iter().find(|i| i.target.digest == *digest && same_repository(i)),
        None => images.into_iter().find(|i| i.name.as_deref() == Some(name.as_str())),
    }
}

#[async_trait]
impl ImageOrigin for StoredImage {
    async fn root(&self) -> Result<Descriptor, EngineError> {
        Ok(self.image.target.clone())
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
        let (store, digest) = (self.store.clone(), descriptor.digest);
        let read = tokio::task::spawn_blocking(move || store.read_blob(&digest, limits::MANIFEST)).await;
        Ok(read.map_err(|e| EngineError::new(ErrorClass::Bug, format!("a task panicked: {e}")))??)
    }
}

#[async_trait]
impl StackSource for StoredImage {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn locator(&self) -> String {
        format!("{}{}", super::fetch::STORED, self.name)
    }

    async fn has(&self, _: &Descriptor) -> Result<bool, EngineError> {
        // It was checked when it was found.
        Ok(true)
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        let (store, digest) = (store.clone(), descriptor.digest);
        let restored = tokio::task::spawn_blocking(move || store.restore_blob(&digest)).await.ok().flatten();
        restored.map(drop).ok_or_else(|| {
            let text = format!("{}: blob {} of the image is gone from the image store", self.name, descriptor.digest);
            EngineError::new(ErrorClass::Damage, text).with_hint("build or load the image again")
        })
    }
}

#[cfg(test)]
mod tests {
    use kiln_oci::media;
    use kiln_stdx::Digest;

    use super::*;

    fn image(name: Option<&str>, content: &str) -> Image {
        Image {
            name: name.map(str::to_owned),
            target: Descriptor::of(media::OCI_MANIFEST, content.as_bytes()),
            created: 1,
        }
    }

    #[test]
    fn names_and_digests_find_their_image() {
        let images = || {
            vec![
                image(None, "old"),
                image(Some("docker.io/library/app:latest"), "app"),
                image(Some("localhost:5000/app:1"), "other"),
            ]
        };
        let find = |name: &str| {
            let reference = Reference::parse(name).expect("reference");
            matching(images(), &reference).map(|i| i.target.digest)
        };
        assert_eq!(find("app"), Some(Digest::of("app")));
        assert_eq!(find("app:2"), None);
        assert_eq!(find(&format!("app@{}", Digest::of("app"))), Some(Digest::of("app")));
        assert_eq!(find(&format!("localhost:5000/app@{}", Digest::of("app"))), None, "another repository");
        assert_eq!(find(&format!("app@{}", Digest::of("old"))), None, "no name of this repository");
    }
}
