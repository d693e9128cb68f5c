//! Rules for sources, as the file of `--source-policy-file` has them.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_session::proto::policy as pb;
use serde::{Deserialize, Deserializer};

use crate::error::{CliError, io_text};

#[derive(Deserialize)]
struct Policy {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(default, deserialize_with = "number::<_, Action>")]
    action: i32,
    selector: Option<Selector>,
    updates: Option<Update>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Selector {
    identifier: String,
    #[serde(alias = "matchType", deserialize_with = "number::<_, Match>")]
    match_type: i32,
    constraints: Vec<Constraint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Constraint {
    key: String,
    value: String,
    #[serde(deserialize_with = "number::<_, Condition>")]
    condition: i32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Update {
    identifier: String,
    attrs: BTreeMap<String, String>,
}

/// Names of the values of an enumeration, which stand for their numbers.
trait Names {
    const NAMES: &'static [&'static str];
}

struct Action;
struct Match;
struct Condition;

impl Names for Action {
    const NAMES: &'static [&'static str] = &["ALLOW", "DENY", "CONVERT"];
}

impl Names for Match {
    const NAMES: &'static [&'static str] = &["WILDCARD", "EXACT", "REGEX"];
}

impl Names for Condition {
    const NAMES: &'static [&'static str] = &["EQUAL", "NOTEQUAL", "MATCHES"];
}

fn number<'de, D: Deserializer<'de>, N: Names>(from: D) -> Result<i32, D::Error> {
    use serde::de::Error;
    let value = serde_json::Value::deserialize(from)?;
    let at = match &value {
        serde_json::Value::String(name) => N::NAMES.iter().position(|known| known == name),
        other => other.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < N::NAMES.len()),
    };
    at.and_then(|at| i32::try_from(at).ok())
        .ok_or_else(|| D::Error::custom(format!("{value} is none of {:?}", N::NAMES)))
}

/// Reads a file of rules.
///
/// # Errors
/// It cannot be read or is not understood.
pub fn read(path: &Path) -> Result<pb::Policy, CliError> {
    let shown = path.display();
    let data = std::fs::read(path).map_err(|e| CliError::user(format!("cannot read {shown}: {}", io_text(&e))))?;
    parse(&data).map_err(|e| CliError::user(format!("failed to unmarshal source-policy-file \"{shown}\": {e}")))
}

fn parse(data: &[u8]) -> Result<pb::Policy, serde_json::Error> {
    let policy: Policy = serde_json::from_slice(data)?;
    let constraint = |c: Constraint| pb::AttrConstraint { key: c.key, value: c.value, condition: c.condition };
    let selector = |s: Selector| pb::Selector {
        identifier: s.identifier,
        match_type: s.match_type,
        constraints: s.constraints.into_iter().map(constraint).collect(),
    };
    let update = |u: Update| pb::Update { identifier: u.identifier, attrs: u.attrs };
    let rule =
        |r: Rule| pb::Rule { action: r.action, selector: r.selector.map(selector), updates: r.updates.map(update) };
    Ok(pb::Policy { version: policy.version, rules: policy.rules.into_iter().map(rule).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_names_or_numbers() {
        let text =
            br#"{"rules": [{"action": "DENY", "selector": {"identifier": "docker-image://x", "matchType": "EXACT"}},
            {"action": 2, "selector": {"identifier": "a", "match_type": 2}, "updates": {"identifier": "b"}}]}"#;
        let policy = parse(text).unwrap();
        let rules: Vec<_> = policy.rules.iter().map(|r| (r.action, r.selector.clone().unwrap().match_type)).collect();
        assert_eq!(rules, [(1, 1), (2, 2)]);
        assert_eq!(policy.rules[1].updates.as_ref().unwrap().identifier, "b");
        assert!(parse(br#"{"rules": [{"action": "MAYBE"}]}"#).is_err());
    }
}
