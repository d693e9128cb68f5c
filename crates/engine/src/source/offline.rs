//! Builds without the network: images come from what earlier builds brought, and what is missing is named, all of it at once.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_llb::op::SourceOp;
use kiln_llb::{Graph, Op, Vertex, attr};
use kiln_oci::{Descriptor, Platform, Reference};
use kiln_session::attrs;
use kiln_stdx::Digest;
use kiln_store::Store;

use super::lookup;
use super::meta;
use super::pins::Pins;
use super::resolve::{ImageOrigin, described, kept, resolve};
use super::stack::StackSource;
use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::request::SolveRequest;

/// Bytes of source text that the places of one error may hold together.
const PLACES: usize = 32 << 10;
/// Things that one error names.
const NAMED: usize = 20;

/// Returns the error of what a build needs and cannot have without the network.
pub fn missing(what: impl std::fmt::Display) -> EngineError {
    let error = EngineError::user(format!("{what} is not here, and the build is offline"));
    let mut error = error.with_hint("build once without --offline");
    error.further_mut().offline = true;
    error
}

/// Tells whether an error is one of [`missing`].
pub fn is_missing(error: &EngineError) -> bool {
    error.further().is_some_and(|further| further.offline)
}

/// Returns one error that tells of all that is missing; of a single one that error itself.
pub fn together(errors: Vec<EngineError>) -> Option<EngineError> {
    let mut errors = errors.into_iter();
    let mut first = errors.next()?;
    let rest: Vec<EngineError> = errors.collect();
    if rest.is_empty() {
        return Some(first);
    }
    let mut lines = vec![first.to_string()];
    let mut places = first.source_location.take().map(|place| *place).into_iter().collect::<Vec<_>>();
    for error in rest {
        let line = error.to_string();
        // Two stages may want one image.
        if !lines.contains(&line) {
            lines.push(line);
        }
        places.extend(error.source_location.map(|place| *place));
    }
    let more = lines.len().saturating_sub(NAMED);
    lines.truncate(NAMED);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    let mut all = EngineError::user(lines.join("\n"));
    all.hint = first.hint;
    all.further_mut().offline = true;
    // Each place carries the text of the file, and all travel in one header.
    let text = places.iter().map(|place| place.info.data.len()).max().unwrap_or(0);
    let mut places = places.into_iter().take((PLACES / text.max(1)).clamp(1, NAMED));
    all.source_location = places.next().map(Box::new);
    all.further_mut().locations = places.collect();
    Some(all)
}

/// Tells whether a request wants a build without the network.
pub fn is_asked_for(request: &SolveRequest) -> bool {
    request.frontend_attrs.get(attrs::OFFLINE).is_some_and(|value| value == "true")
}

/// Checks that a request does not want the network and no network.
///
/// # Errors
/// It does.
pub fn check(request: &SolveRequest) -> Result<(), EngineError> {
    let pulls = request.frontend_attrs.get("image-resolve-mode").is_some_and(|mode| mode == "pull");
    match pulls && is_asked_for(request) {
        true => Err(EngineError::user("an offline build cannot ask registries for newer images")
            .with_hint("leave out --offline or --pull")),
        false => Ok(()),
    }
}

/// Looks for all sources of a graph before any of it is built, so that one run tells of all that is missing.
///
/// # Errors
/// Something is missing, or cannot be looked for.
pub async fn look_for_sources(bridge: &Bridge, graph: &Graph) -> Result<(), EngineError> {
    let place = |vertex: &Digest| bridge.build().locations(vertex).into_iter().next();
    let mut errors = Vec::new();
    for vertex in graph.vertices() {
        let Op::Source(source) = &vertex.op else { continue };
        match look_for(bridge, source, vertex.platform.as_ref()).await {
            Err(mut error) if is_missing(&error) => {
                error.vertex = Some(vertex.digest);
                // A source may have no place of its own, but what reads it has.
                let reads = |v: &&Arc<Vertex>| v.inputs.iter().any(|edge| edge.vertex == vertex.digest);
                let readers = || graph.vertices().iter().filter(reads).find_map(|reader| place(&reader.digest));
                error.source_location = place(&vertex.digest).or_else(readers).map(Box::new);
                errors.push(error);
            }
            // Whatever else is wrong, the operation says it if it comes to that.
            _ => {}
        }
    }
    together(errors).map_or(Ok(()), Err)
}

/// Looks for what the key of a source is made of. What is only needed when its result is not cached is not looked for.
async fn look_for(bridge: &Bridge, source: &SourceOp, platform: Option<&Platform>) -> Result<(), EngineError> {
    match source.split() {
        Some(("docker-image", name)) => {
            let origin = lookup::origin(bridge, name, None, false).await?;
            let host = Platform::host();
            resolve(origin.as_ref(), platform.unwrap_or(&host), None).await.map(drop)
        }
        Some(("git", _)) => meta::git(bridge, source).await.map(drop),
        Some(("http" | "https", _)) if source.attr(attr::HTTP_CHECKSUM).is_none() => {
            meta::http(bridge, source).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// An image of a registry that is not asked: what its name led to last, as far as it is here.
pub struct PinnedImage {
    store: Store,
    reference: Reference,
}

impl PinnedImage {
    /// Returns the origin of `reference`.
    pub fn new(store: Store, reference: Reference) -> Arc<Self> {
        Arc::new(Self { store, reference })
    }
}

#[async_trait]
impl ImageOrigin for PinnedImage {
    async fn root(&self) -> Result<Descriptor, EngineError> {
        let name = self.name();
        let digest: Option<Digest> = self.reference.digest().copied().or_else(|| Pins::new(&self.store).image(&name));
        let image = || missing(format!("image {name}"));
        let digest = digest.ok_or_else(image)?;
        let bytes = kept(&self.store, digest).await.ok_or_else(image)?;
        Ok(described(digest, &bytes))
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, EngineError> {
        let platform = descriptor.platform.as_ref().map(|p| format!(" for {p}")).unwrap_or_default();
        let gone = || missing(format!("image {}{platform} ({})", self.name(), descriptor.digest));
        kept(&self.store, descriptor.digest).await.ok_or_else(gone)
    }
}

#[async_trait]
impl StackSource for PinnedImage {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, EngineError> {
        Ok(self.store.blob(&descriptor.digest).is_some())
    }

    async fn layer(
        &self,
        descriptor: &Descriptor,
        store: &Store,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        match store.blob(&descriptor.digest) {
            Some(_) => Ok(()),
            None => Err(missing(format!("layer {} of {}", descriptor.digest, self.name()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_oci::{Index, media};
    use kiln_store::StoreConfig;

    use super::*;
    use crate::error::Location;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path().join("root"))).unwrap();
        (dir, store)
    }

    fn place(bytes: usize) -> Option<Box<Location>> {
        let info = kiln_llb::pb::SourceInfo { data: vec![b'x'; bytes].into(), ..Default::default() };
        Some(Box::new(Location { info, ranges: Vec::new() }))
    }

    #[test]
    fn all_that_is_missing_is_told_once_with_its_places() {
        assert!(together(Vec::new()).is_none());
        let one = together(vec![missing("image a")]).unwrap();
        assert_eq!(one.to_string(), "image a is not here, and the build is offline");
        let located = |what: &str, bytes| {
            let mut error = missing(what);
            error.source_location = place(bytes);
            error
        };
        let all = ["image a", "image b", "image a"].map(|what| located(what, 100));
        let all = together(all.into()).unwrap();
        let wanted = "image a is not here, and the build is offline\nimage b is not here, and the build is offline";
        assert_eq!(all.to_string(), wanted);
        assert!(is_missing(&all) && all.source_location.is_some());
        assert_eq!(all.further().unwrap().locations.len(), 2);
        assert_eq!(all.hint.as_deref(), Some("build once without --offline"));
        let many = (0..30).map(|n: u32| located(&n.to_string(), PLACES)).collect();
        let many = together(many).unwrap();
        assert!(many.to_string().ends_with("\nand 10 more"), "{many}");
        assert!(many.further().unwrap().locations.is_empty());
    }

    #[test]
    fn a_request_cannot_want_both() {
        let request = |attrs: &[(&str, &str)]| SolveRequest {
            frontend_attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>(),
            ..SolveRequest::default()
        };
        let pull = ("image-resolve-mode", "pull");
        assert!(check(&request(&[(attrs::OFFLINE, "true"), pull])).is_err());
        assert!(check(&request(&[(attrs::OFFLINE, "true")])).is_ok());
        assert!(check(&request(&[(attrs::OFFLINE, "false"), pull])).is_ok());
        assert!(is_asked_for(&request(&[(attrs::OFFLINE, "true")])) && !is_asked_for(&request(&[pull])));
    }

    #[tokio::test]
    async fn a_pin_leads_to_the_documents_that_are_here() {
        let (_dir, store) = store();
        let mut manifest = Descriptor::of(media::OCI_MANIFEST, b"manifest");
        manifest.platform = Some(Platform::parse("linux/arm64").unwrap());
        let index = Index::new(media::OCI_INDEX, vec![manifest.clone()]).to_manifest_json().unwrap();
        let root = Digest::of(&index);
        let open = |name: &str| PinnedImage::new(store.clone(), Reference::parse(name).unwrap());
        let tag = "r.test/a:1";
        assert_eq!(
            open(tag).root().await.unwrap_err().to_string(),
            "image r.test/a:1 is not here, and the build is offline"
        );
        Pins::new(&store).set_image(tag, &root);
        assert!(is_missing(&open(tag).root().await.unwrap_err()), "the index is not here");
        store.put_blob(&index).unwrap();
        for name in [tag.to_owned(), format!("r.test/other@{root}")] {
            let found = open(&name).root().await.unwrap();
            assert_eq!((found.digest, found.media_type.as_str()), (root, media::OCI_INDEX), "{name}");
        }
        let error = open(tag).document(&manifest).await.unwrap_err();
        let wanted = format!("image r.test/a:1 for linux/arm64 ({})", manifest.digest);
        assert!(error.to_string().starts_with(&wanted) && is_missing(&error), "{error}");
    }
}
