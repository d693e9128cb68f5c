//! Progress of a build as people and tools see it.
//!
//! One model ([`state::ProgressState`]) is fed with events; the views only read it. A [`Display`] owns both and is driven by
//! one task: it takes news from a bounded channel, draws at most every 100 ms, and redraws timers when nothing comes.
//! Everything goes to standard error; standard output is for data.

pub mod display;
pub mod event;
pub mod excerpt;
pub mod interval;
pub mod mode;
pub mod plain;
#[cfg(test)]
mod script;
pub mod state;
pub mod style;
pub mod tail;
pub mod tty;
pub mod units;

pub use display::Feed;
pub use mode::{Mode, ProgressEnv};
