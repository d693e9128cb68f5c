//! Why a step was executed.

use kiln_solver::{Eviction, FieldChange, Gone, MissReason, Vertex};

use crate::kit::{Bench, Text, bench, vertex};

async fn miss(bench: &Bench, vertices: &[&Vertex<Text>]) -> MissReason {
    let (outcome, log) = bench.build(vertices).await;
    outcome.unwrap();
    log.miss(vertices[vertices.len() - 1]).unwrap()
}

#[tokio::test]
async fn the_first_run_has_nothing_to_compare_with() {
    assert_eq!(miss(&bench(), &[&vertex("a").done()]).await, MissReason::NoRecord);
}

#[tokio::test]
async fn a_changed_operation_names_field_and_values() {
    let bench = bench();
    miss(&bench, &[&vertex("step").key("make").done()]).await;
    let change =
        FieldChange { field: "command".to_owned(), old: Some("make".to_owned()), new: Some("make all".to_owned()) };
    let expected = MissReason::OpChanged { changes: vec![change], renamed: None };
    assert_eq!(miss(&bench, &[&vertex("step").key("make all").done()]).await, expected);
}

#[tokio::test]
async fn a_changed_input_tells_why_it_ran_itself() {
    let bench = bench();
    let build = |key: &str| {
        let base = vertex("base").key(key).done();
        let step = vertex("step").input(&base).done();
        (base, step)
    };
    let (base, step) = build("v1");
    miss(&bench, &[&base, &step]).await;
    let (base, step) = build("v2");
    match miss(&bench, &[&base, &step]).await {
        MissReason::InputChanged { input: 0, vertex, name, was: None, cause: Some(cause) } => {
            assert_eq!((vertex, name.as_str()), (base.digest, "base"));
            assert!(matches!(*cause, MissReason::OpChanged { .. }));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn changed_content_is_told_with_the_operations_own_words() {
    let bench = bench();
    let build = |text: &str| {
        let source = vertex("source").run_key().salt(text).gives(text).done();
        let step = vertex("step").by_content(&source).done();
        (source, step)
    };
    let (source, step) = build("one");
    miss(&bench, &[&source, &step]).await;
    // A run in between that finds everything cached does not make it forget the content.
    bench.build(&[&source, &step]).await.0.unwrap();
    let (source, step) = build("two");
    match miss(&bench, &[&source, &step]).await {
        MissReason::ContentChanged { input: 0, name, old, new, difference, .. } => {
            assert_eq!(name, "source");
            assert_eq!((old, new), (kiln_stdx::Digest::of("one"), kiln_stdx::Digest::of("two")));
            assert_eq!(difference.unwrap().to_string(), "last line (two)");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_removed_record_tells_the_rule() {
    let bench = bench();
    let step = vertex("step").done();
    miss(&bench, &[&step]).await;
    let eviction = Eviction { rule: "unused for 60 days".to_owned(), at: 1_700_000_000 };
    for (key, record) in bench.store.all_records() {
        bench.store.remove_record(key, &record, &Gone::Evicted { eviction: Some(eviction.clone()) });
    }
    assert_eq!(miss(&bench, &[&step]).await, MissReason::Evicted { eviction: Some(eviction) });
}

#[tokio::test]
async fn ignoring_the_cache_is_a_reason_and_the_cause_of_others() {
    let bench = bench();
    let base = vertex("base").done();
    let step = vertex("step").input(&base).done();
    miss(&bench, &[&base, &step]).await;
    let fresh = vertex("base").ignore_cache().done();
    let (_, log) = bench.build(&[&fresh, &step]).await;
    assert_eq!(log.miss(&fresh), Some(MissReason::IgnoreCache));
    match log.miss(&step) {
        Some(MissReason::InputChanged { cause: Some(cause), .. }) => assert_eq!(*cause, MissReason::IgnoreCache),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failed_run_is_not_remembered() {
    let bench = bench();
    miss(&bench, &[&vertex("step").key("v1").done()]).await;
    let failing = vertex("step")
        .key("v2")
        .runs(|_, _| async { Err(kiln_solver::OpError::new(kiln_stdx::ErrorClass::UserInput, "exit code 2")) });
    bench.build(&[&failing.done()]).await.0.unwrap_err();
    // Compared with the last good run, not with the failed one.
    match miss(&bench, &[&vertex("step").key("v2").done()]).await {
        MissReason::OpChanged { changes, .. } => assert_eq!(changes[0].old.as_deref(), Some("v1")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_cascade_goes_back_to_its_root() {
    let bench = bench();
    let build = |key: &str| {
        let first = vertex("first").key(key).done();
        let second = vertex("second").input(&first).done();
        let third = vertex("third").input(&second).done();
        (first, second, third)
    };
    let (first, second, third) = build("v1");
    miss(&bench, &[&first, &second, &third]).await;
    let (first, second, third) = build("v2");
    let reason = miss(&bench, &[&first, &second, &third]).await;
    let (path, root) = reason.root();
    assert_eq!(path, ["second", "first"]);
    assert!(matches!(root, MissReason::OpChanged { .. }), "{root:?}");
}

#[tokio::test]
async fn content_that_another_step_made_goes_back_to_that_step() {
    let bench = bench();
    let build = |text: &str| {
        let made = vertex("made").key(text).gives(text).done();
        let step = vertex("step").by_content(&made).done();
        (made, step)
    };
    let (made, step) = build("one");
    miss(&bench, &[&made, &step]).await;
    let (made, step) = build("two");
    let reason = miss(&bench, &[&made, &step]).await;
    assert!(matches!(reason, MissReason::ContentChanged { .. }), "{reason:?}");
    let (path, root) = reason.root();
    assert_eq!(path, ["made"]);
    assert!(matches!(root, MissReason::OpChanged { .. }), "{root:?}");
}
