//! The image vocabulary as pure data: descriptors, manifests, indexes, image configs, platforms and references.
//!
//! Invariant: no I/O, no async. Unknown JSON fields are kept, since what passes through kiln must not lose them.

pub mod config;
pub mod descriptor;
pub mod json;
pub mod manifest;
pub mod media;
pub mod platform;
pub mod reference;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use descriptor::{Annotations, ChainId, Descriptor, DiffId, chain_ids};
pub use json::{JsonError, to_compact_json, to_indented_json, to_ordered_json};
pub use manifest::{Index, Manifest};
pub use platform::{ParsePlatformError, Platform};
pub use reference::{ParseReferenceError, Reference};
