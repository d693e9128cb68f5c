//! Chains of more layers than the kernel's overlay takes: the lower part is made into one directory, once, whose files are
//! links to those of its layers.

use std::collections::HashSet;
use std::path::PathBuf;

use kiln_snapshot::layer::flatten;
use kiln_stdx::limits::OVERLAY_LAYERS;

use crate::error::Result;
use crate::layer::Layer;
use crate::record::{LayerInfo, RecordType};
use crate::refs::ImmutableRef;

/// Layers that become one. A chain that grows is brought down again each time it has grown by so many.
const PART: usize = 400;
/// Directories that others lay under or over a chain.
const SPARE: usize = 8;

impl ImmutableRef {
    /// Returns the chain to mount where this one is wanted, with the same view: itself, or a shorter one. Hold it as long as
    /// it is mounted. A layer that comes again is in it at its last place only, where it has its full effect: overlay takes
    /// no directory twice.
    ///
    /// # Errors
    /// A layer is lazy, gone or damaged; the disk is full.
    pub fn mountable(&self) -> Result<ImmutableRef> {
        let mut seen = HashSet::new();
        let mut single: Vec<Layer> =
            self.layers().iter().rev().filter(|layer| seen.insert(layer.id())).cloned().collect();
        single.reverse();
        let count = single.len();
        if count + SPARE <= OVERLAY_LAYERS {
            return Ok(if count == self.layers().len() { self.clone() } else { self.store().ref_of_layers(single) });
        }
        let (below, above) = single.split_at(count - count % PART);
        let below = self.store().ref_of_layers(below.to_vec());
        let mut layers = below.flat()?.layers().to_vec();
        layers.extend_from_slice(above);
        Ok(self.store().ref_of_layers(layers))
    }

    /// Returns one layer that shows what the chain shows, made now or before.
    fn flat(&self) -> Result<ImmutableRef> {
        let store = self.store();
        // Two who want the same chain would make two; those who want others wait little, as only names are made.
        let _one = store.0.flattening.lock();
        let chain = self.layer_ids();
        let known = |layer: &Layer| layer.record_type() == RecordType::Internal && layer.chain() == chain;
        if let Some(layer) = store.layers().into_iter().find(known) {
            let flat = store.ref_of_layers(vec![layer]);
            if store.check(&flat).is_ok() {
                return Ok(flat);
            }
        }
        let draft = store.draft_of_view()?;
        let dirs: Vec<PathBuf> = self.dirs();
        let manifest = flatten(&self.manifests()?, &dirs, &draft.fs())?;
        let description = format!("{} layers as one", chain.len());
        let info = LayerInfo { chain, description, record_type: RecordType::Internal, ..LayerInfo::default() };
        Ok(store.ref_of_layers(vec![store.commit(draft, manifest, info)?]))
    }
}

#[cfg(test)]
mod tests {
    use kiln_snapshot::layer::FileMeta;
    use kiln_snapshot::{LayerBuilder, Tree};

    use super::*;
    use crate::{Store, StoreConfig};

    /// Adds a layer that writes `name`, and removes `gone`.
    fn grow(store: &Store, below: &ImmutableRef, name: &str, gone: Option<&str>) -> ImmutableRef {
        let (tree, dirs, draft) = (below.tree().unwrap(), below.dirs(), store.draft().unwrap());
        let mut builder = LayerBuilder::new(&draft.fs(), &tree, &dirs).unwrap();
        builder.file_from_bytes(name.as_bytes(), &FileMeta::new(0o644, (7, 0)), name.as_bytes()).unwrap();
        if let Some(gone) = gone {
            builder.remove(gone.as_bytes()).unwrap();
        }
        let manifest = builder.finish().unwrap();
        let info = LayerInfo { chain: below.layer_ids(), ..LayerInfo::default() };
        below.with_layer(store.commit(draft, manifest, info).unwrap())
    }

    fn names(tree: &Tree) -> Vec<Vec<u8>> {
        tree.iter().map(|node| node.entry.path.clone()).collect()
    }

    #[test]
    fn long_chains_get_short_once_and_look_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { recheck: std::time::Duration::ZERO, ..StoreConfig::new(dir.path()) };
        let store = Store::open(config).unwrap();
        let mut chain = store.scratch();
        for i in 0..OVERLAY_LAYERS {
            let gone = (i % 2 == 1).then(|| format!("f{}", i - 1));
            chain = grow(&store, &chain, &format!("f{i}"), gone.as_deref());
        }
        let short = chain.mountable().unwrap();
        assert_eq!(short.layers().len(), OVERLAY_LAYERS - PART + 1);
        assert_eq!(names(&short.tree().unwrap()), names(&chain.tree().unwrap()));
        assert_eq!(chain.mountable().unwrap().layer_ids(), short.layer_ids());
        let few = chain.prefix(OVERLAY_LAYERS - SPARE);
        assert_eq!(few.mountable().unwrap().layer_ids(), few.layer_ids());

        std::fs::remove_file(short.dirs()[0].join("f1")).unwrap();
        let again = chain.mountable().unwrap();
        assert!(again.dirs()[0].join("f1").exists(), "a damaged one is made again");
    }
}
