//! What std would have for a build system: digests, stable hashing, a clock, limits, single-flight,
//! drop guards, secrets that cannot be printed, fault hooks. It names nothing of OCI or LLB.
//!
//! Invariant: no other kiln crate is used here.

pub mod age;
pub mod clock;
pub mod defer;
pub mod digest;
pub mod duration;
pub mod error;
pub mod fault;
pub mod fingerprint;
pub mod flight;
pub mod id;
pub mod limits;
pub mod pattern;
pub mod percent;
pub mod secret;
pub mod stable_hash;
pub mod suggest;

pub use clock::{Clock, ManualClock, SystemClock};
pub use defer::Defer;
pub use digest::{Digest, DigestHasher, DigestWriter, ParseDigestError};
pub use error::ErrorClass;
pub use fingerprint::{Fingerprint, FingerprintHasher, ParseFingerprintError};
pub use flight::SingleFlight;
pub use id::rand_id;
pub use secret::Secret;
pub use stable_hash::StableHasher;
