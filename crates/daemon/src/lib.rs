//! The composition root of the engine process: configuration, listeners, and the services that answer on them.
//!
//! Invariant: no logic. Drivers are chosen and wire types become the engine's own here; what a build is, is elsewhere.

mod attestations;
mod bridge;
mod compose;
mod config;
mod content;
mod control;
mod convert;
mod error;
mod file;
mod gateway;
mod health;
mod history;
mod keep;
mod kiln;
mod listen;
mod memory;
mod processes;
mod registry_table;
mod runs;
mod scribe;
mod serve;
mod settings;
mod status;
mod workers;

pub use config::DaemonConfig;
pub use error::DaemonError;
pub use file::{ConfigFile, known_entitlement, snapshotter};
pub use serve::run;
pub use settings::{Dns, Frontends, HistorySettings, Settings};
