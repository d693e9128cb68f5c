//! Frontends: what turns a request's options into graphs. One is built in; `gateway.v0` with the name of the official
//! Dockerfile frontend leads to it too. All others are images.

pub mod dockerfile;
pub mod gateway;
mod options;

use kiln_dockerfile::directive::is_builtin;

use crate::bridge::{Bridge, FrontendResult};
use crate::error::EngineError;
use crate::request::FrontendRequest;

/// Runs the frontend that a request names.
///
/// # Errors
/// An unknown frontend, or whatever it fails with.
pub async fn run(bridge: &Bridge, request: &FrontendRequest) -> Result<FrontendResult, EngineError> {
    match request.frontend.as_str() {
        "dockerfile.v0" if !bridge.parts().frontends.dockerfile => {
            Err(EngineError::user("frontend dockerfile.v0 is disabled"))
        }
        "dockerfile.v0" => dockerfile::run(bridge, request).await,
        "gateway.v0" => match request.attrs.get("source").map(String::as_str).filter(|s| !s.is_empty()) {
            Some(source) if is_builtin(source) => dockerfile::run(bridge, request).await,
            Some(source) => gateway::run(bridge, request, source).await,
            None => Err(EngineError::user("no source specified for gateway")),
        },
        other => Err(EngineError::user(format!("invalid frontend: {other}"))),
    }
}

/// Returns a request that asks for the built-in frontend by its own name as one that says so plainly.
pub fn plain(mut request: FrontendRequest) -> FrontendRequest {
    const OWN: &str = "dockerfile.v0";
    if request.frontend == "gateway.v0" && request.attrs.get("source").is_some_and(|source| source == OWN) {
        request.attrs.remove("source");
        request.frontend = OWN.to_owned();
    }
    request
}

/// Returns the frontend that a Dockerfile or the request asks for instead of the built-in one, with its command line.
///
/// A frontend that was started for such a line must not start another one.
pub fn other_syntax(request: &FrontendRequest, text: &[u8]) -> Option<(String, String)> {
    if request.attrs.contains_key("cmdline") {
        return None;
    }
    let asked = request.attrs.get("build-arg:BUILDKIT_SYNTAX").filter(|line| !line.is_empty());
    let (image, line) = match asked {
        Some(line) => (line.split_whitespace().next().unwrap_or_default().to_owned(), line.clone()),
        None => kiln_dockerfile::directive::detect_syntax(text).map(|s| (s.image, s.command_line))?,
    };
    (!image.is_empty() && !is_builtin(&image)).then_some((image, line))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{other_syntax, plain};
    use crate::request::FrontendRequest;

    #[test]
    fn a_file_may_ask_for_another_frontend() {
        let with = |attrs: &[(&str, &str)]| FrontendRequest {
            attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>(),
            ..FrontendRequest::default()
        };
        let text = b"# syntax=me/fe:1 --fast\nFROM x\n";
        let found = other_syntax(&with(&[]), text).unwrap();
        assert_eq!((found.0.as_str(), found.1.as_str()), ("me/fe:1", "me/fe:1 --fast"));
        assert_eq!(other_syntax(&with(&[]), b"# syntax=docker/dockerfile:1\n"), None);
        assert_eq!(other_syntax(&with(&[("cmdline", "me/fe:1")]), text), None);
        let asked = with(&[("build-arg:BUILDKIT_SYNTAX", "you/fe:2")]);
        assert_eq!(other_syntax(&asked, text).unwrap().0, "you/fe:2");
    }

    #[test]
    fn the_built_in_frontend_has_one_name() {
        let request = |source: &str| {
            let attrs = BTreeMap::from([("source".to_owned(), source.to_owned())]);
            plain(FrontendRequest { frontend: "gateway.v0".into(), attrs, ..FrontendRequest::default() })
        };
        let own = request("dockerfile.v0");
        assert_eq!((own.frontend.as_str(), own.attrs.len()), ("dockerfile.v0", 0));
        let other = request("me/fe:1");
        assert_eq!((other.frontend.as_str(), other.attrs.len()), ("gateway.v0", 1));
    }
}
