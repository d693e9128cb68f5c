//! The engine behind a state root: where it is, how it is reached, and how it is started when none runs.

pub mod build_id;
pub mod connect;
pub mod detach;
pub mod process;
pub mod root;
pub mod socket;
pub mod start;

pub use connect::{Engine, connect};
pub use root::Root;
