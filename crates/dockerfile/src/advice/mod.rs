//! Advice about cache, size and secrets, beyond the build checks: what a reviewer would say, with the lines, the reason
//! and a proposed rewrite. What is known of the build context is handed in; nothing is read here.

mod add;
mod build_tools;
mod cache_mount;
mod context_files;
mod copy_order;
mod dev_dependencies;
mod emulation;
mod projects;
mod reader;
mod rewrite;
mod secrets;
mod shell;
mod tools;
mod unpinned;
mod update_alone;

use std::collections::BTreeMap;

use crate::ast::Dockerfile;
use crate::source::Lines;

pub use rewrite::{Edit, Target, apply, diff, propose, unified};

/// A kind of advice.
#[derive(Debug, PartialEq, Eq)]
pub struct Topic {
    /// Name for output.
    pub name: &'static str,
    /// What is found, in one line.
    pub title: &'static str,
}

/// All kinds, in the order in which they are looked for.
pub const TOPICS: [&Topic; 12] = [
    &copy_order::TOPIC,
    &cache_mount::TOPIC,
    &update_alone::TOPIC,
    &build_tools::TOPIC,
    &secrets::TOPIC,
    &add::TOPIC,
    &unpinned::TOPIC,
    &context_files::FOLDERS,
    &context_files::SECRETS,
    &dev_dependencies::TOPIC,
    &emulation::EMULATED,
    &emulation::NATIVE,
];

/// One piece of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    pub topic: &'static Topic,
    /// The lines it is about.
    pub lines: Lines,
    /// Why, in a sentence or two.
    pub reason: String,
    /// The proposed change.
    pub edits: Vec<Edit>,
    /// The change can be made as it is; otherwise it has places to fill in, or consequences to think about.
    pub ready: bool,
}

/// What is known of the build context.
#[derive(Debug, Clone, Default)]
pub struct ContextView {
    /// Files that the ignore file leaves in, with their sizes in bytes; paths are relative.
    pub files: BTreeMap<String, u64>,
    /// Texts of files at the root that say what a project is made of (`package.json` and its like).
    pub texts: BTreeMap<String, String>,
    /// The ignore file's text, empty when there is none.
    pub ignore: String,
    /// It was looked at.
    pub known: bool,
    /// The result is for a platform that this machine only emulates.
    pub foreign: bool,
}

impl ContextView {
    fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }
}

/// More than this is not read by anyone.
const MOST: usize = 200;

/// Returns all advice on a file, in the order of its lines.
pub fn advise(file: &Dockerfile, context: &ContextView) -> Vec<Advice> {
    let reader = reader::Reader::new(file, context);
    let mut out = Vec::new();
    copy_order::check(&reader, &mut out);
    cache_mount::check(&reader, &mut out);
    update_alone::check(&reader, &mut out);
    build_tools::check(&reader, &mut out);
    secrets::check(&reader, &mut out);
    add::check(&reader, &mut out);
    unpinned::check(&reader, &mut out);
    context_files::check(&reader, &mut out);
    dev_dependencies::check(&reader, &mut out);
    emulation::check(&reader, &mut out);
    out.sort_by_key(|a| a.lines.first);
    out.truncate(MOST);
    out
}

#[cfg(test)]
mod tests;
