//! The cache mounts of a step: what it wants of each, and in which order it takes them.
//!
//! A step that waits for a mount keeps those that it has. All steps take theirs in the order of their keys, so that of two
//! steps that want the same ones none can have what the other waits for.

use std::path::Path;
use std::sync::Arc;

use kiln_llb::op::{Mount as LlbMount, MountKind, Sharing};
use kiln_store::{CacheMount, ImmutableRef, Mark, MountKey, WriteEnd};

use super::mounts::Needs;
use crate::build::BuildContext;
use crate::error::EngineError;
use crate::layers;
use crate::parts::builds;

/// The cache mounts that a step has.
#[derive(Default)]
pub struct Caches(Vec<Cache>);

/// A cache mount that the step has; it may show it at several places.
struct Cache {
    mount: CacheMount,
    /// Which of the step's mounts show it.
    places: Vec<usize>,
    /// The step may write to it.
    written: bool,
}

/// A cache mount that the step wants.
struct Wish<'a> {
    key: MountKey,
    id: &'a str,
    sharing: Sharing,
    base: Option<(&'a ImmutableRef, &'a str)>,
    places: Vec<usize>,
    written: bool,
}

impl Caches {
    /// Takes all of them, waiting for others where their sharing says so.
    ///
    /// # Errors
    /// One cannot be made, or the call was called off while it waited.
    pub async fn take(needs: &Needs<'_>) -> Result<Self, EngineError> {
        let mut taken = Self::default();
        for wish in wishes(needs)? {
            let mount = wish.take(needs).await?;
            taken.0.push(Cache { mount, places: wish.places, written: wish.written });
        }
        Ok(taken)
    }

    /// Returns the directory that the mount at `place` shows.
    pub fn directory(&self, place: usize) -> Option<&Path> {
        self.0.iter().find(|cache| cache.places.contains(&place)).map(|cache| cache.mount.path())
    }

    /// Records that the step's process is about to write.
    pub fn begin_writes(&mut self) {
        self.0.iter_mut().filter(|cache| cache.written).for_each(|cache| cache.mount.begin_write());
    }

    /// Records how the process ended.
    pub fn end_writes(&mut self, end: WriteEnd<'_>) {
        self.0.iter_mut().for_each(|cache| cache.mount.end_write(end));
    }

    /// Returns the directories that the process writes to.
    pub fn written(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter(|cache| cache.written).map(|cache| cache.mount.path())
    }

    /// Returns those that may have been damaged before the step began, with what happened.
    pub fn marked(&self) -> impl Iterator<Item = (&str, &Mark)> {
        self.0.iter().filter_map(|cache| Some((cache.mount.name(), cache.mount.mark()?)))
    }
}

/// Returns what the step wants, each mount once, in the order in which every step takes them.
fn wishes<'a>(needs: &Needs<'a>) -> Result<Vec<Wish<'a>>, EngineError> {
    let mut wishes: Vec<Wish<'a>> = Vec::new();
    for (place, mount) in needs.mounts.iter().enumerate() {
        let MountKind::Cache { id, sharing } = &mount.kind else { continue };
        let LlbMount { input, selector, readonly, .. } = mount;
        let base = input.map(|index| super::super::input(needs.inputs, index)).transpose()?;
        let base = base.map(|reference| (reference, selector.as_str()));
        let key = layers::mount_key(id, needs.platform, base)?;
        match wishes.iter_mut().find(|wish| wish.key == key) {
            Some(wish) => {
                wish.places.push(place);
                wish.written |= !readonly;
                wish.sharing = stricter(wish.sharing, *sharing);
            }
            None => {
                wishes.push(Wish { key, id, sharing: *sharing, base, places: vec![place], written: !readonly });
            }
        }
    }
    wishes.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(wishes)
}

/// Returns what serves both of two mounts that are one.
fn stricter(a: Sharing, b: Sharing) -> Sharing {
    match (a, b) {
        (Sharing::Locked, _) | (_, Sharing::Locked) => Sharing::Locked,
        (Sharing::Private, _) | (_, Sharing::Private) => Sharing::Private,
        (Sharing::Shared, Sharing::Shared) => Sharing::Shared,
    }
}

impl Wish<'_> {
    async fn take(&self, needs: &Needs<'_>) -> Result<CacheMount, EngineError> {
        // A mount that begins anew begins with nothing.
        let anew = |build: &Arc<BuildContext>| build.settings.cache_mounts.begin_anew(needs.ignore_cache);
        // Once a build: what its steps hand on to each other in a cache mount stays.
        let first = |build: &&Arc<BuildContext>| anew(build) && build.fresh_mounts.lock().insert(self.key.clone());
        let builds = builds(needs.cx);
        if builds.iter().filter(first).count() > 0 {
            needs.parts.store.reset_cache_mount(&self.key);
        }
        let import = !builds.iter().any(anew);
        layers::cache_mount(needs.parts, needs.cx, (&self.key, self.id), self.sharing, self.base, import).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mount_at_two_places_is_shared_as_the_stricter_says() {
        for (a, b, both) in [
            (Sharing::Shared, Sharing::Shared, Sharing::Shared),
            (Sharing::Shared, Sharing::Private, Sharing::Private),
            (Sharing::Locked, Sharing::Shared, Sharing::Locked),
            (Sharing::Private, Sharing::Locked, Sharing::Locked),
        ] {
            assert_eq!((stricter(a, b), stricter(b, a)), (both, both));
        }
    }
}
