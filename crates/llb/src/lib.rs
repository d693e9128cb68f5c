//! The build graph: wire types, typed operations, validation, a builder, and a printer.
//!
//! A definition is a list of encoded operations; the digest of an operation is taken over the bytes as received,
//! never over a re-encoding, so that unknown fields keep their meaning (features 2.1).
//!
//! Invariant: no I/O, no async.

pub mod attr;
pub mod builder;
pub mod caps;
mod convert;
mod definition;
mod error;
mod git_url;
mod graph;
mod json;
mod name;
pub mod op;
mod print;
mod rewrite;

/// The wire types of package `pb`, generated from `proto/ops.proto`.
pub mod pb {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));
}

/// Encodes an operation in Go's field order, which puts the kind of operation last: the digest depends on it.
pub(crate) fn encode_op(mut op: pb::Op) -> bytes::Bytes {
    use prost::Message;
    let kind = pb::Op { op: op.op.take(), ..pb::Op::default() };
    let mut out = op.encode_to_vec();
    kind.encode_raw(&mut out);
    out.into()
}

pub use builder::Builder;
pub use convert::gateway_mount;
pub use definition::Definition;
pub use error::LlbError;
pub use git_url::{GitUrl, GitUrlError, is_git_transport};
pub use graph::{Edge, Graph, LoadOptions, Vertex};
pub use op::Op;
pub use print::print;
