//! The client side of a build: a session, a solve, and the stream of its progress.

pub mod ask;
pub mod failure;
pub mod gateway;
pub mod offer;
pub mod solve;
