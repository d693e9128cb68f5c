//! References: chains of layers, bottom first, as values that keep what they name.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_oci::{ChainId, DiffId};
use kiln_snapshot::{LayerManifest, Tree};
use kiln_stdx::StableHasher;

use crate::error::{Result, StoreError};
use crate::layer::Layer;
use crate::layout::{LayerDir, LayerId, RefId};
use crate::store::Store;

/// A chain of layers. Cheap to clone; while a value of this type lives, GC leaves its layers alone.
#[derive(Clone)]
pub struct ImmutableRef(Arc<RefInner>);

struct RefInner {
    store: Store,
    layers: Vec<Layer>,
    id: RefId,
}

impl std::fmt::Debug for ImmutableRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ImmutableRef").field(&self.layer_ids()).finish()
    }
}

fn ref_id(layers: &[Layer]) -> RefId {
    let bytes: Vec<u8> = layers.iter().flat_map(|layer| layer.id().0.to_be_bytes()).collect();
    RefId(StableHasher::new("kiln.ref.v1").bytes("layers", &bytes).finish())
}

impl ImmutableRef {
    fn new(store: Store, layers: Vec<Layer>) -> Self {
        let id = ref_id(&layers);
        Self(Arc::new(RefInner { store, layers, id }))
    }

    /// The layers, bottom first.
    pub fn layers(&self) -> &[Layer] {
        &self.0.layers
    }

    /// The ids of the layers, bottom first: what to persist of a ref.
    pub fn layer_ids(&self) -> Vec<LayerId> {
        self.0.layers.iter().map(Layer::id).collect()
    }

    /// Names the chain; equal chains have equal ids.
    pub fn id(&self) -> RefId {
        self.0.id
    }

    /// The store it belongs to.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Tells whether it is the empty directory.
    pub fn is_scratch(&self) -> bool {
        self.0.layers.is_empty()
    }

    /// Tells whether every layer's files are here.
    pub fn is_unpacked(&self) -> bool {
        self.0.layers.iter().all(Layer::is_unpacked)
    }

    /// The layers whose files are still to be fetched or unpacked, with their place in the chain.
    pub fn lazy_layers(&self) -> Vec<(usize, Layer)> {
        self.0.layers.iter().enumerate().filter(|(_, l)| !l.is_unpacked()).map(|(i, l)| (i, l.clone())).collect()
    }

    /// Tells whether no layer has been dropped or pruned since the ref was taken.
    pub fn is_valid(&self) -> bool {
        !self.0.layers.iter().any(Layer::is_gone)
    }

    /// The directories of the layers, bottom first.
    pub fn dirs(&self) -> Vec<PathBuf> {
        let layout = &self.0.store.0.layout;
        self.0.layers.iter().map(|layer| LayerDir(layout.layer(layer.id())).fs()).collect()
    }

    /// The manifests of the layers, bottom first.
    ///
    /// # Errors
    /// A layer is lazy, gone or damaged; a damaged one is repaired, or dropped and reported.
    pub fn manifests(&self) -> Result<Vec<Arc<LayerManifest>>> {
        self.0.layers.iter().map(|layer| self.0.store.manifest(layer)).collect()
    }

    /// The merged tree of the chain.
    ///
    /// # Errors
    /// As [`ImmutableRef::manifests`].
    pub fn tree(&self) -> Result<Arc<Tree>> {
        let inner = &self.0.store.0;
        if let Some(gone) = self.0.layers.iter().find(|l| l.is_gone()) {
            return Err(StoreError::Gone(gone.id()));
        }
        if let Some(tree) = inner.trees.lock().get(&self.0.id) {
            return Ok(tree);
        }
        // One layer more than a chain whose tree is at hand costs little.
        let below = self.0.layers.split_last().and_then(|(top, below)| {
            let tree = inner.trees.lock().get(&ref_id(below))?;
            Some((tree, top))
        });
        let tree = match below {
            Some((below, top)) => Arc::new(below.with(self.0.store.manifest(top)?)),
            None => Arc::new(Tree::merge(&self.manifests()?)),
        };
        let weight = tree.len() + 1;
        inner.trees.lock().put(self.0.id, tree.clone(), weight);
        Ok(tree)
    }

    /// This chain with one more layer on top.
    pub fn with_layer(&self, layer: Layer) -> ImmutableRef {
        let mut layers = self.0.layers.clone();
        layers.push(layer);
        Self::new(self.0.store.clone(), layers)
    }

    /// The lowest `count` layers of this chain.
    pub fn prefix(&self, count: usize) -> ImmutableRef {
        let layers = self.0.layers.iter().take(count).cloned().collect();
        Self::new(self.0.store.clone(), layers)
    }

    /// Tells whether `other` begins with this chain.
    pub fn is_prefix_of(&self, other: &ImmutableRef) -> bool {
        let theirs = other.layers();
        theirs.len() >= self.0.layers.len() && self.0.layers.iter().zip(theirs).all(|(a, b)| a.id() == b.id())
    }

    /// The diff ids of the layers, if all have one.
    pub fn diff_ids(&self) -> Option<Vec<DiffId>> {
        self.0.layers.iter().map(Layer::diff_id).collect()
    }

    /// The chain id of the whole, if all layers have diff ids.
    pub fn chain_id(&self) -> Option<ChainId> {
        kiln_oci::chain_ids(&self.diff_ids()?).last().copied()
    }
}

impl Store {
    /// The empty chain.
    pub fn scratch(&self) -> ImmutableRef {
        ImmutableRef::new(self.clone(), Vec::new())
    }

    /// The chain of these layers; `None` if one is gone. Notes the use.
    pub fn ref_of(&self, ids: &[LayerId]) -> Option<ImmutableRef> {
        let layers: Vec<Layer> = {
            let table = self.0.layers.lock();
            ids.iter().map(|id| table.by_id.get(id).map(|cell| Layer::new(cell.clone()))).collect::<Option<_>>()?
        };
        for layer in &layers {
            self.0.touch_layer(&layer.cell);
        }
        Some(ImmutableRef::new(self.clone(), layers))
    }

    /// The chain of these handles.
    pub fn ref_of_layers(&self, layers: Vec<Layer>) -> ImmutableRef {
        ImmutableRef::new(self.clone(), layers)
    }

    /// The chains on top of each other, the first one lowest. A layer that comes again is there again: what the whole
    /// makes differ from its lower part is then still the layers above that.
    pub fn concat(&self, refs: &[ImmutableRef]) -> ImmutableRef {
        ImmutableRef::new(self.clone(), refs.iter().flat_map(|r| r.layers()).cloned().collect())
    }
}
