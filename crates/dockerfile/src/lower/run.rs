//! `RUN`.

use kiln_llb::builder::{Exec, ExecMount, FileActions, FileOptions, Meta, Output};
use kiln_llb::op::{Device, NetMode, SecurityMode};

use super::Lowering;
use super::mounts::RunMounts;
use super::stage::Stage;
use crate::ast::{Instruction, Network, Run, Security};
use crate::diag::{Fault, Outcome};
use crate::image;
use crate::lex::heredoc::parse_mark;
use crate::lex::{Vars, WordLexer};
use crate::names::{summarize, uppercase_keyword};
use crate::scope;
use crate::stage::Command;

/// Where a heredoc that is a script of its own is mounted.
const SCRIPTS: &str = "/dev/pipes/";

/// What is run, and what people see of it.
struct Line {
    args: Vec<String>,
    /// Added to the shown text.
    suffix: String,
    script: Option<ExecMount>,
}

impl Lowering<'_> {
    pub(super) fn run_command(&mut self, stage: &mut Stage, command: &Command, run: &Run) -> Outcome<()> {
        let instruction = &command.instruction;
        // A process may look at any file.
        self.mark_used(stage.id, "/");
        let mut line = self.line(stage, run)?;
        if run.command.shell {
            line.args = image::with_shell(&stage.image, &line.args);
        }
        if !run.devices.is_empty() && !self.options.allow_devices {
            return Err(Fault::new("device feature is only supported in Dockerfile frontend 1.14.0-labs or later")
                .hint("ask for it with `# syntax=docker/dockerfile:1-labs`"));
        }
        let mounts = self.mounts(stage, command, run)?;
        let name = self.run_name(stage, command, &line, &mounts);
        let exec = self.exec(stage, run, &line, mounts);
        let mut meta = Meta::named(name)
            .describe(kiln_llb::attr::DOCKERFILE_COMMAND, instruction.code.clone())
            .platform(stage.platform.clone())
            .ignore_cache(self.plan.graph.nodes[stage.id].no_cache)
            .location(self.map, instruction.lines.ranges());
        if let Some(seconds) = run.max_age {
            meta = meta.describe(kiln_llb::attr::MAX_AGE, seconds.to_string());
        }
        meta.linux_resources.clone_from(&self.options.linux_resources);
        // Each step carries all variables, and each line of history all arguments.
        self.spend_env(&stage.env)?;
        self.spend(stage.build_args.bytes())?;
        let outputs = self.builder.exec(exec, meta).map_err(|e| Fault::new(e.to_string()))?;
        stage.output = outputs.root();
        let text = history_text(stage, &line.args);
        stage.history(text, true, self.plan.epoch);
        Ok(())
    }

    /// Finds out what is run: heredocs become scripts, or go back into the shell's text.
    fn line(&mut self, stage: &Stage, run: &Run) -> Outcome<Line> {
        let (args, docs) = (&run.command.args, &run.command.heredocs);
        let plain = |args: Vec<String>| Line { args, suffix: String::new(), script: None };
        let Some(first) = docs.first() else { return Ok(plain(args.clone())) };
        let [text] = args.as_slice() else {
            return Err(Fault::new(format!("parsing produced an invalid run command: [{}]", args.join(" "))));
        };
        if parse_mark(text).ok().flatten().is_none() {
            let mut whole = text.clone();
            for doc in docs {
                whole.push('\n');
                whole.push_str(&doc.content);
                whole.push_str(&doc.name);
            }
            return Ok(plain(vec![whole]));
        }
        let body = first.text();
        let suffix = format!(" ({})", summarize(&first.content));
        if stage.image.os == "windows" || !body.starts_with("#!") {
            return Ok(Line { args: vec![body], suffix, script: None });
        }
        let actions = FileActions::new().mkfile(&first.name, 0o755, body.into_bytes(), FileOptions::default());
        let meta = Meta::named("[internal] preparing inline document").platform(stage.platform.clone());
        let script = self.builder.file(Output::SCRATCH, actions, meta);
        let mount = ExecMount { selector: "/".into(), ..ExecMount::readonly(SCRIPTS, script) };
        Ok(Line { args: vec![format!("{SCRIPTS}{}", first.name)], suffix, script: Some(mount) })
    }

    fn run_name(&self, stage: &mut Stage, command: &Command, line: &Line, mounts: &RunMounts) -> String {
        let code = format!("{}{}", command.instruction.code, line.suffix);
        let lexer = WordLexer { raw_quotes: true, keep_unset: true, ..self.lexer() };
        // What comes from a secret is shown as such; its value is not known here anyway.
        let mut env = stage.env.clone();
        for secret in &mounts.secrets {
            if let Some(name) = &secret.env {
                env.set(name.clone(), "****");
            }
        }
        let shown = lexer.expand(&code, &env).map_or(code, |e| e.text);
        let env = stage.env.clone();
        self.step_name(stage, &uppercase_keyword(&shown), command.onbuild, &env)
    }

    fn exec(&self, stage: &Stage, run: &Run, line: &Line, mounts: RunMounts) -> Exec {
        let options = self.options;
        let mut exec = Exec::new(stage.output, line.args.clone());
        exec.env = stage.env.clone();
        exec.cwd.clone_from(&stage.cwd);
        exec.user.clone_from(&stage.user);
        exec.hostname.clone_from(&options.hostname);
        exec.cgroup_parent.clone_from(&options.cgroup_parent);
        exec.extra_hosts.clone_from(&options.extra_hosts);
        exec.ulimits.clone_from(&options.ulimits);
        exec.network = match run.network {
            Network::Default => stage.network,
            Network::None => NetMode::None,
            Network::Host => NetMode::Host,
        };
        exec.security = match run.security {
            Security::Sandbox => SecurityMode::Sandbox,
            Security::Insecure => SecurityMode::Insecure,
        };
        exec.proxy = scope::proxy_env(&self.plan.build_args);
        exec.mounts.extend(line.script.clone());
        exec.mounts.extend(mounts.mounts);
        if options.shm_size > 0 {
            exec.mounts.push(ExecMount::tmpfs("/dev/shm", options.shm_size));
        }
        exec.secrets = mounts.secrets;
        exec.ssh = mounts.ssh;
        exec.devices.clone_from(&options.devices);
        let wanted = run.devices.iter().map(|d| Device { name: d.name.clone(), optional: !d.required });
        exec.devices.extend(wanted);
        exec
    }
}

/// Returns the line of history: declared arguments first, then the words.
fn history_text(stage: &Stage, args: &[String]) -> String {
    let mut words = stage.build_args.words(&stage.env);
    words.extend(args.iter().cloned());
    format!("RUN {} # buildkit", words.join(" "))
}

/// Returns the instruction with its variables replaced where that works, keyword in upper case.
pub(super) fn shown_text(lexer: WordLexer, instruction: &Instruction, env: &dyn Vars) -> String {
    let text = lexer.expand(&instruction.code, env).map_or_else(|_| instruction.code.clone(), |e| e.text);
    uppercase_keyword(&text)
}
