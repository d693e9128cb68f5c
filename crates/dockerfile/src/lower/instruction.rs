//! One instruction: its variables are replaced, then it is lowered by its kind.

use super::Lowering;
use super::stage::Stage;
use crate::ast::{Add, Copy, Instruction, Kind, Pair, Transfer};
use crate::diag::{Fault, Outcome};
use crate::lex::{Expansion, WordLexer};
use crate::lint;
use crate::scope;
use crate::stage::Command;

impl Lowering<'_> {
    /// Lowers one instruction.
    pub(super) fn command(&mut self, stage: &mut Stage, command: &Command) -> Outcome<()> {
        let instruction = &command.instruction;
        match &instruction.kind {
            Kind::Add(add) => {
                let add = Add {
                    transfer: self.expand_transfer(stage, instruction, &add.transfer)?,
                    checksum: self.expand(stage, instruction, &add.checksum)?,
                    ..add.clone()
                };
                self.add(stage, command, &add)
            }
            Kind::Copy(copy) => {
                let transfer = self.expand_transfer(stage, instruction, &copy.transfer)?;
                self.copy(stage, command, &Copy { transfer, ..copy.clone() })
            }
            Kind::Run(run) => self.run_command(stage, command, run),
            Kind::Workdir(path) => {
                let path = self.expand(stage, instruction, path)?;
                self.workdir(stage, command, &path)
            }
            Kind::Arg(args) => self.arg(stage, instruction, args),
            Kind::Env(pairs) => {
                let pairs = self.expand_pairs(stage, instruction, pairs)?;
                self.env(stage, instruction, &pairs);
                Ok(())
            }
            Kind::Label(pairs) => {
                let pairs = self.expand_pairs(stage, instruction, pairs)?;
                self.label(stage, instruction, &pairs);
                Ok(())
            }
            Kind::User(user) => {
                let user = self.expand(stage, instruction, user)?;
                self.user(stage, &user);
                Ok(())
            }
            Kind::Volume(volumes) => {
                let volumes: Vec<String> =
                    volumes.iter().map(|v| self.expand(stage, instruction, v)).collect::<Outcome<_>>()?;
                self.volume(stage, &volumes)
            }
            Kind::StopSignal(signal) => {
                let signal = self.expand(stage, instruction, signal)?;
                self.stop_signal(stage, &signal)
            }
            Kind::Expose(ports) => self.expose(stage, instruction, ports),
            other => {
                self.plain(stage, instruction, other);
                Ok(())
            }
        }
    }

    /// Lowers instructions in which nothing is expanded and nothing can fail.
    fn plain(&mut self, stage: &mut Stage, instruction: &Instruction, kind: &Kind) {
        match kind {
            Kind::Cmd(line) => self.cmd(stage, instruction, line),
            Kind::Entrypoint(line) => self.entrypoint(stage, instruction, line),
            Kind::Healthcheck(check) => self.healthcheck(stage, instruction, check),
            Kind::Maintainer(author) => {
                stage.image.author.clone_from(author);
                stage.history(format!("MAINTAINER {author}"), false, self.plan.epoch);
            }
            Kind::Onbuild(text) => stage.image.config.on_build.push(text.clone()),
            Kind::Shell(shell) => {
                stage.image.config.shell.clone_from(shell);
                stage.history(format!("SHELL [{}]", shell.join(" ")), false, self.plan.epoch);
            }
            _ => {}
        }
    }

    pub(super) fn lexer(&self) -> WordLexer {
        WordLexer::new(self.file.escape)
    }

    /// Replaces variables and removes quotes.
    pub(super) fn expand(&mut self, stage: &Stage, instruction: &Instruction, text: &str) -> Outcome<String> {
        Ok(self.expand_with(self.lexer(), stage, instruction, text)?.text)
    }

    pub(super) fn expand_with(
        &mut self,
        lexer: WordLexer,
        stage: &Stage,
        instruction: &Instruction,
        text: &str,
    ) -> Outcome<Expansion> {
        let expansion = lexer.expand(text, &stage.env).map_err(|e| Fault::new(e).word(text))?;
        self.spend(expansion.text.len())?;
        self.report_undefined(stage, instruction, &expansion);
        Ok(expansion)
    }

    fn report_undefined(&mut self, stage: &Stage, instruction: &Instruction, expansion: &Expansion) {
        for name in &expansion.unmatched {
            if !stage.build_args.has(name) && !scope::NOT_ENV.contains(&name.as_str()) {
                lint::undefined_var::check(instruction, name, &stage.env, &mut self.linter);
            }
        }
    }

    fn expand_pairs(&mut self, stage: &Stage, instruction: &Instruction, pairs: &[Pair]) -> Outcome<Vec<Pair>> {
        let mut out = Vec::with_capacity(pairs.len());
        for pair in pairs {
            out.push(Pair {
                key: self.expand(stage, instruction, &pair.key)?,
                value: self.expand(stage, instruction, &pair.value)?,
                legacy: pair.legacy,
            });
        }
        Ok(out)
    }

    fn expand_transfer(&mut self, stage: &Stage, instruction: &Instruction, transfer: &Transfer) -> Outcome<Transfer> {
        let mut out = transfer.clone();
        out.chown = self.expand(stage, instruction, &transfer.chown)?;
        out.chmod = self.expand(stage, instruction, &transfer.chmod)?;
        for source in &mut out.sources {
            *source = self.expand(stage, instruction, source)?;
        }
        out.dest = self.expand(stage, instruction, &transfer.dest)?;
        let raw = WordLexer { ignore_quotes: true, ..WordLexer::new('\\') };
        for doc in &mut out.inline {
            doc.content = doc.text();
            doc.strip_tabs = false;
            if doc.expand {
                doc.content = self.expand_with(raw, stage, instruction, &doc.content)?.text;
            }
        }
        Ok(out)
    }
}
