//! What a frontend can do while a build runs: solve definitions, look into results, resolve images.
//!
//! Results are references that are evaluated when somebody needs them, so a frontend can compose graphs without
//! running anything. The same bridge serves the built-in frontend and, through LLBBridge, a client that drives the
//! build itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use kiln_llb::{Definition, Graph};
use kiln_solver::{Edge, Job, JobId, JobSpec, KeyStore, Solver};
use kiln_stdx::{ErrorClass, rand_id};
use kiln_store::ImmutableRef;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::attest::FrontendAttestation;
use crate::build::{BuildContext, Progress};
use crate::container::Containers;
use crate::error::EngineError;
use crate::load;
use crate::parts::Parts;
use crate::provenance::Scope;
use crate::request::FrontendRequest;
use crate::source::{lazy, offline};
use crate::wreck::Piece;

/// A result that may not have been built yet.
#[derive(Clone)]
pub struct Ref(Arc<RefInner>);

struct RefInner {
    id: String,
    definition: Definition,
    /// What is built: the definition as policies left it.
    graph: Graph,
    edge: Edge,
    /// Its layers, by the job that gave them.
    solved: Mutex<BTreeMap<JobId, Arc<OnceCell<ImmutableRef>>>>,
}

impl Ref {
    /// Returns the name by which a client asks for it.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Returns the definition it comes from.
    pub fn definition(&self) -> &Definition {
        &self.0.definition
    }

    /// Returns what is built for it.
    pub fn graph(&self) -> &Graph {
        &self.0.graph
    }

    /// Returns the edge that it stands for.
    pub fn edge(&self) -> Edge {
        self.0.edge
    }
}

/// What a frontend hands back. No ref stands for an empty file system.
#[derive(Clone, Default)]
pub struct FrontendResult {
    pub refs: ResultRefs,
    /// `containerimage.config`, `refs.platforms`, …
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// What is attested of each platform's result, by the frontend's name of the platform.
    pub attestations: BTreeMap<String, Vec<FrontendAttestation>>,
}

/// One result, or one for each platform.
#[derive(Clone)]
pub enum ResultRefs {
    Single(Option<Ref>),
    Map(BTreeMap<String, Option<Ref>>),
}

impl Default for ResultRefs {
    fn default() -> Self {
        Self::Single(None)
    }
}

impl ResultRefs {
    /// Returns all refs that are not empty.
    pub fn all(&self) -> Vec<Ref> {
        match self {
            Self::Single(one) => one.iter().cloned().collect(),
            Self::Map(map) => map.values().flatten().cloned().collect(),
        }
    }
}

/// The handle of one build for its frontend, which it asks in a scope of its own. Clones are the same bridge.
#[derive(Clone)]
pub struct Bridge(Arc<Inner>, Arc<Scope>);

/// A bridge as its own build knows it, without keeping it.
#[derive(Clone)]
pub struct WeakBridge(Weak<Inner>, Weak<Scope>);

impl WeakBridge {
    /// Returns the bridge while its build runs.
    pub fn get(&self) -> Option<Bridge> {
        Some(Bridge(self.0.upgrade()?, self.1.upgrade()?))
    }
}

struct Inner {
    parts: Arc<Parts>,
    build: Arc<BuildContext>,
    solver: Solver<ImmutableRef>,
    job: Mutex<Arc<Job<ImmutableRef>>>,
    /// Held while another job takes the place of the first one, and while something is added to that.
    renewing: tokio::sync::Mutex<()>,
    imports: Mutex<Vec<Arc<dyn KeyStore<ImmutableRef>>>>,
    refs: Mutex<BTreeMap<String, Ref>>,
    containers: Containers,
    /// What failed steps left, by name.
    wrecks: Mutex<BTreeMap<String, Piece>>,
    /// The request that all others came of.
    root: Arc<Scope>,
    /// Names the steps of the build across builds; set by the frontend that knows what is built.
    slots: Mutex<Option<String>>,
}

impl Bridge {
    /// Returns the bridge of a build.
    pub fn new(
        parts: Arc<Parts>,
        build: Arc<BuildContext>,
        solver: Solver<ImmutableRef>,
        job: Job<ImmutableRef>,
    ) -> Self {
        let root = Arc::new(Scope::default());
        let inner = Inner {
            parts,
            build,
            solver,
            job: Mutex::new(Arc::new(job)),
            renewing: tokio::sync::Mutex::default(),
            imports: Mutex::default(),
            refs: Mutex::default(),
            containers: Containers::default(),
            wrecks: Mutex::default(),
            root: root.clone(),
            slots: Mutex::new(None),
        };
        let this = Self(Arc::new(inner), root);
        // A second attempt of the build has a bridge of its own.
        *this.0.build.bridge.lock() = Some(WeakBridge(Arc::downgrade(&this.0), Arc::downgrade(&this.1)));
        this
    }

    /// Returns the scope of the request that this bridge serves.
    pub fn scope(&self) -> &Arc<Scope> {
        &self.1
    }

    /// Returns the scope that all others are in.
    pub fn all_scopes(&self) -> &Arc<Scope> {
        &self.0.root
    }

    /// Returns the engine's services.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.0.parts
    }

    /// Returns the build.
    pub fn build(&self) -> &Arc<BuildContext> {
        &self.0.build
    }

    /// Returns the solver's job of the build.
    pub fn job(&self) -> Arc<Job<ImmutableRef>> {
        self.0.job.lock().clone()
    }

    /// Adds an imported cache to the build's lookups.
    pub async fn import(&self, store: Arc<dyn KeyStore<ImmutableRef>>) {
        let _turn = self.0.renewing.lock().await;
        self.0.imports.lock().push(store.clone());
        self.job().import(store).await;
    }

    /// Goes on with another job where results of the first one are of no use: one that takes nothing that others have,
    /// and for which results of imported caches are fetched before they are used. A client that drives its build keeps
    /// its refs, and what they stand for is built anew.
    async fn renew(&self) -> Result<(), EngineError> {
        let build = &self.0.build;
        let imports = self.0.imports.lock().clone();
        let spec = JobSpec { context: build.clone(), events: build.clone(), imports, apart: true };
        let job = self.0.solver.job(spec).await?;
        let refs: Vec<Ref> = self.0.refs.lock().values().cloned().collect();
        for reference in refs {
            job.load(self.vertices(reference.graph())?).await?;
        }
        *self.0.job.lock() = Arc::new(job);
        Ok(())
    }

    fn vertices(&self, graph: &Graph) -> Result<Vec<kiln_solver::Vertex<ImmutableRef>>, EngineError> {
        let slots = self.0.slots.lock().clone();
        load::vertices(&self.0.parts, graph, &self.0.build, slots.as_deref())
    }

    /// Tells whether to do once more what failed with this error over results of the job `failed`: where it came to light
    /// that one of them is damaged, and there is another job now. So it goes on as long as something else is damaged each
    /// time ([`BuildContext::goes_on_after`]).
    ///
    /// # Errors
    /// The solver has ended.
    pub async fn recovers(&self, error: &EngineError, failed: JobId) -> Result<bool, EngineError> {
        if error.class() != ErrorClass::Damage {
            return Ok(false);
        }
        let _turn = self.0.renewing.lock().await;
        if self.job().id() != failed {
            return Ok(true);
        }
        if !self.0.build.goes_on_after(error, &self.0.parts.store) {
            return Ok(false);
        }
        self.renew().await?;
        Ok(true)
    }

    /// Returns the containers that the frontend made.
    pub fn containers(&self) -> &Containers {
        &self.0.containers
    }

    /// Says what is built, so that its steps can be told again in the next build of the same.
    pub fn set_slots(&self, prefix: String) {
        *self.0.slots.lock() = Some(prefix);
    }

    /// Solves a definition, or runs another frontend.
    ///
    /// # Errors
    /// A definition that is not valid or not allowed; with `evaluate`, also whatever building it fails with.
    pub async fn solve(&self, request: FrontendRequest) -> Result<FrontendResult, EngineError> {
        let request = crate::frontend::plain(request);
        let evaluate = request.evaluate;
        self.0.build.policies.add(request.policies.clone());
        for import in &request.cache_imports {
            crate::cache::import(self, import).await?;
        }
        let result = match (&request.definition, request.frontend.as_str()) {
            (Some(definition), "") => {
                let reference = self.define(definition.clone()).await?;
                FrontendResult { refs: ResultRefs::Single(reference), ..FrontendResult::default() }
            }
            (None, "") => FrontendResult::default(),
            (_, _) => {
                let inner = Self(self.0.clone(), self.1.child(&request));
                Box::pin(crate::frontend::run(&inner, &request)).await?
            }
        };
        if evaluate {
            for reference in result.refs.all() {
                self.evaluate(&reference).await?;
            }
        }
        Ok(result)
    }

    /// Loads a definition and returns the ref of its result; none for the empty definition.
    ///
    /// # Errors
    /// The definition is not valid or asks for what is not allowed.
    pub async fn define(&self, definition: Definition) -> Result<Option<Ref>, EngineError> {
        if definition.is_empty() {
            return Ok(None);
        }
        let graph = Graph::load(&definition, &kiln_llb::LoadOptions::default())?;
        let graph = Box::pin(self.policed(graph)).await?;
        self.0.build.announce(&graph);
        if self.0.build.settings.offline {
            Box::pin(offline::look_for_sources(self, &graph)).await?;
        }
        let vertices = self.vertices(&graph)?;
        let reference = Ref(Arc::new(RefInner {
            id: rand_id(),
            definition,
            edge: load::edge(graph.result()),
            graph,
            solved: Mutex::default(),
        }));
        {
            let _turn = self.0.renewing.lock().await;
            self.job().load(vertices).await?;
            self.0.refs.lock().insert(reference.0.id.clone(), reference.clone());
        }
        self.1.solved(&reference);
        Ok(Some(reference))
    }

    /// Returns a ref of this build by its name.
    pub fn reference(&self, id: &str) -> Option<Ref> {
        self.0.refs.lock().get(id).cloned()
    }

    /// Builds a ref and returns its layers.
    ///
    /// # Errors
    /// Whatever building it fails with, with the place in the source it comes from.
    pub async fn evaluate(&self, reference: &Ref) -> Result<ImmutableRef, EngineError> {
        loop {
            let job = self.job();
            match Self::build_by(&job, reference).await {
                Err(error) if self.recovers(&error, job.id()).await? => {}
                built => return built.map_err(|error| self.locate(error)),
            }
        }
    }

    /// Builds a ref and returns its layers with their files here.
    ///
    /// # Errors
    /// As [`Bridge::evaluate`]; a layer that nobody needed before cannot be fetched.
    pub async fn files(&self, reference: &Ref) -> Result<ImmutableRef, EngineError> {
        let progress = Progress::of_build(&self.0.build, reference.0.edge.vertex.0);
        loop {
            let layers = self.evaluate(reference).await?;
            let job = self.job().id();
            match lazy::unpack(&self.0.parts, &progress, [&layers]).await {
                Err(error) if self.recovers(&error, job).await? => {}
                unpacked => return unpacked.map(|()| layers),
            }
        }
    }

    /// Builds a ref by a job, once.
    async fn build_by(job: &Job<ImmutableRef>, reference: &Ref) -> Result<ImmutableRef, EngineError> {
        let cell = reference.0.solved.lock().entry(job.id()).or_default().clone();
        let build = async { job.build(reference.0.edge).await.map(|solved| solved.result) };
        Ok(cell.get_or_try_init(|| build).await?.clone())
    }

    /// Returns the layers of a result of this build, or of what a failed step of it left, by name.
    ///
    /// # Errors
    /// There is none of the name; it cannot be built or stored.
    pub async fn result(&self, id: &str) -> Result<ImmutableRef, EngineError> {
        let piece = self.0.wrecks.lock().get(id).cloned();
        if let Some(piece) = piece {
            return piece.layers().await;
        }
        let reference = self.reference(id).ok_or_else(|| EngineError::user(format!("no such ref: {id}")))?;
        self.files(&reference).await
    }

    /// Adds to an error where the vertex that failed was written, and names for what it left.
    fn locate(&self, mut error: EngineError) -> EngineError {
        if let Some(wreck) = error.further().and_then(|further| further.wreck.clone()) {
            let (ids, pieces) = wreck.named();
            self.0.wrecks.lock().extend(pieces);
            error.further_mut().wreck_ids = Some(ids);
        }
        if error.source_location.is_none()
            && let Some(vertex) = error.vertex
        {
            let mut places = self.0.build.locations(&vertex).into_iter();
            error.source_location = places.next().map(Box::new);
            let rest: Vec<_> = places.collect();
            if !rest.is_empty() {
                error.further_mut().locations = rest;
            }
        }
        error
    }
}
