//! A validated graph: every input exists, every index is in range, inputs come before their users.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use kiln_oci::Platform;
use kiln_stdx::{Digest, limits};
use prost::Message;

use crate::convert;
use crate::definition::Definition;
use crate::error::LlbError;
use crate::op::Op;
use crate::{caps, name, pb};

/// One result of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    pub vertex: Digest,
    pub index: u32,
}

/// One operation of a graph.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// SHA-256 of `raw`.
    pub digest: Digest,
    /// The bytes as they came.
    pub raw: Bytes,
    pub op: Op,
    pub inputs: Vec<Edge>,
    /// The platform the operation is for; file, merge and diff have none.
    pub platform: Option<Platform>,
    /// Worker filters the client asked for.
    pub filters: Vec<String>,
    pub metadata: pb::OpMetadata,
    /// What to call it on screen.
    pub name: String,
}

impl Vertex {
    /// Tells whether cached results must not be used.
    pub fn ignore_cache(&self) -> bool {
        self.metadata.ignore_cache
    }

    /// Tells whether results are to be kept out of (or forced into) a cache export; none is the default.
    pub fn export_cache(&self) -> Option<bool> {
        self.metadata.export_cache.as_ref().map(|e| e.value)
    }
}

/// What `Graph::load` accepts.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Most operations allowed.
    pub max_ops: usize,
    /// Refuse metadata that asks for unknown capabilities.
    pub check_caps: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { max_ops: limits::LLB_OPS, check_caps: true }
    }
}

/// A checked build graph. Holds the operations that the result needs, and no others.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Inputs before their users.
    vertices: Vec<Arc<Vertex>>,
    index: HashMap<Digest, usize>,
    result: Edge,
    source: Option<pb::Source>,
}

impl Graph {
    /// Checks a definition.
    ///
    /// # Errors
    /// Anything that breaks the rules of the format; see [`LlbError`].
    pub fn load(definition: &Definition, options: &LoadOptions) -> Result<Self, LlbError> {
        if definition.ops.len() > options.max_ops {
            return Err(LlbError::TooMany);
        }
        if options.check_caps {
            check_caps(&definition.metadata)?;
        }
        let (decoded, last) = decode(definition)?;
        if decoded.len() < 2 {
            return Err(LlbError::TooFew(decoded.len()));
        }
        let result = decoded.get(&last).and_then(|d| d.message.inputs.first()).ok_or(LlbError::NoResult)?;
        let result = edge(result, &last)?;
        let order = order(&decoded, result.vertex)?;
        let mut graph = Self { vertices: Vec::new(), index: HashMap::new(), result, source: definition.source.clone() };
        let mut decoded = decoded;
        for digest in order {
            if let Some(entry) = decoded.remove(&digest) {
                let metadata = definition.metadata.get(&digest.to_string()).cloned().unwrap_or_default();
                graph.add(digest, entry, metadata)?;
            }
        }
        graph.check_output(result, &last)?;
        Ok(graph)
    }

    /// Returns the operations, inputs before their users.
    pub fn vertices(&self) -> &[Arc<Vertex>] {
        &self.vertices
    }

    /// Returns the operation with this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Arc<Vertex>> {
        self.index.get(digest).map(|&i| &self.vertices[i])
    }

    /// Returns which result the definition is for.
    pub fn result(&self) -> Edge {
        self.result
    }

    /// Returns the source maps as they came.
    pub fn source(&self) -> Option<&pb::Source> {
        self.source.as_ref()
    }

    /// Returns where in which file an operation was written.
    pub fn locations(&self, digest: &Digest) -> Vec<(&pb::SourceInfo, &[pb::Range])> {
        let Some(source) = &self.source else { return Vec::new() };
        let Some(list) = source.locations.get(&digest.to_string()) else { return Vec::new() };
        let info = |l: &pb::Location| usize::try_from(l.source_index).ok().and_then(|i| source.infos.get(i));
        list.locations.iter().filter_map(|l| info(l).map(|i| (i, l.ranges.as_slice()))).collect()
    }

    fn add(&mut self, digest: Digest, entry: Decoded, metadata: pb::OpMetadata) -> Result<(), LlbError> {
        let inputs = entry.message.inputs.iter().map(|i| edge(i, &digest)).collect::<Result<Vec<_>, _>>()?;
        for &input in &inputs {
            self.check_output(input, &digest)?;
        }
        let mut message = entry.message;
        let platform = message.platform.take().map(convert::platform);
        let filters = message.constraints.take().map(|c| c.filter).unwrap_or_default();
        let op = convert::op(message).map_err(|what| LlbError::Invalid { vertex: digest, what })?;
        let shown = name::shown(&op, inputs.len(), &metadata, |i| {
            inputs.get(i).and_then(|e| self.get(&e.vertex)).map_or("", |v| v.name.as_str())
        });
        self.index.insert(digest, self.vertices.len());
        self.vertices.push(Arc::new(Vertex {
            digest,
            raw: entry.raw,
            op,
            inputs,
            platform,
            filters,
            metadata,
            name: shorten(shown),
        }));
        Ok(())
    }

    fn check_output(&self, edge: Edge, user: &Digest) -> Result<(), LlbError> {
        let count = self.get(&edge.vertex).map_or(0, |v| v.op.output_count());
        if (edge.index as usize) < count {
            return Ok(());
        }
        let what = format!("invalid output index {} of {}, which has {count} outputs", edge.index, edge.vertex);
        Err(LlbError::Invalid { vertex: *user, what })
    }
}

/// A nested merge repeats the names of all its inputs; what nobody can read is cut.
fn shorten(name: String) -> String {
    const LONGEST: usize = 64 * 1024;
    if name.len() <= LONGEST {
        return name;
    }
    let mut end = LONGEST;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &name[..end])
}

struct Decoded {
    raw: Bytes,
    message: pb::Op,
}

fn decode(definition: &Definition) -> Result<(HashMap<Digest, Decoded>, Digest), LlbError> {
    let mut all = HashMap::with_capacity(definition.ops.len());
    let mut last = None;
    for (index, raw) in definition.ops.iter().enumerate() {
        let message = pb::Op::decode(raw.as_ref()).map_err(|e| LlbError::Decode { index, cause: e.to_string() })?;
        let digest = Digest::of(raw);
        all.insert(digest, Decoded { raw: raw.clone(), message });
        last = Some(digest);
    }
    last.map(|last| (all, last)).ok_or(LlbError::Empty)
}

fn edge(input: &pb::Input, user: &Digest) -> Result<Edge, LlbError> {
    let vertex = input.digest.parse().map_err(|_| LlbError::MissingInput(input.digest.clone()))?;
    let index = u32::try_from(input.index).map_err(|_| LlbError::Invalid {
        vertex: *user,
        what: format!("invalid input output index {}", input.index),
    })?;
    Ok(Edge { vertex, index })
}

/// Orders what `root` needs, inputs first. Works without recursion: graphs may be very deep.
fn order(all: &HashMap<Digest, Decoded>, root: Digest) -> Result<Vec<Digest>, LlbError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks: HashMap<Digest, Mark> = HashMap::new();
    let mut order = Vec::new();
    let mut stack = vec![(root, 0usize)];
    while let Some((digest, next)) = stack.pop() {
        let entry = all.get(&digest).ok_or_else(|| LlbError::MissingInput(digest.to_string()))?;
        if next == 0 {
            match marks.get(&digest) {
                Some(Mark::Done) => continue,
                Some(Mark::Open) => return Err(LlbError::Cycle(digest)),
                None => marks.insert(digest, Mark::Open),
            };
        }
        match entry.message.inputs.get(next) {
            Some(input) => {
                stack.push((digest, next + 1));
                stack.push((edge(input, &digest)?.vertex, 0));
            }
            None => {
                marks.insert(digest, Mark::Done);
                order.push(digest);
            }
        }
    }
    Ok(order)
}

fn check_caps(metadata: &BTreeMap<String, pb::OpMetadata>) -> Result<(), LlbError> {
    for (vertex, entry) in metadata {
        if let Some((capability, _)) = entry.caps.iter().find(|(c, wanted)| **wanted && !caps::is_known(c)) {
            return Err(LlbError::UnknownCapability { vertex: vertex.clone(), capability: capability.clone() });
        }
    }
    Ok(())
}
