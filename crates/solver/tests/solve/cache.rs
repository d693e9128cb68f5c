//! Keys, records, and what is executed in spite of them.

use std::sync::Arc;

use kiln_solver::{Edge, Gone, KeyStore, MaxAge, MemoryKeyStore, Origin, Vertex};

use crate::kit::{Bench, Counts, Text, bench, edge, told, vertex};

fn chain(counts: &[Arc<Counts>; 3]) -> [Vertex<Text>; 3] {
    let a = vertex("a").counts(&counts[0]).done();
    let b = vertex("b").counts(&counts[1]).input(&a).done();
    let c = vertex("c").counts(&counts[2]).input(&b).done();
    [a, b, c]
}

fn executed(counts: &[Arc<Counts>]) -> Vec<usize> {
    counts.iter().map(|counts| counts.executed()).collect()
}

#[tokio::test]
async fn a_definition_key_spares_all_inputs() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let bench = bench();
    let (cold, _) = bench.build(&[&a, &b, &c]).await;
    let (warm, log) = bench.build(&[&a, &b, &c]).await;
    assert_eq!(cold, warm);
    assert_eq!(executed(&counts), [1, 1, 1]);
    let expected = [("a", "cached Covered"), ("b", "cached Covered"), ("c", "cached Record")];
    let expected = expected.into_iter().map(|(name, what)| (name.to_owned(), what.to_owned())).collect();
    assert_eq!(told(&log, &[&a, &b, &c]), expected);
}

#[tokio::test]
async fn only_the_tail_runs_after_a_change() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let bench = bench();
    bench.build(&[&a, &b, &c]).await.0.unwrap();
    let changed = vertex("c").key("c with another flag").counts(&counts[2]).input(&b).done();
    bench.build(&[&a, &b, &changed]).await.0.unwrap();
    assert_eq!(executed(&counts), [1, 1, 2]);
}

#[tokio::test]
async fn what_is_too_old_runs_again_with_what_builds_on_it() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, mut b, c] = chain(&counts);
    let bench = bench();
    bench.build(&[&a, &b, &c]).await.0.unwrap();
    let old = MaxAge { seconds: 60, not_before: 3 };
    // The store numbers its records and takes that for their time: the second run's are the later ones.
    for (not_before, expected) in [(0, [1, 1, 1]), (3, [1, 2, 2]), (3, [1, 2, 2]), (u64::MAX, [1, 3, 3])] {
        b.options.max_age = Some(MaxAge { not_before, ..old });
        let (outcome, log) = bench.build(&[&a, &b, &c]).await;
        outcome.unwrap();
        assert_eq!(executed(&counts), expected, "{not_before}: {:?}", told(&log, &[&a, &b, &c]));
        if not_before == u64::MAX {
            assert_eq!(log.miss(&b), Some(kiln_solver::MissReason::TooOld { seconds: 60 }));
        }
    }
    b.options.max_age = None;
    bench.build(&[&a, &b, &c]).await.0.unwrap();
    assert_eq!(executed(&counts), [1, 3, 3]);
}

#[tokio::test]
async fn equal_content_spares_users_of_a_changed_input() {
    let counts: [Arc<Counts>; 2] = Default::default();
    let graph = |source: &str, text: &str| {
        let source = vertex("source").key(source).counts(&counts[0]).gives(text).done();
        let user = vertex("user").counts(&counts[1]).by_content(&source).gives("made from it").done();
        (source, user)
    };
    let bench = bench();
    for (key, text, expected) in [
        ("v1", "header 1\nbody", [1, 1]),
        // Another definition, the same content: only the source runs.
        ("v2", "header 2\nbody", [2, 1]),
        // The link from the new definition was kept, so that not even the source is needed.
        ("v2", "header 2\nbody", [2, 1]),
        ("v3", "header 3\nother body", [3, 2]),
    ] {
        let (source, user) = graph(key, text);
        bench.build(&[&source, &user]).await.0.unwrap();
        assert_eq!(executed(&counts), expected, "{key}");
    }
}

#[tokio::test]
async fn a_key_of_this_run_is_never_found_again_but_content_is() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let context = vertex("context").run_key().counts(&counts[0]).gives("files").done();
    let copy = vertex("copy").counts(&counts[1]).by_content(&context).done();
    let whole = vertex("whole").counts(&counts[2]).input(&context).done();
    let bench = bench();
    for run in 1..=2 {
        bench.build(&[&context, &copy]).await.0.unwrap();
        bench.build(&[&context, &whole]).await.0.unwrap();
        assert_eq!(executed(&counts), [2 * run, 1, run], "run {run}");
    }
}

#[tokio::test]
async fn ignoring_the_cache_runs_a_step_and_what_follows_from_it() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let bench = bench();
    bench.build(&[&a, &b, &c]).await.0.unwrap();
    let fresh = vertex("b").counts(&counts[1]).input(&a).ignore_cache().gives("new b").done();
    let (outcome, _) = bench.build(&[&a, &fresh, &c]).await;
    assert_eq!(outcome.unwrap().as_str(), "c(new b)", "an old result of `c` would be one of the old `b`");
    assert_eq!(executed(&counts), [1, 2, 2]);
    // What was made is saved, and preferred to what was there before.
    let (outcome, _) = bench.build(&[&a, &b, &c]).await;
    assert_eq!(outcome.unwrap().as_str(), "c(new b)");
    assert_eq!(executed(&counts), [1, 2, 2]);
}

#[tokio::test]
async fn a_job_that_ignores_the_cache_is_not_served_from_one_that_does_not() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let bench = bench();
    let (plain, _) = bench.job("plain", &[&a, &b, &c]).await;
    plain.build(edge(&c)).await.unwrap();
    // The first job is still open, with all its results in the graph.
    let fresh = vertex("b").counts(&counts[1]).input(&a).ignore_cache().done();
    assert_eq!(fresh.digest, b.digest);
    let (job, _) = bench.job("fresh", &[&a, &fresh, &c]).await;
    assert_eq!(job.build(edge(&c)).await.unwrap().origin, Origin::Executed);
    assert_eq!(executed(&counts), [1, 2, 2]);
}

#[tokio::test]
async fn a_damaged_record_is_removed_and_made_again() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let bench = bench();
    let (cold, _) = bench.build(&[&a, &b, &c]).await;
    let broken = BrokenStore::over(&bench);
    let (job, log) = broken.job("job", &[&a, &b, &c]).await;
    let solved = job.build(edge(&c)).await.unwrap();
    assert_eq!((solved.result, solved.origin), (cold.unwrap(), Origin::Executed));
    assert_eq!(executed(&counts), [2, 2, 2], "every record was damaged");
    assert_eq!(log.miss(&c).unwrap().to_string(), "the earlier result was damaged: bit rot");
    job.close().await;
    broken.solver.idle().await;
    let (warm, _) = bench.build(&[&a, &b, &c]).await;
    assert!(warm.is_ok());
    assert_eq!(executed(&counts), [2, 2, 2]);
}

/// A store that finds damage in every record that was there when it was made.
struct BrokenStore {
    inner: Arc<MemoryKeyStore<Text>>,
    damaged: Vec<(kiln_solver::KeyId, kiln_solver::RecordId)>,
}

impl BrokenStore {
    fn over(bench: &Bench) -> Bench {
        let store = Self { inner: bench.store.clone(), damaged: bench.store.all_records() };
        Bench { store: bench.store.clone(), solver: kiln_solver::Solver::new(Arc::new(store), Default::default()) }
    }
}

#[async_trait::async_trait]
impl KeyStore<Text> for BrokenStore {
    async fn targets(
        &self,
        asks: &[kiln_solver::LinkFrom],
    ) -> Result<Vec<kiln_solver::Target>, kiln_solver::KeyStoreError> {
        self.inner.targets(asks).await
    }
    async fn records(
        &self,
        keys: &[kiln_solver::KeyId],
    ) -> Result<kiln_solver::RecordsFound, kiln_solver::KeyStoreError> {
        self.inner.records(keys).await
    }
    async fn load(
        &self,
        cx: &kiln_solver::OpContext,
        key: kiln_solver::KeyId,
        record: &kiln_solver::RecordId,
    ) -> Result<kiln_solver::Loaded<Text>, kiln_solver::KeyStoreError> {
        // The answer comes late, as from a disk.
        tokio::task::yield_now().await;
        if self.damaged.contains(&(key, record.clone())) {
            return Ok(kiln_solver::Loaded::Gone(Gone::Damaged { detail: "bit rot".to_owned() }));
        }
        self.inner.load(cx, key, record).await
    }
    async fn save(
        &self,
        save: kiln_solver::Save<'_, Text>,
    ) -> Result<Option<kiln_solver::RecordId>, kiln_solver::KeyStoreError> {
        tokio::task::yield_now().await;
        self.inner.save(save).await
    }
    async fn forget(&self, key: kiln_solver::KeyId, record: &kiln_solver::RecordId, why: &Gone) {
        self.inner.forget(key, record, why).await;
    }
    async fn recall(
        &self,
        slot: &kiln_solver::StepSlot,
    ) -> Result<Option<kiln_solver::SlotRecord>, kiln_solver::KeyStoreError> {
        self.inner.recall(slot).await
    }
    async fn remember(
        &self,
        slots: Vec<(kiln_solver::StepSlot, kiln_solver::SlotRecord)>,
    ) -> Result<(), kiln_solver::KeyStoreError> {
        self.inner.remember(slots).await
    }
    async fn backlinks(
        &self,
        key: kiln_solver::KeyId,
    ) -> Result<Vec<kiln_solver::Backlink>, kiln_solver::KeyStoreError> {
        self.inner.backlinks(key).await
    }
}

#[tokio::test]
async fn a_job_apart_takes_no_result_that_another_has_loaded() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let elsewhere = bench();
    elsewhere.build(&[&a, &b]).await.0.unwrap();
    let here = bench();
    let (open, _) = here.job_with("open", &[&a, &b, &c], vec![elsewhere.store.clone()]).await;
    open.build(edge(&c)).await.unwrap();
    assert_eq!(executed(&counts), [1, 1, 1]);
    let why = Gone::Damaged { detail: "gone".to_owned() };
    for (key, record) in here.store.all_records() {
        here.store.remove_record(key, &record, &why);
    }
    let (other, _) = here.job("other", &[&a, &b, &c]).await;
    other.build(edge(&c)).await.unwrap();
    assert_eq!(executed(&counts), [1, 1, 1], "what is in hand is shared");
    let apart = here.job_apart("apart", &[&a, &b, &c]).await;
    assert_eq!(apart.build(edge(&c)).await.unwrap().origin, Origin::Executed);
    assert_eq!(executed(&counts), [2, 2, 2], "neither that, nor what was made of it");
    // What it made is there for all, and for the next one apart too.
    apart.close().await;
    let again = here.job_apart("again", &[&a, &b, &c]).await;
    assert_eq!(again.build(edge(&c)).await.unwrap().origin, Origin::Loaded);
    assert_eq!(executed(&counts), [2, 2, 2]);
}

#[tokio::test]
async fn a_job_apart_takes_no_result_that_another_has_made() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let bench = bench();
    let (open, _) = bench.job("open", &[&a, &b, &c]).await;
    open.build(edge(&c)).await.unwrap();
    bench.solver.idle().await;
    let why = Gone::Damaged { detail: "gone".to_owned() };
    let mut others = vec![open];
    for round in 2..=4 {
        for (key, record) in bench.store.all_records() {
            bench.store.remove_record(key, &record, &why);
        }
        let apart = bench.job_apart("apart", &[&a, &b, &c]).await;
        assert_eq!(apart.build(edge(&c)).await.unwrap().origin, Origin::Executed);
        assert_eq!(executed(&counts), [round; 3]);
        bench.solver.idle().await;
        others.push(apart);
    }
}

#[tokio::test]
async fn a_job_apart_takes_no_other_output_of_what_another_has_in_hand() {
    let counts = Arc::new(Counts::default());
    let run = |_, _: Vec<Text>| async { Ok(vec![Arc::new("first".to_owned()), Arc::new("second".to_owned())]) };
    let two = vertex("two").runs(run).counts(&counts).done();
    let bench = bench();
    let (open, _) = bench.job("open", &[&two]).await;
    open.build(edge(&two)).await.unwrap();
    bench.solver.idle().await;
    let why = Gone::Damaged { detail: "gone".to_owned() };
    for (key, record) in bench.store.all_records() {
        bench.store.remove_record(key, &record, &why);
    }
    let apart = bench.job_apart("apart", &[&two]).await;
    let second = apart.build(Edge { index: 1, ..edge(&two) }).await.unwrap();
    assert_eq!((second.origin, counts.executed()), (Origin::Executed, 2));
}

#[tokio::test]
async fn an_imported_cache_is_read_and_becomes_part_of_the_main_one() {
    let counts: [Arc<Counts>; 3] = Default::default();
    let [a, b, c] = chain(&counts);
    let elsewhere = bench();
    elsewhere.build(&[&a, &b, &c]).await.0.unwrap();
    let records = elsewhere.store.all_records();

    let here = bench();
    let (job, _) = here.job_with("job", &[&a, &b, &c], vec![elsewhere.store.clone()]).await;
    assert_eq!(job.build(edge(&c)).await.unwrap().origin, Origin::Loaded);
    job.close().await;
    here.solver.idle().await;
    assert_eq!(elsewhere.store.all_records(), records, "an imported cache is only read");

    // Without the import it is found by all the keys on its way.
    let (outcome, _) = here.build(&[&a, &b, &c]).await;
    assert_eq!(outcome.unwrap().as_str(), "c(b(a()))");
    assert_eq!(executed(&counts), [1, 1, 1]);
    // Only what was loaded came over.
    here.build(&[&a, &b]).await.0.unwrap();
    assert_eq!(executed(&counts), [2, 2, 1]);
}

#[tokio::test]
async fn five_hundred_cached_vertices_load_one_record() {
    let counts = Arc::new(Counts::default());
    let mut vertices: Vec<Vertex<Text>> = vec![vertex("v0").counts(&counts).gives("0").done()];
    for at in 1..500 {
        let mut build = vertex(&format!("v{at}")).counts(&counts).gives("x").input(&vertices[at - 1]);
        if at > 10 {
            build = build.input(&vertices[at - 7]);
        }
        vertices.push(build.done());
    }
    let all: Vec<&Vertex<Text>> = vertices.iter().collect();
    let bench = bench();
    bench.build(&all).await.0.unwrap();
    assert_eq!(counts.executed(), 500);
    let (outcome, log) = bench.build(&all).await;
    assert!(outcome.is_ok());
    assert_eq!(counts.executed(), 500);
    assert_eq!(log.of(&vertices[499]), ["cached Record"]);
    assert!(vertices[..499].iter().all(|vertex| log.of(vertex) == ["cached Covered"]));
}
