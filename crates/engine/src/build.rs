//! One running build as the operations that serve it see it: its event log, its session, its settings.
//!
//! A vertex may serve several builds at once. Whatever belongs to one build is reached through the contexts that the
//! solver hands to each call, so a build that joins late is served too and one that ends is forgotten.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use kiln_llb::Graph;
use kiln_oci::Platform;
use kiln_solver::{EventSink, MissReason, OpContext, VertexChange, VertexEvent as SolverEvent};
use kiln_stdx::Digest;
use kiln_store::{Blob, MountKey, Store};
use parking_lot::Mutex;
use tempfile::TempPath;

use crate::again::Attempts;
use crate::bridge::WeakBridge;
use crate::cache::imported::Imported;
use crate::cache::mounts::import::MountImport;
use crate::error::{EngineError, Location};
use crate::events::{Event, EventLog, ProgressGroup, StatusEvent, VertexEvent, WarningEvent};
use crate::history::Kept;
use crate::policy::Policies;
use crate::source::git::GitPin;
use crate::source::http::Fetched;
use crate::source::resolve::ResolvedImage;
use crate::why::{Circumstances, StepReason};

/// What a build was asked to do that operations need to know.
#[derive(Debug, Clone, Default)]
pub struct BuildSettings {
    /// The session whose directories, secrets and agents the build may use.
    pub session: String,
    /// Entitlements the client granted and the engine allows: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Size of `/dev/shm` in bytes for steps of this build.
    pub shm_size: Option<u64>,
    /// How old results of steps may be that are taken from the cache, in seconds.
    pub max_age: Option<u64>,
    /// What becomes of cache mounts.
    pub cache_mounts: CacheMounts,
    /// Whether sources come from what is here, without the network.
    pub offline: bool,
    /// Whether its client may look at what failed steps leave.
    pub keeps_wrecks: bool,
}

/// What becomes of the cache mounts of a build's steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheMounts {
    /// Those of steps whose cache is ignored begin anew, as clients of BuildKit expect.
    #[default]
    WithSteps,
    /// They stay, whatever is ignored.
    Kept,
    /// All begin anew, and results that were made with them are not used.
    Emptied,
}

impl CacheMounts {
    /// Frontend attribute of kiln's own client.
    pub const ATTR: &str = "kiln:cache-mounts";

    /// Reads the attribute: `keep` or `empty`; anything else is what is not said.
    pub fn of_attr(value: Option<&String>) -> Self {
        match value.map(String::as_str) {
            Some("keep") => Self::Kept,
            Some("empty") => Self::Emptied,
            _ => Self::WithSteps,
        }
    }

    /// Tells whether the mounts of a step begin anew whose cached results are ignored, or not.
    pub fn begin_anew(self, ignored: bool) -> bool {
        match self {
            Self::WithSteps => ignored,
            Self::Kept => false,
            Self::Emptied => true,
        }
    }
}

/// How many vertices a build has announced, and how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepCounts {
    pub total: usize,
    /// Ended in whatever way: done, failed, cached.
    pub completed: usize,
    pub cached: usize,
}

/// A build, as operations and the solver's events reach it.
pub struct BuildContext {
    /// The reference that the client gave the build.
    pub reference: String,
    pub started: SystemTime,
    pub settings: BuildSettings,
    pub log: EventLog,
    /// Images that were looked up, by name and platform: one answer holds for the whole build.
    pub images: Mutex<HashMap<(String, Platform), ResolvedImage>>,
    /// Caches that were imported; results of theirs are fetched when they are read.
    pub caches: Mutex<Vec<Arc<Imported>>>,
    /// Whether such results are fetched before they are used.
    pub eager: AtomicBool,
    /// The damage that it has met.
    pub attempts: Mutex<Attempts>,
    /// Blobs of such results that could not be had.
    pub lost: Mutex<HashSet<Digest>>,
    /// Git references that were looked up, by address and name.
    pub git: Mutex<HashMap<String, GitPin>>,
    /// Files of the web that were looked up, by what names them.
    pub http: Mutex<HashMap<Digest, Fetched>>,
    /// Files of the web that the build was told of and must find again, whatever is pruned meanwhile.
    pub held: Mutex<Vec<Blob>>,
    /// Which sources the build may use.
    pub policies: Policies,
    /// Paths of the client's directories that were asked for and are not there, with the nearest name that is.
    pub near: Mutex<HashMap<String, String>>,
    /// Cache mounts that have begun anew for this build.
    pub fresh_mounts: Mutex<HashSet<MountKey>>,
    /// Where cache mounts may come from.
    pub mount_imports: Mutex<Vec<Arc<MountImport>>>,
    /// What the build itself is asked through, for operations that build.
    pub bridge: Mutex<Option<WeakBridge>>,
    /// What is kept in the history.
    pub kept: Kept,
    /// A file with certificate authorities that steps shall trust.
    pub ca_bundle: OnceLock<TempPath>,
    vertices: Mutex<HashMap<Digest, VertexEvent>>,
    /// What reasons follow from.
    pub circumstances: Mutex<Circumstances>,
    reasons: Mutex<Vec<StepReason>>,
    sources: Mutex<Vec<kiln_llb::pb::Source>>,
}

impl BuildContext {
    /// Returns the context of a build that has seen nothing yet.
    pub fn new(reference: String, settings: BuildSettings, log: EventLog) -> Self {
        Self {
            reference,
            started: SystemTime::now(),
            settings,
            log,
            images: Mutex::default(),
            caches: Mutex::default(),
            eager: AtomicBool::new(false),
            attempts: Mutex::default(),
            lost: Mutex::default(),
            git: Mutex::default(),
            http: Mutex::default(),
            held: Mutex::default(),
            policies: Policies::default(),
            near: Mutex::default(),
            fresh_mounts: Mutex::default(),
            mount_imports: Mutex::default(),
            bridge: Mutex::default(),
            kept: Kept::default(),
            ca_bundle: OnceLock::new(),
            vertices: Mutex::new(HashMap::new()),
            circumstances: Mutex::default(),
            reasons: Mutex::default(),
            sources: Mutex::new(Vec::new()),
        }
    }

    /// Tells whether the build is done again where it failed with damage, which has been repaired or dropped by then.
    pub fn goes_on_after(&self, damage: &EngineError, store: &Store) -> bool {
        let results = self.results();
        let goes_on = self.attempts.lock().goes_on(&damage.to_string(), store.repairs().total(), results);
        if goes_on {
            tracing::warn!(error = %damage, "building again after damage");
            // From now on nothing is relied on that is not here.
            self.eager.store(true, Ordering::Relaxed);
        }
        goes_on
    }

    /// Returns how many results the build may find damaged: those of its steps, and what it takes from elsewhere.
    fn results(&self) -> usize {
        let steps = self.vertices.lock().len();
        let pulled: usize = self.images.lock().values().map(|image| image.manifest.layers.len()).sum();
        let offered: usize = self.caches.lock().iter().map(|cache| cache.blobs()).sum();
        1 + steps + pulled + offered
    }

    /// Adds what sources the build may use.
    #[must_use]
    pub fn with_policies(mut self, policies: Policies) -> Self {
        self.policies = policies;
        self
    }

    /// Makes the names of a graph's vertices known, so that their events can be shown.
    pub fn announce(&self, graph: &Graph) {
        if let Some(source) = graph.source() {
            self.sources.lock().push(source.clone());
        }
        let mut fresh = Vec::new();
        {
            let mut known = self.vertices.lock();
            for vertex in graph.vertices() {
                if known.contains_key(&vertex.digest) {
                    continue;
                }
                let event = VertexEvent {
                    digest: Some(vertex.digest),
                    inputs: vertex.inputs.iter().map(|edge| edge.vertex).collect(),
                    name: vertex.name.clone(),
                    progress_group: vertex.metadata.progress_group.as_ref().map(|group| ProgressGroup {
                        id: group.id.clone(),
                        name: group.name.clone(),
                        weak: group.weak,
                    }),
                    ..VertexEvent::default()
                };
                known.insert(vertex.digest, event.clone());
                fresh.push(event);
            }
        }
        for event in fresh {
            self.log.push(Event::Vertex(event));
        }
    }

    /// Starts a vertex that the solver does not know, such as an export, and shows it.
    pub fn start(&self, name: &str) -> OwnVertex<'_> {
        let digest = Digest::of(format!("{}:{name}:{}", self.reference, self.vertices.lock().len()));
        let event = VertexEvent {
            digest: Some(digest),
            name: name.to_owned(),
            started: Some(SystemTime::now()),
            ..VertexEvent::default()
        };
        self.vertices.lock().insert(digest, event.clone());
        self.log.push(Event::Vertex(event));
        OwnVertex { build: self, digest, ended: false }
    }

    /// Returns the name of a vertex.
    pub fn name(&self, vertex: &Digest) -> Option<String> {
        self.vertices.lock().get(vertex).map(|v| v.name.clone())
    }

    /// Returns why steps ran, in the order in which they began.
    pub fn reasons(&self) -> Vec<StepReason> {
        self.reasons.lock().clone()
    }

    /// Tells why a vertex is executed; of what the engine does for itself there is nothing to tell.
    fn tell_reason(&self, vertex: Digest, miss: &MissReason) {
        let Some(name) = self.name(&vertex).filter(|name| !name.starts_with("[internal]")) else { return };
        let reason = StepReason::new(vertex, name, miss.clone(), &self.circumstances.lock());
        let mut reasons = self.reasons.lock();
        // A result that is needed anew runs again for the same reason.
        if !reasons.iter().any(|known| known.vertex == vertex) {
            reasons.push(reason.clone());
            self.log.push(Event::Reason(Box::new(reason)));
        }
    }

    /// Counts the vertices that were announced.
    pub fn steps(&self) -> StepCounts {
        let vertices = self.vertices.lock();
        let ended = || vertices.values().filter(|vertex| vertex.completed.is_some());
        StepCounts {
            total: vertices.len(),
            completed: ended().count(),
            cached: ended().filter(|vertex| vertex.cached).count(),
        }
    }

    /// Returns where a vertex was written, by the first source map that knows it: the innermost place first.
    pub fn locations(&self, vertex: &Digest) -> Vec<Location> {
        let key = vertex.to_string();
        let sources = self.sources.lock();
        let Some((source, places)) = sources.iter().find_map(|s| Some((s, s.locations.get(&key)?))) else {
            return Vec::new();
        };
        // A map names them as they were wrapped, the outermost first.
        let place = |location: &kiln_llb::pb::Location| {
            let info = source.infos.get(usize::try_from(location.source_index).ok()?)?;
            Some(Location { info: info.clone(), ranges: location.ranges.clone() })
        };
        places.locations.iter().rev().filter_map(place).collect()
    }

    /// Shows a status line below a vertex.
    pub fn status(&self, vertex: Digest, id: &str, current: u64, total: u64, started: SystemTime, done: bool) {
        self.log.push(status(vertex, id, current, total, started, done));
    }

    /// Shows a warning about a vertex.
    pub fn warn(&self, vertex: Digest, short: &str) {
        self.log.push(Event::Warning(WarningEvent {
            vertex,
            level: 1,
            short: short.as_bytes().to_vec(),
            detail: Vec::new(),
            url: String::new(),
            source: None,
            ranges: Vec::new(),
        }));
    }

    /// Ends what is shown as running, for a build that failed or was called off: its steps may still take a moment to
    /// be gone, and nobody would tell the client of their end.
    pub fn interrupt(&self) {
        let running: Vec<Digest> = {
            let vertices = self.vertices.lock();
            vertices.iter().filter(|(_, v)| v.started.is_some() && v.completed.is_none()).map(|(d, _)| *d).collect()
        };
        for vertex in running {
            self.update(vertex, cancel);
        }
    }

    fn update(&self, vertex: Digest, change: impl FnOnce(&mut VertexEvent)) {
        let event = {
            let mut vertices = self.vertices.lock();
            let event = vertices.entry(vertex).or_insert_with(|| VertexEvent {
                digest: Some(vertex),
                name: vertex.to_string(),
                ..VertexEvent::default()
            });
            change(event);
            event.clone()
        };
        self.log.push(Event::Vertex(event));
    }
}

impl EventSink for BuildContext {
    fn event(&self, event: SolverEvent) {
        let now = SystemTime::now();
        match event.what {
            VertexChange::Resolving => self.update(event.vertex.0, |v| {
                v.started = Some(now);
                v.completed = None;
            }),
            VertexChange::Started { miss } => {
                tracing::debug!(vertex = %event.vertex, name = self.name(&event.vertex.0), %miss, "not cached");
                self.update(event.vertex.0, |v| {
                    v.started = v.started.filter(|_| v.completed.is_none()).or(Some(now));
                    v.completed = None;
                    v.cached = false;
                });
                self.tell_reason(event.vertex.0, &miss);
            }
            VertexChange::Completed => {
                self.update(event.vertex.0, |v| v.completed = Some(now));
            }
            VertexChange::Cached(_) => {
                self.update(event.vertex.0, |v| {
                    v.started = v.started.or(Some(now));
                    v.completed = Some(now);
                    v.cached = true;
                });
            }
            VertexChange::Failed(error) => self.update(event.vertex.0, |v| {
                v.started = v.started.or(Some(now));
                v.completed = Some(now);
                v.error = error.to_string();
            }),
            VertexChange::Canceled => self.update(event.vertex.0, cancel),
        }
    }
}

/// A vertex of the engine's own; it ends as canceled unless it is told how it ended.
pub struct OwnVertex<'a> {
    build: &'a BuildContext,
    digest: Digest,
    ended: bool,
}

impl OwnVertex<'_> {
    /// Returns the vertex's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Ends the vertex.
    pub fn end(mut self, error: Option<String>) {
        self.ended = true;
        self.build.update(self.digest, |v| {
            v.completed = Some(SystemTime::now());
            v.error = error.unwrap_or_default();
        });
    }
}

impl Drop for OwnVertex<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.build.update(self.digest, cancel);
        }
    }
}

/// What a client shows as `CANCELED`.
fn cancel(vertex: &mut VertexEvent) {
    vertex.completed = Some(SystemTime::now());
    vertex.error = "context canceled".to_owned();
}

fn status(vertex: Digest, id: &str, current: u64, total: u64, started: SystemTime, done: bool) -> Event {
    let now = SystemTime::now();
    // Clients tell by the name what is transferred from them.
    let name = if id.starts_with("transferring ") { "transferring" } else { "" };
    Event::Status(StatusEvent {
        vertex,
        id: id.to_owned(),
        name: name.to_owned(),
        current: i64::try_from(current).unwrap_or(i64::MAX),
        total: i64::try_from(total).unwrap_or(i64::MAX),
        timestamp: now,
        started: Some(started),
        completed: done.then_some(now),
    })
}

/// Shows progress of a call of an operation to every build that wants its vertex at that moment, or of work that one
/// build does for itself.
#[derive(Clone)]
pub struct Progress(Shown);

#[derive(Clone)]
enum Shown {
    Call(OpContext),
    Build(Arc<BuildContext>, Digest),
}

impl Progress {
    /// Returns the progress of this call.
    pub fn new(cx: &OpContext) -> Self {
        Self(Shown::Call(cx.clone()))
    }

    /// Returns the progress of a vertex of one build.
    pub fn of_build(build: &Arc<BuildContext>, vertex: Digest) -> Self {
        Self(Shown::Build(build.clone(), vertex))
    }

    /// Returns the builds that want the vertex now, oldest first.
    pub fn builds(&self) -> Vec<Arc<BuildContext>> {
        match &self.0 {
            Shown::Call(cx) => cx.contexts::<BuildContext>(),
            Shown::Build(build, _) => vec![build.clone()],
        }
    }

    /// Tells whether the network is not to be used for sources: of several builds one that may use it is enough.
    pub fn offline(&self) -> bool {
        let builds = self.builds();
        !builds.is_empty() && builds.iter().all(|build| build.settings.offline)
    }

    fn vertex(&self) -> Digest {
        match &self.0 {
            Shown::Call(cx) => cx.vertex().0,
            Shown::Build(_, vertex) => *vertex,
        }
    }

    /// Passes on what a step printed.
    ///
    /// # Errors
    /// The log cannot be spooled.
    pub fn log(&self, stream: i32, data: &[u8]) -> std::io::Result<()> {
        let now = SystemTime::now();
        self.builds().iter().try_for_each(|build| build.log.log(self.vertex(), stream, now, data))
    }

    /// Shows a status line: bytes done of a total, or a timer when both are 0.
    pub fn status(&self, id: &str, current: u64, total: u64, started: SystemTime, done: bool) {
        for build in self.builds() {
            build.status(self.vertex(), id, current, total, started, done);
        }
    }

    /// Runs `work` under a status line with a timer.
    pub async fn timed<T>(&self, id: &str, work: impl Future<Output = T>) -> T {
        let started = SystemTime::now();
        self.status(id, 0, 0, started, false);
        let value = work.await;
        self.status(id, 0, 0, started, true);
        value
    }

    /// Shows a warning.
    pub fn warn(&self, short: &str) {
        for build in self.builds() {
            build.warn(self.vertex(), short);
        }
    }
}
