//! The state of the graph: vertices, their inputs and outputs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kiln_stdx::Digest;

use crate::context::JobId;
use crate::job::Origin;
use crate::key::{KeyId, OutputKey};
use crate::keystore::RecordRef;
use crate::miss::{Gone, MissReason, SlotRecord};
use crate::op::{CacheMap, KeyLife, OpError};
use crate::vertex::{Bound, CacheUse, MaxAge, StepSlot, VertexDigest};

/// Names a vertex while it is in the graph; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VertexId(pub u64);

/// Names an effect that is answered; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskId(pub u64);

/// Names a wish of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub u64);

/// An edge of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OutputRef {
    pub vertex: VertexId,
    pub index: u32,
}

/// How much of an output is wanted, or known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// All keys that follow from definitions.
    Fast,
    /// A key that a store knows if there is one, for which contents of inputs may have to be made.
    Slow,
    /// The result.
    Complete,
}

/// Who wants an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Demander {
    Job(JobId, Ticket),
    /// A vertex, for its input of that number.
    Vertex(VertexId, usize),
}

/// Whether a vertex, or any it is made from, ignores the cache. Such a vertex must not be mixed up with its plain twin in
/// another job, whose inputs come from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Freshness {
    Plain,
    /// Says which of its vertices do.
    Fresh(Digest),
}

/// A key with its lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub id: KeyId,
    pub life: KeyLife,
}

/// A key as one input sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Known {
    pub key: Key,
    pub selector: Option<Digest>,
}

/// A call of an operation whose outcome is kept.
#[derive(Debug)]
pub(crate) enum Call<T> {
    Idle,
    Running(TaskId),
    /// Called off, not yet answered.
    Stopping(TaskId),
    Done(T),
}

/// How a job knows a vertex.
#[derive(Debug, Clone)]
pub(crate) struct View<O> {
    pub op: O,
    pub name: Arc<str>,
    pub slot: Option<StepSlot>,
}

/// A vertex.
pub(crate) struct Node<R, O> {
    pub digest: VertexDigest,
    pub cache: CacheUse,
    pub max_age: Option<MaxAge>,
    pub fresh: Freshness,
    pub bound: Bound,
    /// The jobs that loaded it; it stays, with its results, as long as there is one.
    pub jobs: BTreeMap<JobId, View<O>>,
    /// The jobs that want anything of it, directly, through other vertices, or through its followers.
    pub wanted: BTreeSet<JobId>,
    /// How many of its demands and followers each of them is behind.
    pub wants: BTreeMap<JobId, usize>,
    pub map: Call<Arc<CacheMap>>,
    pub inputs: Vec<Input>,
    pub outputs: BTreeMap<u32, Out<R>>,
    pub exec: Exec<R, O>,
    pub failure: Option<Failure>,
    /// Vertices of equal key that wait for this one's execution.
    pub followers: BTreeSet<VertexId>,
    /// Why it was executed.
    pub miss: Option<Arc<MissReason>>,
    /// How often a call ended because its session did.
    pub lost: usize,
    /// Whether it is on the list of vertices to be looked at.
    pub queued: bool,
    /// Inputs that have not come as far as is asked of them, and contents being keyed, when it was last looked at; less
    /// those that came since.
    pub waiting: usize,
    /// What came of its inputs since it was last looked at.
    pub news: usize,
    /// The jobs that have ceased to want it since it last succeeded or failed.
    pub left: BTreeSet<JobId>,
}

/// An input of a vertex.
pub(crate) struct Input {
    pub edge: OutputRef,
    /// What is wanted of it at present.
    pub ask: Level,
    /// The digest of what the operation sees of it.
    pub content: Call<Option<Digest>>,
}

/// An output of a vertex.
pub(crate) struct Out<R> {
    pub demands: BTreeMap<Demander, Level>,
    /// What this output wants of each input; only grows during a search.
    pub asks: Vec<Level>,
    pub search: Search,
    pub probes: Vec<Probe>,
    /// The query under way, with the input and key of each question.
    pub query: Option<(TaskId, Vec<(usize, Known)>)>,
    /// Keys by which what is made from this output may be looked up.
    pub keys: Vec<Key>,
    /// The key its result was saved under, if that is not one to look up by.
    pub made: Option<Key>,
    pub records: Records,
    /// What became of records that could not be loaded.
    pub gone: Option<Gone>,
    /// The number of saves there had been when its keys were first looked up.
    pub probed_since: Option<u64>,
    pub state: State<R>,
    /// How far it has come; only grows but for failures.
    pub reached: Level,
    /// What its demanders were last told.
    pub told: (Level, usize),
    /// Whether its links are known to be in the main store.
    pub linked: Linked,
}

/// Whether a search for keys goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    Looking,
    /// No key can be found any more; what is wanted has to be executed.
    Hopeless,
}

/// Whether the links to an output are known to be in the main store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Linked {
    Unknown,
    Main,
}

/// The nodes that one input leads to.
#[derive(Default)]
pub(crate) struct Probe {
    pub asked: BTreeSet<Known>,
    /// By node: the keys of the input that lead to it in the main store.
    pub matches: BTreeMap<KeyId, BTreeSet<Known>>,
}

/// The records of an output's keys.
#[derive(Default)]
pub(crate) struct Records {
    /// How many of the keys were asked about.
    pub asked: usize,
    pub task: Option<TaskId>,
    pub found: VecDeque<RecordRef>,
    pub tried: BTreeSet<RecordRef>,
}

/// Where an output's result is.
pub(crate) enum State<R> {
    /// There is none yet.
    Open,
    Loading(TaskId, RecordRef),
    /// There is one; it is complete when it is saved.
    Saving(Done<R>),
    Complete(Done<R>),
}

/// A result.
#[derive(Clone)]
pub(crate) struct Done<R> {
    pub result: R,
    pub origin: Origin,
    pub record: Option<RecordRef>,
}

/// The execution of a vertex.
pub(crate) enum Exec<R, O> {
    Idle,
    /// Its slot is read, to tell why it is executed.
    Recalling(TaskId, Box<Prepared<R, O>>),
    /// Its operation is asked what differs.
    Explaining(TaskId, Box<Prepared<R, O>>, Box<MissReason>),
    /// It waits for an execution slot.
    Queued(Box<Prepared<R, O>>),
    Running(TaskId, Box<Prepared<R, O>>),
    /// Called off, not yet answered.
    Stopping(Box<Prepared<R, O>>),
    /// A vertex of equal key is being executed; this one takes its results.
    Following(VertexId, Box<Prepared<R, O>>),
    Done(Box<Made<R>>),
}

/// All that an execution needs, so that it can go on when the jobs that loaded its vertex are over.
pub(crate) struct Prepared<R, O> {
    pub op: O,
    /// Taken when it is run.
    pub inputs: Vec<R>,
    /// The keys of each input.
    pub known: Vec<Vec<Known>>,
    pub slots: Vec<StepSlot>,
    pub slot: SlotRecord,
}

/// What an execution made.
pub(crate) struct Made<R> {
    pub results: Vec<R>,
    pub known: Vec<Vec<Known>>,
    /// The vertex that was executed: this one, or the one it followed.
    pub origin: VertexId,
}

/// A failure, kept for the jobs that have met it; a job that comes later tries again.
#[derive(Clone)]
pub(crate) struct Failure {
    pub origin: VertexId,
    pub digest: VertexDigest,
    pub name: Arc<str>,
    pub cause: OpError,
    pub jobs: BTreeSet<JobId>,
}

impl<R> Out<R> {
    pub fn new(inputs: usize) -> Self {
        Self {
            demands: BTreeMap::new(),
            asks: vec![Level::None; inputs],
            search: Search::Looking,
            probes: (0..inputs).map(|_| Probe::default()).collect(),
            query: None,
            keys: Vec::new(),
            made: None,
            records: Records::default(),
            gone: None,
            probed_since: None,
            state: State::Open,
            reached: Level::None,
            told: (Level::None, 0),
            linked: Linked::Unknown,
        }
    }

    /// Returns what the most demanding of its demanders wants.
    pub fn target(&self) -> Level {
        self.demands.values().copied().max().unwrap_or(Level::None)
    }

    /// Returns all its keys, for saving what is made from it.
    pub fn all_keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.keys.iter().copied().chain(self.made.filter(|made| !self.keys.contains(made)))
    }

    pub fn done(&self) -> Option<&Done<R>> {
        match &self.state {
            State::Complete(done) => Some(done),
            State::Open | State::Loading(..) | State::Saving(..) => None,
        }
    }
}

impl<R, O> Node<R, O> {
    pub fn cache_map(&self) -> Option<&Arc<CacheMap>> {
        match &self.map {
            Call::Done(map) => Some(map),
            Call::Idle | Call::Running(_) | Call::Stopping(_) => None,
        }
    }

    pub fn output_key(&self, index: u32) -> Option<OutputKey> {
        self.cache_map().map(|map| OutputKey::new(&map.digest, index))
    }

    /// Returns the view of a job that wants it, else of any that loaded it.
    pub fn view(&self) -> Option<&View<O>> {
        self.wanted.iter().find_map(|job| self.jobs.get(job)).or_else(|| self.jobs.values().next())
    }

    pub fn name_for(&self, job: JobId) -> Option<&Arc<str>> {
        self.jobs.get(&job).map(|view| &view.name)
    }
}

impl<T> Call<T> {
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Done(value) => Some(value),
            Self::Idle | Self::Running(_) | Self::Stopping(_) => None,
        }
    }

    /// Calls it off if it runs; returns the task to abort.
    pub fn stop(&mut self) -> Option<TaskId> {
        match *self {
            Self::Running(task) => {
                *self = Self::Stopping(task);
                Some(task)
            }
            Self::Idle | Self::Stopping(_) | Self::Done(_) => None,
        }
    }
}
