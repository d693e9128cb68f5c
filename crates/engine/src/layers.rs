//! Small steps between refs and what mounts and commits need.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_llb::op::Sharing;
use kiln_oci::Platform;
use kiln_snapshot::layer::touches;
use kiln_snapshot::{Kind, LayerManifest, Tree};
use kiln_solver::OpContext;
use kiln_store::{CacheMount, ImmutableRef, Layer, LayerInfo, MountKey, MountOwner, RecordType, Store};

use crate::cache::mounts;
use crate::error::EngineError;
use crate::parts::Parts;

/// Returns what a layer made on `parent` is recorded with.
pub fn info(parent: &ImmutableRef, description: impl Into<String>, record_type: RecordType) -> LayerInfo {
    LayerInfo {
        chain: parent.layer_ids(),
        description: description.into(),
        record_type,
        created: 0,
        diff_id: None,
        chain_id: None,
    }
}

/// Returns the chain whose directories to mount for `reference`, after checking that they are there. It is to be held as
/// long as they are mounted.
///
/// # Errors
/// A layer is gone or damaged and could not be repaired.
pub fn mountable(store: &Store, reference: &ImmutableRef) -> Result<ImmutableRef, EngineError> {
    store.check(reference)?;
    Ok(reference.mountable()?)
}

/// Returns the layers of `whole` from `first` up in a form that can be put on other layers: a directory that hides all
/// below it becomes one that removes what was there when it was made, and nothing else.
///
/// # Errors
/// A layer that is gone or damaged, a full disk.
pub fn portable(store: &Store, whole: &ImmutableRef, first: usize) -> Result<Vec<Layer>, EngineError> {
    let manifests = whole.manifests()?;
    let mut layers = Vec::new();
    for (place, layer) in whole.layers().iter().enumerate().skip(first) {
        layers.push(match manifests.get(place).is_some_and(|manifest| hides(manifest)) {
            true => again(store, whole, place, kiln_snapshot::layer::diff)?,
            false => layer.clone(),
        });
    }
    Ok(layers)
}

/// As [`portable`], as a difference: without directories in which something came and went. Layers that came from elsewhere
/// are left as they are, so that their blobs can be used again.
///
/// # Errors
/// As [`portable`].
pub fn difference(store: &Store, whole: &ImmutableRef, first: usize) -> Result<Vec<Layer>, EngineError> {
    let manifests = whole.manifests()?;
    let mut layers = Vec::new();
    for (place, layer) in whole.layers().iter().enumerate().skip(first) {
        let Some(manifest) = manifests.get(place) else { continue };
        let own = layer.origin().is_none();
        layers.push(match hides(manifest) || (own && touches(manifest, &*whole.prefix(place).tree()?)) {
            true => again(store, whole, place, kiln_snapshot::layer::difference)?,
            false => layer.clone(),
        });
    }
    Ok(layers)
}

/// Tells whether a directory of a layer hides all that is below it.
fn hides(manifest: &LayerManifest) -> bool {
    manifest.entries().iter().any(|entry| entry.opaque)
}

/// Makes the layer at `place` anew, of what it changes.
fn again(
    store: &Store,
    whole: &ImmutableRef,
    place: usize,
    make: fn(&Tree, &Tree, &[PathBuf], &Path) -> kiln_snapshot::Result<LayerManifest>,
) -> Result<Layer, EngineError> {
    let (below, with) = (whole.prefix(place), whole.prefix(place + 1));
    let draft = store.draft()?;
    let manifest = make(&*below.tree()?, &*with.tree()?, &with.dirs(), &draft.fs())?;
    let description = whole.layers().get(place).map(Layer::description).unwrap_or_default();
    Ok(store.commit(draft, manifest, info(&store.scratch(), description, RecordType::Regular))?)
}

/// Takes the cache mount of `key`, which steps call `id`, waiting for others where its sharing says so.
///
/// A new one begins with the content of `base`, or with `import` with what a remote cache has.
///
/// # Errors
/// It cannot be made, or the call was called off while it waited.
pub async fn cache_mount(
    parts: &Arc<Parts>,
    cx: &OpContext,
    (key, id): (&MountKey, &str),
    sharing: Sharing,
    base: Option<(&ImmutableRef, &str)>,
    import: bool,
) -> Result<CacheMount, EngineError> {
    let owner = match base {
        Some((reference, selector)) if !reference.is_scratch() => top(reference, selector)?.0,
        _ => MountOwner::default(),
    };
    let sharing = match sharing {
        Sharing::Private => kiln_store::Sharing::Private,
        Sharing::Locked => kiln_store::Sharing::Locked,
        Sharing::Shared => kiln_store::Sharing::Shared,
    };
    if import {
        mounts::import::make_way(parts, cx, key);
    }
    let mut mount = acquire(parts, cx, key, sharing, owner, &format!("cached mount {id}")).await?;
    if mount.is_fresh() {
        let came = import && mounts::import::fill(parts, cx, key, &mut mount).await?;
        if let Some((reference, selector)) = base.filter(|_| !came) {
            fill(reference, selector, mount.path())?;
        }
        mount.mark_ready()?;
    }
    Ok(mount)
}

/// Returns what the cache mount `id` is found by. Programs for one platform are of no use to another, so each has a
/// directory of its own, and so has each content that a mount begins with.
///
/// # Errors
/// What it begins with is not there.
pub fn mount_key(id: &str, platform: &Platform, base: Option<(&ImmutableRef, &str)>) -> Result<MountKey, EngineError> {
    let key = match base {
        Some((reference, selector)) if !reference.is_scratch() && !selector.is_empty() => {
            format!("{id}:{}", top(reference, selector)?.1)
        }
        Some((reference, _)) if !reference.is_scratch() => format!("{id}:{}", reference.id()),
        _ => id.to_owned(),
    };
    // A NUL begins the names of the engine's own.
    if key.contains('\0') {
        return Err(EngineError::user("the id of a cache mount must not hold a NUL"));
    }
    // A Dockerfile's ids come with the name space they are in and a slash, and mostly without a name space.
    let shown = id.strip_prefix('/').unwrap_or(id);
    Ok(MountKey { key, id: shown.to_owned(), platform: platform.to_string() })
}

/// Takes a directory of the engine's own that stays between builds, alone. No step can name it.
///
/// # Errors
/// It cannot be made, or the call was called off while it waited.
pub async fn own_mount(
    parts: &Parts,
    cx: &OpContext,
    name: &str,
    description: &str,
) -> Result<CacheMount, EngineError> {
    let key = MountKey::named(&format!("\0{name}"));
    let locked = kiln_store::Sharing::Locked;
    let mut mount = acquire(parts, cx, &key, locked, MountOwner::default(), description).await?;
    if mount.is_fresh() {
        mount.mark_ready()?;
    }
    Ok(mount)
}

async fn acquire(
    parts: &Parts,
    cx: &OpContext,
    key: &MountKey,
    sharing: kiln_store::Sharing,
    owner: MountOwner,
    description: &str,
) -> Result<CacheMount, EngineError> {
    let changed = parts.store.cache_mounts_changed();
    loop {
        let wake = changed.notified();
        if let Some(mount) = parts.store.try_cache_mount(key, sharing, owner, description)? {
            return Ok(mount);
        }
        tokio::select! {
            () = wake => {}
            () = cx.cancel().cancelled() => return Err(EngineError::canceled()),
        }
    }
}

/// Returns owner and mode of a directory that a cache mount begins with, and a name for that state.
fn top(reference: &ImmutableRef, selector: &str) -> Result<(MountOwner, String), EngineError> {
    let entry = crate::inspect::stat(reference, selector)?;
    let owner = MountOwner { uid: entry.uid, gid: entry.gid, mode: entry.mode };
    // Owner and mode alone name an empty beginning, so that two builds of one Dockerfile share the mount.
    let empty = reference.tree()?.children(&entry.path).next().is_none();
    let name = if empty { format!("{}:{}:{:o}", owner.uid, owner.gid, owner.mode) } else { reference.id().to_string() };
    Ok((owner, name))
}

/// Copies what `selector` names into a new cache mount. Copies, never links: steps write there.
fn fill(reference: &ImmutableRef, selector: &str, dest: &Path) -> Result<(), EngineError> {
    let (tree, dirs) = (reference.tree()?, reference.dirs());
    let from = tree.resolve(selector.as_bytes(), true).map_err(|e| EngineError::user(e.to_string()))?.path;
    for node in tree.walk(&from) {
        let relative = node.entry.path.strip_prefix(from.as_slice()).unwrap_or(&node.entry.path);
        let relative = relative.strip_prefix(b"/").unwrap_or(relative);
        if relative.is_empty() {
            continue;
        }
        let target = dest.join(OsStr::from_bytes(relative));
        match node.entry.kind {
            Kind::Dir => std::fs::create_dir(&target)?,
            Kind::Symlink => std::os::unix::fs::symlink(OsStr::from_bytes(&node.entry.target), &target)?,
            Kind::File => {
                let dir = dirs.get(node.layer).ok_or_else(|| EngineError::user("a layer is gone"))?;
                std::fs::copy(dir.join(OsStr::from_bytes(&node.entry.path)), &target)?;
            }
            _ => continue,
        }
        std::os::unix::fs::lchown(&target, Some(node.entry.uid), Some(node.entry.gid))?;
        if node.entry.kind != Kind::Symlink {
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(node.entry.mode))?;
        }
    }
    Ok(())
}
