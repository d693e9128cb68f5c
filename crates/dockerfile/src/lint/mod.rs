//! Build checks: what builds but should be written otherwise. One file a rule.

pub mod base_image_platform;
pub mod const_platform;
pub mod copy_ignored_file;
pub mod definition_description;
pub mod duplicate_stage_name;
pub mod empty_continuation;
pub mod expose_format;
pub mod expose_proto_casing;
pub mod from_as_casing;
pub mod instruction_casing;
pub mod invalid_default_arg;
pub mod json_args;
pub mod legacy_key_value;
pub mod maintainer;
pub mod multiple_instructions;
mod names;
pub mod redundant_target_platform;
pub mod reserved_stage_name;
pub mod secrets;
pub mod stage_name_casing;
pub mod undefined_arg_in_from;
pub mod undefined_var;
pub mod workdir_relative;

use std::collections::BTreeSet;

pub use names::unknown_names;

use crate::ast::Dockerfile;
use crate::diag::{Diagnostic, Severity};
use crate::directive;
use crate::gofmt::parse_bool;
use crate::source::Lines;

/// A check.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// The name that `check=skip=…` takes.
    pub name: &'static str,
    pub description: &'static str,
    /// Last part of the documentation's address; empty when it has no page.
    pub page: &'static str,
    /// Only run when asked for by name or with `all`.
    pub experimental: bool,
    /// What is bad about what it finds, for its page.
    pub why: &'static str,
    /// A Dockerfile with one finding.
    pub bad: &'static str,
    /// The same Dockerfile without it.
    pub good: &'static str,
}

/// All rules, in the order of their introduction.
pub const RULES: [&Rule; 22] = [
    &stage_name_casing::RULE,
    &from_as_casing::RULE,
    &empty_continuation::RULE,
    &instruction_casing::RULE,
    &duplicate_stage_name::RULE,
    &reserved_stage_name::RULE,
    &json_args::RULE,
    &maintainer::RULE,
    &undefined_arg_in_from::RULE,
    &workdir_relative::RULE,
    &undefined_var::RULE,
    &multiple_instructions::RULE,
    &legacy_key_value::RULE,
    &base_image_platform::RULE,
    &redundant_target_platform::RULE,
    &secrets::RULE,
    &invalid_default_arg::RULE,
    &const_platform::RULE,
    &copy_ignored_file::RULE,
    &definition_description::RULE,
    &expose_proto_casing::RULE,
    &expose_format::RULE,
];

impl Rule {
    /// Returns the file name of kiln's own page of the rule, without folder and extension.
    pub fn file_stem(&self) -> String {
        if !self.page.is_empty() {
            return self.page.to_owned();
        }
        let mut out = String::new();
        for c in self.name.chars() {
            if c.is_ascii_uppercase() && !out.is_empty() {
                out.push('-');
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    }

    /// Returns the address of the rule's documentation, empty when it has none.
    pub fn url(&self) -> String {
        match self.page {
            "" => String::new(),
            page => format!("https://docs.docker.com/go/dockerfile/rule/{page}/"),
        }
    }
}

/// Which rules run, and whether a finding fails the build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    skip_all: bool,
    skip: BTreeSet<String>,
    experimental_all: bool,
    experimental: BTreeSet<String>,
    /// A finding is an error.
    pub error: bool,
}

impl Config {
    /// Reads `skip=A,B|all;error=true;experimental=C|all`.
    ///
    /// # Errors
    /// An unknown key or a value of the wrong form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        if text.trim().is_empty() {
            return Ok(out);
        }
        for part in text.trim().splitn(3, ';') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("invalid check option {part:?}"))?;
            let value = value.trim();
            let names = || value.split(',').map(|n| n.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => out.skip_all = true,
                "skip" => out.skip = names(),
                "experimental" if value == "all" => out.experimental_all = true,
                "experimental" => out.experimental = names(),
                "error" => {
                    out.error = parse_bool(value).ok_or_else(|| format!("failed to parse check option {part:?}"))?;
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(out)
    }

    fn runs(&self, rule: &Rule) -> bool {
        if rule.experimental {
            return self.experimental_all || self.experimental.contains(rule.name);
        }
        !self.skip_all && !self.skip.contains(rule.name)
    }

    /// Tells whether the rule runs for an instruction with these comments above it.
    fn runs_below(&self, rule: &Rule, comments: &[String]) -> bool {
        let Some(text) = comments.iter().find_map(|c| directive::check_in_comment(c)) else { return self.runs(rule) };
        let Ok(more) = Self::parse(text) else { return self.runs(rule) };
        if rule.experimental { self.runs(rule) || more.runs(rule) } else { self.runs(rule) && more.runs(rule) }
    }
}

/// Collects findings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Linter {
    config: Config,
    pub warnings: Vec<Diagnostic>,
}

impl Linter {
    pub fn new(config: Config) -> Self {
        Self { config, warnings: Vec::new() }
    }

    /// Notes a finding unless the rule is off for the place.
    pub fn warn(&mut self, rule: &'static Rule, comments: &[String], lines: Option<Lines>, message: String) {
        if !self.config.runs_below(rule, comments) {
            return;
        }
        let warning = Diagnostic {
            severity: Severity::Warning,
            rule: rule.name,
            message,
            detail: rule.description.to_owned(),
            url: rule.url(),
            spans: lines.into_iter().map(Into::into).collect(),
            hint: None,
        };
        self.warnings.push(warning);
    }

    /// Returns the name that a misspelt one could stand for. In a file with very many findings nobody reads the hints,
    /// and comparing all names with all others would take long.
    pub fn nearest<'n>(&self, name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
        if self.warnings.len() > 40 { None } else { kiln_stdx::suggest::nearest(name, known) }
    }

    /// Returns the error that findings are when `error=true` is set.
    pub fn error(&self) -> Option<Diagnostic> {
        if !self.config.error || self.warnings.is_empty() {
            return None;
        }
        let names: BTreeSet<&str> = self.warnings.iter().map(|w| w.rule).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let mut error = Diagnostic::error(format!("lint violation found for rules: {}", names.join(", ")));
        error.spans = self.warnings.iter().flat_map(|w| w.spans.iter().copied()).collect();
        Some(error)
    }
}

/// Runs the rules that need nothing but the tree.
pub(crate) fn check_tree(file: &Dockerfile, linter: &mut Linter) {
    empty_continuation::check(file, linter);
    for stage in &file.stages {
        stage_name_casing::check(stage, linter);
        from_as_casing::check(stage, linter);
        definition_description::check_stage(stage, linter);
        for instruction in &stage.instructions {
            maintainer::check(instruction, linter);
            definition_description::check_arg(instruction, linter);
        }
    }
    for instruction in &file.global_args {
        definition_description::check_arg(instruction, linter);
    }
    reserved_stage_name::check(file, linter);
    duplicate_stage_name::check(file, linter);
    instruction_casing::check(file, linter);
}
