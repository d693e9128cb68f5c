//! The composition root of the engine process: configuration, listeners, and the services that answer on them.
//!
//! Invariant: no logic. Drivers are chosen and wire types become the engine's own here; what a build is, is elsewhere.

mod attestations;
mod bridge;
mod cache_mounts;
mod collect;
mod compose;
mod config;
mod content;
mod control;
mod convert;
mod debug;
mod dump;
mod error;
mod file;
mod gateway;
mod health;
mod history;
mod keep;
mod kiln;
mod listen;
mod memory;
mod network;
mod notify;
mod otlp;
mod process_facts;
mod processes;
mod reasons;
mod registry_table;
mod runs;
mod scribe;
mod serve;
mod settings;
mod space;
mod status;
mod tls;
mod traces;
mod worker_table;
mod workers;

pub use collect::{GcRule, GcSettings};
pub use config::DaemonConfig;
pub use dump::dump_metadata;
pub use error::DaemonError;
pub use file::{ConfigFile, known_entitlement, snapshotter};
pub use network::{NetworkKind, NetworkSettings};
pub use serve::run;
pub use settings::{Dns, Frontends, HistorySettings, Settings};
pub use space::Space;
pub use tls::TlsSettings;
