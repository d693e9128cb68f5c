//! What names of the outside led to when they were last asked for: a build without the network goes on from there.
//!
//! A pin is a digest or a commit and never content, so it may be older than what it leads to, which is looked for separately.

use std::time::{SystemTime, UNIX_EPOCH};

use kiln_stdx::Digest;
use kiln_store::{Store, Table};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::git::GitPin;
use super::resolve::ResolvedImage;

/// Names that are remembered; of more the oldest are forgotten.
const MOST: usize = 10_000;
/// Seconds after which a pin that has not changed is noted again, so that what is in use does not grow old.
const FRESH: u64 = 24 * 3600;

/// The table of pins in a store.
pub struct Pins(Table);

#[derive(Serialize, Deserialize)]
struct Row<T> {
    /// When the name was asked for, in seconds since 1970.
    at: u64,
    to: T,
}

/// What is needed of a row to forget it.
#[derive(Deserialize)]
struct Age {
    at: u64,
}

impl Pins {
    /// Returns the pins of a store.
    pub fn new(store: &Store) -> Self {
        Self(store.meta().table("pins"))
    }

    /// Returns what an image's whole name led to: an index, or a manifest.
    pub fn image(&self, name: &str) -> Option<Digest> {
        self.get(&format!("image:{name}"))
    }

    /// Remembers an image that was found in a registry. A name with a digest says itself what it leads to.
    pub fn found(&self, image: &ResolvedImage) {
        if !image.locator.contains("://") && !image.locator.contains('@') {
            self.set_image(&image.locator, &image.root);
        }
    }

    /// Remembers what an image's whole name led to.
    pub fn set_image(&self, name: &str, root: &Digest) {
        self.put(&format!("image:{name}"), root);
    }

    /// Returns what a git reference led to; `key` names address, reference and credentials.
    pub fn git(&self, key: &Digest) -> Option<GitPin> {
        self.get(&format!("git:{key}"))
    }

    /// Remembers what a git reference led to.
    pub fn set_git(&self, key: &Digest, pin: &GitPin) {
        self.put(&format!("git:{key}"), pin);
    }

    /// Tells whether a blob was brought from this place, by its name there with its digest.
    pub fn has_blob(&self, name: &str) -> bool {
        self.get::<bool>(&format!("blob:{name}")).is_some()
    }

    /// Remembers that a blob was brought from there.
    pub fn set_blob(&self, name: &str) {
        self.put(&format!("blob:{name}"), &true);
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let row = self.0.get(key.as_bytes())?;
        serde_json::from_slice::<Row<T>>(&row).ok().map(|row| row.to)
    }

    fn put<T: Serialize + DeserializeOwned + PartialEq>(&self, key: &str, to: &T) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
        self.put_at(key, to, now, MOST);
    }

    fn put_at<T: Serialize + DeserializeOwned + PartialEq>(&self, key: &str, to: &T, now: u64, most: usize) {
        let before = self.0.get(key.as_bytes());
        let known = before.as_ref().and_then(|row| serde_json::from_slice::<Row<T>>(row).ok());
        if known.is_some_and(|row| row.to == *to && row.at + FRESH > now) {
            return;
        }
        let Ok(row) = serde_json::to_vec(&Row { at: now, to }) else { return };
        self.0.put(key.as_bytes(), &row);
        if before.is_none() {
            self.trim(most);
        }
    }

    fn trim(&self, most: usize) {
        let rows = self.0.scan_prefix(b"");
        if rows.len() <= most {
            return;
        }
        let age = |row: &[u8]| serde_json::from_slice::<Age>(row).map_or(0, |age| age.at);
        let mut known: Vec<(u64, Vec<u8>)> = rows.into_iter().map(|(key, row)| (age(&row), key)).collect();
        known.sort_unstable();
        let gone = known.len() - most;
        self.0.batch(known.into_iter().take(gone).map(|(_, key)| (key, None)).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use kiln_oci::{Descriptor, ImageConfig, Manifest, media};
    use kiln_store::StoreConfig;

    use super::*;

    fn image(locator: &str, root: &str) -> ResolvedImage {
        ResolvedImage {
            root: Digest::of(root),
            manifest_digest: Digest::of("manifest"),
            manifest: Manifest::new(media::OCI_MANIFEST, Descriptor::of(media::OCI_CONFIG, b"{}"), Vec::new()),
            config_json: Vec::new(),
            config: ImageConfig::default(),
            locator: locator.to_owned(),
        }
    }

    #[test]
    fn the_last_answer_of_a_registry_is_remembered_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(StoreConfig::new(dir.path().join("root"))).unwrap();
        let store = open();
        let pins = Pins::new(&store);
        pins.found(&image("r.test/a:1", "old"));
        pins.found(&image("r.test/a:1", "new"));
        pins.found(&image("kiln-image://r.test/b:1", "own"));
        let pinned = format!("r.test/c@{}", Digest::of("c"));
        pins.found(&image(&pinned, "c"));
        let key = Digest::of("git");
        let pin = GitPin { reference: "refs/heads/x".into(), object: "a".repeat(40), commit: None };
        pins.set_git(&key, &pin);
        drop((pins, store));
        let store = open();
        let pins = Pins::new(&store);
        assert_eq!(pins.image("r.test/a:1"), Some(Digest::of("new")));
        for other in ["r.test/b:1", "kiln-image://r.test/b:1", &pinned, "r.test/a"] {
            assert_eq!(pins.image(other), None, "{other}");
        }
        assert_eq!((pins.git(&key), pins.git(&Digest::of("other"))), (Some(pin), None));
        assert!(!pins.has_blob("r.test/a@x"));
    }

    #[test]
    fn of_too_many_the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path().join("root"))).unwrap();
        let pins = Pins::new(&store);
        for (now, key) in [(100, "a"), (200, "b"), (300, "c")] {
            pins.put_at(key, &true, now, 3);
        }
        // What is used again is young again, but not noted more often than once a day.
        pins.put_at("b", &true, 210, 3);
        pins.put_at("a", &true, 100 + FRESH, 3);
        pins.put_at("d", &true, 101 + FRESH, 3);
        let kept = ["a", "b", "c", "d"].map(|key| pins.get::<bool>(key).is_some());
        assert_eq!(kept, [true, false, true, true]);
    }

    #[test]
    fn a_row_that_cannot_be_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path().join("root"))).unwrap();
        store.meta().table("pins").put(b"image:x", b"{\"at\":1,\"to\":\"no digest\"}");
        let pins = Pins::new(&store);
        assert_eq!(pins.image("x"), None);
        pins.found(&image("x", "x"));
        assert_eq!(pins.image("x"), Some(Digest::of("x")));
    }
}
