//! A client's directory becomes a layer: walked directly where client and engine share a machine, else by file sync.
//!
//! Either way the result and its keys are the same: owner 0:0, sockets as empty files, times as they are. The state of the
//! last build is remembered by directory and shared key; an unchanged directory is that very layer again, and a
//! changed one a new layer that links everything the old one has.

mod ahead;
pub mod assemble;
pub mod direct;
pub mod metadata;
pub mod sync;
pub mod walk;

use kiln_stdx::StableHasher;

/// Which part of a client's directory is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The name the client knows the directory by.
    pub name: String,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// Paths whose links are followed; only they and where they lead are wanted.
    pub follow: Vec<String>,
    /// Together with the session's shared key: names the state of the last build.
    pub shared_key_hint: String,
    /// What to send whole when only metadata is wanted of everything else; none if all is wanted.
    pub metadata_except: Option<Vec<String>>,
}

impl Wanted {
    /// Names this part of the directory; another choice of patterns is another part.
    pub fn part(&self) -> String {
        let digest = StableHasher::new("kiln.local.part.v1")
            .strs("include", self.include.iter())
            .strs("exclude", self.exclude.iter())
            .strs("follow", self.follow.iter())
            .strs("whole", self.metadata_except.as_deref().unwrap_or_default().iter())
            .str("listed", if self.metadata_except.is_some() { "metadata" } else { "" })
            .finish();
        format!("{}#{}", self.name, &digest.hex()[..16])
    }
}
