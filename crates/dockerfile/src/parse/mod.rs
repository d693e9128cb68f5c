//! Text to tree. Every instruction is read even when an earlier one is wrong, so that all errors are seen at once.

mod copy;
mod flags;
mod from;
mod healthcheck;
mod pairs;
mod run;
pub(crate) mod run_mount;

use std::sync::Arc;

use crate::ast::{CommandLine, Dockerfile, Instruction, Kind};
use crate::diag::{Diagnostic, DockerfileError, Fault, Outcome};
use crate::lex::json_array::{self, JsonArray};
use crate::lex::line::{self, Logical};
use crate::lex::split;
use crate::source::SourceFile;
use flags::Flags;

/// Names of all instructions.
pub const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Errors after which the rest of a file is not read.
const ERRORS: usize = 100;

/// Parses a Dockerfile; `name` is what messages call it.
///
/// # Errors
/// Everything that is wrong with its form, first things first.
pub fn parse(name: &str, data: &[u8]) -> Result<Dockerfile, DockerfileError> {
    if data.is_empty() {
        return Err(Diagnostic::error("the Dockerfile cannot be empty").into());
    }
    let lexed = line::lex(data)?;
    let mut out = Dockerfile {
        source: SourceFile { name: name.to_owned(), data: data.to_vec() },
        directives: lexed.directives,
        escape: lexed.escape,
        global_args: Vec::new(),
        stages: Vec::new(),
        empty_continuations: lexed.empty_continuations,
    };
    let mut diagnostics = Vec::new();
    for mut logical in lexed.instructions {
        if let Err(fault) = add(&mut out, &mut logical) {
            diagnostics.push(locate(fault, &logical).into());
            if diagnostics.len() >= ERRORS {
                break;
            }
        }
    }
    if diagnostics.is_empty() && out.stages.is_empty() {
        diagnostics.push(
            Diagnostic::error("dockerfile contains no stages to build")
                .hint("begin with an instruction such as FROM debian"),
        );
    }
    if diagnostics.is_empty() {
        return Ok(out);
    }
    // What could be read is judged all the same.
    let checks = out.directives.check.as_ref().and_then(|check| crate::lint::Config::parse(&check.value).ok());
    let mut linter = crate::lint::Linter::new(checks.unwrap_or_default());
    crate::lint::check_tree(&out, &mut linter);
    Err(DockerfileError { diagnostics, warnings: linter.warnings })
}

/// Gives an error its place and the field's wording.
fn locate(fault: Fault, logical: &Logical) -> Fault {
    let message = format!("dockerfile parse error on line {}: {}", logical.lines.first, fault.message);
    let place = fault.word.as_deref().and_then(|word| Some((logical.find(word)?, word.chars().count())));
    let fault = Fault { message, ..fault };
    match place {
        Some((start, length)) => fault.at_word(start, length),
        None => fault.at(logical.lines),
    }
}

fn add(out: &mut Dockerfile, logical: &mut Logical) -> Outcome<()> {
    if logical.parts.keyword.eq_ignore_ascii_case("from") {
        out.stages.push(from::parse(logical)?);
        return Ok(());
    }
    let Some(stage) = out.stages.last_mut() else {
        // The text is kept, to find the word in it.
        let instruction = instruction(&mut logical.clone(), out.escape)?;
        if !matches!(instruction.kind, Kind::Arg(_)) {
            return Err(Fault::new("no build stage in current context")
                .word(&logical.parts.keyword)
                .hint("begin with FROM; only ARG may come before it"));
        }
        out.global_args.push(Arc::new(instruction));
        return Ok(());
    };
    stage.instructions.push(Arc::new(instruction(logical, out.escape)?));
    Ok(())
}

/// What one instruction is parsed from.
pub(crate) struct Request<'a> {
    pub logical: &'a Logical,
    pub escape: char,
    pub rest: &'a str,
}

impl Request<'_> {
    fn flags(&self) -> Flags<'_> {
        Flags::new(&self.logical.parts.flags)
    }

    /// Accepts no flag at all.
    fn no_flags(&self) -> Outcome<()> {
        self.flags().parse()
    }

    fn exactly_one(&self, name: &str) -> Outcome<String> {
        if self.rest.is_empty() {
            return Err(Fault::new(format!("{name} requires exactly one argument")));
        }
        self.no_flags()?;
        Ok(self.rest.to_owned())
    }

    /// Reads the rest as an array of strings or, failing that, as one text.
    fn command(&self, text: &str) -> Outcome<CommandLine> {
        let heredocs = self.logical.heredocs.clone();
        Ok(match json_array::parse(text) {
            JsonArray::Strings(args) => CommandLine { args, heredocs, shell: false },
            JsonArray::NotStrings => return Err(not_strings()),
            JsonArray::No if text.is_empty() => CommandLine { args: Vec::new(), heredocs, shell: true },
            JsonArray::No => CommandLine { args: vec![text.to_owned()], heredocs, shell: true },
        })
    }

    /// Reads the rest as an array of strings or, failing that, as words between blanks.
    fn list(&self) -> Outcome<Vec<String>> {
        match json_array::parse(self.rest) {
            JsonArray::Strings(args) => Ok(args),
            JsonArray::NotStrings => Err(not_strings()),
            JsonArray::No => Ok(split::blank_words(self.rest)),
        }
    }
}

fn not_strings() -> Fault {
    Fault::new("when using JSON array syntax, arrays must be comprised of strings only")
}

fn at_least_one(name: &str) -> Fault {
    Fault::new(format!("{name} requires at least one argument"))
}

/// Parses any instruction but `FROM`, and takes its text where it is well formed.
pub(crate) fn instruction(logical: &mut Logical, escape: char) -> Outcome<Instruction> {
    let parts = &logical.parts;
    let request = Request { logical, escape, rest: &parts.rest };
    let kind = match parts.keyword.to_ascii_lowercase().as_str() {
        "add" => copy::parse_add(&request)?,
        "arg" => pairs::parse_arg(&request)?,
        "cmd" => {
            request.no_flags()?;
            Kind::Cmd(request.command(request.rest)?)
        }
        "copy" => copy::parse_copy(&request)?,
        "entrypoint" => {
            request.no_flags()?;
            Kind::Entrypoint(request.command(request.rest)?)
        }
        "env" => Kind::Env(pairs::parse_pairs(&request, "ENV")?),
        "expose" => Kind::Expose(expose(&request)?),
        "healthcheck" => Kind::Healthcheck(healthcheck::parse(&request)?),
        "label" => Kind::Label(pairs::parse_pairs(&request, "LABEL")?),
        "maintainer" => Kind::Maintainer(request.exactly_one("MAINTAINER")?),
        "onbuild" => Kind::Onbuild(onbuild(&request)?),
        "run" => Kind::Run(run::parse(&request)?),
        "shell" => Kind::Shell(shell(&request)?),
        "stopsignal" => Kind::StopSignal(request.exactly_one("STOPSIGNAL")?),
        "user" => Kind::User(request.exactly_one("USER")?),
        "volume" => Kind::Volume(volume(&request)?),
        "workdir" => Kind::Workdir(request.exactly_one("WORKDIR")?),
        _ => {
            return Err(Fault::new(format!("unknown instruction: {}", parts.keyword))
                .did_you_mean(&parts.keyword, INSTRUCTIONS)
                .word(&parts.keyword));
        }
    };
    let code = match logical.text.trim().len() == logical.text.len() {
        true => std::mem::take(&mut logical.text),
        false => logical.text.trim().to_owned(),
    };
    Ok(Instruction {
        keyword: std::mem::take(&mut logical.parts.keyword),
        code,
        lines: logical.lines,
        comments: std::mem::take(&mut logical.comments),
        kind,
    })
}

fn expose(request: &Request<'_>) -> Outcome<Vec<String>> {
    let mut ports = split::blank_words(request.rest);
    if ports.is_empty() {
        return Err(at_least_one("EXPOSE"));
    }
    request.no_flags()?;
    ports.sort();
    Ok(ports)
}

fn volume(request: &Request<'_>) -> Outcome<Vec<String>> {
    let volumes = request.list()?;
    if volumes.is_empty() {
        return Err(at_least_one("VOLUME"));
    }
    request.no_flags()?;
    let volumes: Vec<String> = volumes.iter().map(|v| v.trim().to_owned()).collect();
    if volumes.iter().any(String::is_empty) {
        return Err(Fault::new("VOLUME specified can not be an empty string"));
    }
    Ok(volumes)
}

fn shell(request: &Request<'_>) -> Outcome<Vec<String>> {
    request.no_flags()?;
    let command = request.command(request.rest)?;
    match (command.args.is_empty(), command.shell) {
        (true, _) => Err(at_least_one("SHELL")),
        (false, false) => Ok(command.args),
        (false, true) => {
            Err(Fault::new(format!("SHELL requires the arguments to be in JSON form: {}", request.logical.text.trim()))
                .hint("write the words as a JSON array, for example SHELL [\"/bin/bash\", \"-c\"]"))
        }
    }
}

/// Checks that the inner instruction may be deferred; it is parsed when it is run.
fn onbuild(request: &Request<'_>) -> Outcome<String> {
    let inner = split::split_instruction(request.rest, request.escape);
    if inner.keyword.is_empty() {
        return Err(at_least_one("ONBUILD"));
    }
    request.no_flags()?;
    match inner.keyword.to_ascii_uppercase().as_str() {
        "ONBUILD" => return Err(Fault::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        name @ ("MAINTAINER" | "FROM") => {
            return Err(Fault::new(format!("{name} isn't allowed as an ONBUILD trigger")));
        }
        _ => {}
    }
    let mut text = request.rest.to_owned();
    for doc in &request.logical.heredocs {
        text.push('\n');
        text.push_str(&doc.content);
        text.push_str(&doc.name);
    }
    Ok(text)
}

/// Parses the text of a deferred instruction.
pub(crate) fn trigger(text: &str) -> Outcome<Instruction> {
    let lexed = line::lex(text.as_bytes())?;
    let mut instructions = lexed.instructions;
    let [logical] = instructions.as_mut_slice() else {
        return Err(Fault::new("onbuild trigger should be a single expression"));
    };
    instruction(logical, lexed.escape)
}
