//! The built-in Dockerfile frontend: reads the file, plans, looks up what the plan wants, lowers, solves.

use std::collections::BTreeMap;

use kiln_dockerfile::subrequest;
use kiln_dockerfile::{
    BuildOptions, Diagnostic, DockerfileError, FrontendOptions, Lowered, MainContext, NoCache, Resolved, ResolvedImage,
    Wanted, ast::Dockerfile,
};
use kiln_llb::builder::ResolveMode;
use kiln_llb::{Definition, pb};
use kiln_oci::Platform;
use kiln_stdx::{Digest, ErrorClass, StableHasher};

use super::options::Files;
use crate::bridge::{Bridge, FrontendResult, ResultRefs};
use crate::build::CacheMounts;
use crate::error::{EngineError, Location, Unsupported};
use crate::events::{Event, WarningEvent};
use crate::inspect;
use crate::request::{CacheSpec, FrontendRequest};
use crate::sbom;
use crate::source::{lookup, offline};

/// How often a plan may ask for more: each base image may add instructions that name further ones.
const ROUNDS: usize = 64;
/// Bytes of source text that the places of one error may hold together.
const PLACES: usize = 32 << 10;

/// Builds the Dockerfile that a request's options name.
///
/// # Errors
/// A file that is missing or wrong, a base image that cannot be had, options that contradict each other.
pub async fn run(bridge: &Bridge, request: &FrontendRequest) -> Result<FrontendResult, EngineError> {
    let options = super::options::parse(request, &bridge.build().settings.session)?;
    let question = options.request_id.as_deref();
    if question == Some(subrequest::DESCRIBE) {
        return Ok(FrontendResult { metadata: subrequest::describe(), ..FrontendResult::default() });
    }
    let mut files = Files::new(request, &options)?;
    bridge.set_slots(slots(request, &options.platforms));
    bridge.build().circumstances.lock().no_cache = match &options.build.no_cache {
        NoCache::All => Some("--no-cache".to_owned()),
        NoCache::Stages(stages) => Some(format!("--no-cache-filter={}", stages.join(","))),
        NoCache::None if bridge.build().settings.cache_mounts == CacheMounts::Emptied => {
            Some("--no-cache=mounts".to_owned())
        }
        NoCache::None => None,
    };
    for name in &options.cache_from {
        let attrs = BTreeMap::from([("ref".to_owned(), name.clone())]);
        crate::cache::import(bridge, &CacheSpec { kind: "registry".to_owned(), attrs }).await?;
    }
    let source = read_dockerfile(bridge, &mut files).await?;
    if let Some((image, line)) = super::other_syntax(request, &source.text) {
        let mut request = request.clone();
        request.attrs.insert("cmdline".to_owned(), line);
        request.attrs.insert("source".to_owned(), image.clone());
        let result = Box::pin(super::gateway::run(bridge, &request, &image)).await;
        return result.map_err(|error| at_syntax(error, &request, &source));
    }
    let parsed = kiln_dockerfile::parse(&source.name, &source.text);
    let ignore = read_ignore_file(bridge, &files).await?;
    if let Some(question) = question {
        let mut options = files.options(&options, options.platforms.first());
        options.ignore_patterns.clone_from(&ignore.patterns);
        options.source_definition.clone_from(&source.definition);
        let metadata = answer_question(bridge, question, parsed, options, &source).await?;
        return Ok(FrontendResult { metadata, ..FrontendResult::default() });
    }
    let file = parsed.map_err(|e| {
        warn(bridge, &e.warnings, &source);
        located(e, &source)
    })?;
    Task { bridge, request, options: &options, files: &files, source: &source, file: &file, ignore }.build().await
}

/// Places an error that has no place at the line that asks for the frontend.
fn at_syntax(mut error: EngineError, request: &FrontendRequest, source: &SourceFile) -> EngineError {
    let by_argument = request.attrs.get("build-arg:BUILDKIT_SYNTAX").is_some_and(|v| !v.is_empty());
    if let Some(syntax) = kiln_dockerfile::directive::detect_syntax(&source.text)
        && error.source_location.is_none()
        && !by_argument
    {
        let range = lines(syntax.lines.first, syntax.lines.last);
        error.source_location = Some(Box::new(Location { info: info(source), ranges: vec![range] }));
    }
    error
}

/// A Dockerfile to be built for one or more platforms.
struct Task<'a> {
    bridge: &'a Bridge,
    request: &'a FrontendRequest,
    options: &'a FrontendOptions,
    files: &'a Files,
    source: &'a SourceFile,
    file: &'a Dockerfile,
    ignore: Ignore,
}

impl Task<'_> {
    async fn build(&self) -> Result<FrontendResult, EngineError> {
        let Self { bridge, options, source, .. } = self;
        let (platforms, multi) = (&options.platforms, options.build.multi_platform);
        let mut result = FrontendResult::default();
        let mut refs = BTreeMap::new();
        let mut names = Vec::new();
        let wanted: Vec<Option<Platform>> =
            if platforms.is_empty() { vec![None] } else { platforms.iter().cloned().map(Some).collect() };
        let scanner = self.scanner().await?;
        let mut scans = Vec::new();
        for platform in wanted {
            let lowered = self.lower(platform).await?;
            // What is wrong with the file is wrong for every platform; once is enough.
            if names.is_empty() {
                warn(bridge, &lowered.warnings, source);
            }
            let reference = bridge.define(sourced(lowered.definition.clone(), source)).await?;
            let id = named(&lowered.platform);
            let suffix = if multi { format!("/{id}") } else { String::new() };
            result.metadata.insert(format!("containerimage.config{suffix}"), lowered.config_json.clone());
            if let Some(base) = &lowered.base_config {
                result.metadata.insert(format!("containerimage.base.config{suffix}"), base.to_config_json()?);
            }
            if let Some(epoch) = lowered.epoch {
                result.metadata.insert("source.date.epoch".to_owned(), epoch.to_string().into_bytes());
            }
            names.push(serde_json::json!({ "ID": id, "Platform": lowered.platform }));
            scans.push(sbom::Target {
                id: id.clone(),
                core: lowered.definition,
                extras: lowered.scans,
                no_cache: lowered.no_cache,
                epoch: lowered.epoch,
            });
            if multi {
                refs.insert(id, reference);
            } else {
                result.refs = ResultRefs::Single(reference);
            }
        }
        if multi {
            result.refs = ResultRefs::Map(refs);
        }
        let json = serde_json::json!({ "Platforms": names }).to_string();
        result.metadata.insert("refs.platforms".to_owned(), json.into_bytes());
        if let Some(scanner) = scanner {
            scanner.attest(bridge, &scans, &mut result).await?;
        }
        Ok(result)
    }

    /// Returns who scans the results, if somebody is to. It runs on this machine, whatever is built.
    async fn scanner(&self) -> Result<Option<sbom::Scanner>, EngineError> {
        let attrs = &self.request.attrs;
        let Some(wanted) = sbom::Options::of(attrs)? else { return Ok(None) };
        let pull = self.options.build.resolve_mode == ResolveMode::Pull;
        sbom::Scanner::choose(self.bridge, &wanted, &Platform::host(), pull).await.map(Some)
    }

    async fn lower(&self, platform: Option<Platform>) -> Result<Lowered, EngineError> {
        let mut options = self.files.options(self.options, platform.as_ref());
        options.ignore_patterns.clone_from(&self.ignore.patterns);
        options.source_definition.clone_from(&self.source.definition);
        let lowered = compile(self.bridge, self.file, &options, self.source).await?;
        match &self.ignore.missing {
            Some(error) if uses_context(&lowered.definition, self.files) => Err(error.clone()),
            _ => Ok(lowered),
        }
    }
}

/// A Dockerfile with what is needed to point into it.
struct SourceFile {
    name: String,
    text: Vec<u8>,
    definition: Option<Definition>,
    vertex: Digest,
}

/// Names the result for a platform. Versions of Windows are platforms of their own, those of other systems are not.
fn named(platform: &Platform) -> String {
    if platform.os == "windows" { platform.full() } else { platform.short() }
}

/// Names what is built, so that its steps are known again next time: for any platform, NUL, and for this one.
fn slots(request: &FrontendRequest, platforms: &[Platform]) -> String {
    let attr = |name: &str| request.attrs.get(name).map_or("", String::as_str);
    let of = |platforms: &[Platform]| {
        StableHasher::new("kiln.slots.v1")
            .str("context", attr("sharedkey:localdir:context"))
            .str("remote", attr("context"))
            .str("file", attr("filename"))
            .str("target", attr("target"))
            .strs("platforms", platforms.iter().map(Platform::short))
            .finish()
            .hex()
    };
    // Without a word the platform is the host's, which may be said, too.
    let host = [Platform::host()];
    format!("{}\0{}", of(&[]), of(if platforms.is_empty() { &host } else { platforms }))
}

async fn read_dockerfile(bridge: &Bridge, files: &mut Files) -> Result<SourceFile, EngineError> {
    let host = Platform::host();
    let whole = files.resolve_remote(bridge).await?;
    // A graph that stands for the context alone says nothing of the Dockerfile.
    let graph = matches!(files.context, MainContext::Graph { .. });
    let whole = whole.filter(|_| !graph && !files.dockerfile_is_local);
    let definition = match (&whole, files.dockerfile_graph()) {
        (_, Some(definition)) => definition,
        (Some(definition), None) => definition.clone(),
        (None, None) => {
            let session = files.session_of(&files.dockerfile_local);
            kiln_dockerfile::context::dockerfile_definition(&files.dockerfile_local, session, &files.name, &host)
                .map_err(|e| EngineError::user(e.to_string()))?
        }
    };
    let reference = bridge.define(definition.clone()).await?;
    let reference = reference.ok_or_else(|| EngineError::user("the Dockerfile's directory is empty"))?;
    let vertex = reference.edge().vertex.0;
    let layers = bridge.evaluate(&reference).await?;
    let missing = |e: EngineError| match e.class() {
        ErrorClass::UserInput => {
            let mut error = EngineError::user(format!("failed to read dockerfile: {e}"));
            error.hint = Some(format!("name another file with -f, or create {} in the build context", files.name));
            error
        }
        _ => e,
    };
    let fallback = files.name.strip_suffix("Dockerfile").map(|dir| format!("{dir}dockerfile"));
    let (name, text) = match inspect::read_file(bridge.parts(), &layers, &files.name, None).await {
        Ok(text) => (files.name.clone(), text),
        Err(error) => match fallback {
            Some(other) => match inspect::read_file(bridge.parts(), &layers, &other, None).await {
                Ok(text) => (other, text),
                Err(_) => return Err(missing(error)),
            },
            None => return Err(missing(error)),
        },
    };
    let ignore = inspect::read_file(bridge.parts(), &layers, &format!("{}.dockerignore", files.name), None).await;
    files.own_ignore = ignore.ok();
    Ok(SourceFile { name, text, definition: Some(definition), vertex })
}

/// What the ignore file says.
#[derive(Default)]
struct Ignore {
    patterns: Vec<String>,
    /// Why the client does not give it. Only a build that uses the context fails of that.
    missing: Option<EngineError>,
}

/// Returns the patterns of the ignore file: the Dockerfile's own, else the context's.
async fn read_ignore_file(bridge: &Bridge, files: &Files) -> Result<Ignore, EngineError> {
    if let Some(text) = &files.own_ignore {
        return Ok(Ignore { patterns: kiln_dockerfile::ignore::parse(text), missing: None });
    }
    let MainContext::Local { name } = &files.context else { return Ok(Ignore::default()) };
    let session = files.session_of(name);
    let definition = kiln_dockerfile::context::ignore_file_definition(name, session, &Platform::host())
        .map_err(|e| EngineError::user(e.to_string()))?;
    let Some(reference) = bridge.define(definition).await? else { return Ok(Ignore::default()) };
    let layers = match bridge.evaluate(&reference).await {
        Ok(layers) => layers,
        Err(error) if error.class() == ErrorClass::UserInput => {
            return Ok(Ignore { patterns: Vec::new(), missing: Some(error) });
        }
        Err(error) => return Err(error),
    };
    let text = inspect::read_file(bridge.parts(), &layers, ".dockerignore", None).await.unwrap_or_default();
    Ok(Ignore { patterns: kiln_dockerfile::ignore::parse(&text), missing: None })
}

/// Tells whether a graph reads the main context from the client.
fn uses_context(definition: &Definition, files: &Files) -> bool {
    let MainContext::Local { name } = &files.context else { return false };
    let identifier = format!("local://{name}");
    let graph = kiln_llb::Graph::load(definition, &kiln_llb::LoadOptions::default());
    let is_context = |op: &kiln_llb::Op| matches!(op, kiln_llb::Op::Source(source) if source.identifier == identifier);
    !definition.is_empty() && graph.is_ok_and(|graph| graph.vertices().iter().any(|v| is_context(&v.op)))
}

/// Answers a question about the file instead of building it.
async fn answer_question(
    bridge: &Bridge,
    question: &str,
    parsed: Result<Dockerfile, DockerfileError>,
    mut options: BuildOptions,
    source: &SourceFile,
) -> Result<subrequest::Answer, EngineError> {
    match question {
        subrequest::TARGETS => Ok(subrequest::targets(&parsed.map_err(|e| located(e, source))?)),
        subrequest::OUTLINE => {
            let file = parsed.map_err(|e| located(e, source))?;
            let lowered = compile(bridge, &file, &options, source).await?;
            Ok(subrequest::outline(&file, options.target.as_deref(), &lowered))
        }
        subrequest::LINT => {
            let text = kiln_dockerfile::source::SourceFile { name: source.name.clone(), data: source.text.clone() };
            options.all_stages = options.target.is_none();
            let compiled = match parsed {
                Ok(file) => try_compile(bridge, &file, &options, source).await,
                Err(error) => Err(Failed::File(Box::new(error))),
            };
            match compiled {
                Ok(lowered) => Ok(subrequest::lint(&text, Ok(&lowered))),
                Err(Failed::File(error)) => Ok(subrequest::lint(&text, Err(&error))),
                Err(Failed::Build(error)) => Err(*error),
            }
        }
        other => Err(EngineError::unsupported(Unsupported::Subrequest(other.to_owned()))),
    }
}

/// Why a file cannot be compiled.
enum Failed {
    /// It is wrong.
    File(Box<DockerfileError>),
    /// What it needs cannot be had.
    Build(Box<EngineError>),
}

async fn compile(
    bridge: &Bridge,
    file: &Dockerfile,
    options: &BuildOptions,
    source: &SourceFile,
) -> Result<Lowered, EngineError> {
    try_compile(bridge, file, options, source).await.map_err(|failed| match failed {
        Failed::File(error) => {
            warn(bridge, &error.warnings, source);
            located(*error, source)
        }
        Failed::Build(error) => *error,
    })
}

async fn try_compile(
    bridge: &Bridge,
    file: &Dockerfile,
    options: &BuildOptions,
    source: &SourceFile,
) -> Result<Lowered, Failed> {
    let wrong = |error: DockerfileError| Failed::File(Box::new(error));
    let mut resolved = Resolved::default();
    for _ in 0..ROUNDS {
        let plan = kiln_dockerfile::plan(file, options, &resolved).map_err(wrong)?;
        if plan.wanted.is_empty() {
            return kiln_dockerfile::lower(file, &plan, options, &resolved).map_err(wrong);
        }
        let mut missing = Vec::new();
        for wanted in &plan.wanted {
            match answer(bridge, wanted, &mut resolved, source).await {
                Err(error) if offline::is_missing(&error) => missing.push(error),
                answered => answered.map_err(|e| Failed::Build(Box::new(e)))?,
            }
        }
        if let Some(error) = offline::together(missing) {
            return Err(Failed::Build(Box::new(error)));
        }
    }
    let text = "base images lead to further base images without end";
    Err(Failed::Build(Box::new(EngineError::user(text))))
}

async fn answer(
    bridge: &Bridge,
    wanted: &Wanted,
    resolved: &mut Resolved,
    source: &SourceFile,
) -> Result<(), EngineError> {
    match wanted {
        Wanted::Image(image) => {
            let reference = policed_name(bridge, image).await?;
            let query = lookup::ImageQuery {
                name: &reference,
                platform: Some(image.platform.clone()),
                layout: image.layout.clone(),
                pull: image.resolve_mode == ResolveMode::Pull,
                log_name: &image.name,
            };
            let found = lookup::image_config(bridge, query).await.map_err(|mut error| {
                // Whatever the registry says, a name that is nearly a stage's is most likely a typo of it.
                let names = image.alternatives.iter().map(String::as_str);
                if let Some(name) = kiln_stdx::suggest::nearest(&image.written, names)
                    && error.class() != ErrorClass::Canceled
                {
                    error.hint = Some(format!("did you mean the stage `{name}`?"));
                }
                let range = lines(image.lines.first, image.lines.last);
                error.source_location = Some(Box::new(Location { info: info(source), ranges: vec![range] }));
                error
            })?;
            let image_ = ResolvedImage {
                reference: image.reference.clone(),
                digest: Some(found.root),
                config: found.config_json,
            };
            resolved.add_image(image, image_);
        }
        Wanted::IgnoreFile(ignore) => {
            let text = match bridge.define(ignore.definition.clone()).await? {
                Some(reference) => {
                    let layers = bridge.files(&reference).await?;
                    inspect::read_file(bridge.parts(), &layers, ".dockerignore", None).await.unwrap_or_default()
                }
                None => Vec::new(),
            };
            resolved.add_ignore_file(ignore, text);
        }
        Wanted::Time(time) => {
            let seconds = crate::source::time::of(bridge, &time.definition).await?;
            resolved.add_time(time, seconds);
        }
    }
    Ok(())
}

/// Returns the name of the image that the build's policies want in place of one.
async fn policed_name(bridge: &Bridge, image: &kiln_dockerfile::WantedImage) -> Result<String, EngineError> {
    let scheme = if image.layout.is_some() { "oci-layout://" } else { "docker-image://" };
    let identifier = format!("{scheme}{}", image.reference);
    let source = kiln_llb::op::SourceOp { identifier, attrs: BTreeMap::new() };
    let source = bridge.policed_source(source, Some(image.platform.clone())).await?;
    Ok(source.identifier.strip_prefix(scheme).unwrap_or(&image.reference).to_owned())
}

fn info(source: &SourceFile) -> pb::SourceInfo {
    pb::SourceInfo {
        filename: source.name.clone(),
        data: source.text.clone().into(),
        definition: source.definition.as_ref().map(Definition::to_pb),
        language: "Dockerfile".to_owned(),
    }
}

fn lines(start: u32, end: u32) -> pb::Range {
    let position = |line: u32| Some(pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
    pb::Range { start: position(start), end: position(end) }
}

/// Gives the errors of the compiler their places in the file. All of them are told: who corrects one wants to know of the
/// next before the next build.
fn located(error: DockerfileError, source: &SourceFile) -> EngineError {
    let messages: Vec<&str> = error.diagnostics.iter().take(20).map(|d| d.message.as_str()).collect();
    let text = if messages.is_empty() { error.to_string() } else { messages.join("\n") };
    let mut result = EngineError::user(text);
    let hints: Vec<&str> = error.diagnostics.iter().take(20).filter_map(|d| d.hint.as_deref()).collect();
    result.hint = (!hints.is_empty()).then(|| hints.join("\nhint: "));
    // Each place carries the text of the file, and all travel in one header.
    let places = (PLACES / source.text.len().max(1)).clamp(1, 20);
    for diagnostic in error.diagnostics.iter().filter(|d| !d.spans.is_empty()).take(places) {
        let place = Location { info: info(source), ranges: diagnostic.spans.iter().map(range).collect() };
        match &result.source_location {
            None => result.source_location = Some(Box::new(place)),
            Some(_) => result.further_mut().locations.push(place),
        }
    }
    result
}

/// Returns a range with the columns that are known; they count from one, 0 means the whole line.
fn range(span: &kiln_dockerfile::source::Span) -> pb::Range {
    let position = |p: kiln_dockerfile::source::Position| {
        let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        Some(pb::Position { line: number(p.line), character: number(p.column) })
    };
    pb::Range { start: position(span.start), end: position(span.end) }
}

/// Sends the linter's findings to the client.
fn warn(bridge: &Bridge, warnings: &[Diagnostic], source: &SourceFile) {
    for warning in warnings {
        let line = warning.line();
        let place = if line > 0 { format!(" (line {line})") } else { String::new() };
        let short = format!("{}: {}{place}", warning.rule, warning.message);
        bridge.build().log.push(Event::Warning(WarningEvent {
            vertex: source.vertex,
            level: 1,
            short: short.into_bytes(),
            detail: vec![warning.detail.clone().into_bytes()],
            url: warning.url.clone(),
            source: Some(info(source)),
            ranges: warning.spans.iter().map(|s| lines(s.start.line, s.end.line)).collect(),
        }));
    }
}

/// Fills the name and text of the file into a definition's source map, where the compiler left them out.
fn sourced(mut definition: Definition, source: &SourceFile) -> Definition {
    if let Some(map) = &mut definition.source {
        for entry in map.infos.iter_mut().filter(|entry| entry.data.is_empty()) {
            *entry = info(source);
        }
        for entry in map.infos.iter_mut().filter(|entry| entry.filename.is_empty()) {
            entry.filename.clone_from(&source.name);
        }
    }
    definition
}
