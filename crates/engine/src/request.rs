//! What a client asks for and what it gets, as the engine sees it: no wire types.

use std::collections::BTreeMap;

use kiln_llb::Definition;

use crate::policy::SourcePolicy;

/// One build.
#[derive(Debug, Clone, Default)]
pub struct SolveRequest {
    /// The client's name for the build; progress and history are asked for by it.
    pub reference: String,
    /// The session whose services the build may use.
    pub session: String,
    /// `dockerfile.v0`, `gateway.v0`, or empty: then `definition` is built, or the client drives the build itself.
    pub frontend: String,
    pub frontend_attrs: BTreeMap<String, String>,
    pub frontend_inputs: BTreeMap<String, Definition>,
    pub definition: Option<Definition>,
    pub exporters: Vec<ExporterSpec>,
    /// Ask the client for more outputs when the result is known.
    pub session_exporters: bool,
    pub cache_imports: Vec<CacheSpec>,
    pub cache_exports: Vec<CacheSpec>,
    /// What the client allows steps to do: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Rules over sources.
    pub policies: Vec<SourcePolicy>,
    /// The session of a client that decides over sources; empty for none.
    pub policy_session: String,
    /// Not shown in history.
    pub internal: bool,
}

/// One output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExporterSpec {
    /// `image`, `oci`, `docker`, `local` or `tar`.
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
    /// Tells outputs of one build apart in the session's metadata.
    pub id: String,
}

/// One remote cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheSpec {
    /// `local`, `registry`, `inline`, …
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
}

impl CacheSpec {
    /// Tells whether a failure of this cache is only a warning.
    pub fn ignores_errors(&self) -> bool {
        self.attrs.get("ignore-error").is_some_and(|v| v == "true" || v == "1")
    }
}

/// How a build ended well.
#[derive(Debug, Clone, Default)]
pub struct SolveResponse {
    /// What outputs and caches have to say: `containerimage.digest`, …
    pub exporter: BTreeMap<String, String>,
}

/// What a frontend is asked for while a build runs (LLBBridge `Solve`).
#[derive(Debug, Clone, Default)]
pub struct FrontendRequest {
    pub definition: Option<Definition>,
    pub frontend: String,
    pub attrs: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, Definition>,
    pub cache_imports: Vec<CacheSpec>,
    /// Rules over sources, beside those of the build.
    pub policies: Vec<SourcePolicy>,
    /// Build at once instead of when the result is used.
    pub evaluate: bool,
}
