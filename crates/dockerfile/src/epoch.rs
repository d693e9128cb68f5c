//! `SOURCE_DATE_EPOCH`: a number, `context`, the name of a context, or the name of a stage that only fetches.

use std::collections::BTreeMap;

use kiln_llb::Definition;
use kiln_llb::builder::{Builder, EnvList, HttpOptions, Meta, Output};

use crate::ast::{Add, Dockerfile, Kind, Stage};
use crate::diag::{Fault, Outcome};
use crate::lex::{Vars, WordLexer};
use crate::options::BuildOptions;
use crate::resolve::{Resolved, Wanted, WantedTime};
use crate::source::Lines;
use crate::{git_ref, named};

const NAME: &str = "SOURCE_DATE_EPOCH";

/// What became of the epoch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Epoch {
    /// Unix seconds; none when it is unset or its source has no time.
    Known(Option<i64>),
    /// Something must be fetched first.
    Missing(Vec<Wanted>),
}

/// Returns the value asked for: a build argument, or else a global argument that is not empty.
fn requested(build_args: &BTreeMap<String, String>, globals: &EnvList) -> Option<String> {
    build_args.get(NAME).cloned().or_else(|| globals.value(NAME).filter(|v| !v.is_empty()))
}

/// Finds the epoch and puts its number into the arguments, or takes the argument away when it has none.
pub(crate) fn resolve(
    file: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
    build_args: &mut BTreeMap<String, String>,
    globals: &mut EnvList,
) -> Outcome<Epoch> {
    let Some(value) = requested(build_args, globals) else { return Ok(Epoch::Known(None)) };
    let seconds = if value.is_empty() {
        None
    } else if let Ok(seconds) = value.parse::<i64>() {
        if crate::gofmt::format_time(seconds).is_none() {
            return Err(Fault::new(format!("invalid SOURCE_DATE_EPOCH: {value}")));
        }
        Some(seconds)
    } else if let Some(answer) = resolved.time(&value) {
        answer
    } else {
        return source_time(file, options, resolved, build_args, globals, value);
    };
    let text = seconds.map(|s| s.to_string());
    if build_args.contains_key(NAME) {
        match &text {
            Some(text) => build_args.insert(NAME.into(), text.clone()),
            None => build_args.remove(NAME),
        };
    }
    if globals.get(NAME).is_some() {
        match text {
            Some(text) => globals.set(NAME, text),
            None => globals.remove(NAME),
        }
    }
    Ok(Epoch::Known(seconds))
}

/// Finds the source whose time is meant.
fn source_time(
    file: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
    build_args: &BTreeMap<String, String>,
    globals: &EnvList,
    value: String,
) -> Outcome<Epoch> {
    let mut builder = Builder::new(options.platform());
    let (output, name) = if value == "context" {
        let Some(output) = options.main_context.lower(&mut builder)? else { return Ok(Epoch::Known(None)) };
        (output, "[internal] resolve main build context metadata".to_owned())
    } else if let Ok(Some(context)) = named::find(options, &value, None, Lines::default()) {
        if let Some(wanted) = context.wanted(options, resolved)? {
            return Ok(Epoch::Missing(vec![wanted]));
        }
        let output = context.load(options, resolved, &mut builder)?.output;
        (output, format!("[internal] resolve SOURCE_DATE_EPOCH named context {value}"))
    } else {
        let stage = file.stages.iter().find(|s| s.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(&value)));
        let Some(stage) = stage else {
            return Err(Fault::new(format!("invalid SOURCE_DATE_EPOCH: {value}"))
                .hint("give seconds since 1970, `context`, or the name of a context or stage"));
        };
        let mut scope = globals.clone();
        scope.remove(NAME);
        let output =
            stage_source(stage, file.escape, build_args, scope, &mut builder).map_err(|f| f.at(stage.lines))?;
        let name = stage.name.as_deref().unwrap_or_default();
        (output, format!("[internal] resolve SOURCE_DATE_EPOCH source stage {name}"))
    };
    let definition: Definition = builder.definition(output).map_err(|e| Fault::new(e.to_string()))?;
    Ok(Epoch::Missing(vec![Wanted::Time(WantedTime { value, definition, name })]))
}

/// Returns the one remote source of a stage that has nothing else.
fn stage_source(
    stage: &Stage,
    escape: char,
    build_args: &BTreeMap<String, String>,
    mut scope: EnvList,
    builder: &mut Builder,
) -> Outcome<Output> {
    let lexer = WordLexer::new(escape);
    let expand = |text: &str, scope: &EnvList| lexer.expand(text, scope).map(|e| e.text).map_err(Fault::new);
    if expand(&stage.base, &scope)? != "scratch" {
        return Err(Fault::new("SOURCE_DATE_EPOCH stage must use FROM scratch"));
    }
    let mut source = None;
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Arg(args) => {
                for arg in args {
                    match (build_args.get(&arg.name), &arg.default) {
                        (Some(given), _) => scope.set(arg.name.clone(), given.clone()),
                        (None, Some(default)) => {
                            let value = expand(default, &scope)?;
                            scope.set(arg.name.clone(), value);
                        }
                        (None, None) => {}
                    }
                }
            }
            Kind::Add(add) if source.is_none() => {
                source = Some(add_source(add, |text| expand(text, &scope), builder)?);
            }
            Kind::Add(_) => return Err(Fault::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")),
            _ => {
                return Err(Fault::new(format!(
                    "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {} instruction",
                    instruction.keyword
                )));
            }
        }
    }
    source.ok_or_else(|| Fault::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD"))
}

fn add_source(add: &Add, expand: impl Fn(&str) -> Outcome<String>, builder: &mut Builder) -> Outcome<Output> {
    let one = || Fault::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source");
    let ([source], true) = (add.transfer.sources.as_slice(), add.transfer.inline.is_empty()) else { return Err(one()) };
    let source = expand(source)?;
    let checksum = expand(&add.checksum)?;
    if let Some(git) = git_ref::parse(&source).map_err(Fault::new)?.filter(|g| !g.looks_local) {
        let mut options = git.options();
        options.keep_git_dir = add.keep_git_dir.or(git.keep_git_dir).unwrap_or(false);
        if !checksum.is_empty() {
            options.checksum = Some(checksum);
        }
        return builder.git(&git.remote, "", &options, Meta::default()).map_err(|e| Fault::new(e.to_string()));
    }
    if !source.starts_with("http://") && !source.starts_with("https://") {
        return Err(one());
    }
    let checksum = match checksum.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| Fault::new(format!("invalid checksum digest format: {text}")))?),
    };
    let filename = Some(crate::lower::url_file_name(&source));
    let options = HttpOptions { checksum, filename, ..HttpOptions::default() };
    Ok(builder.http(&source, &options, Meta::default()))
}
