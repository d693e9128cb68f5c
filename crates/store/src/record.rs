//! What is written about a layer: in `info` beside it, so that it survives the loss of everything else, and as a row of
//! the metadata, so that opening the store reads one file.

use kiln_oci::{ChainId, Descriptor, DiffId};
use kiln_stdx::Digest;
use serde::{Deserialize, Serialize};

use crate::account::blocks;
use crate::disk;
use crate::epoch::Stamp;
use crate::layout::LayerId;

const KIND: &str = "kiln.layer.v1";
const SECOND: u64 = 1_000_000_000;

/// What a record is for, in the words of BuildKit's disk usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RecordType {
    /// Made by the engine for itself.
    #[serde(rename = "internal")]
    Internal,
    /// The image of a frontend.
    #[serde(rename = "frontend")]
    Frontend,
    /// A local directory of a client.
    #[serde(rename = "source.local")]
    SourceLocal,
    /// A checkout of a git repository.
    #[serde(rename = "source.git.checkout")]
    SourceGitCheckout,
    /// A cache mount.
    #[serde(rename = "exec.cachemount")]
    ExecCacheMount,
    /// Everything else: results of steps, pulled layers.
    #[default]
    #[serde(rename = "regular")]
    Regular,
}

impl RecordType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::SourceLocal => "source.local",
            Self::SourceGitCheckout => "source.git.checkout",
            Self::ExecCacheMount => "exec.cachemount",
            Self::Regular => "regular",
        }
    }
}

/// What the maker of a layer says of it.
#[derive(Debug, Clone, Default)]
pub struct LayerInfo {
    /// The layers that it was made on, bottom first. Dropping one of them for damage drops this one.
    pub chain: Vec<LayerId>,
    /// For people: `mount / from exec /bin/sh -c make`.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// When its content was made, nanoseconds since 1970; 0 means now.
    pub created: u64,
    /// The digest of its uncompressed archive, if known.
    pub diff_id: Option<DiffId>,
    /// The identity of the image layers up to and with it, if it has one.
    pub chain_id: Option<ChainId>,
}

/// A layer that is known by its blob and not fetched or unpacked yet.
#[derive(Debug, Clone)]
pub struct LazyLayer {
    /// The compressed blob, wherever it is.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed archive.
    pub diff_id: DiffId,
    /// The identity of the image layers up to and with it; a layer with this identity that is here is used.
    pub chain_id: ChainId,
    /// Where the blob can be fetched, in the engine's words.
    pub origin: String,
    /// The layers below, bottom first.
    pub chain: Vec<LayerId>,
    /// For people: `pulled from docker.io/library/alpine:3`.
    pub description: String,
    /// When its content was made, nanoseconds since 1970; 0 means now.
    pub created: u64,
    /// What it is for.
    pub record_type: RecordType,
}

/// A compressed form of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    /// `none`, `gzip` or `zstd`; empty for a pulled blob, whose level nobody knows.
    pub compression: String,
    /// The time that modification times were cut to.
    pub epoch: Option<i64>,
}

/// What is known of the unpacked files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unpacked {
    /// Digest of the manifest's bytes: a manifest that decodes but is not this one is damage, too.
    pub manifest: Digest,
    pub manifest_size: u64,
    /// Bytes of file content.
    pub size: u64,
    /// Bytes of the disk that its directory took when it was made, without inodes of other layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    pub stamp: Stamp,
}

/// All that is persisted of a layer but its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub id: LayerId,
    pub chain: Vec<LayerId>,
    pub description: String,
    pub record_type: RecordType,
    /// Seconds since 1970.
    pub created: u64,
    /// What came after the whole second.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub created_nanos: u32,
    pub diff_id: Option<DiffId>,
    pub chain_id: Option<ChainId>,
    pub origin: Option<String>,
    pub unpacked: Option<Unpacked>,
    pub variants: Vec<Variant>,
    /// How long it took to make, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_ms: Option<u64>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Splits nanoseconds since 1970 into seconds and the rest.
pub(crate) fn split_nanos(nanos: u64) -> (u64, u32) {
    (nanos / SECOND, u32::try_from(nanos % SECOND).unwrap_or(0))
}

impl LayerRecord {
    /// Returns when its content was made, in nanoseconds since 1970.
    pub fn made(&self) -> u64 {
        self.created.saturating_mul(SECOND).saturating_add(u64::from(self.created_nanos))
    }

    /// Returns what its directory takes on the disk, as far as is known.
    pub fn disk_bytes(&self) -> u64 {
        let of = |u: &Unpacked| u.disk.unwrap_or_else(|| blocks(u.size) + blocks(u.manifest_size));
        // The directory itself and `info`.
        self.unpacked.as_ref().map_or_else(|| blocks(1) * 2, of)
    }

    pub fn encode(&self) -> Vec<u8> {
        disk::seal(KIND, serde_json::to_vec(self).unwrap_or_default())
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(disk::unseal(KIND, bytes)?).ok()
    }

    /// Tells whether `bytes` are a whole record of the same layer. One that differs is no damage: the file is written before
    /// the row of the metadata, and when the machine died between the two the row tells what was before.
    pub fn is_akin(&self, bytes: &[u8]) -> bool {
        Self::decode(bytes).is_some_and(|other| other.id == self.id)
    }
}
