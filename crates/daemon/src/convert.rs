//! Between wire messages and the engine's own types.

use std::collections::BTreeMap;
use std::time::SystemTime;

use kiln_engine::error::Unsupported;
use kiln_engine::policy::{Action, Condition, Constraint, MatchKind, Rule, SourcePolicy, Updates};
use kiln_engine::{CacheSpec, EngineError, ExporterSpec, SolveRequest, wreck};
use kiln_llb::{Definition, pb};
use kiln_oci::Platform;
use kiln_session::errdetail::{self, Detail};
use kiln_session::proto::{control, policy};
use kiln_stdx::ErrorClass;
use prost::Message as _;
use tonic::{Code, Status};

/// Returns the status that tells a client of a failed build: text, place in the source, vertex.
pub fn status(error: &EngineError) -> Status {
    let code = match error.class() {
        ErrorClass::Canceled => Code::Cancelled,
        ErrorClass::Bug => Code::Internal,
        _ => Code::Unknown,
    };
    let mut details = Vec::new();
    if let Some(location) = &error.source_location {
        details.push(Detail::Source { info: location.info.clone(), ranges: location.ranges.clone() });
    }
    for place in error.further().map_or(&[][..], |further| &further.locations) {
        details.push(Detail::Source { info: place.info.clone(), ranges: place.ranges.clone() });
    }
    let denials = error.further().map_or(&[][..], |further| &further.denials);
    if !denials.is_empty() {
        details.push(Detail::Denied { messages: denials.to_vec() });
    }
    match error.further().and_then(|further| further.unsupported.clone()) {
        Some(Unsupported::Subrequest(name)) => details.push(Detail::Subrequest { name }),
        Some(Unsupported::Capability(name)) => details.push(Detail::FrontendCap { name }),
        None => {}
    }
    if let Some(vertex) = &error.vertex {
        details.push(Detail::Vertex { digest: vertex.to_string() });
        let ids = error.further().and_then(|further| further.wreck_ids.clone()).unwrap_or_default();
        // What cannot be read here was read before.
        let op = pb::Op::decode(ids.op.as_ref()).ok().filter(|op| op.op.is_some()).map(Box::new);
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let subject = ids.subject.map(|subject| match subject {
            wreck::Subject::Action(n) => errdetail::Subject::File(number(n)),
            wreck::Subject::Content(n) => errdetail::Subject::Cache(number(n)),
        });
        details.push(Detail::Solve { input_ids: ids.inputs, mount_ids: ids.mounts, op, subject });
    }
    // A hint is a line of the message: clients that know nothing of hints show it all the same.
    let text = match &error.hint {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    };
    let status = errdetail::to_status(code, &text, &details);
    match error.further() {
        Some(further) if !further.foreign.is_empty() => errdetail::with_foreign(&status, &further.foreign),
        _ => status,
    }
}

/// Returns the error that a client's frontend ended with.
pub fn error(status: &Status) -> EngineError {
    let class = match status.code() {
        Code::Cancelled => ErrorClass::Canceled,
        _ => ErrorClass::UserInput,
    };
    let mut error = EngineError::new(class, status.message());
    for detail in errdetail::details(status) {
        match detail {
            Detail::Source { info, ranges } => {
                let place = kiln_engine::error::Location { info, ranges };
                match &error.source_location {
                    None => error.source_location = Some(Box::new(place)),
                    Some(_) => error.further_mut().locations.push(place),
                }
            }
            Detail::Vertex { digest } => error.vertex = digest.parse().ok(),
            _ => {}
        }
    }
    let foreign = errdetail::foreign(status);
    if !foreign.is_empty() {
        error.further_mut().foreign = foreign;
    }
    error
}

/// Returns a wire time.
pub fn time(at: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(at)
}

/// Returns the definition of a message; the empty one stands for nothing.
pub fn definition(message: pb::Definition) -> Definition {
    Definition::from(message)
}

/// Returns the definitions of a map of messages.
pub fn definitions(map: BTreeMap<String, pb::Definition>) -> BTreeMap<String, Definition> {
    map.into_iter().map(|(name, message)| (name, definition(message))).collect()
}

/// Returns a platform from the wire.
pub fn platform(message: Option<pb::Platform>) -> Option<Platform> {
    message.map(|p| {
        let mut platform = Platform::new(&p.os, &p.architecture, &p.variant);
        platform.os_version = p.os_version;
        platform.os_features = p.os_features;
        platform
    })
}

/// Returns a policy from the wire.
///
/// # Errors
/// A rule without selector.
pub fn source_policy(message: policy::Policy) -> Result<SourcePolicy, Status> {
    let rules = message.rules.into_iter().map(|rule| {
        let selector = rule.selector.ok_or_else(|| Status::invalid_argument("invalid nil selector in policy"))?;
        let bad = |what: &str| Status::invalid_argument(format!("source policy: unknown {what}"));
        let constraint = |c: policy::AttrConstraint| {
            let condition = match policy::AttrMatch::try_from(c.condition).map_err(|_| bad("attr condition"))? {
                policy::AttrMatch::Equal => Condition::Equal,
                policy::AttrMatch::Notequal => Condition::NotEqual,
                policy::AttrMatch::Matches => Condition::Matches,
            };
            Ok(Constraint { key: c.key, value: c.value, condition })
        };
        Ok(Rule {
            action: match policy::PolicyAction::try_from(rule.action) {
                Ok(policy::PolicyAction::Allow) => Action::Allow,
                Ok(policy::PolicyAction::Deny) => Action::Deny,
                Ok(policy::PolicyAction::Convert) => Action::Convert,
                Err(_) => Action::Unknown(rule.action),
            },
            identifier: selector.identifier,
            kind: match policy::MatchType::try_from(selector.match_type).map_err(|_| bad("match type"))? {
                policy::MatchType::Wildcard => MatchKind::Wildcard,
                policy::MatchType::Exact => MatchKind::Exact,
                policy::MatchType::Regex => MatchKind::Regex,
            },
            constraints: selector.constraints.into_iter().map(constraint).collect::<Result<_, Status>>()?,
            updates: rule.updates.map(|u| Updates { identifier: u.identifier, attrs: u.attrs }),
        })
    });
    Ok(SourcePolicy { rules: rules.collect::<Result<_, Status>>()? })
}

/// Returns the build that a client asks for.
///
/// # Errors
/// A policy that cannot be understood.
pub fn solve_request(request: control::SolveRequest) -> Result<SolveRequest, Status> {
    if request.proxy_network {
        // Building without the guard that was asked for would be worse than not building.
        return Err(Status::unimplemented("the proxy network is not supported by this engine"));
    }
    let mut exporters: Vec<ExporterSpec> = request
        .exporters
        .into_iter()
        .enumerate()
        .map(|(number, e)| ExporterSpec { kind: e.r#type, attrs: e.attrs, id: number.to_string() })
        .collect();
    if exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        let attrs = request.exporter_attrs_deprecated;
        exporters.push(ExporterSpec { kind: request.exporter_deprecated, attrs, id: "0".to_owned() });
    }
    let cache = request.cache.unwrap_or_default();
    let specs = |entries: Vec<control::CacheOptionsEntry>| {
        entries.into_iter().map(|e| CacheSpec { kind: e.r#type, attrs: e.attrs }).collect::<Vec<_>>()
    };
    let mut cache_imports = specs(cache.imports);
    cache_imports.extend(cache.import_refs_deprecated.into_iter().map(|reference| CacheSpec {
        kind: "registry".to_owned(),
        attrs: BTreeMap::from([("ref".to_owned(), reference)]),
    }));
    Ok(SolveRequest {
        policies: request.source_policy.map(source_policy).transpose()?.into_iter().collect(),
        policy_session: request.source_policy_session,
        reference: request.r#ref,
        session: request.session,
        frontend: request.frontend,
        frontend_attrs: request.frontend_attrs,
        frontend_inputs: definitions(request.frontend_inputs),
        definition: request.definition.map(definition),
        exporters,
        session_exporters: request.enable_session_exporter,
        cache_imports,
        cache_exports: specs(cache.exports),
        entitlements: request.entitlements,
        internal: request.internal,
    })
}
