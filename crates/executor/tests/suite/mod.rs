//! The tests, by subject.

pub mod ending;
pub mod files;
pub mod fixture;
pub mod process;
pub mod security;
pub mod world;
