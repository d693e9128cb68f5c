//! Who asked for what in a build: the requests of its frontends as a tree, each with what it solved and looked up.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use kiln_llb::{Definition, Graph, LoadOptions};
use kiln_oci::Platform;
use kiln_stdx::Digest;
use parking_lot::Mutex;

use crate::bridge::Ref;
use crate::request::FrontendRequest;

/// What a frontend was asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub frontend: String,
    pub attrs: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, Definition>,
}

/// An image that was looked up, or is a source of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// The name without its scheme.
    pub name: String,
    pub platform: Option<Platform>,
    pub digest: Option<Digest>,
    /// From a client's layout and not from a registry.
    pub local: bool,
}

/// One request with everything that came of it.
#[derive(Default)]
pub struct Scope {
    /// None for the client that drives the build itself.
    pub asked: Option<Asked>,
    /// The request that the one of this scope came of, if it is not the same.
    pub root: Option<Asked>,
    /// What the client that drives the build itself said of it.
    driver: OnceLock<Asked>,
    refs: Mutex<Vec<Ref>>,
    images: Mutex<Vec<ImageSource>>,
    children: Mutex<Vec<Arc<Scope>>>,
}

impl Scope {
    /// Adds the scope of a frontend that this one asks.
    pub fn child(&self, request: &FrontendRequest) -> Arc<Self> {
        let asked =
            Asked { frontend: request.frontend.clone(), attrs: request.attrs.clone(), inputs: request.inputs.clone() };
        let root = self.root.as_ref().or(self.asked.as_ref()).or(self.driver.get()).cloned();
        let child = Arc::new(Self { asked: Some(asked), root, ..Self::default() });
        self.children.lock().push(child.clone());
        child
    }

    /// Notes that a client drives the build itself, and what it said of it.
    pub fn driven(&self, attrs: &BTreeMap<String, String>, inputs: &BTreeMap<String, Definition>) {
        let asked = Asked { frontend: String::new(), attrs: attrs.clone(), inputs: inputs.clone() };
        // A build has one client.
        let _ = self.driver.set(asked);
    }

    /// Remembers a result that was defined here.
    pub fn solved(&self, reference: &Ref) {
        self.refs.lock().push(reference.clone());
    }

    /// Remembers an image that was looked up here.
    pub fn looked_up(&self, image: ImageSource) {
        self.images.lock().push(image);
    }

    /// Returns all results that were defined here and below.
    pub fn all_refs(&self) -> Vec<Ref> {
        let mut refs = self.refs.lock().clone();
        refs.extend(self.children.lock().iter().flat_map(|child| child.all_refs()));
        refs
    }

    /// Returns all images that were looked up here and below.
    pub fn all_images(&self) -> Vec<ImageSource> {
        let mut images = self.images.lock().clone();
        images.extend(self.children.lock().iter().flat_map(|child| child.all_images()));
        images
    }

    /// Returns the innermost scope in which a result was defined.
    pub fn find(self: &Arc<Self>, reference: &Ref) -> Option<Arc<Self>> {
        let below = self.children.lock().iter().find_map(|child| child.find(reference));
        below.or_else(|| self.refs.lock().iter().any(|r| r.id() == reference.id()).then(|| self.clone()))
    }

    /// Returns every result whose graph ends like `definition`, with its scope.
    pub fn producers(self: &Arc<Self>, definition: &Definition) -> Vec<(Arc<Self>, Ref)> {
        let Some(head) = head(definition) else { return Vec::new() };
        let mut found = Vec::new();
        self.collect(head, &mut found);
        found
    }

    fn collect(self: &Arc<Self>, head: Digest, found: &mut Vec<(Arc<Self>, Ref)>) {
        let refs = self.refs.lock().clone();
        found.extend(refs.into_iter().filter(|r| self::head(r.definition()) == Some(head)).map(|r| (self.clone(), r)));
        let children = self.children.lock().clone();
        children.iter().for_each(|child| child.collect(head, found));
    }
}

/// Returns the digest of the operation that makes the result.
fn head(definition: &Definition) -> Option<Digest> {
    if definition.is_empty() {
        return None;
    }
    Graph::load(definition, &LoadOptions::default()).ok().map(|graph| graph.result().vertex)
}
