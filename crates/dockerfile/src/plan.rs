//! From tree and options to stages with known bases: what has to be fetched is listed, nothing is lowered yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_llb::builder::EnvList;
use kiln_oci::{ImageConfig, Platform, Reference};

use crate::ast::{Dockerfile, Kind, Stage};
use crate::diag::{self, Diagnostic, DockerfileError, Fault, Outcome};
use crate::epoch::{self, Epoch};
use crate::lex::WordLexer;
use crate::lint::{self, Config, Linter};
use crate::names::format_platform;
use crate::options::BuildOptions;
use crate::parse;
use crate::resolve::{Resolved, Wanted, WantedImage};
use crate::scope::{self, ArgInfo};
use crate::stage::{Base, BaseImage, Graph, Node, NodeId};
use crate::{image, named};

/// A build in the making. When [`Plan::wanted`] is empty it can be lowered.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What must be fetched before planning again, without repetitions.
    pub wanted: Vec<Wanted>,
    pub(crate) graph: Graph,
    pub(crate) target: NodeId,
    pub(crate) reachable: BTreeSet<NodeId>,
    pub(crate) globals: EnvList,
    pub(crate) global_infos: Vec<ArgInfo>,
    /// Build arguments, with the epoch as a number.
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) epoch: Option<i64>,
    pub(crate) linter: Linter,
}

/// Plans a build with what is known so far.
///
/// # Errors
/// Unknown stages, bad names, cycles, and what a fetched image brings wrong.
pub fn plan(file: &Dockerfile, options: &BuildOptions, resolved: &Resolved) -> Result<Plan, DockerfileError> {
    let mut linter = Linter::new(lint_config(file, options)?);
    lint::check_tree(file, &mut linter);
    let last = file.stages.last().and_then(|s| s.name.as_deref()).unwrap_or_default();
    let target = options.target.as_deref().filter(|t| !t.is_empty());
    let predefined = scope::predefined(options, target.unwrap_or(last));
    // Without build arguments the bases should have names too.
    if let Ok((defaults, _)) = scope::add_global(predefined.clone(), file, &BTreeMap::new()) {
        lint::invalid_default_arg::check(file, &defaults, &mut linter);
    }
    let mut build_args = options.build_args.clone();
    let (mut globals, global_infos) = scope::add_global(predefined, file, &build_args)?;
    let epoch = epoch::resolve(file, options, resolved, &mut build_args, &mut globals)?;
    let mut plan = Plan {
        wanted: Vec::new(),
        graph: Graph::default(),
        target: 0,
        reachable: BTreeSet::new(),
        globals,
        global_infos,
        build_args,
        epoch: None,
        linter,
    };
    match epoch {
        Epoch::Known(seconds) => plan.epoch = seconds,
        Epoch::Missing(wanted) => {
            plan.wanted = wanted;
            return Ok(plan);
        }
    }
    match plan.complete(file, options, resolved, target) {
        Ok(()) => Ok(plan),
        Err(error) => Err(error.after(&plan.linter.warnings)),
    }
}

fn lint_config(file: &Dockerfile, options: &BuildOptions) -> Outcome<Config> {
    let (text, lines) = match (&options.check, &file.directives.check) {
        (Some(check), _) => (check.as_str(), None),
        (None, Some(directive)) => (directive.value.as_str(), Some(directive.lines)),
        (None, None) => return Ok(Config::default()),
    };
    let what = if lines.is_some() { "check options" } else { "build-arg:BUILDKIT_DOCKERFILE_CHECK" };
    Config::parse(text).map_err(|e| {
        let fault = Fault::new(format!("failed to parse {what}: {e}"));
        match lines {
            Some(lines) => fault.at(lines),
            None => fault,
        }
    })
}

impl Plan {
    /// Returns the warnings found so far.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.linter.warnings
    }

    fn complete(
        &mut self,
        file: &Dockerfile,
        options: &BuildOptions,
        resolved: &Resolved,
        target: Option<&str>,
    ) -> Result<(), DockerfileError> {
        let mut diagnostics = Vec::new();
        let known = scope::known_names(&self.globals, &self.global_infos);
        for (index, stage) in file.stages.iter().enumerate() {
            if let Err(fault) = self.add_stage(file, options, stage, index, &known) {
                diagnostics.push(Diagnostic::from(fault.at(stage.lines)));
            }
        }
        if diagnostics.is_empty() {
            match self.find_target(target) {
                Ok(id) => self.target = id,
                Err(fault) => diagnostics.push(fault.into()),
            }
            diagnostics.extend(self.link_commands(file).into_iter().map(Diagnostic::from));
            diagnostics.extend(self.graph.cycles());
            diagnostics.extend(self.graph.name_bases().into_iter().map(Diagnostic::from));
        }
        if !diagnostics.is_empty() {
            diagnostics.sort_by_key(Diagnostic::line);
            diagnostics.truncate(diag::MOST);
            return Err(DockerfileError { diagnostics, warnings: Vec::new() });
        }
        // A file of one stage without other sources shows no stage name.
        if let [only] = self.graph.nodes.as_mut_slice()
            && !only.commands.iter().any(|c| matches!(&c.instruction.kind, Kind::Run(run) if !run.mounts.is_empty()))
        {
            only.display = String::new();
        }
        self.resolve(options, resolved)
    }

    fn add_stage(
        &mut self,
        file: &Dockerfile,
        options: &BuildOptions,
        stage: &Stage,
        index: usize,
        known: &BTreeSet<String>,
    ) -> Outcome<()> {
        let lexer = WordLexer::new(file.escape);
        let base = lexer.expand(&stage.base, &self.globals).map_err(Fault::new)?;
        lint::undefined_arg_in_from::check(stage, &base.unmatched, known, &mut self.linter);
        if base.text.is_empty() {
            let hint = base
                .unmatched
                .first()
                .map(|name| format!("give ARG {name} a default before the first FROM, or pass --build-arg {name}=…"));
            let fault = Fault::new(format!("base name ({}) should not be blank", stage.base));
            return Err(Fault { hint, ..fault });
        }
        let mut used_args = base.matched;
        let platform = match &stage.platform {
            Some(text) => Some(self.stage_platform(stage, text, lexer, known, &mut used_args)?),
            None => None,
        };
        let name = stage.name.as_deref();
        let replaced = match name {
            Some(name) => named::find(options, name, platform.as_ref(), stage.lines)?,
            None => None,
        };
        let parent = self.graph.parent_of(&base.text).filter(|_| replaced.is_none());
        let own_base = parent.is_none() && base.text != "scratch";
        let numbered = |k: &Kind| matches!(k, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_));
        let steps = usize::from(own_base) + stage.instructions.iter().filter(|i| numbered(&i.kind)).count();
        self.graph.add_stage(Node {
            name: stage.name.clone(),
            display: name.map_or_else(|| format!("stage-{index}"), str::to_owned),
            base_name: base.text,
            code: stage.code.clone(),
            lines: Some(stage.lines),
            comments: stage.comments.clone(),
            used_args,
            platform,
            steps: if replaced.is_some() { 0 } else { steps },
            no_cache: replaced.is_none() && options.no_cache.covers(name.unwrap_or_default()),
            replaced,
            reference: None,
            parent,
            commands: Vec::new(),
            implicit: false,
            base: Base::Unknown,
            triggered: false,
        });
        Ok(())
    }

    fn stage_platform(
        &mut self,
        stage: &Stage,
        text: &str,
        lexer: WordLexer,
        known: &BTreeSet<String>,
        used: &mut BTreeSet<String>,
    ) -> Outcome<Platform> {
        let fail = |e: String| Fault::new(format!("failed to process arguments for platform {text}: {e}"));
        let expansion = lexer.expand(text, &self.globals).map_err(fail)?;
        lint::undefined_arg_in_from::check(stage, &expansion.unmatched, known, &mut self.linter);
        lint::redundant_target_platform::check(stage, &expansion, &self.globals, &mut self.linter);
        lint::const_platform::check(stage, &expansion, &mut self.linter);
        used.extend(expansion.matched.iter().cloned());
        let suggest = |mut fault: Fault| {
            for name in &expansion.unmatched {
                fault = fault.did_you_mean(name, known.iter().map(String::as_str));
            }
            fault
        };
        if expansion.text.is_empty() {
            return Err(suggest(Fault::new(format!("empty platform value from expression {text}"))));
        }
        Platform::parse(&expansion.text)
            .map_err(|e| suggest(Fault::new(format!("failed to parse platform {text}: {e}"))))
    }

    fn find_target(&self, target: Option<&str>) -> Outcome<NodeId> {
        let Some(name) = target else { return Ok(self.graph.stages.saturating_sub(1)) };
        self.graph.find(name).ok_or_else(|| {
            let names = self.graph.names();
            let listed = names.join(", ");
            Fault::new(format!("target stage {} could not be found", crate::gofmt::quote(name)))
                .did_you_mean(name, names)
                .hint(format!("stages of this file: {listed}"))
        })
    }

    /// Gives the nodes their instructions, and returns what is wrong with where these take files from.
    fn link_commands(&mut self, file: &Dockerfile) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (id, stage) in file.stages.iter().enumerate() {
            if self.graph.nodes[id].replaced.is_some() {
                continue;
            }
            for instruction in &stage.instructions {
                match self.graph.link(Arc::clone(instruction), false, file.escape) {
                    Ok(command) => self.graph.nodes[id].commands.push(command),
                    Err(fault) => faults.push(fault),
                }
            }
        }
        faults
    }

    /// Finds the bases of all reachable nodes, adding triggers of bases until nothing new turns up.
    fn resolve(&mut self, options: &BuildOptions, resolved: &Resolved) -> Result<(), DockerfileError> {
        loop {
            self.reachable = self.graph.reachable(self.target);
            if options.all_stages {
                self.reachable.extend(0..self.graph.nodes.len());
            }
            self.resolve_bases(options, resolved)?;
            let mut grown = false;
            for id in self.reachable.clone() {
                grown |= self.add_triggers(id)?;
            }
            if !grown {
                break;
            }
            let diagnostics = self.graph.cycles();
            if !diagnostics.is_empty() {
                return Err(DockerfileError { diagnostics, warnings: Vec::new() });
            }
        }
        let mut seen: Vec<Wanted> = Vec::new();
        for wanted in std::mem::take(&mut self.wanted) {
            let same = |a: &Wanted| match (a, &wanted) {
                (Wanted::Image(a), Wanted::Image(b)) => {
                    (&a.reference, &a.platform, &a.layout) == (&b.reference, &b.platform, &b.layout)
                }
                (a, b) => a == b,
            };
            if !seen.iter().any(same) {
                seen.push(wanted);
            }
        }
        self.wanted = seen;
        Ok(())
    }

    fn resolve_bases(&mut self, options: &BuildOptions, resolved: &Resolved) -> Result<(), DockerfileError> {
        let mut diagnostics = Vec::new();
        for id in self.reachable.clone() {
            if let Err(fault) = self.resolve_base(id, options, resolved) {
                diagnostics.push(Diagnostic::from(match self.graph.nodes[id].lines {
                    Some(lines) => fault.at(lines),
                    None => fault,
                }));
            }
        }
        if diagnostics.is_empty() {
            return Ok(());
        }
        diagnostics.truncate(diag::MOST);
        Err(DockerfileError { diagnostics, warnings: Vec::new() })
    }

    fn resolve_base(&mut self, id: NodeId, options: &BuildOptions, resolved: &Resolved) -> Outcome<()> {
        let node = &self.graph.nodes[id];
        if node.parent.is_some() || !matches!(node.base, Base::Unknown) {
            return Ok(());
        }
        let target = options.platform();
        if let Some(context) = node.replaced.clone() {
            return self.use_context(id, context, options, resolved);
        }
        if node.base_name == "scratch" {
            let node = &mut self.graph.nodes[id];
            (node.base, node.platform) = (Base::Scratch, Some(target));
            return Ok(());
        }
        let platform = node.platform.clone().unwrap_or_else(|| target.clone());
        let lines = node.lines.unwrap_or_default();
        let Some(reference) = node.reference.clone() else { return Ok(()) };
        if let Some(context) = named::find(options, &reference.to_string(), Some(&platform), lines)? {
            self.graph.nodes[id].platform = Some(platform);
            return self.use_context(id, context, options, resolved);
        }
        let prefix = match options.multi_platform {
            true => format!("[{} internal]", format_platform(&platform)),
            false => "[internal]".to_owned(),
        };
        let wanted = WantedImage {
            reference: reference.to_string(),
            platform: platform.clone(),
            resolve_mode: options.resolve_mode,
            name: format!("{prefix} load metadata for {reference}"),
            layout: None,
            written: node.base_name.clone(),
            lines,
            alternatives: self.graph.names().into_iter().map(str::to_owned).collect(),
        };
        let Some(found) = resolved.image(&wanted) else {
            self.wanted.push(Wanted::Image(wanted));
            return Ok(());
        };
        let config = named::parse_config(&found.config)?;
        let mut reference = Reference::parse(&found.reference)
            .map_err(|e| Fault::new(format!("failed to parse ref {:?}: {e}", found.reference)))?;
        if let Some(digest) = found.digest {
            reference = reference.with_digest(digest);
        }
        let implicit = options.target_platform.is_none() && node.platform.is_none();
        let platform = if implicit { detected(&config, platform, &options.build_platforms) } else { platform };
        // Very old images have no diff ids but a history of layers.
        let empty = config.rootfs.diff_ids.is_empty() && config.history.iter().all(|h| h.empty_layer);
        let place = (node.comments.as_slice(), lines);
        if !empty {
            let actual = config.platform();
            lint::base_image_platform::check(place, &node.base_name, &platform, &actual, &mut self.linter);
        }
        let node = &mut self.graph.nodes[id];
        node.platform = Some(platform);
        node.base = Base::Image(BaseImage { reference: reference.to_string(), config: Box::new(config), empty });
        Ok(())
    }

    fn use_context(
        &mut self,
        id: NodeId,
        context: named::NamedContext,
        options: &BuildOptions,
        resolved: &Resolved,
    ) -> Outcome<()> {
        if let Some(wanted) = context.wanted(options, resolved)? {
            self.wanted.push(wanted);
            return Ok(());
        }
        let mut config = context.config(options, resolved)?;
        if let Some(config) = &mut config {
            config.created = None;
        }
        let node = &mut self.graph.nodes[id];
        if node.replaced.is_some() {
            let known = config.as_ref().filter(|c| !c.architecture.is_empty() && !c.os.is_empty());
            node.platform = known.map(ImageConfig::platform).or_else(|| node.platform.clone());
        }
        let platform = node.platform.get_or_insert_with(|| options.platform()).clone();
        let config = config.unwrap_or_else(|| image::empty(&platform));
        node.base = Base::Context(Box::new(context), Some(Box::new(config)));
        Ok(())
    }

    /// Puts the base's deferred instructions in front; true when they need something new.
    fn add_triggers(&mut self, id: NodeId) -> Result<bool, DockerfileError> {
        let node = &self.graph.nodes[id];
        if node.triggered || node.is_source() {
            return Ok(false);
        }
        let texts: Vec<String> = match (node.parent, &node.base) {
            (Some(parent), _) => self.graph.nodes[parent]
                .commands
                .iter()
                .filter_map(|c| match &c.instruction.kind {
                    Kind::Onbuild(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            (None, Base::Unknown) => return Ok(false),
            (None, Base::Image(image)) => image.config.config.on_build.clone(),
            (None, Base::Context(_, config)) => config.as_ref().map(|c| c.config.on_build.clone()).unwrap_or_default(),
            (None, Base::Scratch) => Vec::new(),
        };
        let lines = node.lines.unwrap_or_default();
        let mut commands = Vec::new();
        for text in &texts {
            let at = |f: Fault| Fault { spans: Vec::new(), ..f }.at(lines);
            let mut instruction = parse::trigger(text).map_err(at)?;
            instruction.lines = lines;
            commands.push(self.graph.link(Arc::new(instruction), true, '\\').map_err(at)?);
        }
        let grown = commands.iter().any(|c| c.sources.iter().any(Option::is_some));
        let mut diagnostics: Vec<Diagnostic> = self.graph.name_bases().into_iter().map(Diagnostic::from).collect();
        if !diagnostics.is_empty() {
            diagnostics.truncate(diag::MOST);
            return Err(DockerfileError { diagnostics, warnings: Vec::new() });
        }
        let node = &mut self.graph.nodes[id];
        node.triggered = true;
        node.steps += commands.len();
        node.commands.splice(0..0, commands);
        Ok(grown)
    }
}

/// Returns the platform a base image was made for, where it is one of the builder's.
fn detected(config: &ImageConfig, wanted: Platform, supported: &[Platform]) -> Platform {
    let same = |p: &Platform| p.os == config.os && p.architecture == config.architecture;
    if same(&wanted) {
        return wanted;
    }
    supported.iter().find(|p| same(p)).cloned().unwrap_or(wanted)
}
