//! In which order and into which layers the actions of a file op go.

use std::cell::Cell;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_llb::op::{FileAction, FileChange, FileInput, FileOp, Owner, UserSpec};
use kiln_snapshot::LayerBuilder;
use kiln_stdx::ErrorClass;
use kiln_store::{ImmutableRef, RecordType};
use tokio_util::sync::CancellationToken;

use super::copy::CopyRun;
use super::{owner, simple};
use crate::build::Progress;
use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;

/// One run of a file op, on a thread of its own.
pub struct Run<'a> {
    pub parts: &'a Parts,
    pub op: &'a FileOp,
    pub inputs: &'a [ImmutableRef],
    pub name: &'a str,
    pub progress: Progress,
    pub cancel: CancellationToken,
    /// The action that is being applied.
    pub at: Cell<usize>,
}

/// What a file op that failed leaves: the action that failed, and what each action worked on or made.
pub struct Failed {
    pub error: EngineError,
    pub at: usize,
    pub left: Vec<Option<ImmutableRef>>,
}

impl Run<'_> {
    /// Applies all actions and returns the outputs in order; with `keep`, a failure tells what there was by then.
    ///
    /// # Errors
    /// A path that does not exist or is not what it has to be, a full disk, damage in a source.
    pub fn run(&self, keep: bool) -> Result<Vec<ImmutableRef>, Box<Failed>> {
        let count = self.op.actions.len();
        let mut results: Vec<Option<ImmutableRef>> = vec![None; count];
        let mut start = 0;
        while start < count {
            let end = self.chain_end(start);
            self.at.set(start);
            let result = match self.apply(start..end, &results) {
                Ok(result) => result,
                Err(error) => {
                    let at = self.at.get();
                    if keep && error.class() != ErrorClass::Canceled {
                        // The actions before it went well, and do so again. What cannot be kept is not worth an error.
                        let made = match at > start {
                            true => self.apply(start..at, &results),
                            false => self.reference(self.op.actions[at].input, &results),
                        };
                        results[at] = made.ok();
                    }
                    return Err(Box::new(Failed { error, at, left: results }));
                }
            };
            results[end - 1] = Some(result);
            start = end;
        }
        let mut outputs: Vec<(usize, ImmutableRef)> = Vec::new();
        for (action, result) in self.op.actions.iter().zip(&results) {
            if let (Some(output), Some(result)) = (action.output, result) {
                outputs.push((output, result.clone()));
            }
        }
        outputs.sort_by_key(|(output, _)| *output);
        Ok(outputs.into_iter().map(|(_, reference)| reference).collect())
    }

    /// Returns the end of the run of actions from `start` that can share a layer: each works on the one before it,
    /// and nobody else looks at what is in between.
    fn chain_end(&self, start: usize) -> usize {
        let mut end = start + 1;
        while let Some(next) = self.op.actions.get(end) {
            let previous = end - 1;
            let continues = next.input == FileInput::Action(previous)
                && self.op.actions[previous].output.is_none()
                && self.uses(previous) == 1;
            if !continues {
                break;
            }
            end += 1;
        }
        end
    }

    /// Counts how often the result of an action is used: as input, as source, and for looking up owners.
    fn uses(&self, action: usize) -> usize {
        let wanted = FileInput::Action(action);
        self.op.actions.iter().map(|a| inputs_of(a).into_iter().filter(|i| *i == wanted).count()).sum()
    }

    fn apply(&self, range: Range<usize>, results: &[Option<ImmutableRef>]) -> Result<ImmutableRef, EngineError> {
        let actions = &self.op.actions[range.clone()];
        let Some(first) = actions.first() else {
            return Err(EngineError::new(ErrorClass::Bug, "a file op without actions"));
        };
        let store = &self.parts.store;
        let base = self.reference(first.input, results)?;
        store.check(&base)?;
        let (tree, dirs) = (base.tree()?, base.dirs());
        let draft = store.draft()?;
        let mut builder = LayerBuilder::new(&draft.fs(), &tree, &dirs)?;
        let now = now();
        for (number, action) in range.zip(actions) {
            self.at.set(number);
            if self.cancel.is_cancelled() {
                return Err(EngineError::canceled());
            }
            let lookup = |input: FileInput| self.reference(input, results);
            let owner_of = |owner: &Owner| owner::resolve(owner, &lookup, &self.progress);
            match &action.change {
                FileChange::Copy(copy) => {
                    let source = self.reference(action.secondary, results)?;
                    store.check(&source)?;
                    let owner = owner_of(&copy.owner)?;
                    CopyRun::new(&source, copy, owner, now, &self.cancel, draft.room())?.run(&mut builder)?;
                }
                FileChange::Mkfile(file) => simple::mkfile(&mut builder, file, owner_of(&file.owner)?, now)?,
                FileChange::Mkdir(dir) => simple::mkdir(&mut builder, dir, owner_of(&dir.owner)?, now)?,
                FileChange::Rm(rm) => simple::rm(&mut builder, &tree, rm)?,
                FileChange::Symlink(link) => simple::symlink(&mut builder, link, owner_of(&link.owner)?, now)?,
            }
        }
        let manifest = builder.finish()?;
        let info = layers::info(&base, self.name, RecordType::Regular);
        Ok(base.with_layer(store.commit(draft, manifest, info)?))
    }

    fn reference(&self, input: FileInput, results: &[Option<ImmutableRef>]) -> Result<ImmutableRef, EngineError> {
        let bug = |what| EngineError::new(ErrorClass::Bug, what);
        match input {
            FileInput::Empty => Ok(self.parts.store.scratch()),
            FileInput::Input(index) => self.inputs.get(index).cloned().ok_or_else(|| bug("no such input")),
            FileInput::Action(index) => {
                results.get(index).cloned().flatten().ok_or_else(|| bug("an action uses one that comes later"))
            }
        }
    }
}

fn inputs_of(action: &FileAction) -> Vec<FileInput> {
    let mut inputs = vec![action.input, action.secondary];
    let owner = match &action.change {
        FileChange::Copy(copy) => Some(&copy.owner),
        FileChange::Mkfile(file) => Some(&file.owner),
        FileChange::Mkdir(dir) => Some(&dir.owner),
        FileChange::Symlink(link) => Some(&link.owner),
        FileChange::Rm(_) => None,
    };
    for spec in owner.into_iter().flat_map(|o| [&o.user, &o.group]).flatten() {
        if let UserSpec::Name { input, .. } = spec {
            inputs.push(*input);
        }
    }
    inputs
}

/// Returns the time for what has none of its own: seconds and nanoseconds since 1970.
fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}
