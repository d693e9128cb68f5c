//! Cache mounts that travel: exported beside a remote cache and brought in where a step would begin with an empty one.
//!
//! A cache says by `mounts=` which of them it takes or gives; [`format`] tells how they lie there. An export reads what is there
//! already and adds what it lacks. An import asks for nothing until a step is about to begin with an empty mount. Neither
//! fails a build: what cannot be had or sent is a warning.

mod cut;
pub mod export;
mod format;
pub mod import;
mod pack;
mod place;
mod restore;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use kiln_llb::Op;
use kiln_llb::op::MountKind;
use kiln_oci::Platform;

use crate::bridge::FrontendResult;
use crate::error::EngineError;
use crate::request::CacheSpec;

/// The attribute of exports and imports.
pub const ATTR: &str = "mounts";
/// Digest of the manifest that a directory of the client has already; added by the client.
pub const DIGEST: &str = "mounts-digest";
/// What the names of mounts have that caches' own do not.
const SUFFIX: &str = "-mounts";

/// Which mounts a cache takes or gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// All that the steps of the build name.
    All,
    /// Those with these ids.
    Ids(BTreeSet<String>),
}

impl Wish {
    /// Reads the attribute: `all`, `none`, or ids separated by semicolons. None is for no mounts.
    ///
    /// # Errors
    /// A list without an id, or a kind of cache that holds no mounts.
    pub fn of(spec: &CacheSpec) -> Result<Option<Self>, EngineError> {
        let Some(text) = spec.attrs.get(ATTR) else { return Ok(None) };
        let wish = match text.trim() {
            "" | "none" | "false" | "0" => return Ok(None),
            "all" | "true" | "1" => Self::All,
            list => {
                let ids: BTreeSet<String> = list.split(';').map(|id| plain(id.trim()).to_owned()).collect();
                if ids.contains("") {
                    return Err(EngineError::user(format!("mounts={text}: an id is empty")));
                }
                Self::Ids(ids)
            }
        };
        if spec.kind == super::INLINE {
            let error = EngineError::user("an inline cache holds no cache mounts");
            return Err(error.with_hint("export them with another --cache-to, say type=registry,ref=…,mounts=all"));
        }
        Ok(Some(wish))
    }

    /// Tells whether a mount is meant.
    pub fn takes(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Ids(ids) => ids.contains(id),
        }
    }
}

/// Returns an id as people write it; those of Dockerfiles come with a slash before them.
fn plain(id: &str) -> &str {
    id.strip_prefix('/').unwrap_or(id)
}

/// Returns id and platform of the cache mounts that the steps of a result name, whether they ran or not.
fn named(result: &FrontendResult) -> BTreeSet<(String, String)> {
    let mut names = BTreeSet::new();
    for reference in result.refs.all() {
        for vertex in reference.graph().vertices() {
            let Op::Exec(exec) = &vertex.op else { continue };
            let platform = vertex.platform.clone().unwrap_or_else(Platform::host).to_string();
            for mount in &exec.mounts {
                if let MountKind::Cache { id, .. } = &mount.kind {
                    names.insert((plain(id).to_owned(), platform.clone()));
                }
            }
        }
    }
    names
}

/// Tells whether a mount's key means the same for other engines. One that begins with files of an image does not: it is
/// known by layers of this store.
fn travels(key: &str, id: &str) -> bool {
    let Some(rest) = plain(key).strip_prefix(id) else { return false };
    let Some(owner) = rest.strip_prefix(':') else { return rest.is_empty() };
    let parts: Vec<&str> = owner.split(':').collect();
    parts.len() == 3 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod wish_tests {
    use super::*;

    #[test]
    fn wishes() {
        let wish = |kind: &str, value: &str| {
            let attrs = [(ATTR.to_owned(), value.to_owned())].into();
            Wish::of(&CacheSpec { kind: kind.into(), attrs }).map_err(|e| e.to_string())
        };
        let ids = |list: &[&str]| Ok(Some(Wish::Ids(list.iter().map(|id| (*id).to_owned()).collect())));
        assert_eq!(wish("registry", "all"), Ok(Some(Wish::All)));
        assert_eq!(wish("inline", "none"), Ok(None));
        assert_eq!(wish("local", "npm; /root/.cache"), ids(&["npm", "root/.cache"]));
        assert!(wish("local", "npm;").unwrap_err().contains("empty"));
        assert!(wish("inline", "all").unwrap_err().contains("inline"));
        assert!(Wish::Ids(["a".to_owned()].into()).takes("a") && !Wish::Ids(["a".to_owned()].into()).takes("b"));
    }

    #[test]
    fn keys_that_mean_the_same_everywhere() {
        for (key, travelling) in [
            ("/npm", true),
            ("npm", true),
            ("/npm:1000:1000:755", true),
            ("/npm:blake3:00ff", false),
            ("/npm:1000:1000", false),
            ("/other", false),
            ("/npmx", false),
        ] {
            assert_eq!(travels(key, "npm"), travelling, "{key}");
        }
    }
}
