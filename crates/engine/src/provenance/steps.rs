//! The graph of a result as numbered steps, inputs first, and where each was written.

use std::collections::HashMap;

use kiln_llb::{Definition, pb};
use kiln_stdx::Digest;
use prost::Message;
use serde_json::{Map, Value, json};

use crate::error::EngineError;

/// Attributes that are new in every build and say nothing.
const FLEETING: [&str; 2] = [kiln_llb::attr::LOCAL_SESSION, kiln_llb::attr::LOCAL_UNIQUE];

/// A graph in numbered steps.
#[derive(Debug, Default)]
pub struct Steps {
    /// `id`, `op` and `inputs` of each.
    pub list: Vec<Value>,
    /// Number of an operation.
    pub numbers: HashMap<Digest, usize>,
}

impl Steps {
    /// Numbers the operations of a definition.
    ///
    /// # Errors
    /// It is no definition.
    pub fn of(definition: &Definition) -> Result<Self, EngineError> {
        let bad = |e: prost::DecodeError| EngineError::user(e.to_string());
        let mut ops: HashMap<Digest, pb::Op> = HashMap::new();
        let mut last = None;
        for bytes in &definition.ops {
            let digest = Digest::of(bytes);
            ops.insert(digest, pb::Op::decode(bytes.clone()).map_err(bad)?);
            last = Some(digest);
        }
        let mut steps = Self::default();
        // Whether the inputs of an operation have been looked at is kept beside it: a deep graph must not need a deep stack.
        let mut todo: Vec<(Digest, bool)> = last.map(|digest| (digest, false)).into_iter().collect();
        while let Some((digest, ready)) = todo.pop() {
            if ready {
                // It is taken: what comes by it again finds it numbered.
                steps.add(digest, ops.remove(&digest));
                continue;
            }
            let Some(op) = ops.get(&digest).filter(|_| !steps.numbers.contains_key(&digest)) else { continue };
            todo.push((digest, true));
            let inputs: Vec<Digest> = op.inputs.iter().filter_map(|input| input.digest.parse().ok()).collect();
            todo.extend(inputs.into_iter().rev().map(|input| (input, false)));
        }
        Ok(steps)
    }

    fn add(&mut self, digest: Digest, op: Option<pb::Op>) {
        let Some(mut op) = op else { return };
        let number = self.list.len();
        self.numbers.insert(digest, number);
        let named = |input: &pb::Input| {
            let from = input.digest.parse().ok().and_then(|digest: Digest| self.numbers.get(&digest)).copied();
            format!("step{}:{}", from.unwrap_or_default(), input.index)
        };
        let inputs: Vec<String> = std::mem::take(&mut op.inputs).iter().map(named).collect();
        if let Some(pb::op::Op::Source(source)) = &mut op.op {
            source.attrs.retain(|key, _| !FLEETING.contains(&key.as_str()));
        }
        let mut step =
            Map::from_iter([("id".to_owned(), format!("step{number}").into()), ("op".to_owned(), json!(op))]);
        if !inputs.is_empty() {
            step.insert("inputs".into(), json!(inputs));
        }
        self.list.push(Value::Object(step));
    }

    /// Returns the name of the step of each operation.
    fn names(&self) -> Map<String, Value> {
        self.numbers.iter().map(|(digest, number)| (digest.to_string(), format!("step{number}").into())).collect()
    }

    /// Takes the steps out, as `llbDefinition`, with `digestMapping`, their names.
    pub fn take_config(&mut self) -> Map<String, Value> {
        let names = Value::Object(self.names());
        let list = Value::Array(std::mem::take(&mut self.list));
        Map::from_iter([("llbDefinition".to_owned(), list), ("digestMapping".to_owned(), names)])
    }
}

/// Returns the sources of a definition, with the places of its steps in them; none without sources.
///
/// # Errors
/// The definition that a source was read by is none.
pub fn sources(definition: &Definition, steps: &Steps) -> Result<Option<Value>, EngineError> {
    let Some(source) = definition.source.as_ref().filter(|source| !source.infos.is_empty()) else { return Ok(None) };
    let mut infos = Vec::new();
    for info in &source.infos {
        let mut read_by = match &info.definition {
            Some(pb) => Steps::of(&Definition::from(pb.clone()))?,
            None => Steps::default(),
        };
        let mut shown = Map::new();
        shown.insert("filename".into(), json!(info.filename));
        shown.insert("language".into(), json!(info.language));
        shown.insert("data".into(), json!(base64(&info.data)));
        if !read_by.list.is_empty() {
            shown.extend(read_by.take_config());
        }
        infos.push(Value::Object(shown));
    }
    let mut locations = Map::new();
    for (digest, places) in &source.locations {
        let number = digest.parse().ok().and_then(|digest: Digest| steps.numbers.get(&digest));
        if let Some(number) = number {
            locations.insert(format!("step{number}"), json!(places));
        }
    }
    let locations = Value::Object(locations);
    Ok(Some(Value::Object(Map::from_iter([("infos".to_owned(), infos.into()), ("locations".to_owned(), locations)]))))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use kiln_llb::builder::{Builder, ImageOptions, LocalOptions, Meta};
    use kiln_oci::Platform;

    use super::*;

    #[test]
    fn steps_come_after_what_they_need() {
        let mut builder = Builder::new(Platform::new("linux", "amd64", ""));
        let meta = || Meta::named("x");
        let options = LocalOptions { session: Some("s1".into()), ..LocalOptions::default() };
        let local = builder.local("context", &options, meta());
        let definition = builder.definition(local).unwrap();
        let steps = Steps::of(&definition).unwrap();
        assert_eq!(steps.list.len(), 2);
        assert_eq!(steps.list[0]["op"]["Op"]["source"]["identifier"], json!("local://context"));
        assert_eq!(steps.list[0]["op"]["Op"]["source"]["attrs"].get("local.session"), None);
        assert_eq!(steps.list[1]["inputs"], json!(["step0:0"]));
        let mut steps = steps;
        let config = steps.take_config();
        assert_eq!(config["llbDefinition"].as_array().map(Vec::len), Some(2));
        let last = steps.numbers.iter().find(|(_, number)| **number == 1).map(|(digest, _)| digest.to_string());
        assert_eq!(config["digestMapping"][last.unwrap()], json!("step1"));
        let image = builder.image("docker.io/library/a:1", &ImageOptions::default(), meta()).unwrap();
        let definition = builder.definition(image).unwrap();
        let steps = Steps::of(&definition).unwrap();
        assert_eq!(steps.list[0]["op"]["platform"]["Architecture"], json!("amd64"));
    }
}
