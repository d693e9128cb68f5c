//! Source policies: rules that allow, deny or replace the sources of a build (features 9.1).

mod ask;

pub use ask::Policies;

use std::collections::BTreeMap;

use kiln_llb::op::SourceOp;
use regex::Regex;

use crate::error::EngineError;

/// How often rules may replace one source.
const REPLACEMENTS: usize = 20;

/// Rules in the order they are looked at.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicy {
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    pub action: Action,
    /// Which identifiers it is for.
    pub identifier: String,
    pub kind: MatchKind,
    pub constraints: Vec<Constraint>,
    /// For [`Action::Convert`].
    pub updates: Option<Updates>,
}

/// What a rule does with a source. Of the rules that allow or deny, the last one that matches holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    /// Replaces the source; all rules are looked at anew.
    Convert,
    /// A number that nobody has given a meaning.
    Unknown(i32),
}

/// How an identifier is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchKind {
    /// `*` is any text.
    Wildcard,
    Exact,
    Regex,
}

/// A condition on an attribute.
#[derive(Debug, Clone)]
pub struct Constraint {
    pub key: String,
    pub value: String,
    pub condition: Condition,
}

/// How an attribute is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Equal,
    NotEqual,
    /// The value is a regular expression.
    Matches,
}

/// What a source becomes. In the identifier `${1}` is what the first wildcard or group matched.
#[derive(Debug, Clone, Default)]
pub struct Updates {
    pub identifier: String,
    pub attrs: BTreeMap<String, String>,
}

/// Returns what the policies make of a source.
///
/// # Errors
/// It is denied, a rule cannot be understood, or the rules replace without end.
pub fn evaluate(policies: &[SourcePolicy], source: SourceOp) -> Result<SourceOp, EngineError> {
    let mut source = source;
    for _ in 0..=REPLACEMENTS {
        let mut replaced = None;
        for policy in policies {
            replaced = apply(policy, &source)?;
            if replaced.is_some() {
                break;
            }
        }
        match replaced {
            Some(new) => source = new,
            None => return Ok(source),
        }
    }
    Err(EngineError::user(format!("too many mutations on a single source: {}", source.identifier)))
}

fn apply(policy: &SourcePolicy, source: &SourceOp) -> Result<Option<SourceOp>, EngineError> {
    let mut denied = false;
    for rule in &policy.rules {
        let pattern = pattern(rule)?;
        if !matches(rule, &pattern, source)? {
            continue;
        }
        match rule.action {
            Action::Allow => denied = false,
            Action::Deny => denied = true,
            Action::Convert => {
                let new = convert(rule, &pattern, source)?;
                if new != *source {
                    return Ok(Some(new));
                }
            }
            Action::Unknown(number) => {
                let text = format!("source policy: rule {number} {}: unknown type", rule.identifier);
                return Err(EngineError::user(text));
            }
        }
    }
    if denied {
        return Err(EngineError::user(format!("source {:?} denied by policy", source.identifier)));
    }
    Ok(None)
}

fn pattern(rule: &Rule) -> Result<Option<Regex>, EngineError> {
    let text = match rule.kind {
        MatchKind::Exact => return Ok(None),
        MatchKind::Regex => rule.identifier.clone(),
        MatchKind::Wildcard => {
            let parts: Vec<String> = rule.identifier.split('*').map(regex::escape).collect();
            format!("^{}$", parts.join("(.*)"))
        }
    };
    compile(&text).map(Some)
}

fn compile(text: &str) -> Result<Regex, EngineError> {
    Regex::new(text).map_err(|e| EngineError::user(format!("source policy: invalid pattern {text:?}: {e}")))
}

fn matches(rule: &Rule, pattern: &Option<Regex>, source: &SourceOp) -> Result<bool, EngineError> {
    for constraint in &rule.constraints {
        let value = source.attrs.get(&constraint.key).map_or("", String::as_str);
        let holds = match constraint.condition {
            Condition::Equal => value == constraint.value,
            Condition::NotEqual => value != constraint.value,
            Condition::Matches => compile(&constraint.value)?.is_match(value),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(rule.identifier == source.identifier || pattern.as_ref().is_some_and(|p| p.is_match(&source.identifier)))
}

fn convert(rule: &Rule, pattern: &Option<Regex>, source: &SourceOp) -> Result<SourceOp, EngineError> {
    let updates = rule.updates.as_ref();
    let updates = updates.ok_or_else(|| EngineError::user("missing destination for convert rule"))?;
    let template = if updates.identifier.is_empty() { &rule.identifier } else { &updates.identifier };
    let mut new = source.clone();
    new.identifier = match pattern.as_ref().and_then(|p| p.captures(&source.identifier)) {
        Some(captures) => {
            let mut text = String::new();
            captures.expand(template, &mut text);
            text
        }
        None => template.clone(),
    };
    new.attrs.extend(updates.attrs.clone());
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(action: Action, identifier: &str, to: &str) -> Rule {
        let updates = (!to.is_empty()).then(|| Updates { identifier: to.into(), ..Updates::default() });
        let kind = MatchKind::Wildcard;
        Rule { action, identifier: identifier.into(), kind, constraints: Vec::new(), updates }
    }

    fn outcome(rules: Vec<Rule>, identifier: &str) -> Result<String, String> {
        let source = SourceOp { identifier: identifier.into(), attrs: BTreeMap::new() };
        evaluate(&[SourcePolicy { rules }], source).map(|s| s.identifier).map_err(|e| e.to_string())
    }

    #[test]
    fn the_last_rule_that_matches_holds() {
        let rules = || vec![rule(Action::Deny, "*", ""), rule(Action::Allow, "docker-image://ok/*", "")];
        assert_eq!(outcome(rules(), "docker-image://ok/x"), Ok("docker-image://ok/x".into()));
        assert!(outcome(rules(), "https://h/x").unwrap_err().contains("denied by policy"));
    }

    #[test]
    fn parts_of_a_name_move_along() {
        let rules = vec![rule(Action::Convert, "docker-image://old/*:*", "docker-image://new/${1}:${2}-slim")];
        assert_eq!(outcome(rules, "docker-image://old/app:1"), Ok("docker-image://new/app:1-slim".into()));
    }

    #[test]
    fn rules_that_never_settle_are_stopped() {
        let rules = vec![rule(Action::Convert, "*", "${1}x")];
        assert!(outcome(rules, "a://b").unwrap_err().contains("too many"));
    }

    #[test]
    fn conditions_on_attributes() {
        let mut denies = rule(Action::Deny, "*", "");
        denies.constraints =
            vec![Constraint { key: "k".into(), value: "^v[0-9]$".into(), condition: Condition::Matches }];
        let policy = [SourcePolicy { rules: vec![denies] }];
        let with = |v: &str| SourceOp { identifier: "a://b".into(), attrs: BTreeMap::from([("k".into(), v.into())]) };
        assert!(evaluate(&policy, with("v1")).is_err());
        assert!(evaluate(&policy, with("w1")).is_ok());
    }

    #[test]
    fn mistakes_in_rules_are_told() {
        assert!(outcome(vec![rule(Action::Convert, "*", "")], "a://b").unwrap_err().contains("missing destination"));
        assert!(outcome(vec![rule(Action::Unknown(9), "*", "")], "a://b").unwrap_err().contains("unknown type"));
    }
}
