//! The policies of one build: the rules that came with its requests, and a client that decides source by source.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_llb::Graph;
use kiln_llb::op::SourceOp;
use kiln_llb::pb;
use kiln_oci::{Platform, Reference};
use kiln_session::Session;
use kiln_session::proto::gateway::{ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use kiln_session::proto::policy::PolicyAction;
use kiln_session::proto::policysession::check_policy_response::Result as Answer;
use kiln_session::proto::policysession::{CheckPolicyRequest, DecisionResponse};
use kiln_stdx::limits;
use parking_lot::Mutex;

use super::{SourcePolicy, evaluate};
use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::source::git::GitSource;

/// How often a client may ask for more about one source, or replace it.
const QUESTIONS: usize = 10;

/// The policies of one build.
#[derive(Default)]
pub struct Policies {
    rules: Mutex<Vec<SourcePolicy>>,
    /// The session of the client that decides; empty for none.
    session: String,
}

impl Policies {
    /// Returns the policies of a request.
    pub fn new(rules: Vec<SourcePolicy>, session: String) -> Self {
        Self { rules: Mutex::new(rules), session }
    }

    /// Adds rules that hold from now on: those of a frontend.
    pub fn add(&self, rules: impl IntoIterator<Item = SourcePolicy>) {
        self.rules.lock().extend(rules);
    }

    fn is_empty(&self) -> bool {
        self.session.is_empty() && self.rules.lock().is_empty()
    }
}

impl Bridge {
    /// Returns a graph with the sources that the build's policies want.
    ///
    /// # Errors
    /// A source is denied, or the policy cannot be asked.
    pub async fn policed(&self, graph: Graph) -> Result<Graph, EngineError> {
        if self.build().policies.is_empty() {
            return Ok(graph);
        }
        // A client may take its time over each; it is asked about all of them at once.
        let questions = graph.vertices().iter().filter_map(|vertex| {
            let kiln_llb::Op::Source(source) = &vertex.op else { return None };
            Some(async move {
                let new = self.policed_source(source.clone(), vertex.platform.clone()).await?;
                Ok::<_, EngineError>((new != *source).then_some((vertex.digest, new)))
            })
        });
        let answers = futures::future::try_join_all(questions).await?;
        let changed: HashMap<_, _> = answers.into_iter().flatten().collect();
        if changed.is_empty() {
            return Ok(graph);
        }
        graph.replace_sources(|digest, _| Ok::<_, EngineError>(changed.get(digest).cloned()))
    }

    /// Returns the source that the build's policies want in place of one.
    ///
    /// # Errors
    /// It is denied, or the policy cannot be asked.
    pub async fn policed_source(&self, source: SourceOp, platform: Option<Platform>) -> Result<SourceOp, EngineError> {
        let policies = &self.build().policies;
        if policies.is_empty() {
            return Ok(source);
        }
        let rules = policies.rules.lock().clone();
        let mut source = normal(source);
        let mut left = QUESTIONS;
        loop {
            source = evaluate(&rules, source)?;
            if policies.session.is_empty() {
                return Ok(source);
            }
            let session = self.parts().sessions.get(&policies.session, limits::SESSION_WAIT).await?;
            match self.ask(&session, &source, platform.as_ref(), &mut left).await? {
                None => return Ok(source),
                Some(new) => source = normal(new),
            }
        }
    }

    /// Asks the client; returns the source it wants instead, if another.
    async fn ask(
        &self,
        session: &Arc<Session>,
        source: &SourceOp,
        platform: Option<&Platform>,
        left: &mut usize,
    ) -> Result<Option<SourceOp>, EngineError> {
        let wire = pb::SourceOp { identifier: source.identifier.clone(), attrs: source.attrs.clone() };
        let mut known = ResolveSourceMetaResponse { source: Some(wire.clone()), ..Default::default() };
        loop {
            *left = left.checked_sub(1).ok_or_else(|| EngineError::user("too many policy requests"))?;
            let request = CheckPolicyRequest {
                platform: platform.map(pb::Platform::from),
                source: Some(known.clone()),
                caps: std::collections::BTreeMap::new(),
            };
            let decision = match session.check_policy(request).await?.result {
                Some(Answer::Decision(decision)) => decision,
                Some(Answer::Request(wish)) => {
                    if wish.source.as_ref() != Some(&wire) {
                        return Err(EngineError::user("policy requested different source"));
                    }
                    known = self.known_of(source, &wish, wire.clone()).await?;
                    continue;
                }
                None => return Err(EngineError::user("no decision in policy response")),
            };
            return decided(source, decision);
        }
    }

    /// Finds out about a source what the client wants to know.
    async fn known_of(
        &self,
        source: &SourceOp,
        wish: &ResolveSourceMetaRequest,
        wire: pb::SourceOp,
    ) -> Result<ResolveSourceMetaResponse, EngineError> {
        let mut known = ResolveSourceMetaResponse { source: Some(wire), ..Default::default() };
        if let Some(name) = source.identifier.strip_prefix("docker-image://") {
            let query = crate::source::lookup::ImageQuery {
                name,
                platform: wish.platform.clone().map(Platform::from),
                layout: None,
                pull: wish.resolve_mode == "pull",
                log_name: &wish.log_name,
            };
            let found = crate::source::lookup::image_config(self, query).await?;
            let no_config = wish.image.as_ref().is_some_and(|i| i.no_config);
            known.image = Some(ResolveSourceImageResponse {
                digest: found.root.to_string(),
                config: if no_config { Default::default() } else { found.config_json },
                attestation_chain: None,
            });
        }
        Ok(known)
    }
}

fn decided(source: &SourceOp, decision: DecisionResponse) -> Result<Option<SourceOp>, EngineError> {
    match PolicyAction::try_from(decision.action) {
        Ok(PolicyAction::Allow) => Ok(None),
        Ok(PolicyAction::Convert) => {
            let new = decision.update;
            let new = new.ok_or_else(|| EngineError::user("convert action requires updated source"))?;
            Ok(Some(SourceOp { identifier: new.identifier, attrs: new.attrs }))
        }
        _ => {
            let mut error =
                EngineError::user(format!("source {:?} not allowed by policy: action DENY", source.identifier));
            error.further_mut().denials = decision.deny_messages.into_iter().map(|m| m.message).collect();
            Err(error)
        }
    }
}

/// Brings an identifier into the one form that rules are written for.
fn normal(mut source: SourceOp) -> SourceOp {
    let identifier = match source.split() {
        Some(("docker-image", name)) => Reference::parse(name).ok().map(|r| format!("docker-image://{r}")),
        Some(("git", _)) => GitSource::new(&source).ok().map(|git| git.identifier()),
        _ => None,
    };
    if let Some(identifier) = identifier {
        source.identifier = identifier;
    }
    source
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn identifiers_have_one_form() {
        let form = |id: &str| normal(SourceOp { identifier: id.into(), attrs: BTreeMap::new() }).identifier;
        assert_eq!(form("docker-image://alpine"), "docker-image://docker.io/library/alpine:latest");
        assert_eq!(form("git://forge.test/a/../b.git#v1:x/./y"), "git://forge.test/b.git#v1:x/y");
        assert_eq!(form("https://h/x"), "https://h/x");
    }

    #[test]
    fn a_denial_carries_its_reasons() {
        let source = SourceOp { identifier: "https://h/x".into(), attrs: BTreeMap::new() };
        let message = |text: &str| kiln_session::proto::policysession::DenyMessage { message: text.into() };
        let decision = DecisionResponse {
            action: PolicyAction::Deny as i32,
            deny_messages: vec![message("one"), message("two")],
            update: None,
        };
        let error = decided(&source, decision).unwrap_err();
        assert_eq!(error.further().unwrap().denials, ["one", "two"]);
        assert!(error.to_string().contains("not allowed by policy"));
    }
}
