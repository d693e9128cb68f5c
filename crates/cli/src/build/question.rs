//! Answers a question about a Dockerfile here, without an engine, where nothing has to be looked up elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_dockerfile::{
    BuildOptions as Compiler, DockerfileError, Lowered, Resolved, ast::Dockerfile, directive, ignore, lower, parse,
    plan, render, source::SourceFile, subrequest,
};
use kiln_oci::Platform;

use super::call::Call;
use super::context::Inputs;
use super::options::BuildOptions;
use crate::error::CliError;

/// Answers, or returns none when that takes an engine: for base images, named contexts, another frontend, a context that
/// is not a directory here.
pub fn locally(call: &Call, options: &BuildOptions, inputs: &Inputs) -> Result<Option<subrequest::Answer>, CliError> {
    if call.name == "subrequests.describe" {
        return Ok(Some(subrequest::describe()));
    }
    let Some(subject) = Subject::read(options, inputs) else { return Ok(None) };
    match call.name.as_str() {
        "lint" => Ok(subject.lint()),
        "outline" => match subject.compiled(false) {
            Ok(Some((file, lowered))) => {
                Ok(Some(subrequest::outline(&file, subject.compiler.target.as_deref(), &lowered)))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(failed(&subject.source, &error)),
        },
        "targets" => match subject.parsed() {
            Ok(file) => Ok(Some(subrequest::targets(&file))),
            Err(error) => Err(failed(&subject.source, &error)),
        },
        _ => Ok(None),
    }
}

/// Words the errors of a Dockerfile, each with its place.
pub fn failed(source: &SourceFile, error: &DockerfileError) -> CliError {
    let messages: Vec<&str> = error.diagnostics.iter().take(20).map(|d| d.message.as_str()).collect();
    let mut out = CliError::user(format!("failed to solve: {}", messages.join("\n")));
    for diagnostic in error.diagnostics.iter().take(20) {
        let excerpt = render::excerpt(source, &diagnostic.spans);
        if !excerpt.is_empty() {
            out = out.excerpt(excerpt);
        }
        if let Some(hint) = &diagnostic.hint {
            out = out.hint(hint);
        }
    }
    out
}

/// A Dockerfile with all that influences it.
pub struct Subject {
    pub source: SourceFile,
    pub compiler: Compiler,
}

impl Subject {
    /// Reads the file and its ignore file. None when they are not here, or another frontend is to read them; whoever
    /// builds then says so.
    pub fn read(options: &BuildOptions, inputs: &Inputs) -> Option<Subject> {
        if inputs.upload.is_some() || inputs.attrs.contains_key("context") {
            return None;
        }
        let name = inputs.attrs.get("filename")?;
        let dir = inputs.dirs.get("dockerfile")?;
        let data = fs::read(dir.join(name)).ok()?;
        let syntax = match options.build_args.get("BUILDKIT_SYNTAX") {
            Some(line) => Some(line.split_whitespace().next().unwrap_or_default().to_owned()),
            None => directive::detect_syntax(&data).map(|s| s.image),
        };
        if syntax.is_some_and(|image| !directive::is_builtin(&image)) {
            return None;
        }
        let prefixed = |prefix: &str| -> BTreeMap<String, String> {
            let own = |(k, v): (&String, &String)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()));
            inputs.attrs.iter().filter_map(own).collect()
        };
        let compiler = Compiler {
            target: options.target.clone(),
            build_args: options.build_args.clone(),
            labels: options.labels.clone(),
            contexts: prefixed("context:"),
            target_platform: options.platform.clone().or_else(|| Some(Platform::host())),
            check: options.build_args.get("BUILDKIT_DOCKERFILE_CHECK").cloned(),
            ignore_patterns: ignore_patterns(dir, name, inputs.dirs.get("context").map(AsRef::as_ref)),
            ..Compiler::default()
        };
        Some(Subject { source: SourceFile { name: name.clone(), data }, compiler })
    }

    fn parsed(&self) -> Result<Dockerfile, DockerfileError> {
        parse(&self.source.name, &self.source.data)
    }

    /// Compiles the file; none when something is wanted that is not here.
    fn compiled(&self, all_stages: bool) -> Result<Option<(Dockerfile, Lowered)>, DockerfileError> {
        let file = self.parsed()?;
        let compiler = Compiler { all_stages, ..self.compiler.clone() };
        let resolved = Resolved::default();
        let plan = plan(&file, &compiler, &resolved)?;
        if !plan.wanted.is_empty() {
            return Ok(None);
        }
        let lowered = lower(&file, &plan, &compiler, &resolved)?;
        Ok(Some((file, lowered)))
    }

    fn lint(&self) -> Option<subrequest::Answer> {
        match self.compiled(self.compiler.target.is_none()) {
            Ok(Some((_, lowered))) => Some(subrequest::lint(&self.source, Ok(&lowered))),
            Ok(None) => None,
            Err(error) => Some(subrequest::lint(&self.source, Err(&error))),
        }
    }
}

/// Returns the patterns of the Dockerfile's own ignore file, else of the context's.
fn ignore_patterns(dir: &Path, name: &str, context: Option<&Path>) -> Vec<String> {
    let own = fs::read(dir.join(format!("{name}.dockerignore"))).ok();
    let text = own.or_else(|| fs::read(context?.join(".dockerignore")).ok());
    text.map(|text| ignore::parse(&text)).unwrap_or_default()
}
