//! Replacing sources of a graph, as a source policy does, with the digests that follow from it.

use std::collections::HashMap;

use kiln_stdx::Digest;
use prost::Message;

use crate::definition::Definition;
use crate::error::LlbError;
use crate::graph::{Graph, LoadOptions};
use crate::op::{Op, SourceOp};
use crate::pb;

impl Graph {
    /// Returns the graph with some sources replaced; `replace` gives the new source, or none to keep the old.
    ///
    /// Operations above a replaced source get new digests; all others keep their bytes. Metadata and source
    /// locations move along.
    ///
    /// # Errors
    /// What `replace` returns, or a replacement that makes the graph invalid.
    pub fn replace_sources<E: From<LlbError>>(
        &self,
        mut replace: impl FnMut(&Digest, &SourceOp) -> Result<Option<SourceOp>, E>,
    ) -> Result<Graph, E> {
        let mut moved: HashMap<Digest, Digest> = HashMap::new();
        let mut out = Definition { source: self.source().cloned(), ..Definition::default() };
        for vertex in self.vertices() {
            let new_source = match &vertex.op {
                Op::Source(source) => replace(&vertex.digest, source)?.filter(|new| new != source),
                _ => None,
            };
            let raw = if new_source.is_some() || vertex.inputs.iter().any(|i| moved.contains_key(&i.vertex)) {
                let mut message = pb::Op::decode(vertex.raw.as_ref())
                    .map_err(|e| LlbError::Decode { index: out.ops.len(), cause: e.to_string() })?;
                for (input, old) in message.inputs.iter_mut().zip(&vertex.inputs) {
                    if let Some(new) = moved.get(&old.vertex) {
                        input.digest = new.to_string();
                    }
                }
                if let Some(new) = new_source {
                    message.op =
                        Some(pb::op::Op::Source(pb::SourceOp { identifier: new.identifier, attrs: new.attrs }));
                }
                crate::encode_op(message)
            } else {
                vertex.raw.clone()
            };
            let digest = Digest::of(&raw);
            if digest != vertex.digest {
                moved.insert(vertex.digest, digest);
            }
            out.metadata.insert(digest.to_string(), vertex.metadata.clone());
            out.ops.push(raw);
        }
        if moved.is_empty() {
            return Ok(self.clone());
        }
        move_locations(&mut out, &moved);
        let result = self.result();
        let head = moved.get(&result.vertex).unwrap_or(&result.vertex);
        let input = pb::Input { digest: head.to_string(), index: i64::from(result.index) };
        out.ops.push(pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec().into());
        // Capabilities were checked when the graph was loaded.
        let options = LoadOptions { max_ops: usize::MAX, check_caps: false };
        Ok(Graph::load(&out, &options)?)
    }
}

fn move_locations(definition: &mut Definition, moved: &HashMap<Digest, Digest>) {
    let Some(source) = &mut definition.source else { return };
    let old = std::mem::take(&mut source.locations);
    for (key, locations) in old {
        let new = key.parse::<Digest>().ok().and_then(|d| moved.get(&d)).map_or(key, Digest::to_string);
        source.locations.entry(new).or_default().locations.extend(locations.locations);
    }
}
