//! Builds definitions: sources, processes, file changes, merges, with the same bytes as BuildKit's own client makes
//! for the same graph, so that digests and cache keys agree.
//!
//! A [`Builder`] is an arena; an [`Output`] is a small copyable name of one result in it. Nothing is encoded before
//! [`Builder::definition`], so metadata and a local source's patterns may be completed after their users were added.

mod assemble;
mod encode;
mod env;
mod exec;
mod file;
mod meta;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kiln_oci::Platform;
use kiln_stdx::Digest;

pub use env::EnvList;
pub use exec::{CacheMount, Exec, ExecMount, ExecOutputs, MountSource, SecretSpec, SshSpec};
pub use file::{CopyOptions, FileActions, FileOptions, MkdirOptions, NameOrId, OwnerSpec, RmOptions};
pub use meta::{Meta, SourceMap, SourceMapId, range};
pub use source::{GitOptions, HttpOptions, ImageOptions, LocalOptions, OciLayoutOptions, ResolveMode};

use crate::definition::Definition;
use crate::error::LlbError;
use crate::graph::{Edge, Graph, LoadOptions};
use crate::pb;

/// A file system in a [`Builder`]: one result of one operation, or the empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Output(Option<(u32, u32)>);

impl Output {
    /// The empty file system.
    pub const SCRATCH: Self = Self(None);

    /// Tells whether this is the empty file system.
    pub fn is_scratch(self) -> bool {
        self.0.is_none()
    }

    fn node(self) -> Option<usize> {
        self.0.map(|(node, _)| node as usize)
    }
}

/// The arena of a graph in the making.
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: Vec<Node>,
    maps: Vec<SourceMap>,
    platform: Platform,
    unique: String,
}

#[derive(Debug, Clone)]
struct Node {
    body: Body,
    meta: Meta,
    /// What the operation itself needs; the metadata may name more.
    caps: BTreeSet<&'static str>,
}

#[derive(Debug, Clone)]
enum Body {
    Source {
        identifier: String,
        attrs: BTreeMap<String, String>,
    },
    Exec(Box<Exec>),
    File {
        base: Output,
        actions: FileActions,
    },
    Merge(Vec<Output>),
    Diff {
        lower: Output,
        upper: Output,
    },
    Passthrough {
        id: String,
        inputs: Vec<(Output, bool)>,
    },
    /// An operation of another definition, kept byte for byte.
    Raw {
        digest: Digest,
        bytes: Bytes,
        inputs: Vec<Output>,
        metadata: Box<pb::OpMetadata>,
    },
}

impl Builder {
    /// Returns how many operations there are so far, needed or not.
    pub fn operations(&self) -> usize {
        self.nodes.len()
    }

    /// Makes an empty arena. Operations that name no platform are for `platform`.
    ///
    /// Local sources without a session carry a random id, so that two builds never share one by accident.
    pub fn new(platform: Platform) -> Self {
        Self { nodes: Vec::new(), maps: Vec::new(), platform, unique: kiln_stdx::rand_id() }
    }

    /// Sets the id that local sources without a session carry, for reproducible definitions.
    #[must_use]
    pub fn with_unique_id(mut self, id: impl Into<String>) -> Self {
        self.unique = id.into();
        self
    }

    /// Registers a source file that operations can point into.
    pub fn source_map(&mut self, map: SourceMap) -> SourceMapId {
        self.maps.push(map);
        SourceMapId(self.maps.len() - 1)
    }

    /// Returns the metadata of the operation behind an output, to complete it.
    pub fn meta_mut(&mut self, output: Output) -> Option<&mut Meta> {
        output.node().and_then(|i| self.nodes.get_mut(i)).map(|n| &mut n.meta)
    }

    /// Adds a process over `exec.root`.
    ///
    /// # Errors
    /// No arguments, no working directory, or a mount that contradicts itself.
    pub fn exec(&mut self, exec: Exec, meta: Meta) -> Result<ExecOutputs, LlbError> {
        let exec = exec.prepared()?;
        let caps = exec.caps(&meta);
        let node = self.nodes.len();
        let outputs = exec.outputs(|index| Output(Some((to_u32(node), index))));
        self.push(Body::Exec(Box::new(exec)), meta, caps);
        Ok(outputs)
    }

    /// Adds file changes on top of `base`. Without actions the result is `base` itself.
    pub fn file(&mut self, base: Output, actions: FileActions, meta: Meta) -> Output {
        if actions.is_empty() {
            return base;
        }
        self.push(Body::File { base, actions }, meta, [crate::caps::id::FILE_BASE].into())
    }

    /// Adds a union; empty file systems are left out, and a union of one is that one.
    pub fn merge(&mut self, inputs: &[Output], meta: Meta) -> Output {
        let inputs: Vec<Output> = inputs.iter().copied().filter(|i| !i.is_scratch()).collect();
        match inputs.as_slice() {
            [] => Output::SCRATCH,
            [one] => *one,
            _ => self.push(Body::Merge(inputs), meta, [crate::caps::id::MERGE].into()),
        }
    }

    /// Adds the difference between two file systems. The difference to the empty one is `upper` itself.
    pub fn diff(&mut self, lower: Output, upper: Output, meta: Meta) -> Output {
        if lower.is_scratch() {
            return upper;
        }
        self.push(Body::Diff { lower, upper }, meta, [crate::caps::id::DIFF].into())
    }

    /// Adds a vertex that hands inputs through; those marked true become its outputs, in order.
    ///
    /// # Errors
    /// An empty id, or no output.
    pub fn passthrough(&mut self, id: &str, inputs: &[(Output, bool)], meta: Meta) -> Result<Vec<Output>, LlbError> {
        let inputs: Vec<_> = inputs.iter().copied().filter(|(o, _)| !o.is_scratch()).collect();
        let outputs = inputs.iter().filter(|(_, out)| *out).count();
        if id.is_empty() || outputs == 0 {
            return Err(LlbError::Argument("a passthrough needs an id and an output".into()));
        }
        let body = Body::Passthrough { id: id.to_owned(), inputs };
        let first = self.push(body, meta, [crate::caps::id::PASSTHROUGH].into());
        Ok((0..outputs).map(|i| Output(first.0.map(|(node, _)| (node, to_u32(i))))).collect())
    }

    /// Takes over another definition, keeping its operations' bytes, metadata and source locations.
    ///
    /// # Errors
    /// A definition that does not load.
    pub fn import(&mut self, definition: &Definition) -> Result<Output, LlbError> {
        if definition.is_empty() {
            return Ok(Output::SCRATCH);
        }
        let graph = Graph::load(definition, &LoadOptions { check_caps: false, ..LoadOptions::default() })?;
        let first_map = self.maps.len();
        for info in graph.source().map_or(&[][..], |s| &s.infos) {
            self.maps.push(SourceMap::from_info(info));
        }
        let first = self.nodes.len();
        let positions: BTreeMap<Digest, usize> =
            graph.vertices().iter().enumerate().map(|(i, v)| (v.digest, first + i)).collect();
        // Every edge of a loaded graph points into it.
        let output = |edge: Edge| Output(positions.get(&edge.vertex).map(|&n| (to_u32(n), edge.index)));
        for vertex in graph.vertices() {
            let locations = meta::imported_locations(graph.source(), &vertex.digest, first_map);
            let body = Body::Raw {
                digest: vertex.digest,
                bytes: vertex.raw.clone(),
                inputs: vertex.inputs.iter().map(|&e| output(e)).collect(),
                metadata: Box::new(vertex.metadata.clone()),
            };
            let meta = Meta { locations, ..Meta::default() };
            self.push(body, meta, BTreeSet::new());
        }
        Ok(output(graph.result()))
    }

    fn push(&mut self, body: Body, meta: Meta, caps: BTreeSet<&'static str>) -> Output {
        self.nodes.push(Node { body, meta, caps });
        Output(Some((to_u32(self.nodes.len() - 1), 0)))
    }
}

/// Arena positions fit: a definition has at most `limits::LLB_OPS` operations.
fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
