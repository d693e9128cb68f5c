//! Progress as text lines for logs and CI: `#N name`, `#N 0.123 output`, `#N DONE 0.1s`, `#N CACHED`, `#N ERROR: ...`.
//!
//! Steps run in parallel but lines must read well, so one step at a time is *current*. The view stays with it for a while
//! (five seconds, longer if it writes more than the others) before it turns to another; a step that was not seen for ten
//! seconds is shown at the next chance. Leaving a step that has not ended prints `#N ...`, and coming back prints its
//! name again. Numbers are given when a step is first shown.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use super::event::Stamp;
use super::state::{Change, ProgressState, Step, StepId};
use super::units;

/// Seconds a step stays current at least while it writes.
const ANTI_FLICKER: f64 = 5.0;
/// Seconds after which a step that has news is shown whatever the others do.
const MAX_DELAY: f64 = 10.0;
/// Seconds between two reports of one status, unless it moved by [`MIN_STATUS_SHARE`].
const MIN_STATUS_DELAY: f64 = 5.0;
/// Share of the total by which a status must have moved to be reported earlier.
const MIN_STATUS_SHARE: f64 = 0.05;
/// Longest name when `PROGRESS_NO_TRUNC=0` asks for short ones.
const SHORT_NAME: usize = 72;

/// What the view remembers of a step.
#[derive(Default)]
struct Drawn {
    number: usize,
    /// Lines not printed yet; the first may have been printed in part.
    lines: Vec<Vec<u8>>,
    /// Whether the last line has not ended.
    partial: bool,
    /// Bytes of the first line that are on the screen already.
    offset: usize,
    statuses: BTreeSet<usize>,
    reported: BTreeMap<usize, (Stamp, i64)>,
    warnings: usize,
    reasons: usize,
    /// News since `waiting_since`.
    count: u64,
    waiting_since: Option<Stamp>,
}

impl Drawn {
    fn note(&mut self, now: Stamp) {
        if self.count == 0 {
            self.waiting_since = Some(now);
        }
        self.count += 1;
    }

    fn push_log(&mut self, since: i64, data: &[u8]) {
        for piece in data.split_inclusive(|&b| b == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            match self.lines.last_mut() {
                Some(last) if self.partial => last.extend_from_slice(text),
                _ => {
                    let mut line = format!("{} ", units::log_seconds(since as f64 / 1e9)).into_bytes();
                    line.extend_from_slice(text);
                    self.lines.push(line);
                }
            }
            self.partial = !ends;
        }
    }
}

/// The plain view.
pub struct Plain<W> {
    out: W,
    header: Option<String>,
    short_names: bool,
    current: Option<StepId>,
    numbered: usize,
    begun: bool,
    drawn: BTreeMap<StepId, Drawn>,
    updated: BTreeSet<StepId>,
}

impl<W: Write> Plain<W> {
    /// Returns a view that writes to `out`; `header` is shown as `#0 header` before the first step.
    pub fn new(out: W, header: Option<String>, short_names: bool) -> Plain<W> {
        Plain {
            out,
            header,
            short_names,
            current: None,
            numbered: 0,
            begun: false,
            drawn: BTreeMap::new(),
            updated: BTreeSet::new(),
        }
    }

    /// Notes what changed; [`Plain::refresh`] prints it.
    pub fn note(&mut self, changes: &[Change], now: Stamp) {
        for change in changes {
            let (Change::Step(id) | Change::Status(id, _) | Change::Warning(id) | Change::Log(id, _, _)) = change;
            let drawn = self.drawn.entry(*id).or_default();
            drawn.note(now);
            match change {
                Change::Status(_, index) => {
                    drawn.statuses.insert(*index);
                }
                Change::Log(_, since, data) => drawn.push_log(*since, data),
                Change::Step(_) | Change::Warning(_) => {}
            }
            self.updated.insert(*id);
        }
    }

    /// Prints what is due: all that ended, then at most one running step.
    pub fn refresh(&mut self, state: &ProgressState, now: Stamp) -> io::Result<()> {
        let before = self.current;
        let mut ended: Vec<StepId> = Vec::new();
        let mut running: Vec<StepId> = Vec::new();
        for &id in &self.updated {
            let step = state.step(id);
            if step.hidden {
                continue;
            }
            if step.is_completed() { ended.push(id) } else { running.push(id) }
        }
        ended.sort_by_key(|&id| (Some(id) != before, state.step(id).intervals.completed()));
        for &id in &ended {
            self.print(state, id, now)?;
        }
        let left = before.is_some_and(|id| ended.contains(&id));
        if running.is_empty() {
            return match before {
                Some(id) if !left && state.step(id).is_running() => Ok(()),
                _ => match state.started().find(|(_, s)| s.is_running()) {
                    Some((id, _)) => self.print(state, id, now),
                    None => Ok(()),
                },
            };
        }
        if let Some(id) = before.filter(|id| running.contains(id)) {
            self.print(state, id, now)?;
        }
        match self.choose(&running, before, left, now) {
            Some(id) => self.print(state, id, now),
            None => Ok(()),
        }
    }

    /// Decides whether another running step than `before` is shown, and which.
    fn choose(&self, running: &[StepId], before: Option<StepId>, left: bool, now: Stamp) -> Option<StepId> {
        let mut best: Option<(bool, f64, StepId)> = None;
        let mut total = 0.0;
        let mut own = (0.0, 0.0);
        let others = running.iter().copied().filter(|&id| Some(id) != before);
        for id in before.filter(|_| !left).into_iter().chain(others) {
            let Some(drawn) = self.drawn.get(&id) else { continue };
            let Some(since) = drawn.waiting_since else { continue };
            let waited = now.seconds_since(since).max(1e-9);
            let speed = drawn.count as f64 / waited;
            total += speed;
            if Some(id) == before {
                own = (waited, speed);
            }
            let late = waited > MAX_DELAY && Some(id) != before;
            if best.is_none_or(|(was_late, was_speed, _)| (late, speed) > (was_late, was_speed)) {
                best = Some((late, speed, id));
            }
        }
        let (late, _, best) = best?;
        let share = if total > 0.0 { own.1 / total } else { 0.0 };
        let patience = ANTI_FLICKER / (1.0 - share).max(1e-9);
        (before.is_none() || left || late || own.0 > patience).then_some(best)
    }

    fn print(&mut self, state: &ProgressState, id: StepId, now: Stamp) -> io::Result<()> {
        let step = state.step(id);
        self.turn_to(step, id)?;
        self.updated.remove(&id);
        let drawn = self.drawn.entry(id).or_default();
        let told = (drawn.warnings, drawn.reasons) == (step.warnings.len(), step.reasons.len());
        if drawn.offset > 0 && !(drawn.statuses.is_empty() && told) {
            writeln!(self.out)?;
            drawn.offset = 0;
        }
        let open = print_statuses(&mut self.out, drawn, step)?;
        for warning in &step.warnings[drawn.warnings..] {
            writeln!(self.out, "#{} WARN: {}", drawn.number, String::from_utf8_lossy(&warning.short))?;
        }
        drawn.warnings = step.warnings.len();
        for reason in &step.reasons[drawn.reasons..] {
            writeln!(self.out, "#{} WHY: {reason}", drawn.number)?;
        }
        drawn.reasons = step.reasons.len();
        print_lines(&mut self.out, drawn)?;
        self.current = Some(id);
        if step.is_completed() && !open {
            self.current = None;
            drawn.count = 0;
            if drawn.partial {
                writeln!(self.out)?;
                drawn.partial = false;
                drawn.lines.clear();
                drawn.offset = 0;
            }
            writeln!(self.out, "#{} {}", drawn.number, outcome(step, now))?;
        }
        self.out.flush()
    }

    /// Makes `id` the current step, with its name as a headline.
    fn turn_to(&mut self, step: &Step, id: StepId) -> io::Result<()> {
        let drawn = self.drawn.entry(id).or_default();
        if drawn.number == 0 {
            self.numbered += 1;
            drawn.number = self.numbered;
        }
        let number = drawn.number;
        if self.current == Some(id) {
            return Ok(());
        }
        if let Some(old) = self.current.and_then(|old| self.drawn.get_mut(&old)) {
            if old.partial {
                writeln!(self.out)?;
            }
            old.offset = 0;
            old.count = 0;
            writeln!(self.out, "#{} ...", old.number)?;
        }
        if self.begun {
            writeln!(self.out)?;
        } else if let Some(header) = &self.header {
            write!(self.out, "#0 {header}\n\n")?;
        }
        self.begun = true;
        let mut name = step.name.as_str();
        if self.short_names && name.len() > SHORT_NAME {
            name = &name[..name.floor_char_boundary(SHORT_NAME)];
            return writeln!(self.out, "#{number} {name}...");
        }
        writeln!(self.out, "#{number} {name}")
    }
}

/// Prints the statuses that moved enough; returns whether one of them is still open.
fn print_statuses(out: &mut impl Write, drawn: &mut Drawn, step: &Step) -> io::Result<bool> {
    let mut open = false;
    for index in std::mem::take(&mut drawn.statuses) {
        let status = &step.statuses[index];
        let at = Stamp::from(status.timestamp);
        if let (Some((before, current)), None) = (drawn.reported.get(&index), status.completed) {
            let moved = if status.total > 0 { (status.current - current) as f64 / status.total as f64 } else { 0.0 };
            if moved < MIN_STATUS_SHARE && at.seconds_since(*before) < MIN_STATUS_DELAY {
                open = true;
                continue;
            }
        }
        drawn.reported.insert(index, (at, status.current));
        let mut line = format!("#{} {}", drawn.number, status.id);
        let amount = units::transfer(status.current, status.total);
        if !amount.is_empty() {
            line.push(' ');
            line.push_str(&amount);
        }
        let until = status.completed.map_or(at, Stamp::from);
        let seconds = status.started.map_or(0.0, |s| until.seconds_since(s.into()));
        if seconds > 0.01 {
            line.push_str(&format!(" {seconds:.1}s"));
        }
        match status.completed {
            Some(_) => line.push_str(" done"),
            None => open = true,
        }
        writeln!(out, "{line}")?;
    }
    Ok(open)
}

fn print_lines(out: &mut impl Write, drawn: &mut Drawn) -> io::Result<()> {
    let last = drawn.lines.len().saturating_sub(1);
    for (i, line) in drawn.lines.iter().enumerate() {
        if i == 0 && drawn.offset > 0 {
            out.write_all(&line[drawn.offset..])?;
        } else {
            write!(out, "#{} ", drawn.number)?;
            out.write_all(line)?;
        }
        if i != last || !drawn.partial {
            writeln!(out)?;
        }
    }
    if drawn.partial {
        drawn.lines.drain(..last);
        drawn.offset = drawn.lines.first().map_or(0, Vec::len);
    } else {
        drawn.lines.clear();
        drawn.offset = 0;
    }
    Ok(())
}

fn outcome(step: &Step, now: Stamp) -> String {
    if step.is_canceled() {
        "CANCELED".to_owned()
    } else if !step.error.is_empty() {
        format!("ERROR: {}", step.error)
    } else if step.cached {
        "CACHED".to_owned()
    } else {
        format!("DONE {:.1}s", step.intervals.seconds(now))
    }
}

#[cfg(test)]
mod tests;
