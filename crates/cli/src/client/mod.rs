//! The client side of a build: a session, a solve, and the stream of its progress.

pub mod failure;
mod gateway;
pub mod offer;
pub mod solve;
