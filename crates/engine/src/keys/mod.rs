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

use kiln_oci::Platform;
use kiln_stdx::Digest;
use serde::Serialize;

/// Returns the canonical digest of a source whose resolved identity is `key` (BuildKit: `buildkit.source.v0:` + key).
pub fn source(key: &str) -> Digest {
    Digest::of(format!("buildkit.source.v0:{key}"))
}

/// Returns the identity by which BuildKit knows an image before its config is read: the digest of a JSON object of the
/// digest that its name leads to, the platform that is asked for, and how many of its layers count.
pub fn manifest(root: &Digest, platform: &Platform, layers: Option<usize>) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Identity<'a> {
        digest: &'a Digest,
        #[serde(rename = "OS")]
        os: &'a str,
        arch: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        variant: &'a str,
        #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
        os_version: &'a str,
        #[serde(rename = "OSFeatures", skip_serializing_if = "<[String]>::is_empty")]
        os_features: &'a [String],
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    }
    let identity = Identity {
        digest: root,
        os: &platform.os,
        arch: &platform.architecture,
        variant: &platform.variant,
        os_version: &platform.os_version,
        os_features: &platform.os_features,
        limit: layers,
    };
    // An object of texts and numbers is always written.
    Digest::of(serde_json::to_vec(&identity).unwrap_or_default()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_a_manifest_is_the_one_of_remote_caches() {
        let root: Digest = format!("sha256:{}", "1".repeat(64)).parse().unwrap();
        let platform: Platform = "linux/arm64/v8".parse().unwrap();
        let platform = Platform { variant: "v8".to_owned(), ..platform };
        let text = format!(r#"{{"Digest":"{root}","OS":"linux","Arch":"arm64","Variant":"v8","Limit":3}}"#);
        assert_eq!(manifest(&root, &platform, Some(3)), Digest::of(text).to_string());
        let platform: Platform = "linux/amd64".parse().unwrap();
        let text = format!(r#"{{"Digest":"{root}","OS":"linux","Arch":"amd64"}}"#);
        assert_eq!(manifest(&root, &platform, None), Digest::of(text).to_string());
    }
}
