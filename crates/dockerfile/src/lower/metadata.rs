//! Instructions that change the image config but no files, and `WORKDIR`.

use kiln_llb::builder::{FileActions, Meta, MkdirOptions, OwnerSpec};
use kiln_oci::Healthcheck;
use serde_json::Value;

use super::Lowering;
use super::signal;
use super::stage::Stage;
use crate::ast::{self, ArgDef, CommandLine, Instruction, Pair};
use crate::diag::{Fault, Outcome};
use crate::gofmt::{format_duration, quote_list};
use crate::image;
use crate::lex::Vars;
use crate::lint;
use crate::names::uppercase_keyword;
use crate::scope::{self, ArgInfo};
use crate::stage::Command;

const NANOS: i64 = 1_000_000_000;

impl Lowering<'_> {
    pub(super) fn arg(&mut self, stage: &mut Stage, instruction: &Instruction, args: &[ArgDef]) -> Outcome<()> {
        let mut texts = Vec::with_capacity(args.len());
        for arg in args {
            lint::secrets::check(instruction, "ARG", &arg.name, &mut self.linter);
            let given = self.plan.build_args.get(&arg.name).cloned();
            let inherited = self.plan.globals.value(&arg.name);
            let mut from_above = false;
            let value = match (given, &arg.default, inherited) {
                (Some(given), _, _) => Some(given),
                (None, Some(default), _) => Some(self.expand(stage, instruction, default)?),
                (None, None, inherited) => {
                    from_above = inherited.is_some();
                    inherited
                }
            };
            if let Some(value) = value.as_ref().filter(|_| !scope::NOT_ENV.contains(&arg.name.as_str())) {
                stage.env.set(arg.name.clone(), value.clone());
            }
            if from_above {
                self.used_args.insert(arg.name.clone());
            } else {
                let info = ArgInfo {
                    name: arg.name.clone(),
                    description: arg.description.clone(),
                    value: value.clone(),
                    lines: instruction.lines,
                    made_of: std::collections::BTreeSet::new(),
                };
                // The last declaration counts.
                self.args.insert(arg.name.clone(), (self.arg_count, info));
                self.arg_count += 1;
            }
            texts.push(match &value {
                Some(value) => format!("{}={value}", arg.name),
                None => arg.name.clone(),
            });
            stage.build_args.add(&arg.name, value);
        }
        stage.history(format!("ARG {}", texts.join(" ")), false, self.plan.epoch);
        Ok(())
    }

    pub(super) fn env(&mut self, stage: &mut Stage, instruction: &Instruction, pairs: &[Pair]) {
        let mut text = String::from("ENV");
        for pair in pairs {
            lint::legacy_key_value::check(instruction, pair, &mut self.linter);
            lint::secrets::check(instruction, "ENV", &pair.key, &mut self.linter);
            text.push_str(&format!(" {}={}", pair.key, pair.value));
            stage.env.set(pair.key.clone(), pair.value.clone());
            image::set_env(&mut stage.image.config.env, &mut stage.env_places, &pair.key, &pair.value);
        }
        stage.history(text, false, self.plan.epoch);
    }

    pub(super) fn label(&mut self, stage: &mut Stage, instruction: &Instruction, pairs: &[Pair]) {
        let mut text = String::from("LABEL");
        for pair in pairs {
            lint::legacy_key_value::check(instruction, pair, &mut self.linter);
            text.push_str(&format!(" {}={}", pair.key, pair.value));
            stage.image.config.labels.insert(pair.key.clone(), pair.value.clone());
        }
        stage.history(text, false, self.plan.epoch);
    }

    pub(super) fn user(&mut self, stage: &mut Stage, user: &str) {
        user.clone_into(&mut stage.user);
        user.clone_into(&mut stage.image.config.user);
        stage.history(format!("USER {user}"), false, self.plan.epoch);
    }

    pub(super) fn volume(&mut self, stage: &mut Stage, volumes: &[String]) -> Outcome<()> {
        for volume in volumes {
            if volume.is_empty() {
                return Err(Fault::new("VOLUME specified can not be an empty string"));
            }
            stage.image.config.volumes.insert(volume.clone(), Value::Object(serde_json::Map::new()));
        }
        stage.history(format!("VOLUME [{}]", volumes.join(" ")), false, self.plan.epoch);
        Ok(())
    }

    pub(super) fn stop_signal(&mut self, stage: &mut Stage, text: &str) -> Outcome<()> {
        signal::check(text)?;
        text.clone_into(&mut stage.image.config.stop_signal);
        stage.history(format!("STOPSIGNAL {text}"), false, self.plan.epoch);
        Ok(())
    }

    fn words(&mut self, stage: &Stage, instruction: &Instruction, line: &CommandLine) -> Vec<String> {
        if !line.shell {
            return line.args.clone();
        }
        lint::json_args::check(instruction, &stage.image.config.shell, &mut self.linter);
        image::with_shell(&stage.image, &line.args)
    }

    pub(super) fn cmd(&mut self, stage: &mut Stage, instruction: &Instruction, line: &CommandLine) {
        lint::multiple_instructions::check(instruction, stage.cmd, &mut self.linter);
        stage.cmd = Some(instruction.lines);
        let words = self.words(stage, instruction, line);
        let text = format!("CMD {}", quote_list(&words));
        stage.image.config.cmd = Some(words).filter(|w| !w.is_empty());
        stage.image.config.args_escaped = true;
        stage.history(text, false, self.plan.epoch);
    }

    pub(super) fn entrypoint(&mut self, stage: &mut Stage, instruction: &Instruction, line: &CommandLine) {
        lint::multiple_instructions::check(instruction, stage.entrypoint, &mut self.linter);
        stage.entrypoint = Some(instruction.lines);
        let words = self.words(stage, instruction, line);
        let text = format!("ENTRYPOINT {}", quote_list(&words));
        stage.image.config.entrypoint = Some(words).filter(|w| !w.is_empty());
        // The base's command was meant for the base's entry point.
        if stage.cmd.is_none() {
            stage.image.config.cmd = None;
        }
        stage.history(text, false, self.plan.epoch);
    }

    pub(super) fn healthcheck(&mut self, stage: &mut Stage, instruction: &Instruction, check: &ast::Healthcheck) {
        lint::multiple_instructions::check(instruction, stage.healthcheck, &mut self.linter);
        stage.healthcheck = Some(instruction.lines);
        stage.image.config.healthcheck = Some(Healthcheck {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        });
        let text = format!(
            "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            check.test.join(" "),
            format_duration(check.interval),
            format_duration(check.timeout),
            format_duration(check.start_period),
            format_duration(check.start_interval),
            check.retries
        );
        stage.history(text, false, self.plan.epoch);
    }

    pub(super) fn workdir(&mut self, stage: &mut Stage, command: &Command, path: &str) -> Outcome<()> {
        let instruction = &command.instruction;
        if !stage.workdir_set && !path.starts_with('/') {
            lint::workdir_relative::check(instruction, path, &mut self.linter);
        }
        stage.workdir_set = true;
        self.change_dir(stage, path);
        let dir = stage.cwd.clone();
        if dir.len() > kiln_stdx::limits::PATH {
            let most = kiln_stdx::limits::PATH;
            return Err(Fault::new(format!(
                "the working directory is longer than {most} bytes, which no step can have"
            )));
        }
        self.spend(dir.len())?;
        if dir != "/" {
            let user = stage.image.config.user.as_str();
            let options = MkdirOptions {
                parents: true,
                owner: (!user.is_empty()).then(|| OwnerSpec::parse(user)),
                timestamp: self.plan.epoch.and_then(|s| s.checked_mul(NANOS)),
            };
            let shown = self.lexer().expand(&instruction.code, &stage.env).map(|e| e.text);
            let shown = uppercase_keyword(&shown.unwrap_or_else(|_| instruction.code.clone()));
            let env = stage.env.clone();
            let name = self.step_name(stage, &shown, command.onbuild, &env);
            let meta = Meta::named(name).location(self.map, instruction.lines.ranges());
            let actions = FileActions::new().mkdir(&dir, 0o755, options);
            stage.output = self.builder.file(stage.output, actions, meta);
        }
        stage.history(format!("WORKDIR {dir}"), dir != "/", self.plan.epoch);
        Ok(())
    }
}
