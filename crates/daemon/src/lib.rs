//! The composition root of the engine process: configuration, listeners, and the services that answer on them.
//!
//! Invariant: no logic. Drivers are chosen and wire types become the engine's own here; what a build is, is elsewhere.

mod bridge;
mod compose;
mod config;
mod content;
mod control;
mod convert;
mod error;
mod file;
mod health;
mod history;
mod kiln;
mod serve;
mod status;
mod workers;

pub use config::DaemonConfig;
pub use error::DaemonError;
pub use serve::run;
