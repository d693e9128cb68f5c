//! Frontends: what turns a request's options into graphs. One is built in; `gateway.v0` with the name of the official
//! Dockerfile frontend leads to it too.

pub mod dockerfile;
mod options;

use crate::bridge::{Bridge, FrontendResult};
use crate::error::EngineError;
use crate::request::FrontendRequest;

/// Runs the frontend that a request names.
///
/// # Errors
/// An unknown frontend, or whatever it fails with.
pub async fn run(bridge: &Bridge, request: &FrontendRequest) -> Result<FrontendResult, EngineError> {
    match request.frontend.as_str() {
        "dockerfile.v0" => dockerfile::run(bridge, request).await,
        "gateway.v0" => match request.attrs.get("source").map(String::as_str) {
            Some(source) if is_builtin(source) => dockerfile::run(bridge, request).await,
            Some(source) => Err(EngineError::user(format!("frontend image {source} cannot be run by this engine"))
                .with_hint("remove the `# syntax=` line, or name docker/dockerfile:1")),
            None => Err(EngineError::user("no source specified for gateway")),
        },
        other => Err(EngineError::user(format!("invalid frontend: {other}"))),
    }
}

/// Tells whether an image reference is the Dockerfile frontend at a level that the built-in one implements.
fn is_builtin(source: &str) -> bool {
    let name = source.trim_start_matches("docker.io/");
    let Some((name, tag)) = name.split_once(':').or(Some((name, "1"))) else { return false };
    let level = |tag: &str| tag == "1" || tag.strip_prefix("1.").is_some_and(|minor| minor.parse::<u32>().is_ok());
    name == "docker/dockerfile" && (tag == "latest" || level(tag)) || name == "dockerfile.v0"
}

#[cfg(test)]
mod tests {
    use super::is_builtin;

    #[test]
    fn the_official_frontend_is_built_in() {
        for (source, builtin) in [
            ("docker/dockerfile:1", true),
            ("docker.io/docker/dockerfile:1.7", true),
            ("docker/dockerfile", true),
            ("docker/dockerfile:1-labs", false),
            ("docker/dockerfile:1@sha256:00", false),
            ("me/frontend:1", false),
        ] {
            assert_eq!(is_builtin(source), builtin, "{source}");
        }
    }
}
