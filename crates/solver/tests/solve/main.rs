//! The solver through its public API.

mod cache;
mod export;
mod jobs;
mod kit;
mod reasons;
