//! Everything client and engine say to each other.
pub mod codec;
pub mod proto;
