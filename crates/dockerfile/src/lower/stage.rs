//! One stage: its base, its variables, its instructions in order.

use std::collections::HashMap;

use kiln_llb::LlbError;
use kiln_llb::builder::{EnvList, ImageOptions, Meta, Output};
use kiln_llb::op::NetMode;
use kiln_oci::{ImageConfig, Platform};
use kiln_stdx::limits;

use super::Lowering;
use super::declared::Declared;
use crate::diag::{Fault, Outcome};
use crate::image;
use crate::lex::{NoVars, Vars};
use crate::named::split_env;
use crate::names::{cross_suffix, format_platform};
use crate::scope;
use crate::source::Lines;
use crate::stage::{Base, NodeId};

/// A stage while its instructions are lowered, and after.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub id: NodeId,
    pub output: Output,
    pub env: EnvList,
    /// Where a variable is in the image's list.
    pub env_places: HashMap<String, usize>,
    pub cwd: String,
    pub user: String,
    pub platform: Platform,
    pub network: NetMode,
    pub image: ImageConfig,
    pub base_image: Option<ImageConfig>,
    pub build_args: Declared,
    /// How many numbered steps there were.
    pub step: usize,
    pub workdir_set: bool,
    pub cmd: Option<Lines>,
    pub entrypoint: Option<Lines>,
    pub healthcheck: Option<Lines>,
    pub scan_context: bool,
    pub scan_stage: bool,
}

impl Stage {
    fn new(id: NodeId, output: Output, platform: Platform, image: ImageConfig) -> Self {
        Self {
            id,
            output,
            platform,
            image,
            env: EnvList::default(),
            cwd: "/".into(),
            user: String::new(),
            network: NetMode::Unset,
            base_image: None,
            build_args: Declared::default(),
            env_places: HashMap::new(),
            step: 0,
            workdir_set: false,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            scan_context: false,
            scan_stage: false,
        }
    }

    /// Returns a stage that continues this one.
    fn continued(mut self, id: NodeId) -> Self {
        // Deferred instructions are run by the child, and not handed on.
        self.image.config.on_build.clear();
        Self {
            step: 0,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            scan_context: false,
            scan_stage: false,
            id,
            ..self
        }
    }

    /// Returns the stage for its last child, and leaves what others may still ask of it: its files and its scans.
    fn taken(&mut self) -> Self {
        let rest = Self {
            output: self.output,
            platform: self.platform.clone(),
            scan_context: self.scan_context,
            scan_stage: self.scan_stage,
            ..Self::new(self.id, self.output, Platform::default(), ImageConfig::default())
        };
        std::mem::replace(self, rest)
    }

    /// Returns about how many bytes a copy of it has.
    fn bytes(&self) -> usize {
        self.image.history.iter().map(|h| h.created_by.len() + 64).sum::<usize>() + self.build_args.bytes()
    }

    /// Adds a line of history.
    pub fn history(&mut self, text: String, layer: bool, epoch: Option<i64>) {
        image::add_history(&mut self.image, text, layer, epoch);
    }
}

impl Lowering<'_> {
    /// Adds the base of a node that continues no stage.
    pub(super) fn base_stage(&mut self, id: NodeId) -> Outcome<Stage> {
        let plan = self.plan;
        let node = &plan.graph.nodes[id];
        let platform = node.platform.clone().unwrap_or_else(|| self.options.platform());
        match &node.base {
            Base::Unknown => Err(Fault::new(format!("{}: the base is not known", node.base_name))),
            Base::Scratch => {
                Ok(Stage::new(id, Output::SCRATCH, self.options.platform(), image::empty(&self.options.platform())))
            }
            Base::Context(context, config) => {
                let loaded = context.load(self.options, self.resolved, &mut self.builder)?;
                if let Some((_, settings)) = loaded.local {
                    self.locals.push((id, loaded.output, settings));
                }
                let config = config.as_deref().cloned().unwrap_or_else(|| image::empty(&platform));
                let mut stage = Stage::new(id, loaded.output, platform, config.clone());
                stage.env = loaded.env;
                stage.base_image = Some(config).filter(|_| loaded.config.is_some());
                Ok(stage)
            }
            Base::Image(base) => {
                let mut stage = Stage::new(id, Output::SCRATCH, platform, (*base.config).clone());
                stage.base_image = Some((*base.config).clone());
                if base.empty {
                    return Ok(stage);
                }
                let text = format!("FROM {}", base.reference);
                let name = self.step_name(&mut stage, &text, false, &NoVars);
                let mut meta = Meta::named(name)
                    .describe(kiln_llb::attr::DOCKERFILE_COMMAND, node.code.clone())
                    .platform(stage.platform.clone());
                if let Some(lines) = node.lines {
                    meta = meta.location(self.map, lines.ranges());
                }
                let options = ImageOptions { resolve_mode: self.options.resolve_mode, ..ImageOptions::default() };
                stage.output =
                    self.builder.image(&base.reference, &options, meta).map_err(|e| Fault::new(e.to_string()))?;
                Ok(stage)
            }
        }
    }

    /// Lowers a stage of the file.
    pub(super) fn lower_stage(&mut self, id: NodeId) -> Outcome<()> {
        let plan = self.plan;
        let node = &plan.graph.nodes[id];
        let mut stage = match node.parent {
            None => {
                let mut stage = self.base_stage(id)?;
                // The base's triggers are among the commands now.
                stage.image.config.on_build.clear();
                stage
            }
            Some(parent) => {
                let last = self.last_child[parent] == Some(id) && parent != plan.target;
                let Some(done) = &mut self.stages[parent] else {
                    return Err(Fault::new(format!("stage {} is not lowered", node.base_name)));
                };
                if last {
                    done.taken().continued(id)
                } else {
                    let copy = done.clone();
                    self.spend(copy.bytes())?;
                    copy.continued(id)
                }
            }
        };
        self.spend_env(&stage.env)?;
        self.start(&mut stage);
        for command in &node.commands {
            if let Err(fault) = self.command(&mut stage, command) {
                let fault = self.point(fault, command.instruction.lines);
                self.faults.push(fault);
                if self.faults.len() >= crate::diag::MOST {
                    return Err(Fault::new("too many errors"));
                }
            }
            // Before the rest of a huge file is gone through for nothing.
            if self.builder.operations() > limits::LLB_OPS {
                return Err(self.point(Fault::new(LlbError::TooMany.to_string()), command.instruction.lines));
            }
        }
        for (name, slot) in scope::NOT_ENV.into_iter().zip([&mut stage.scan_context, &mut stage.scan_stage]) {
            let declared = stage.build_args.value(name).map(str::to_owned);
            let value = declared.or_else(|| plan.globals.value(name));
            *slot = value.is_some_and(|v| scope::enabled_for(&node.display, &v));
        }
        self.stages[id] = Some(stage);
        Ok(())
    }

    /// Takes variables, directory and user from the image.
    fn start(&mut self, stage: &mut Stage) {
        let os = stage.platform.os.clone();
        image::ensure_path(&mut stage.image, &os);
        for (at, text) in stage.image.config.env.iter().enumerate() {
            stage.env_places.entry(text.split('=').next().unwrap_or_default().to_owned()).or_insert(at);
        }
        // They come last; in most stages that continue another they are there already.
        let list = &stage.image.config.env;
        let there = stage.env.len() >= list.len()
            && stage.env.iter().rev().zip(list.iter().rev()).all(|((name, value), text)| {
                text.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) == Some(value)
            });
        if !there {
            for text in list {
                let (name, value) = split_env(text);
                stage.env.set(name, value);
            }
        }
        let dir = stage.image.config.working_dir.clone();
        if !dir.is_empty() {
            self.change_dir(stage, &dir);
        }
        if !stage.image.config.user.is_empty() {
            stage.user.clone_from(&stage.image.config.user);
        }
        stage.network = self.options.network;
    }

    /// Sets the working directory of the stage and its image; relative paths are under the old one.
    pub(super) fn change_dir(&mut self, stage: &mut Stage, path: &str) {
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            super::rooted(&format!("{}/{path}", stage.image.config.working_dir))
        };
        stage.image.config.working_dir.clone_from(&path);
        stage.cwd = path;
    }

    /// Returns the shown name of the next numbered step.
    pub(super) fn step_name(&self, stage: &mut Stage, text: &str, onbuild: bool, env: &dyn Vars) -> String {
        let node = &self.plan.graph.nodes[stage.id];
        if node.steps == 0 {
            return text.to_owned();
        }
        stage.step += 1;
        let mut prefix = String::from("[");
        if self.options.multi_platform {
            prefix.push_str(&format_platform(&stage.platform));
            prefix.push_str(&cross_suffix(&stage.platform, platform_of(env)));
            prefix.push(' ');
        }
        if !node.display.is_empty() {
            prefix.push_str(&node.display);
            prefix.push(' ');
        }
        let width = node.steps.to_string().len();
        let mark = if onbuild { "ONBUILD " } else { "" };
        format!("{prefix}{:>width$}/{}] {mark}{text}", stage.step, node.steps)
    }
}

/// Returns the target platform that a stage has declared.
fn platform_of(env: &dyn Vars) -> Option<Platform> {
    let mut platform = Platform::default();
    let mut any = false;
    for name in env.names() {
        let value = env.value(&name).unwrap_or_default();
        match name.as_str() {
            "TARGETPLATFORM" => {
                if let Ok(parsed) = Platform::parse(&value) {
                    return Some(parsed);
                }
            }
            "TARGETOS" => (platform.os, any) = (value, true),
            "TARGETARCH" => (platform.architecture, any) = (value, true),
            "TARGETVARIANT" => (platform.variant, any) = (value, true),
            _ => {}
        }
    }
    any.then_some(platform)
}
