//! The graph of stages: names, bases, what copies from what, what a target needs, cycles.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kiln_oci::{ImageConfig, Platform, Reference};

use crate::ast::{Instruction, Kind};
use crate::diag::{self, Diagnostic, Fault, Outcome};
use crate::lex::{NoVars, WordLexer};
use crate::named::NamedContext;
use crate::source::Lines;

/// Position of a node in its [`Graph`].
pub(crate) type NodeId = usize;

/// A stage, or an image or context that a stage copies from.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The stage's name in lower case.
    pub name: Option<String>,
    /// The name in shown texts: `stage-0` for stages without one.
    pub display: String,
    /// Image, stage or context; expanded.
    pub base_name: String,
    /// Text of the `FROM`.
    pub code: String,
    /// None for what mounts refer to.
    pub lines: Option<Lines>,
    pub comments: Vec<String>,
    /// Global arguments that its `FROM` uses.
    pub used_args: BTreeSet<String>,
    /// `--platform`, and what the base turned out to be for.
    pub platform: Option<Platform>,
    /// The context that replaces the whole stage.
    pub replaced: Option<NamedContext>,
    /// The image that the name means; none for scratch, for what continues a stage and for what a context replaces.
    pub reference: Option<Reference>,
    /// The stage it continues.
    pub parent: Option<NodeId>,
    pub commands: Vec<Command>,
    /// No stage of the file but the target of `--from`.
    pub implicit: bool,
    /// Steps of it that are shown with a number.
    pub steps: usize,
    pub no_cache: bool,
    pub base: Base,
    /// Triggers of the base were added.
    pub triggered: bool,
}

/// What is below a stage's own instructions.
#[derive(Debug, Clone, Default)]
pub(crate) enum Base {
    /// Not looked at, or not needed.
    #[default]
    Unknown,
    Scratch,
    Image(BaseImage),
    /// A context that replaces the image, or the whole stage.
    Context(Box<NamedContext>, Option<Box<ImageConfig>>),
}

/// A base image with its config.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    /// Complete, with the digest where it is known.
    pub reference: String,
    pub config: Box<ImageConfig>,
    /// It has no layers at all.
    pub empty: bool,
}

/// An instruction of a stage.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub instruction: Arc<Instruction>,
    /// One per `--from`, or per mount; none where a mount has no `from`.
    pub sources: Vec<Option<NodeId>>,
    pub onbuild: bool,
}

/// All nodes: the file's stages first, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    pub nodes: Vec<Node>,
    /// How many of the nodes are the file's stages.
    pub stages: usize,
    /// Stages by name; of equal names the last.
    by_name: HashMap<String, NodeId>,
    /// How many of the nodes had the name of their base read.
    named: usize,
}

impl Node {
    /// Tells whether it has no instructions to run: it is an image or a context.
    pub fn is_source(&self) -> bool {
        self.implicit || self.replaced.is_some()
    }
}

impl Graph {
    /// Adds the next stage of the file.
    pub fn add_stage(&mut self, node: Node) {
        if let Some(name) = &node.name {
            self.by_name.insert(name.clone(), self.nodes.len());
        }
        self.nodes.push(node);
        self.stages += 1;
    }

    /// Finds a stage by name; of equal names the last wins.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    /// Finds the stage a `FROM` continues, among those above it.
    pub fn parent_of(&self, base: &str) -> Option<NodeId> {
        self.by_name.get(base).copied()
    }

    /// Returns the names of all stages.
    pub fn names(&self) -> Vec<&str> {
        self.nodes[..self.stages].iter().map(|n| n.display.as_str()).collect()
    }

    /// Finds what an instruction takes files from, adding images and contexts that are no stages.
    pub fn link(&mut self, instruction: Arc<Instruction>, onbuild: bool, escape: char) -> Outcome<Command> {
        let mut sources = Vec::new();
        match &instruction.kind {
            Kind::Copy(copy) => {
                if let Some(from) = &copy.from {
                    let id = self.copy_source(from, instruction.lines, escape).map_err(|f| f.at(instruction.lines))?;
                    sources.push(Some(id));
                }
            }
            Kind::Run(run) => {
                for mount in &run.mounts {
                    sources.push(mount.from.as_ref().map(|from| match self.find(from) {
                        Some(id) => id,
                        None => self.add_implicit(from, Some(instruction.lines)),
                    }));
                }
            }
            _ => {}
        }
        Ok(Command { instruction, sources, onbuild })
    }

    /// Reads the names of base images of the nodes added since the last call, and returns what is wrong with them.
    pub fn name_bases(&mut self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let fresh = std::mem::replace(&mut self.named, self.nodes.len());
        for node in &mut self.nodes[fresh..] {
            if node.parent.is_some() || node.replaced.is_some() || node.base_name == "scratch" {
                continue;
            }
            match Reference::parse(&node.base_name) {
                Ok(reference) => node.reference = Some(reference),
                Err(e) => {
                    let name = crate::gofmt::quote(&node.base_name);
                    let fault = Fault::new(format!("failed to parse stage name {name}: {e}"));
                    faults.push(match node.lines {
                        Some(lines) => fault.at(lines),
                        None => fault,
                    });
                }
            }
        }
        faults
    }

    fn copy_source(&mut self, from: &str, lines: Lines, escape: char) -> Outcome<NodeId> {
        let literal = WordLexer::new(escape).expand(from, &NoVars).map_err(Fault::new)?;
        if literal.text != from {
            return Err(Fault::new(
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
                 scope as a workaround",
            ));
        }
        match from.parse::<i64>() {
            Ok(index) => usize::try_from(index)
                .ok()
                .filter(|&i| i < self.stages)
                .ok_or_else(|| Fault::new(format!("invalid stage index {index}"))),
            Err(_) => Ok(self.find(from).unwrap_or_else(|| self.add_implicit(from, Some(lines)))),
        }
    }

    fn add_implicit(&mut self, base: &str, lines: Option<Lines>) -> NodeId {
        self.nodes.push(Node {
            name: None,
            display: String::new(),
            base_name: base.to_owned(),
            code: String::new(),
            lines,
            comments: Vec::new(),
            used_args: BTreeSet::new(),
            platform: None,
            replaced: None,
            reference: None,
            parent: None,
            commands: Vec::new(),
            implicit: true,
            steps: 0,
            no_cache: false,
            base: Base::Unknown,
            triggered: true,
        });
        self.nodes.len() - 1
    }

    /// Returns the nodes a node needs itself: its parent and what it copies or mounts from.
    fn needs(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let node = &self.nodes[id];
        let sources = node.commands.iter().flat_map(|c| c.sources.iter().copied().flatten());
        node.parent.filter(|_| node.replaced.is_none()).into_iter().chain(sources)
    }

    /// Returns everything a target needs, itself included.
    pub fn reachable(&self, target: NodeId) -> BTreeSet<NodeId> {
        let mut seen = BTreeSet::from([target]);
        let mut open = vec![target];
        while let Some(id) = open.pop() {
            for next in self.needs(id) {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen
    }

    /// Finds stages that need each other: every cycle once, of those that share a stage one.
    pub fn cycles(&self) -> Vec<Diagnostic> {
        // Kahn's order over all edges: what cannot be ordered is in a cycle or above one.
        let mut left: Vec<usize> = vec![0; self.nodes.len()];
        let mut users: Vec<Vec<NodeId>> = vec![Vec::new(); self.nodes.len()];
        for (id, count) in left.iter_mut().enumerate() {
            for need in self.needs(id) {
                *count += 1;
                users[need].push(id);
            }
        }
        let mut ready: Vec<NodeId> = (0..self.nodes.len()).filter(|&id| left[id] == 0).collect();
        let mut found = Vec::new();
        loop {
            while let Some(id) = ready.pop() {
                for &user in users[id].iter() {
                    // Those of a cycle that was found are at zero before.
                    if left[user] == 1 {
                        ready.push(user);
                    }
                    left[user] = left[user].saturating_sub(1);
                }
            }
            let cycle = self.cycle(&left);
            if cycle.is_empty() || found.len() == diag::MOST {
                return found;
            }
            found.push(self.describe(&cycle));
            // The rest is looked at as if these stages needed nothing.
            for id in cycle {
                left[id] = 0;
                ready.push(id);
            }
        }
    }

    /// Finds a cycle among the nodes that wait for others, each followed by what it needs.
    fn cycle(&self, left: &[usize]) -> Vec<NodeId> {
        let Some(mut id) = left.iter().position(|&n| n > 0) else { return Vec::new() };
        let stuck = |id: NodeId| self.needs(id).find(|&n| left[n] > 0).unwrap_or(id);
        // Every stuck node needs a stuck node: following that long enough ends inside a cycle.
        for _ in 0..self.nodes.len() {
            id = stuck(id);
        }
        let mut cycle = vec![id];
        while stuck(cycle[cycle.len() - 1]) != id {
            cycle.push(stuck(cycle[cycle.len() - 1]));
        }
        cycle
    }

    fn describe(&self, cycle: &[NodeId]) -> Diagnostic {
        let first = cycle.iter().copied().min().unwrap_or_default();
        let text = format!("circular dependency detected on stage: {}", self.nodes[first].display);
        let mut error = Diagnostic::error(text);
        for (at, &id) in cycle.iter().enumerate() {
            let next = cycle[(at + 1) % cycle.len()];
            for command in self.nodes[id].commands.iter().filter(|c| c.sources.contains(&Some(next))) {
                error = error.at(command.instruction.lines);
            }
        }
        error.spans.sort();
        error
    }
}
