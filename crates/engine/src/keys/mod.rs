//! The cache keys of LLB operations: the canonical digests that BuildKit's caches use, so that remote caches
//! interoperate, and beside them structured records that a miss is explained from.
//!
//! | op | in the key | not in the key, and why |
//! |---|---|---|
//! | exec | args, env, cwd, user, host names, hostname, ulimits, mounts, network, security, secret ids, platform | proxy variables and extra hosts' addresses (where, not what), selectors (in the dependency), ids of non-default cache mounts (a place, not an input), resource limits |
//! | file | every action; of copy sources the base name | the source's directory (its content is a dependency's key) |
//! | merge, diff | the shape | – |
//! | source | what the source resolved to | how it was named |

pub mod canonical;
pub mod exec;
pub mod file;

use kiln_stdx::Digest;

/// Returns the canonical digest of a source whose resolved identity is `key` (BuildKit: `buildkit.source.v0:` + key).
pub fn source(key: &str) -> Digest {
    Digest::of(format!("buildkit.source.v0:{key}"))
}
