//! `buildctl build`: a frontend, or a definition on standard input, with outputs and caches as they are written there.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::Path;

use kiln_llb::pb;
use kiln_stdx::Digest;
use prost::Message;
use serde_json::{Map, Value};

use super::args::BuildFlags;
use super::{To, policy};
use crate::build::cache::{self, CacheEntry};
use crate::build::cache_env;
use crate::build::context::Inputs;
use crate::build::flags::BuildFlags as OwnFlags;
use crate::build::local_cache::{self, Caches};
use crate::build::options::BuildOptions;
use crate::build::output::{self, Wishes};
use crate::build::request::{BuildRequest, Exporter};
use crate::build::{result, write};
use crate::client::offer::Offer;
use crate::client::solve::{Solve, Solved};
use crate::commands::{block_on, cancel_on_signals, say};
use crate::env::Env;
use crate::error::{CliError, io_text};
use crate::progress::{Mode, ProgressEnv, display};

/// Option by which a frontend is asked something in place of a build.
const REQUEST: &str = "requestid";
/// What a client has to be able to for that.
const SUBREQUESTS: &str = "moby.buildkit.frontend.subrequests";

/// Builds.
pub fn run(flags: BuildFlags, to: &To<'_>) -> Result<(), CliError> {
    refuse(&flags)?;
    let env = to.env;
    let progress = ProgressEnv::read(|name| env.var(name).map(str::to_owned), std::io::stderr().is_terminal());
    let mode = Mode::choose(Some(&flags.progress), false, &progress)?;
    let mut options = options(&flags, env, &progress)?;
    options.mode = mode;
    let exports = cache::parse(&flags.export_cache)?.into_iter().map(|entry| export(entry, env)).collect::<Vec<_>>();
    let imports =
        cache::parse(&flags.import_cache)?.into_iter().map(|entry| cache_env::github(entry, env)).collect::<Vec<_>>();
    let caches = local_cache::resolve(&imports, &exports, env)?;
    let inputs = inputs(&flags, env)?;
    let request = request(&flags, &options, &inputs, &caches, env)?;
    block_on(build(flags, options, inputs, caches, request, progress, to))
}

fn refuse(flags: &BuildFlags) -> Result<(), CliError> {
    for (asked, name) in [
        (flags.proxy_network, "--proxy-network"),
        (!flags.registry_auth_tlscontext.is_empty(), "--registry-auth-tlscontext"),
        (flags.debug_json_cache_metrics.is_some(), "--debug-json-cache-metrics"),
    ] {
        if asked {
            return Err(CliError::user(format!("{name} is not supported")));
        }
    }
    Ok(())
}

/// Reads the flags that both clients share; an output is given only when one is asked for.
fn options(flags: &BuildFlags, env: &Env, progress: &ProgressEnv) -> Result<BuildOptions, CliError> {
    let own = OwnFlags {
        context: vec![".".to_owned()],
        network: "default".to_owned(),
        secret: flags.secret.clone(),
        ssh: flags.ssh.clone(),
        allow: flags.allow.clone(),
        output: vec!["type=cacheonly".to_owned()],
        provenance: Some("false".to_owned()),
        ..OwnFlags::default()
    };
    let mut options = BuildOptions::new(own, env, progress)?;
    if !flags.output.is_empty() {
        options.outputs = output::parse(&flags.output, Wishes::default(), env)?;
    }
    Ok(options)
}

fn export(mut entry: CacheEntry, env: &Env) -> CacheEntry {
    entry.attrs.entry("mode".to_owned()).or_insert_with(|| "min".to_owned());
    cache_env::github(entry, env)
}

fn pairs(values: &[String], flag: &str) -> Result<BTreeMap<String, String>, CliError> {
    let pair = |value: &String| {
        let (name, value) = value
            .split_once('=')
            .ok_or_else(|| CliError::user(format!("invalid {flag}: invalid value {value:?}, expected key=value")))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    values.iter().map(pair).collect()
}

fn inputs(flags: &BuildFlags, env: &Env) -> Result<Inputs, CliError> {
    let mut inputs = Inputs::default();
    for (name, dir) in pairs(&flags.local, "local")? {
        let path = env.cwd().join(&dir);
        if !path.is_dir() {
            return Err(CliError::user(format!("invalid local: {dir} is not a directory")));
        }
        inputs.dirs.insert(name, path);
    }
    for (name, dir) in pairs(&flags.oci_layout, "oci-layout")? {
        inputs.layouts.insert(name, env.cwd().join(dir));
    }
    // Builds of the same directories transfer only what has changed.
    let dirs: Vec<String> = inputs.dirs.values().map(|path| path.display().to_string()).collect();
    "Dockerfile".clone_into(&mut inputs.dockerfile);
    inputs.shared_key = Digest::of(dirs.join("\0")).to_string();
    Ok(inputs)
}

/// Returns the options of the frontend; a build argument without a value has the one of the environment, if any.
fn attributes(flags: &BuildFlags, env: &Env) -> Result<BTreeMap<String, String>, CliError> {
    let mut attrs = BTreeMap::new();
    if let Some(epoch) = env.var("SOURCE_DATE_EPOCH") {
        attrs.insert("build-arg:SOURCE_DATE_EPOCH".to_owned(), epoch.to_owned());
    }
    for option in &flags.opt {
        match option.strip_prefix("build-arg:").filter(|name| !name.is_empty() && !name.contains('=')) {
            Some(name) => {
                if let Some(value) = env.var(name) {
                    attrs.insert(option.clone(), value.to_owned());
                }
            }
            None => attrs.extend(pairs(std::slice::from_ref(option), "opt")?),
        }
    }
    if attrs.contains_key(REQUEST) {
        attrs.entry("frontend.caps".to_owned()).or_insert_with(|| SUBREQUESTS.to_owned());
    }
    Ok(attrs)
}

fn request(
    flags: &BuildFlags,
    options: &BuildOptions,
    inputs: &Inputs,
    caches: &Caches,
    env: &Env,
) -> Result<BuildRequest, CliError> {
    let mut attrs = attributes(flags, env)?;
    attrs.extend(inputs.attrs.clone());
    let definition = match flags.frontend.is_empty() {
        true => Some(definition(flags.no_cache)?),
        false => None,
    };
    if definition.is_none() && flags.no_cache {
        attrs.insert("no-cache".to_owned(), String::new());
    }
    if !caches.imports.is_empty() && definition.is_none() {
        let json = serde_json::to_string(&caches.imports).map_err(|e| CliError::user(e.to_string()))?;
        attrs.entry("cache-imports".to_owned()).or_insert(json);
    }
    let exporter = |o: &output::Output| Exporter { kind: o.kind.clone(), attrs: o.attrs.clone() };
    Ok(BuildRequest {
        frontend: flags.frontend.clone().into(),
        attrs,
        exporters: options.outputs.iter().map(exporter).collect(),
        imports: caches.imports.clone(),
        exports: caches.exports.clone(),
        entitlements: flags.allow.clone(),
        definition,
        policy: flags.source_policy_file.as_ref().map(|path| policy::read(&env.cwd().join(path))).transpose()?,
    })
}

/// Reads a definition from standard input.
fn definition(no_cache: bool) -> Result<pb::Definition, CliError> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(CliError::user("please specify --frontend or pipe LLB definition to stdin"));
    }
    let mut data = Vec::new();
    stdin.read_to_end(&mut data).map_err(|e| CliError::user(format!("failed to read input: {}", io_text(&e))))?;
    let bad = |e: prost::DecodeError| CliError::user(format!("failed to parse input: {e}"));
    let mut definition = pb::Definition::decode(data.as_slice()).map_err(bad)?;
    if definition.def.is_empty() {
        return Err(CliError::user("empty definition sent to build. Specify --frontend instead?"));
    }
    if no_cache {
        for op in &definition.def {
            definition.metadata.entry(Digest::of(op).to_string()).or_default().ignore_cache = true;
        }
    }
    Ok(definition)
}

async fn build(
    flags: BuildFlags,
    options: BuildOptions,
    mut inputs: Inputs,
    caches: Caches,
    request: BuildRequest,
    progress: ProgressEnv,
    to: &To<'_>,
) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let engine = tokio::select! {
        engine = to.engine() => engine?,
        () = cancel.cancelled() => return Err(CliError::canceled()),
    };
    let offer = Offer::new(&options, &mut inputs, &caches, to.env)?;
    let (mut feed, outcome) = display::start(options.mode, &progress, "");
    let mut traced = None;
    if let Some(path) = &flags.trace {
        let (trace, done) = display::start_at(trace(&to.env.cwd().join(path))?, Mode::RawJson, &progress, "");
        feed = feed.and(trace);
        traced = Some(done);
    }
    let asks = request.attrs.contains_key(REQUEST);
    let solve =
        Solve { engine: &engine, request, offer, feed, dockerfile: inputs.dockerfile.clone(), asks, why: false };
    let reference = solve.reference();
    if let Some(path) = &flags.ref_file {
        save(&to.env.cwd().join(path), reference.as_bytes())?;
    }
    let solved = solve.run_as(reference, &cancel).await;
    // The feeds are gone, so the displays are drawing their ends.
    let _ = outcome.await;
    if let Some(done) = traced {
        let _ = done.await;
    }
    finish(&flags, &options, &caches, &solved?, to.env)
}

fn trace(path: &Path) -> Result<display::Place, CliError> {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let file = file.map_err(|e| CliError::user(format!("cannot write {}: {}", path.display(), io_text(&e))))?;
    Ok(display::Place::File(std::sync::Arc::new(file)))
}

fn save(path: &Path, data: &[u8]) -> Result<(), CliError> {
    write::atomically(path, data)
        .map_err(|e| CliError::environment(format!("writing {}: {}", path.display(), io_text(&e))))
}

/// Leaves behind what was asked for.
fn finish(
    flags: &BuildFlags,
    options: &BuildOptions,
    caches: &Caches,
    solved: &Solved,
    env: &Env,
) -> Result<(), CliError> {
    for warning in result::update_indexes(&solved.response, &caches.update, &options.outputs)? {
        say(&format!("WARNING: {warning}"));
    }
    let (told, response): (Map<_, _>, Map<_, _>) =
        solved.response.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).partition(|(name, _)| {
            flags.opt.iter().any(|o| o.starts_with("requestid=")) && name.starts_with("result.")
        });
    if let Some(path) = &flags.metadata_file {
        let shown = response.iter().map(|(k, v)| (k.clone(), result::decoded(k, v.as_str().unwrap_or_default())));
        let text = serde_json::to_vec_pretty(&Value::Object(shown.collect()));
        save(&env.cwd().join(path), &text.map_err(|e| CliError::environment(e.to_string()))?)?;
    }
    match told.get("result.txt").and_then(Value::as_str) {
        Some(text) => crate::print(text),
        None => told.iter().try_for_each(|(k, v)| crate::print(&format!("{k}\n{}\n", v.as_str().unwrap_or_default()))),
    }
}
