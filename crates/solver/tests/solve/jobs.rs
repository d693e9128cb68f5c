//! Scheduling: overlap, merging, cancelling, failing.

use std::sync::Arc;
use std::time::Duration;

use kiln_solver::{Bound, Limits, LoadError, OpError, Origin, SolveError, VertexOptions};
use kiln_stdx::ErrorClass;
use tokio::sync::{Barrier, Notify, Semaphore};

use crate::kit::{Counts, Text, bench, bench_with, edge, vertex};

fn text(text: &str) -> Vec<Text> {
    vec![Arc::new(text.to_owned())]
}

#[tokio::test]
async fn inputs_are_solved_at_the_same_time() {
    let barrier = Arc::new(Barrier::new(2));
    let meet = |name: &str| {
        let barrier = barrier.clone();
        let name = name.to_owned();
        vertex(&name.clone())
            .runs(move |_, _| {
                let (barrier, name) = (barrier.clone(), name.clone());
                async move {
                    // Hangs unless the other input runs too.
                    barrier.wait().await;
                    Ok(text(&name))
                }
            })
            .done()
    };
    let (a, b) = (meet("a"), meet("b"));
    let top = vertex("top").input(&a).input(&b).done();
    let (outcome, _) = bench().build(&[&a, &b, &top]).await;
    assert_eq!(outcome.unwrap().as_str(), "top(a,b)");
}

#[tokio::test]
async fn what_nobody_needs_never_starts() {
    let counts = Arc::new(Counts::default());
    let unneeded = vertex("unneeded").counts(&counts).done();
    let wanted = vertex("wanted").done();
    let (outcome, log) = bench().build(&[&unneeded, &wanted]).await;
    assert!(outcome.is_ok());
    assert_eq!((counts.executed(), log.of(&unneeded).len()), (0, 0));
    assert_eq!(counts.map.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn concurrent_jobs_share_one_execution_and_both_see_it() {
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let counts = Arc::new(Counts::default());
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (s, g, c) = (started.clone(), go.clone(), seen.clone());
    let slow = vertex("slow").counts(&counts).runs(move |cx, _| {
        let (started, go, seen) = (s.clone(), g.clone(), c.clone());
        async move {
            started.notify_one();
            go.notified().await;
            *seen.lock() = cx.contexts::<String>().iter().map(|name| name.to_string()).collect();
            Ok(text("slow"))
        }
    });
    let slow = slow.done();
    let bench = bench();
    let (first, first_log) = bench.job("first", &[&slow]).await;
    let (second, second_log) = bench.job("second", &[&slow]).await;
    let watch = async {
        started.notified().await;
        let late = tokio::spawn(async move { (second.build(edge(&slow)).await, slow) });
        // The late job has joined when it has heard of the start.
        loop {
            let (probe, _) = bench.job("probe", &[]).await;
            probe.close().await;
            if seen_start(&second_log) {
                break;
            }
            tokio::task::yield_now().await;
        }
        go.notify_one();
        late.await.unwrap()
    };
    let want = first.build(edge(&vertex("slow").done()));
    let (one, (two, slow)) = tokio::join!(want, watch);
    assert_eq!(one.unwrap().result, two.unwrap().result);
    assert_eq!(counts.executed(), 1);
    assert_eq!(*seen.lock(), ["first", "second"]);
    assert_eq!(first_log.of(&slow), ["started", "completed"]);
    assert_eq!(second_log.of(&slow), ["started", "completed"]);
}

fn seen_start(log: &crate::kit::Log) -> bool {
    log.of(&vertex("slow").done()).contains(&"started".to_owned())
}

#[tokio::test]
async fn vertices_of_equal_key_run_once() {
    let counts = Arc::new(Counts::default());
    let base = vertex("base").done();
    let one = vertex("work").salt("one").counts(&counts).input(&base).done();
    let two = vertex("work").salt("two").counts(&counts).input(&base).done();
    assert_ne!(one.digest, two.digest);
    let both = vertex("both").input(&one).input(&two).done();
    let (outcome, log) = bench().build(&[&base, &one, &two, &both]).await;
    assert_eq!(outcome.unwrap().as_str(), "both(work(base()),work(base()))");
    assert_eq!(counts.executed(), 1);
    for twin in [&one, &two] {
        assert!(["completed", "cached Shared"].contains(&log.of(twin).last().unwrap().as_str()));
    }
}

#[tokio::test]
async fn cancelling_ends_a_job_and_its_executions_but_no_other() {
    let (started, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (s, t) = (started.clone(), stopped.clone());
    let endless = vertex("endless").runs(move |cx, _| {
        let (started, stopped) = (s.clone(), t.clone());
        async move {
            started.notify_one();
            cx.cancel().cancelled().await;
            stopped.notify_one();
            Err(OpError::canceled())
        }
    });
    let endless = endless.done();
    let go = Arc::new(Semaphore::new(0));
    let gate = go.clone();
    let shared = vertex("shared").runs(move |_, _| {
        let gate = gate.clone();
        async move {
            let _permit = gate.acquire().await;
            Ok(text("shared"))
        }
    });
    let shared = shared.done();
    let top = vertex("top").input(&endless).input(&shared).done();
    let bench = bench();
    let (doomed, doomed_log) = bench.job("doomed", &[&endless, &shared, &top]).await;
    let (other, other_log) = bench.job("other", &[&shared]).await;
    let cancel = async {
        started.notified().await;
        doomed.cancel();
        stopped.notified().await;
        go.add_permits(1);
    };
    let (doomed_outcome, other_outcome, ()) =
        tokio::join!(doomed.build(edge(&top)), other.build(edge(&shared)), cancel);
    assert!(matches!(doomed_outcome, Err(SolveError::Canceled)));
    assert_eq!(other_outcome.unwrap().result.as_str(), "shared");
    doomed.close().await;
    assert_eq!(doomed_log.of(&endless), ["started", "canceled"]);
    assert_eq!(other_log.of(&shared), ["started", "completed"]);
}

#[tokio::test]
async fn a_cancelled_execution_restarts_for_the_next_job_after_it_has_stopped() {
    let (started, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (counts, running) = (Arc::new(Counts::default()), Arc::new(Semaphore::new(1)));
    let (s, t, r, c) = (started.clone(), stop.clone(), running.clone(), counts.clone());
    let work = vertex("work").counts(&counts).runs(move |cx, _| {
        let (started, stop, running, counts) = (s.clone(), t.clone(), r.clone(), c.clone());
        async move {
            let _alone = running.try_acquire().expect("two executions at once");
            if counts.executed() > 1 {
                return Ok(text("second run"));
            }
            started.notify_one();
            cx.cancel().cancelled().await;
            // It takes its time to stop.
            stop.notified().await;
            Err(OpError::canceled())
        }
    });
    let work = work.done();
    let bench = bench();
    let (first, _) = bench.job("first", &[&work]).await;
    let (outcome, ()) = tokio::join!(first.build(edge(&work)), async {
        started.notified().await;
        first.cancel();
    });
    assert!(matches!(outcome, Err(SolveError::Canceled)), "the job does not wait for what it called off");
    first.close().await;
    let (second, log) = bench.job("second", &[&work]).await;
    let (outcome, ()) = tokio::join!(second.build(edge(&work)), async {
        tokio::task::yield_now().await;
        stop.notify_one();
    });
    assert_eq!(outcome.unwrap().result.as_str(), "second run");
    assert_eq!(log.of(&work), ["started", "completed"]);
    assert_eq!(counts.executed(), 2);
}

#[tokio::test]
async fn dropping_a_wish_calls_its_work_off() {
    let (started, stopped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (s, t) = (started.clone(), stopped.clone());
    let endless = vertex("endless").runs(move |cx, _| {
        let (started, stopped) = (s.clone(), t.clone());
        async move {
            started.notify_one();
            cx.cancel().cancelled().await;
            stopped.notify_one();
            Err(OpError::canceled())
        }
    });
    let endless = endless.done();
    let quick = vertex("quick").done();
    let bench = bench();
    let (job, _) = bench.job("job", &[&endless, &quick]).await;
    tokio::select! {
        _ = job.build(edge(&endless)) => panic!("it has no end"),
        () = started.notified() => {}
    }
    stopped.notified().await;
    assert!(job.build(edge(&quick)).await.is_ok(), "the job itself lives on");
}

#[tokio::test]
async fn a_stuck_call_is_dropped_after_the_grace() {
    let started = Arc::new(Notify::new());
    let s = started.clone();
    let stuck = vertex("stuck").runs(move |_, _| {
        let started = s.clone();
        async move {
            started.notify_one();
            std::future::pending().await
        }
    });
    let stuck = stuck.done();
    let bench = bench_with(Limits { grace: Duration::from_millis(1), ..Limits::default() });
    let (job, _) = bench.job("job", &[&stuck]).await;
    let (outcome, ()) = tokio::join!(job.build(edge(&stuck)), async {
        started.notified().await;
        job.cancel();
    });
    assert!(matches!(outcome, Err(SolveError::Canceled)));
    job.close().await;
    // Returns only when nothing runs any more.
    bench.solver.idle().await;
}

#[tokio::test]
async fn failure_goes_to_all_who_want_it_and_a_later_job_tries_again() {
    let counts = Arc::new(Counts::default());
    let barrier = Arc::new(Barrier::new(2));
    let good_counts = Arc::new(Counts::default());
    let good = vertex("good").counts(&good_counts).done();
    let (c, b) = (counts.clone(), barrier.clone());
    let bad = vertex("bad").input(&good).counts(&counts).runs(move |_, _| {
        let (counts, barrier) = (c.clone(), b.clone());
        async move {
            if counts.executed() > 1 {
                return Ok(text("better now"));
            }
            barrier.wait().await;
            Err(OpError::new(ErrorClass::UserInput, "exit code 1"))
        }
    });
    let bad = bad.done();
    let top = vertex("top").input(&bad).done();
    let bench = bench();
    let (first, first_log) = bench.job("first", &[&good, &bad, &top]).await;
    let (second, second_log) = bench.job("second", &[&good, &bad]).await;
    let (one, two, ()) = tokio::join!(first.build(edge(&top)), second.build(edge(&bad)), async {
        barrier.wait().await;
    });
    for outcome in [one, two] {
        let error = outcome.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.class()), ("bad: exit code 1", ErrorClass::UserInput));
        assert!(matches!(error, SolveError::Vertex { vertex, .. } if vertex == bad.digest));
    }
    assert_eq!(first_log.of(&bad), ["started", "failed"]);
    assert_eq!(second_log.of(&bad), ["started", "failed"]);
    assert!(first_log.of(&top).is_empty(), "only the vertex that failed is told of");
    // The same job meets the same failure without running again.
    assert!(first.build(edge(&bad)).await.is_err());
    assert_eq!(counts.executed(), 1);

    // The first jobs are still open, but this one has not met the failure.
    let (third, log) = bench.job("third", &[&good, &bad, &top]).await;
    assert_eq!(third.build(edge(&top)).await.unwrap().result.as_str(), "top(better now)");
    assert_eq!(log.of(&bad), ["started", "completed"]);
    assert_eq!(good_counts.executed(), 1, "good steps of a failed build are kept");
}

#[tokio::test]
async fn another_session_takes_over() {
    let (started, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let counts = Arc::new(Counts::default());
    let (s, g) = (started.clone(), gone.clone());
    let work = vertex("work").counts(&counts).runs(move |cx, _| {
        let (started, gone) = (s.clone(), g.clone());
        async move {
            let session = cx.contexts::<String>().first().cloned().unwrap_or_default();
            if *session == "first" {
                started.notify_one();
                gone.notified().await;
                return Err(OpError::session_lost("client closed the connection"));
            }
            Ok(text(&session))
        }
    });
    let work = work.done();
    let bench = bench();
    let (first, _) = bench.job("first", &[&work]).await;
    let (second, log) = bench.job("second", &[&work]).await;
    let (one, two, ()) = tokio::join!(first.build(edge(&work)), second.build(edge(&work)), async {
        started.notified().await;
        // Its session ends, and with it the job.
        first.cancel();
        gone.notify_one();
    });
    assert!(matches!(one, Err(SolveError::Canceled)));
    assert_eq!(two.unwrap().result.as_str(), "second");
    assert_eq!(log.of(&work), ["started", "canceled", "started", "completed"]);
}

#[tokio::test]
async fn a_lost_session_without_another_is_a_failure() {
    let work = vertex("work").runs(|_, _| async { Err(OpError::session_lost("connection reset")) }).done();
    let (outcome, _) = bench().build(&[&work]).await;
    assert_eq!(outcome.unwrap_err(), "work: connection reset");
}

#[tokio::test]
async fn a_panic_is_a_failure() {
    let work = vertex("work").runs(|_, _| async { panic!("index out of range") }).done();
    let bench = bench();
    let (job, _) = bench.job("job", &[&work]).await;
    let error = job.build(edge(&work)).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.class()), ("work: panic: index out of range", ErrorClass::Bug));
}

#[tokio::test]
async fn a_missing_output_is_a_failure() {
    let work = vertex("work").done();
    let bench = bench();
    let (job, _) = bench.job("job", &[&work]).await;
    let third = kiln_solver::Edge { index: 3, ..edge(&work) };
    assert_eq!(job.build(third).await.unwrap_err().class(), ErrorClass::Bug);
}

#[tokio::test]
async fn executions_keep_within_their_limit_and_nested_solves_take_no_slot() {
    let bench = bench_with(Limits { executions: 1, ..Limits::default() });
    let running = Arc::new(Semaphore::new(1));
    let one_at_a_time = |name: &str| {
        let running = running.clone();
        vertex(name)
            .runs(move |_, _| {
                let running = running.clone();
                async move {
                    let _alone = running.try_acquire().expect("two executions at once");
                    tokio::task::yield_now().await;
                    Ok(text("leaf"))
                }
            })
            .done()
    };
    let leaves = [one_at_a_time("a"), one_at_a_time("b"), one_at_a_time("c")];
    let inner = bench.job("inner", &[&leaves[0], &leaves[1]]).await.0;
    let (first, second) = (edge(&leaves[0]), edge(&leaves[1]));
    let inner = Arc::new(inner);
    let nested = vertex("nested")
        .input(&leaves[2])
        .options(VertexOptions { bound: Bound::Unlimited, ..VertexOptions::default() })
        .runs(move |_, _| {
            let inner = inner.clone();
            async move {
                let both = tokio::join!(inner.build(first), inner.build(second));
                assert!(both.0.is_ok() && both.1.is_ok());
                Ok(text("nested"))
            }
        })
        .done();
    let (outcome, _) = bench.build(&[&leaves[2], &nested]).await;
    assert_eq!(outcome.unwrap().as_str(), "nested");
}

#[tokio::test]
async fn results_are_released_with_the_last_job() {
    // The store keeps results too, so a key that is never stored is used.
    let root = vertex("root").run_key().done();
    let bench = bench();
    let (one, _) = bench.job("one", &[&root]).await;
    let (two, _) = bench.job("two", &[&root]).await;
    let solved = one.build(edge(&root)).await.unwrap();
    assert_eq!(solved.origin, Origin::Executed);
    let result = Arc::downgrade(&solved.result);
    drop(solved);
    one.close().await;
    assert!(result.upgrade().is_some(), "the other job may still want it");
    two.close().await;
    bench.solver.idle().await;
    assert!(result.upgrade().is_none());
}

#[tokio::test]
async fn bad_batches_are_refused_whole() {
    let bench = bench();
    let a = vertex("a").done();
    let b = vertex("b").input(&a).done();
    let (job, _) = bench.job("job", &[]).await;
    let error = job.load(vec![b.clone()]).await.unwrap_err();
    assert_eq!(error, LoadError::UnknownInput { vertex: b.digest, input: a.digest });
    let mut circle = a.clone();
    circle.inputs.push(edge(&b));
    let error = job.load(vec![b.clone(), circle]).await.unwrap_err();
    assert!(matches!(error, LoadError::Cycle(_)));
    assert!(matches!(job.build(edge(&b)).await, Err(SolveError::Unknown(_))), "nothing was loaded");
    job.load(vec![b.clone(), a]).await.unwrap();
    assert_eq!(job.build(edge(&b)).await.unwrap().result.as_str(), "b(a())");
}
