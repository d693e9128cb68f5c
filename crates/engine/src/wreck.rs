//! What a failed step leaves for a client that drives its build: what was mounted, as it came in and as the step left it.
//! It becomes layers only when the client mounts it, and is gone with the build.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kiln_store::ImmutableRef;

use crate::error::EngineError;
use crate::ops::exec::mounts::Left;
use crate::parts::Parts;

/// What of an operation failed, where that is not all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// An action of a file operation, by its number.
    Action(usize),
    /// Looking at the content of an input, by its number.
    Content(usize),
}

/// A failed step's inputs and mounts, in the order of its operation; or what an action of a file operation saw.
pub struct Wreck {
    parts: Arc<Parts>,
    /// The operation as it came.
    pub op: Bytes,
    command: String,
    inputs: Vec<Option<ImmutableRef>>,
    mounts: tokio::sync::Mutex<Vec<Option<Left>>>,
    /// Whether there is something for each mount.
    present: Vec<bool>,
    subject: Option<Subject>,
}

/// The names by which a client may mount what is left; empty where there is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WreckIds {
    /// The operation as it came.
    pub op: Bytes,
    pub inputs: Vec<String>,
    pub mounts: Vec<String>,
    pub subject: Option<Subject>,
}

/// One thing that is left, by its name.
#[derive(Clone)]
pub enum Piece {
    /// What was mounted, as it came.
    Input(ImmutableRef),
    /// A mount as the step left it, by its place.
    Mount(Arc<Wreck>, usize),
}

impl Wreck {
    /// Takes over what a step leaves.
    pub fn new(
        parts: Arc<Parts>,
        op: Bytes,
        command: String,
        inputs: Vec<Option<ImmutableRef>>,
        mounts: Vec<Option<Left>>,
    ) -> Self {
        let present = mounts.iter().map(Option::is_some).collect();
        Self { parts, op, command, inputs, mounts: tokio::sync::Mutex::new(mounts), present, subject: None }
    }

    /// Says what of the operation failed.
    #[must_use]
    pub fn of(mut self, subject: Subject) -> Self {
        self.subject = Some(subject);
        self
    }

    /// Gives everything a name.
    pub fn named(self: &Arc<Self>) -> (WreckIds, Vec<(String, Piece)>) {
        let (mut ids, mut pieces) =
            (WreckIds { op: self.op.clone(), subject: self.subject, ..WreckIds::default() }, Vec::new());
        let mut name = |piece: Option<Piece>| {
            let Some(piece) = piece else { return String::new() };
            let id = kiln_stdx::rand_id();
            pieces.push((id.clone(), piece));
            id
        };
        ids.inputs = self.inputs.iter().map(|input| name(input.clone().map(Piece::Input))).collect();
        let mount = |(place, there): (usize, &bool)| there.then(|| Piece::Mount(self.clone(), place));
        ids.mounts = self.present.iter().enumerate().map(|found| name(mount(found))).collect();
        (ids, pieces)
    }
}

impl fmt::Debug for Wreck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wreck").field("command", &self.command).field("mounts", &self.present).finish_non_exhaustive()
    }
}

impl Piece {
    /// Returns its layers.
    ///
    /// # Errors
    /// What the step changed cannot be stored.
    pub async fn layers(&self) -> Result<ImmutableRef, EngineError> {
        let (wreck, place) = match self {
            Self::Input(layers) => return Ok(layers.clone()),
            Self::Mount(wreck, place) => (wreck, *place),
        };
        let mut mounts = wreck.mounts.lock().await;
        let left = mounts.get_mut(place).and_then(Option::take);
        let left = left.ok_or_else(|| EngineError::user("what the failed step left there could not be stored"))?;
        let layers = left.layers(&wreck.parts, &wreck.command).await?;
        mounts[place] = Some(Left::Same(layers.clone()));
        Ok(layers)
    }
}
