//! Options and inputs become the request the engine is sent.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kiln_llb::pb;
use kiln_session::attrs;
use kiln_session::proto::policy::Policy;
use serde::Serialize;

use super::ca;
use super::context::Inputs;
use super::options::BuildOptions;
use super::output::Output;
use crate::error::CliError;

/// A build as the control API takes it, without the parts that belong to the connection (session, reference).
#[derive(Clone, Debug, PartialEq)]
pub struct BuildRequest {
    /// Frontend name: `dockerfile.v0`, or `gateway.v0` when `BUILDKIT_SYNTAX` chooses an image.
    pub frontend: Cow<'static, str>,
    /// Frontend attributes.
    pub attrs: BTreeMap<String, String>,
    /// Exporters, in the order of their numbers.
    pub exporters: Vec<Exporter>,
    /// Cache imports.
    pub imports: Vec<CacheOption>,
    /// Cache exports.
    pub exports: Vec<CacheOption>,
    /// Entitlements.
    pub entitlements: Vec<String>,
    /// A graph to build where no frontend is named.
    pub definition: Option<pb::Definition>,
    /// Rules for sources.
    pub policy: Option<Policy>,
}

/// An exporter and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// Type on the wire.
    pub kind: String,
    /// Attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A cache import or export, in the JSON form of the frontend attribute `cache-imports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheOption {
    /// Backend.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Attributes.
    #[serde(rename = "Attrs")]
    pub attrs: BTreeMap<String, String>,
}

/// Builds the request. `context_url` stands for an uploaded context; the cache lists have been resolved already.
pub fn build(
    options: &BuildOptions,
    inputs: &Inputs,
    context_url: Option<&str>,
    imports: Vec<CacheOption>,
    mut exports: Vec<CacheOption>,
) -> Result<BuildRequest, CliError> {
    let mut attrs = inputs.attrs.clone();
    if let Some(url) = context_url {
        attrs.insert("context".to_owned(), url.to_owned());
    }
    let frontend = frontend(options, &mut attrs)?;
    let is_set = |name: &str| options.build_args.get(name).and_then(|v| crate::env::parse_bool(v)) == Some(true);
    if is_set("BUILDKIT_INLINE_CACHE") {
        exports.push(CacheOption { kind: "inline".to_owned(), attrs: BTreeMap::new() });
    }
    if is_set("BUILDKIT_MULTI_PLATFORM") {
        attrs.insert("multi-platform".to_owned(), "true".to_owned());
    }
    attrs.extend(options.build_args.iter().map(|(k, v)| (format!("build-arg:{k}"), v.clone())));
    attrs.extend(options.labels.iter().map(|(k, v)| (format!("label:{k}"), v.clone())));
    let present = options.attests.iter().filter_map(|(k, v)| Some((k, v.as_ref()?)));
    attrs.extend(present.map(|(k, v)| (format!("attest:{k}"), v.clone())));
    if options.pull {
        attrs.insert("image-resolve-mode".to_owned(), "pull".to_owned());
    }
    attrs.extend(single(options));
    if !imports.is_empty() {
        let json = serde_json::to_string(&imports).map_err(|e| CliError::user(format!("invalid cache: {e}")))?;
        attrs.insert("cache-imports".to_owned(), json);
    }
    let mut entitlements = options.allow.clone();
    if options.network.as_deref() == Some("host") && !entitlements.iter().any(|e| e == "network.host") {
        entitlements.push("network.host".to_owned());
    }
    if let Some(call) = &options.call {
        attrs.insert("requestid".to_owned(), call.request());
        let caps = attrs.get("frontend.caps").map(|caps| format!("{caps},")).unwrap_or_default();
        attrs.insert("frontend.caps".to_owned(), format!("{caps}moby.buildkit.frontend.subrequests+forward"));
    }
    let exporters = options.outputs.iter().map(|o| exporter(o, options)).collect::<Result<_, _>>()?;
    let frontend = frontend.into();
    Ok(BuildRequest { frontend, attrs, exporters, imports, exports, entitlements, definition: None, policy: None })
}

/// Returns the attributes that stand for one option each.
fn single(options: &BuildOptions) -> impl Iterator<Item = (String, String)> {
    let platform = options.platform.as_ref().map(ToString::to_string);
    let shm_size = options.shm_size.map(|b| b.to_string());
    let hosts = Some(options.add_hosts.clone()).filter(|v| !v.is_empty());
    let ulimits = Some(options.ulimits.clone()).filter(|v| !v.is_empty());
    let ca = options.build_ca.as_ref().map(|_| ca::SESSION_ID.to_owned());
    // Engines of others know nothing of it and empty the mounts of steps whose cache is ignored.
    let mounts = match (options.empty_mounts, &options.no_cache) {
        (true, _) => Some("empty".to_owned()),
        (false, Some(_)) => Some("keep".to_owned()),
        (false, None) => None,
    };
    let all = [
        (attrs::CACHE_MOUNTS, mounts),
        (attrs::MAX_AGE, options.max_age.map(|seconds| seconds.to_string())),
        (attrs::OFFLINE, options.offline.then(|| "true".to_owned())),
        ("target", options.target.clone()),
        ("no-cache", options.no_cache.clone()),
        ("platform", platform),
        ("force-network-mode", options.network.clone()),
        ("add-hosts", hosts),
        ("shm-size", shm_size),
        ("ulimit", ulimits),
        (attrs::BUILD_CA, ca),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)))
}

fn frontend(options: &BuildOptions, attrs: &mut BTreeMap<String, String>) -> Result<&'static str, CliError> {
    let Some(cmdline) = options.build_args.get("BUILDKIT_SYNTAX") else { return Ok("dockerfile.v0") };
    let Some(image) = cmdline.split_whitespace().next() else {
        return Err(CliError::user(
            "empty BUILDKIT_SYNTAX build-arg is invalid, use --build-arg BUILDKIT_SYNTAX without '=' for optional behavior",
        ));
    };
    attrs.insert("source".to_owned(), image.to_owned());
    attrs.insert("cmdline".to_owned(), cmdline.clone());
    Ok("gateway.v0")
}

fn exporter(output: &Output, options: &BuildOptions) -> Result<Exporter, CliError> {
    let mut attrs = output.attrs.clone();
    let names = matches!(output.kind.as_str(), "image" | "oci" | "docker");
    if names && !options.tags.is_empty() {
        attrs.insert("name".to_owned(), options.tags.join(","));
    }
    if names {
        attrs.extend(options.annotations.clone());
    }
    let unnamed = attrs.get("name").is_none_or(String::is_empty);
    let pushes = attrs.get("push").and_then(|v| crate::env::parse_bool(v)) == Some(true);
    if output.kind == "image" && unnamed && pushes {
        return Err(CliError::user("tag is needed when pushing to registry").hint("name the image with -t NAME"));
    }
    if names && cuts_times(&attrs, options) {
        attrs.insert("rewrite-timestamp".to_owned(), "true".to_owned());
    }
    Ok(Exporter { kind: output.kind.clone(), attrs })
}

/// Tells whether file times in new layers are to be cut to SOURCE_DATE_EPOCH.
///
/// Who sets it wants the same image from the same input, which it is not while files carry the time of their making;
/// other clients have to ask for that. An output that says what it wants, or unpacks (which excludes it), is left alone.
fn cuts_times(attrs: &BTreeMap<String, String>, options: &BuildOptions) -> bool {
    let epoch = attrs.get("source-date-epoch").or_else(|| options.build_args.get("SOURCE_DATE_EPOCH"));
    let unpacks = attrs.get("unpack").and_then(|v| crate::env::parse_bool(v)) == Some(true);
    epoch.is_some_and(|e| !e.is_empty()) && !unpacks && !attrs.contains_key("rewrite-timestamp")
}

#[cfg(test)]
mod tests;
