//! A Dockerfile as advice looks at it: stages with their steps, the user at each, and which context paths are copied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::shell;
use super::{ContextView, Edit};
use crate::ast::{Dockerfile, Instruction, Kind, Stage, Transfer};

/// How many stages below each other are looked at for a user.
const PARENTS: usize = 32;

/// A file with what is known around it.
pub(super) struct Reader<'a> {
    pub file: &'a Dockerfile,
    pub context: &'a ContextView,
    /// Lines of the file, without their ends.
    pub lines: Vec<String>,
    /// Stages by name, in lower case.
    names: BTreeMap<&'a str, Vec<usize>>,
    /// Stages by their first line.
    places: BTreeMap<u32, usize>,
    /// Stages that another copies from.
    copied: BTreeSet<usize>,
}

/// A `RUN`.
pub(super) struct Step<'a> {
    pub instruction: &'a Instruction,
    /// Place among the stage's instructions.
    pub index: usize,
    pub run: &'a crate::ast::Run,
    pub commands: Vec<Vec<String>>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a Dockerfile, context: &'a ContextView) -> Self {
        let mut names: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (i, stage) in file.stages.iter().enumerate() {
            places.insert(stage.lines.first, i);
            names.entry(stage.name.as_deref().unwrap_or_default()).or_default().push(i);
        }
        let mut out = Self { file, context, lines: file.source.lines(), names, places, copied: BTreeSet::new() };
        let sources = file.stages.iter().flat_map(|s| &s.instructions).filter_map(|i| match &i.kind {
            Kind::Copy(copy) => copy.from.as_deref(),
            _ => None,
        });
        out.copied = sources.filter_map(|from| out.index_of(from)).collect();
        out
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        let named = self.names.get(name.to_lowercase().as_str()).and_then(|all| all.first().copied());
        named.or_else(|| name.parse::<usize>().ok().filter(|i| *i < self.file.stages.len()))
    }

    /// Tells whether another stage copies from this one.
    pub fn is_copied(&self, stage: &Stage) -> bool {
        self.places.get(&stage.lines.first).is_some_and(|i| self.copied.contains(i))
    }

    /// Returns the steps of a stage.
    pub fn steps(&self, stage: &'a Stage) -> Vec<Step<'a>> {
        let step = |(index, instruction): (usize, &'a Arc<Instruction>)| match &instruction.kind {
            Kind::Run(run) => Some(Step { instruction, index, run, commands: shell::commands(run) }),
            _ => None,
        };
        stage.instructions.iter().enumerate().filter_map(step).collect()
    }

    /// Returns the lines of an instruction as written.
    pub fn text(&self, instruction: &Instruction) -> String {
        let (first, last) = (instruction.lines.first as usize, instruction.lines.last as usize);
        let lines = self.lines.get(first.saturating_sub(1)..last.min(self.lines.len()));
        lines.map(|l| l.join("\n")).unwrap_or_default()
    }

    /// Returns the user that an instruction of a stage runs as, where this file says so and it is not root.
    pub fn user(&self, stage: &'a Stage, index: usize) -> Option<&'a str> {
        let (mut stage, mut index) = (stage, index);
        for _ in 0..PARENTS {
            let set = stage.instructions.iter().take(index).rev().find_map(|i| match &i.kind {
                Kind::User(user) => Some(user.as_str()),
                _ => None,
            });
            if let Some(user) = set {
                return Some(user.split(':').next().unwrap_or(user)).filter(|u| !matches!(*u, "root" | "0"));
            }
            stage = self.parent(stage)?;
            index = stage.instructions.len();
        }
        None
    }

    /// Returns the stage that another continues. It comes before it, so chains end.
    pub fn parent(&self, stage: &Stage) -> Option<&'a Stage> {
        let own = *self.places.get(&stage.lines.first)?;
        let all = self.names.get(stage.base.to_lowercase().as_str())?;
        self.file.stages.get(*all.iter().rfind(|i| **i < own)?)
    }

    /// Returns a stage by name or number.
    pub fn stage(&self, name: &str) -> Option<&'a Stage> {
        self.file.stages.get(self.index_of(name)?)
    }

    /// Returns the last stage.
    pub fn last(&self) -> Option<&'a Stage> {
        self.file.stages.last()
    }

    /// Returns an edit that puts `text` in place of an instruction.
    pub fn replace(instruction: &Instruction, text: &str) -> Edit {
        let count = instruction.lines.last + 1 - instruction.lines.first;
        Edit::dockerfile(instruction.lines.first, count, text)
    }

    /// Returns the instruction that copies the whole context into a stage, if one does.
    pub fn copies_all(instruction: &Instruction) -> Option<&Transfer> {
        let transfer = match &instruction.kind {
            Kind::Copy(copy) if copy.from.is_none() && !copy.parents => &copy.transfer,
            Kind::Add(add) => &add.transfer,
            _ => return None,
        };
        let whole = |s: &String| matches!(s.as_str(), "." | "./" | "/" | "*" | "./*" | "./.");
        (transfer.inline.is_empty() && transfer.sources.iter().any(whole)).then_some(transfer)
    }
}
