//! Frontend attributes that only kiln's own client and engine know.

/// What becomes of cache mounts: `keep` or `empty`.
pub const CACHE_MOUNTS: &str = "kiln:cache-mounts";

/// How old results of steps may be that are taken from the cache, in seconds.
pub const MAX_AGE: &str = "kiln:max-age";

/// Whether sources come from what the engine has, without the network: `true`.
pub const OFFLINE: &str = "kiln:offline";

/// The secret of the session that holds certificate authorities for steps.
pub const BUILD_CA: &str = "kiln:build-ca";
