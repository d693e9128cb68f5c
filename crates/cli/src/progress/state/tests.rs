//! The model: groups, repeated runs, counts.

use jiff::Timestamp;
use kiln_session::progress::{GroupProgress, LogProgress};

use super::*;

fn at(seconds: f64) -> Stamp {
    time(seconds).into()
}

fn time(seconds: f64) -> Timestamp {
    Timestamp::from_nanosecond((seconds * 1e9) as i128).expect("time")
}

fn vertex(digest: &str, started: Option<f64>, completed: Option<f64>) -> VertexProgress {
    VertexProgress {
        digest: digest.into(),
        name: format!("step {digest}"),
        started: started.map(time),
        completed: completed.map(time),
        ..VertexProgress::default()
    }
}

fn of(vertexes: Vec<VertexProgress>) -> Progress {
    Progress { vertexes, ..Progress::default() }
}

fn member(digest: &str, started: Option<f64>, completed: Option<f64>, weak: bool, cached: bool) -> VertexProgress {
    let progress_group = Some(GroupProgress { id: "g".into(), name: "link".into(), weak });
    VertexProgress { progress_group, cached, ..vertex(digest, started, completed) }
}

#[test]
fn steps_show_when_they_start() {
    let mut state = ProgressState::new(Keep::Tail);
    assert_eq!(state.apply(&of(vec![vertex("a", None, None), vertex("b", None, None)]), at(0.0)), []);
    assert_eq!(state.counts(), (0, 2));
    assert_eq!(state.apply(&of(vec![vertex("b", Some(1.0), None)]), at(1.5)), [Change::Step(1)]);
    assert_eq!(state.apply(&of(vec![vertex("b", Some(1.0), None)]), at(1.6)), []);
    assert_eq!(state.apply(&of(vec![vertex("b", Some(1.0), Some(2.0))]), at(2.5)), [Change::Step(1)]);
    // A late copy of the first message says nothing about the step any more.
    assert_eq!(state.apply(&of(vec![vertex("b", None, None)]), at(3.0)), []);
    assert!(state.step(1).is_completed());
    assert_eq!(state.counts(), (1, 2));
    assert_eq!(state.started().map(|(id, _)| id).collect::<Vec<_>>(), [1]);
}

#[test]
fn clocks_may_differ() {
    let mut state = ProgressState::new(Keep::Tail);
    state.apply(&of(vec![vertex("a", Some(100.0), None)]), at(7.0));
    assert_eq!(state.engine_time(at(9.0)), at(102.0));
    assert_eq!(state.first_start(), Some(at(100.0)));
}

#[test]
fn a_group_is_one_step() {
    let mut state = ProgressState::new(Keep::Tail);
    let news = of(vec![member("a", Some(1.0), Some(2.0), false, true), member("b", Some(2.0), None, false, false)]);
    assert_eq!(state.apply(&news, at(2.0)), [Change::Step(0)]);
    assert_eq!((state.step(0).name.as_str(), state.step(0).cached), ("link", false));
    assert!(state.step(0).is_running());
    state.apply(&of(vec![member("b", Some(2.0), Some(4.0), false, false)]), at(4.0));
    assert_eq!(state.step(0).intervals.seconds(at(9.0)), 3.0);
    assert_eq!(state.counts(), (1, 1));
}

#[test]
fn a_group_of_weak_members_stays_hidden() {
    let mut state = ProgressState::new(Keep::Tail);
    assert_eq!(state.apply(&of(vec![member("a", Some(1.0), Some(2.0), true, false)]), at(2.0)), []);
    assert_eq!((state.counts(), state.started().count()), ((0, 0), 0));
    let changes = state.apply(&of(vec![member("b", Some(2.0), None, false, false)]), at(2.0));
    assert_eq!(changes, [Change::Step(0)]);
    assert_eq!(state.started().count(), 1);
}

#[test]
fn logs_know_the_time_since_their_step_began() {
    let mut state = ProgressState::new(Keep::Tail);
    state.apply(&of(vec![vertex("a", Some(10.0), None)]), at(0.0));
    let log = LogProgress { vertex: "a".into(), stream: 1, data: b"hi\n".to_vec(), timestamp: time(10.25) };
    let stray = LogProgress { vertex: "zzz".into(), ..log.clone() };
    let changes = state.apply(&Progress { logs: vec![log, stray], ..Progress::default() }, at(0.3));
    assert_eq!(changes, [Change::Log(0, 250_000_000, b"hi\n".to_vec())]);
    assert_eq!(state.step(0).tail.lines().collect::<Vec<_>>(), [b"0.250 hi".as_slice()]);
}

#[test]
fn warnings_are_told_once() {
    let mut state = ProgressState::new(Keep::Tail);
    state.apply(&of(vec![vertex("a", Some(1.0), None)]), at(1.0));
    let warning = WarningProgress { vertex: "a".into(), short: b"careful".to_vec(), ..WarningProgress::default() };
    state.apply(&Progress { warnings: vec![warning.clone(), warning], ..Progress::default() }, at(1.0));
    assert_eq!(state.warnings().len(), 1);
}
