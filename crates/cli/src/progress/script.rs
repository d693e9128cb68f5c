//! Fixture language of the view tests: a build told in lines, played against a fake clock.
//!
//! `TIME VERB STEP [REST]`, seconds first: `start`, `done`, `cached`, `error TEXT`, `out TEXT` (`\n` ends a line),
//! `status ID CURRENT/TOTAL`, `finish ID TOTAL` (ends a status), `warn TEXT`; `draw` alone redraws. Times of steps are the
//! engine's clock, which is 1000 s ahead.

use std::collections::HashMap;

use jiff::Timestamp;
use kiln_session::progress::{LogProgress, Progress, StatusProgress, VertexProgress, WarningProgress};

use super::event::Stamp;

/// Seconds by which the engine's clock is ahead of the client's.
const AHEAD: f64 = 1000.0;

/// Something that happens in a script.
pub struct Moment {
    /// Client time.
    pub now: Stamp,
    /// What the engine says; none for a mere redraw.
    pub news: Option<Progress>,
}

/// Parses a script.
pub fn moments(text: &str) -> Vec<Moment> {
    let mut steps: HashMap<String, VertexProgress> = HashMap::new();
    let mut statuses: HashMap<(String, String), f64> = HashMap::new();
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines.map(|line| moment(line, &mut steps, &mut statuses)).collect()
}

fn moment(
    line: &str,
    steps: &mut HashMap<String, VertexProgress>,
    statuses: &mut HashMap<(String, String), f64>,
) -> Moment {
    let mut words = line.splitn(4, ' ');
    let seconds: f64 = words.next().and_then(|w| w.parse().ok()).expect("time");
    let (now, engine) = (Stamp::from(time(seconds)), time(seconds + AHEAD));
    let verb = words.next().expect("verb");
    let Some(name) = words.next() else { return Moment { now, news: None } };
    let rest = words.next().unwrap_or_default();
    let step = steps.entry(name.to_owned()).or_insert_with(|| VertexProgress {
        digest: format!("sha256:{name}"),
        name: format!("[{name}] RUN {name}"),
        ..VertexProgress::default()
    });
    let mut news = Progress::default();
    match verb {
        "start" => step.started = Some(engine),
        "done" | "cached" | "error" => {
            step.started.get_or_insert(engine);
            step.completed = Some(engine);
            step.cached = verb == "cached";
            rest.clone_into(&mut step.error);
        }
        "out" => news.logs.push(LogProgress {
            vertex: step.digest.clone(),
            stream: 1,
            data: rest.replace("\\n", "\n").replace("\\r", "\r").into_bytes(),
            timestamp: engine,
        }),
        "warn" => news.warnings.push(WarningProgress {
            vertex: step.digest.clone(),
            short: rest.as_bytes().to_vec(),
            ..WarningProgress::default()
        }),
        "status" | "finish" => {
            let (id, amount) = rest.rsplit_once(' ').expect("amount");
            let (current, total) = amount.split_once('/').unwrap_or((amount, amount));
            let started = *statuses.entry((name.to_owned(), id.to_owned())).or_insert(seconds);
            news.statuses.push(StatusProgress {
                id: id.to_owned(),
                vertex: step.digest.clone(),
                name: String::new(),
                total: total.parse().expect("total"),
                current: current.parse().expect("current"),
                timestamp: engine,
                started: Some(time(started + AHEAD)),
                completed: (verb == "finish").then_some(engine),
            });
        }
        other => panic!("unknown verb {other}"),
    }
    if matches!(verb, "start" | "done" | "cached" | "error") {
        news.vertexes.push(step.clone());
    }
    Moment { now, news: Some(news) }
}

fn time(seconds: f64) -> Timestamp {
    Timestamp::from_nanosecond((seconds * 1e9).round() as i128).expect("time")
}
