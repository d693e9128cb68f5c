//! Base images as OCI layouts: busybox, and busybox with the config that a case wants.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_oci::ImageConfig;
use kiln_testkit::image::{File, Image};
use kiln_testkit::{base, busybox_layout};

/// Where the base images are.
pub struct Images {
    dir: PathBuf,
    layers: Vec<Vec<u8>>,
    config: ImageConfig,
    /// Every file of the base.
    pub root: BTreeMap<Vec<u8>, File>,
}

impl Images {
    /// Returns none where the host has no busybox.
    pub fn new(dir: &Path) -> Option<Self> {
        let layout = busybox_layout(&dir.join("base"))?;
        let image = Image::read(&layout);
        // Where these are missing, some sandboxes leave them behind.
        let root = dir.join("base/root");
        kiln_testkit::write_tree(&root, &[("dev/", ""), ("proc/", ""), ("sys/", "")]);
        let layers = vec![base::tar_of(&root)];
        let root = kiln_testkit::image::read_layer(&layers[0]);
        let mut config = image.config.clone();
        let made = serde_json::json!({"created": "2012-01-01T00:00:00Z", "created_by": "the base"});
        config.history = vec![serde_json::from_value(made).expect("history")];
        Some(Self { dir: dir.join("images"), layers, config, root })
    }

    /// Makes the layout of a base image whose config has these fields beside those of busybox; returns its directory
    /// and its manifest's digest.
    pub fn layout(&self, case: &str, name: &str, fields: &str) -> (PathBuf, String) {
        let mut config: serde_json::Value =
            serde_json::from_slice(&self.config.to_config_json().expect("config")).expect("config");
        if !fields.trim().is_empty() {
            let more: serde_json::Value = serde_json::from_str(fields).unwrap_or_else(|e| panic!("{case}: {e}"));
            merge(&mut config, more);
        }
        let config = ImageConfig::from_json(&serde_json::to_vec(&config).expect("config")).expect("config");
        let dir = self.dir.join(case.replace(' ', "_")).join(name.replace(['/', ':'], "_"));
        let descriptor = base::layout_of(&dir, &self.layers, config);
        (dir, descriptor.digest.to_string())
    }
}

fn merge(into: &mut serde_json::Value, more: serde_json::Value) {
    match (into, more) {
        (serde_json::Value::Object(into), serde_json::Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
