//! From plan to build graph and image config.

mod copy;
mod declared;
mod expose;
mod instruction;
mod metadata;
mod mounts;
mod run;
mod signal;
mod stage;

use std::collections::{BTreeMap, BTreeSet};

use kiln_llb::Definition;
use kiln_llb::builder::{Builder, LocalOptions, Meta, Output, SourceMap, SourceMapId};
use kiln_oci::{ImageConfig, Platform};
use kiln_stdx::pattern::PatternMatcher;

use crate::ast::Dockerfile;
use crate::diag::{Diagnostic, DockerfileError, Fault, Outcome};
use crate::lint::Linter;
use crate::options::BuildOptions;
use crate::plan::Plan;
use crate::resolve::Resolved;
use crate::scope;
use crate::stage::NodeId;

pub(crate) use copy::url_file_name;
use stage::Stage;

/// Most bytes that a file may come to: variables of every step, values, history. Real files come to some hundred
/// thousand; what goes far beyond grows with the square of its lines.
const WORK: usize = 64 << 20;
/// What a variable of a step takes beside its text, in bytes.
const VARIABLE: usize = 64;

/// A compiled build of one platform.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// The graph; empty for an image without files.
    pub definition: Definition,
    /// The image config; layers and creation time are for the exporter to fill in.
    pub config: ImageConfig,
    /// The config as bytes, compact with sorted keys.
    pub config_json: Vec<u8>,
    /// The base image's config as it was, when there is a base image.
    pub base_config: Option<ImageConfig>,
    /// The platform of the result.
    pub platform: Platform,
    pub warnings: Vec<Diagnostic>,
    /// `SOURCE_DATE_EPOCH` in Unix seconds.
    pub epoch: Option<i64>,
    /// The result, or something scanned with it, ignores the cache.
    pub no_cache: bool,
    /// Graphs to scan beside the result: `context`, and stages by name.
    pub scans: BTreeMap<String, Definition>,
    /// Paths of the main context that are used, relative; empty for all of it or none.
    pub context_paths: Vec<String>,
    /// The main context is in the graph.
    pub uses_context: bool,
    pub outline: Outline,
}

/// What a target takes from its caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    pub args: Vec<scope::ArgInfo>,
    /// Secrets by id: line of first use, and whether it is required.
    pub secrets: BTreeMap<String, (crate::source::Lines, bool)>,
    /// Agent sockets by id, likewise.
    pub ssh: BTreeMap<String, (crate::source::Lines, bool)>,
    /// Cache mounts by id.
    pub caches: BTreeMap<String, crate::source::Lines>,
}

/// Lowers a plan whose wants are all met.
///
/// # Errors
/// Bad values that only show once variables are known; a plan that still wants something.
pub fn lower(
    file: &Dockerfile,
    plan: &Plan,
    options: &BuildOptions,
    resolved: &Resolved,
) -> Result<Lowered, DockerfileError> {
    if !plan.wanted.is_empty() {
        return Err(Diagnostic::error("the plan is not complete: bases are missing").into());
    }
    let mut lowering = Lowering::new(file, plan, options, resolved)?;
    let stopped = lowering.run().err();
    let mut faults = std::mem::take(&mut lowering.faults);
    // What stops the work after errors is most often one of them again.
    faults.extend(stopped.filter(|_| faults.is_empty()));
    if !faults.is_empty() {
        let diagnostics = faults.into_iter().map(Diagnostic::from).collect();
        return Err(DockerfileError { diagnostics, warnings: lowering.linter.warnings.clone() });
    }
    let warnings = lowering.linter.warnings.clone();
    lowering.finish().map_err(|fault| DockerfileError::from(fault).after(&warnings))
}

/// The work of [`lower`].
pub(crate) struct Lowering<'a> {
    file: &'a Dockerfile,
    plan: &'a Plan,
    options: &'a BuildOptions,
    resolved: &'a Resolved,
    builder: Builder,
    map: SourceMapId,
    /// The main context.
    context: Output,
    /// Session-local name of the main context, when it is a local directory.
    local_context: Option<String>,
    /// Paths used of the main context, absolute.
    context_paths: BTreeSet<String>,
    /// Paths used of each node, at the root of its chain of parents.
    used: Vec<BTreeSet<String>>,
    /// Named local contexts, whose paths are set last.
    locals: Vec<(NodeId, Output, LocalOptions)>,
    stages: Vec<Option<Stage>>,
    linter: Linter,
    ignored: PatternMatcher,
    outline: Outline,
    /// What is wrong with single instructions; the work goes on, so that all of it is told at once.
    faults: Vec<Fault>,
    /// Global arguments that stages take up.
    used_args: BTreeSet<String>,
    /// Arguments of the stages by name, with the number of their declaration.
    args: BTreeMap<String, (usize, scope::ArgInfo)>,
    arg_count: usize,
    /// The last stage that continues a node.
    last_child: Vec<Option<NodeId>>,
    /// Bytes so far, see [`WORK`].
    work: usize,
    /// Digest of the file.
    digest: kiln_stdx::Digest,
}

impl<'a> Lowering<'a> {
    fn new(file: &'a Dockerfile, plan: &'a Plan, options: &'a BuildOptions, resolved: &'a Resolved) -> Outcome<Self> {
        let mut builder = Builder::new(options.platform()).with_unique_id(options.local_id.clone());
        let map = builder.source_map(SourceMap {
            filename: file.source.name.clone(),
            language: "Dockerfile".into(),
            data: file.source.data.clone().into(),
            definition: options.source_definition.clone(),
        });
        let (context, local_context) = match options.main_context.lower(&mut builder)? {
            Some(output) => (output, None),
            None => {
                let name = match &options.main_context {
                    crate::MainContext::Local { name } => name.clone(),
                    _ => "context".to_owned(),
                };
                let meta = Meta::named("[internal] load build context");
                (builder.local(&name, &LocalOptions::default(), meta), Some(name))
            }
        };
        let patterns: &[String] = if local_context.is_some() { &options.ignore_patterns } else { &[] };
        let ignored = PatternMatcher::new(patterns).map_err(|e| Fault::new(e.to_string()))?;
        let nodes = plan.graph.nodes.len();
        Ok(Self {
            file,
            plan,
            options,
            resolved,
            builder,
            map,
            context,
            local_context,
            context_paths: BTreeSet::new(),
            used: vec![BTreeSet::new(); nodes],
            locals: Vec::new(),
            stages: (0..nodes).map(|_| None).collect(),
            linter: plan.linter.clone(),
            ignored,
            outline: Outline::default(),
            faults: Vec::new(),
            used_args: BTreeSet::new(),
            args: BTreeMap::new(),
            arg_count: 0,
            last_child: last_children(plan),
            work: 0,
            digest: kiln_stdx::Digest::of(&file.source.data),
        })
    }

    /// Notes that the result grows by so many bytes.
    fn spend(&mut self, bytes: usize) -> Outcome<()> {
        self.work = self.work.saturating_add(bytes);
        if self.work > WORK {
            return Err(Fault::new(format!("the file comes to more than {} MiB of values and variables", WORK >> 20))
                .hint("put what is set line by line into a file, and read it where it is needed"));
        }
        Ok(())
    }

    /// Notes that the result has all these variables once more; each takes more than its text.
    fn spend_env(&mut self, env: &kiln_llb::builder::EnvList) -> Outcome<()> {
        self.spend(env.bytes().saturating_add(env.len().saturating_mul(VARIABLE)))
    }

    /// Lowers sources first, then stages in the order of the file.
    fn run(&mut self) -> Outcome<()> {
        let plan = self.plan;
        let (sources, stages): (Vec<NodeId>, Vec<NodeId>) =
            plan.reachable.iter().copied().partition(|&id| plan.graph.nodes[id].is_source());
        for id in sources {
            let stage = self.base_stage(id).map_err(|f| self.place(id, f))?;
            self.stages[id] = Some(stage);
        }
        for id in stages {
            self.lower_stage(id).map_err(|f| self.place(id, f))?;
        }
        // Everything of the target is used.
        let root = self.root_of(plan.target);
        self.used[root].insert("/".into());
        Ok(())
    }

    /// Finds the word that is wrong in the lines of an instruction, where the error names it.
    fn point(&self, fault: Fault, lines: crate::source::Lines) -> Fault {
        let Some(word) = fault.word.clone().filter(|w| !w.is_empty() && fault.spans.is_empty()) else {
            return fault.at(lines);
        };
        let text = String::from_utf8_lossy(&self.file.source.data);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let first = lines.first.saturating_sub(1) as usize;
        let count = (lines.last + 1).saturating_sub(lines.first) as usize;
        let found = text.lines().enumerate().skip(first).take(count).find_map(|(i, line)| {
            let at = line.find(&word)?;
            let column = number(line[..at].chars().count() + 1);
            Some(crate::source::Position { line: number(i + 1), column })
        });
        match found {
            Some(start) => fault.at_word(start, word.chars().count()),
            None => fault.at(lines),
        }
    }

    fn place(&self, id: NodeId, fault: Fault) -> Fault {
        match self.plan.graph.nodes[id].lines {
            Some(lines) => fault.at(lines),
            None => fault,
        }
    }

    /// Returns the node whose files a chain of stages is built on.
    fn root_of(&self, mut id: NodeId) -> NodeId {
        let nodes = &self.plan.graph.nodes;
        // A parent comes before its child, so this ends.
        while let Some(parent) = nodes[id].parent.filter(|&p| p < id && nodes[id].replaced.is_none()) {
            id = parent;
        }
        id
    }

    /// Notes that a path of a node is used.
    fn mark_used(&mut self, id: NodeId, path: &str) {
        let root = self.root_of(id);
        self.used[root].insert(rooted(path));
    }

    fn finish(mut self) -> Outcome<Lowered> {
        if let Some(error) = self.linter.error() {
            return Err(Fault { spans: error.spans, ..Fault::new(error.message) });
        }
        let context_paths = relative_paths(&self.context_paths);
        if let Some(name) = self.local_context.clone() {
            let settings = LocalOptions {
                session: Some(self.options.session_of(&name).to_owned()),
                exclude_patterns: self.options.ignore_patterns.clone(),
                shared_key_hint: Some(name),
                follow_paths: context_paths.clone(),
                ..LocalOptions::default()
            };
            self.builder.set_local(self.context, &settings);
        }
        for (id, output, settings) in std::mem::take(&mut self.locals) {
            let follow_paths = relative_paths(&self.used[self.root_of(id)]);
            self.builder.set_local(output, &LocalOptions { follow_paths, ..settings });
        }
        let Some(target) = self.stages[self.plan.target].take() else {
            return Err(Fault::new("the target was not lowered"));
        };
        self.add_global_args();
        let scans = self.scans(&target)?;
        let bug = |e: kiln_llb::LlbError| Fault::new(e.to_string());
        let definition = self.builder.definition(target.output).map_err(bug)?;
        let uses_context = self.uses_context(&definition);
        let no_cache = self.plan.graph.nodes[self.plan.target].no_cache || self.scanned_without_cache();
        let config = self.final_config(target.image);
        let config_json = config.to_config_json().map_err(|e| Fault::new(e.to_string()))?;
        Ok(Lowered {
            definition,
            config_json,
            platform: config.platform(),
            config,
            base_config: target.base_image,
            warnings: self.linter.warnings,
            epoch: self.plan.epoch,
            no_cache,
            scans,
            context_paths,
            uses_context,
            outline: self.outline,
        })
    }

    /// Adds the global arguments that are used to the outline, with those that their defaults are made of.
    fn add_global_args(&mut self) {
        let mut open: Vec<String> = self.used_args.iter().cloned().collect();
        for &id in &self.plan.reachable {
            open.extend(self.plan.graph.nodes[id].used_args.iter().cloned());
        }
        let infos: BTreeMap<&str, &scope::ArgInfo> =
            self.plan.global_infos.iter().map(|i| (i.name.as_str(), i)).collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let Some(&info) = infos.get(name.as_str()) else { continue };
            open.extend(info.made_of.iter().cloned());
            let next = self.arg_count;
            self.arg_count += 1;
            self.args.entry(name).or_insert_with(|| (next, info.clone()));
        }
        let mut args: Vec<_> = std::mem::take(&mut self.args).into_values().collect();
        args.sort_by_key(|(number, info)| (info.lines.first, *number));
        self.outline.args = args.into_iter().map(|(_, info)| info).collect();
    }

    /// Applies labels and the platform that was asked for.
    fn final_config(&self, mut config: ImageConfig) -> ImageConfig {
        for (name, value) in &self.options.labels {
            config.config.labels.insert(name.clone(), value.clone());
        }
        if let Some(wanted) = &self.options.target_platform {
            let same = wanted.os == config.os && wanted.architecture == config.architecture;
            config.os.clone_from(&wanted.os);
            config.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                config.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                config.os_version.clone_from(&wanted.os_version);
            }
            if !wanted.os_features.is_empty() {
                config.os_features.clone_from(&wanted.os_features);
            }
        }
        let normal = config.platform().normalize();
        (config.os, config.architecture, config.variant) = (normal.os, normal.architecture, normal.variant);
        config
    }

    fn scans(&self, target: &Stage) -> Outcome<BTreeMap<String, Definition>> {
        let mut out = BTreeMap::new();
        let bug = |e: kiln_llb::LlbError| Fault::new(e.to_string());
        if target.scan_context {
            out.insert("context".to_owned(), self.builder.definition(self.context).map_err(bug)?);
        }
        for (id, stage) in self.stages.iter().enumerate() {
            let Some(stage) = stage.as_ref().filter(|s| s.scan_stage) else { continue };
            let name = self.plan.graph.nodes[id].display.clone();
            out.insert(name, self.builder.definition(stage.output).map_err(bug)?);
        }
        Ok(out)
    }

    fn scanned_without_cache(&self) -> bool {
        let scanned = |id: &usize| self.stages[*id].as_ref().is_some_and(|s| s.scan_stage);
        self.plan.reachable.iter().filter(|id| scanned(id)).any(|&id| self.plan.graph.nodes[id].no_cache)
    }

    fn uses_context(&self, definition: &Definition) -> bool {
        let Ok(context) = self.builder.definition(self.context) else { return false };
        let head = context.ops.len().checked_sub(2).and_then(|i| context.ops.get(i));
        head.is_some_and(|op| definition.ops.contains(op))
    }
}

/// Returns for every node the last one that continues it and is lowered.
fn last_children(plan: &Plan) -> Vec<Option<NodeId>> {
    let mut out = vec![None; plan.graph.nodes.len()];
    for &id in &plan.reachable {
        if let Some(slot) = plan.graph.nodes[id].parent.and_then(|p| out.get_mut(p)) {
            *slot = Some(id);
        }
    }
    out
}

/// Makes a path absolute and clean.
pub(crate) fn rooted(path: &str) -> String {
    let clean = kiln_stdx::pattern::clean(format!("/{path}").as_bytes());
    String::from_utf8_lossy(&clean).into_owned()
}

/// Returns used paths relative to their root; nothing when all of it is used.
fn relative_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    paths.iter().map(|p| p.trim_start_matches('/').to_owned()).collect()
}
