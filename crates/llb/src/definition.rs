//! A definition as it travels: encoded operations, metadata by digest, source maps.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use crate::error::LlbError;
use crate::pb;

/// A build graph in transport form. The operations' bytes are kept exactly as they came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definition {
    /// Encoded `pb::Op` messages; the last one names the result.
    pub ops: Vec<Bytes>,
    /// Metadata by the text form of an operation's digest.
    pub metadata: BTreeMap<String, pb::OpMetadata>,
    /// Where the operations were written.
    pub source: Option<pb::Source>,
}

impl Definition {
    /// Tells whether this is the empty definition, which stands for an empty file system (scratch).
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Returns the wire message.
    pub fn to_pb(&self) -> pb::Definition {
        pb::Definition { def: self.ops.clone(), metadata: self.metadata.clone(), source: self.source.clone() }
    }

    /// Returns the encoded wire message.
    pub fn encode(&self) -> Vec<u8> {
        self.to_pb().encode_to_vec()
    }

    /// Reads an encoded wire message.
    ///
    /// # Errors
    /// Bytes that are no `pb.Definition`.
    pub fn decode(data: &[u8]) -> Result<Self, LlbError> {
        let message = pb::Definition::decode(data).map_err(|e| LlbError::Decode { index: 0, cause: e.to_string() })?;
        Ok(message.into())
    }
}

impl From<pb::Definition> for Definition {
    fn from(message: pb::Definition) -> Self {
        Self { ops: message.def, metadata: message.metadata, source: message.source }
    }
}
