//! Small operations, jobs and a key store for the tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::future::BoxFuture;
use kiln_solver::{
    CacheMap, CacheUse, DepMap, Difference, Edge, Job, JobSpec, KeyLife, KeyRecord, KeyStore, Limits, MemoryKeyStore,
    MissReason, Op, OpContext, OpError, Part, Solver, StepSlot, Vertex, VertexChange, VertexDigest, VertexEvent,
    VertexOptions,
};
use kiln_stdx::Digest;
use parking_lot::Mutex;

/// Results are texts behind an `Arc`, so that tests see when they are released.
pub type Text = Arc<String>;

type Run = Arc<dyn Fn(OpContext, Vec<Text>) -> BoxFuture<'static, Result<Vec<Text>, OpError>> + Send + Sync>;

/// How often the parts of an operation were called.
#[derive(Default)]
pub struct Counts {
    pub map: AtomicUsize,
    pub content: AtomicUsize,
    pub execute: AtomicUsize,
}

impl Counts {
    pub fn executed(&self) -> usize {
        self.execute.load(Ordering::SeqCst)
    }
}

/// An operation that joins its name with its inputs, unless told otherwise.
pub struct Step {
    pub map: CacheMap,
    pub run: Run,
    pub counts: Arc<Counts>,
}

#[async_trait]
impl Op<Text> for Step {
    async fn cache_map(&self, _cx: &OpContext) -> Result<CacheMap, OpError> {
        self.counts.map.fetch_add(1, Ordering::SeqCst);
        Ok(self.map.clone())
    }

    /// The content of a text is its last line.
    async fn content_key(&self, _cx: &OpContext, _input: usize, result: &Text) -> Result<Option<Digest>, OpError> {
        self.counts.content.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Digest::of(result.lines().last().unwrap_or_default())))
    }

    async fn explain(
        &self,
        _cx: &OpContext,
        _input: usize,
        _old: &Digest,
        _new: &Digest,
        now: &Text,
    ) -> Option<Difference> {
        let part = Part { name: "last line".to_owned(), what: now.lines().last().unwrap_or_default().to_owned() };
        Some(Difference { parts: vec![part], more: 0 })
    }

    async fn execute(&self, cx: &OpContext, inputs: &[Text]) -> Result<Vec<Text>, OpError> {
        self.counts.execute.fetch_add(1, Ordering::SeqCst);
        (self.run)(cx.clone(), inputs.to_vec()).await
    }
}

/// Builds a vertex.
pub struct Build {
    pub name: String,
    pub key: String,
    pub also: Vec<String>,
    pub salt: String,
    pub inputs: Vec<(Edge, DepMap)>,
    pub options: VertexOptions,
    pub life: KeyLife,
    pub run: Option<Run>,
    pub counts: Arc<Counts>,
}

/// Returns a vertex to be built on.
pub fn vertex(name: &str) -> Build {
    Build {
        name: name.to_owned(),
        key: name.to_owned(),
        also: Vec::new(),
        salt: String::new(),
        inputs: Vec::new(),
        options: VertexOptions { slot: Some(StepSlot(name.to_owned())), ..VertexOptions::default() },
        life: KeyLife::Stored,
        run: None,
        counts: Arc::default(),
    }
}

impl Build {
    /// Gives the operation another key than its name.
    pub fn key(mut self, key: &str) -> Self {
        self.key = key.to_owned();
        self
    }

    /// Gives the operation one more key.
    pub fn also(mut self, key: &str) -> Self {
        self.also.push(key.to_owned());
        self
    }

    /// Gives the vertex another digest for the same work.
    pub fn salt(mut self, salt: &str) -> Self {
        self.salt = salt.to_owned();
        self
    }

    pub fn input(mut self, from: &Vertex<Text>) -> Self {
        self.inputs.push((edge(from), DepMap::default()));
        self
    }

    pub fn by_content(mut self, from: &Vertex<Text>) -> Self {
        self.inputs.push((edge(from), DepMap { selector: None, content: true }));
        self
    }

    pub fn ignore_cache(mut self) -> Self {
        self.options.cache = CacheUse::Ignore;
        self
    }

    pub fn options(mut self, options: VertexOptions) -> Self {
        self.options = options;
        self
    }

    pub fn run_key(mut self) -> Self {
        self.life = KeyLife::Run;
        self
    }

    pub fn counts(mut self, counts: &Arc<Counts>) -> Self {
        self.counts = counts.clone();
        self
    }

    /// Makes it do something else.
    pub fn runs<F, Fut>(mut self, run: F) -> Self
    where
        F: Fn(OpContext, Vec<Text>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Text>, OpError>> + Send + 'static,
    {
        self.run = Some(Arc::new(move |cx, inputs| Box::pin(run(cx, inputs))));
        self
    }

    /// Makes it return this text.
    pub fn gives(self, text: &str) -> Self {
        let text = text.to_owned();
        self.runs(move |_, _| {
            let text = Arc::new(text.clone());
            async move { Ok(vec![text]) }
        })
    }

    pub fn done(self) -> Vertex<Text> {
        let mut identity = format!("{}/{}/{}", self.name, self.key, self.salt);
        for (edge, _) in &self.inputs {
            identity.push_str(&edge.vertex.to_string());
        }
        let name = self.name.clone();
        let join: Run = Arc::new(move |_, inputs| {
            let inputs: Vec<&str> = inputs.iter().map(|input| input.as_str()).collect();
            let text = format!("{name}({})", inputs.join(","));
            Box::pin(async move { Ok(vec![Arc::new(text)]) })
        });
        let step = Step {
            map: CacheMap {
                digest: Digest::of(&self.key),
                also: self.also.iter().map(Digest::of).collect(),
                record: KeyRecord::new().with("command", self.key.clone()),
                deps: self.inputs.iter().map(|(_, dep)| dep.clone()).collect(),
                life: self.life,
            },
            run: self.run.unwrap_or(join),
            counts: self.counts,
        };
        Vertex {
            digest: VertexDigest(Digest::of(identity)),
            inputs: self.inputs.iter().map(|(edge, _)| *edge).collect(),
            op: Arc::new(step),
            name: self.name,
            options: self.options,
        }
    }
}

pub fn edge(vertex: &Vertex<Text>) -> Edge {
    Edge { vertex: vertex.digest, index: 0 }
}

/// The events of a job.
#[derive(Default)]
pub struct Log {
    events: Mutex<Vec<(VertexDigest, VertexChange)>>,
}

impl Log {
    /// Returns what a job was told about a vertex, in short.
    pub fn of(&self, vertex: &Vertex<Text>) -> Vec<String> {
        let events = self.events.lock();
        let of = events.iter().filter(|(digest, _)| *digest == vertex.digest);
        of.map(|(_, what)| match what {
            VertexChange::Resolving => "resolving".to_owned(),
            VertexChange::Started { .. } => "started".to_owned(),
            VertexChange::Completed => "completed".to_owned(),
            VertexChange::Cached(by) => format!("cached {by:?}"),
            VertexChange::Failed(_) => "failed".to_owned(),
            VertexChange::Canceled => "canceled".to_owned(),
        })
        .filter(|text| text != "resolving")
        .collect()
    }

    /// Returns why a vertex was executed last.
    pub fn miss(&self, vertex: &Vertex<Text>) -> Option<MissReason> {
        let events = self.events.lock();
        events.iter().rev().find_map(|(digest, what)| match what {
            VertexChange::Started { miss } if *digest == vertex.digest => Some(MissReason::clone(miss)),
            _ => None,
        })
    }
}

/// A solver with its store.
pub struct Bench {
    pub store: Arc<MemoryKeyStore<Text>>,
    pub solver: Solver<Text>,
}

pub fn bench() -> Bench {
    bench_with(Limits::default())
}

pub fn bench_with(limits: Limits) -> Bench {
    let store = Arc::new(MemoryKeyStore::new());
    Bench { solver: Solver::new(store.clone(), limits), store }
}

impl Bench {
    /// Opens a job whose context is its name, with these vertices.
    pub async fn job(&self, name: &str, vertices: &[&Vertex<Text>]) -> (Job<Text>, Arc<Log>) {
        self.job_with(name, vertices, Vec::new()).await
    }

    /// As [`Bench::job`], of a job that takes nothing from others.
    pub async fn job_apart(&self, name: &str, vertices: &[&Vertex<Text>]) -> Job<Text> {
        let events = Arc::new(|_: VertexEvent| ());
        let spec = JobSpec { context: Arc::new(name.to_owned()), events, imports: Vec::new(), apart: true };
        let job = self.solver.job(spec).await.unwrap();
        job.load(vertices.iter().copied().cloned().collect()).await.unwrap();
        job
    }

    pub async fn job_with(
        &self,
        name: &str,
        vertices: &[&Vertex<Text>],
        imports: Vec<Arc<dyn KeyStore<Text>>>,
    ) -> (Job<Text>, Arc<Log>) {
        let log = Arc::new(Log::default());
        let sink = log.clone();
        let events = move |event: VertexEvent| sink.events.lock().push((event.vertex, event.what));
        let spec = JobSpec { context: Arc::new(name.to_owned()), events: Arc::new(events), imports, apart: false };
        let job = self.solver.job(spec).await.unwrap();
        job.load(vertices.iter().copied().cloned().collect()).await.unwrap();
        (job, log)
    }

    /// Builds the last of these vertices in a job of its own, and returns what it gives and what was told.
    pub async fn build(&self, vertices: &[&Vertex<Text>]) -> (Result<Text, String>, Arc<Log>) {
        let (job, log) = self.job("job", vertices).await;
        let outcome = job.build(edge(vertices[vertices.len() - 1])).await;
        job.close().await;
        self.solver.idle().await;
        (outcome.map(|solved| solved.result).map_err(|error| error.to_string()), log)
    }
}

/// Returns what became of each vertex of a job.
pub fn told(log: &Log, vertices: &[&Vertex<Text>]) -> BTreeMap<String, String> {
    vertices.iter().map(|vertex| (vertex.name.clone(), log.of(vertex).join(" "))).collect()
}
