//! The live view of a terminal: a headline, one line per step with its timer, and the last lines of what is running.
//!
//! ```text
//! [+] Building 12.3s (4/9)
//!  => [base 1/3] FROM docker.io/library/debian:bookworm          1.2s
//!  => [build 2/4] RUN make                                      10.9s
//!  => => # cc -c main.c
//! ```
//!
//! Every frame moves the cursor up over the previous one and draws it anew, each line erased to its end, in one write. Step
//! output goes through a small terminal emulator, so that progress bars and cursor movements of build tools come out as
//! they would in a terminal of their own.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroU16;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::event::Stamp;
use super::state::{Change, ProgressState, Step, StepId};
use super::style::Style;
use super::units;

/// Columns kept free beside step output.
const LOG_PAD: u16 = 10;
/// Steps with a narrower space for the name are left out.
const MIN_NAME: usize = 12;

/// What the view is told about its terminal and the user's taste.
#[derive(Clone, Debug)]
pub struct TtyOptions {
    /// Verb of the headline.
    pub phase: String,
    /// Text at the right of the headline; may be empty.
    pub description: String,
    /// Colours.
    pub style: Style,
    /// Lines of output shown below a running step.
    pub log_lines: u16,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The terminal view.
pub struct Tty<W> {
    out: W,
    options: TtyOptions,
    terminals: BTreeMap<StepId, LogWindow>,
    drawn_lines: usize,
}

/// The emulated terminal of one step.
struct LogWindow {
    parser: vt100::Parser,
    bytes: usize,
    shown: usize,
}

/// One line below the headline.
struct Line {
    step: Option<StepId>,
    text: String,
    amount: String,
    seconds: f64,
    running: bool,
    colour: Option<String>,
}

impl<W: Write> Tty<W> {
    /// Returns a view that draws on `out`.
    pub fn new(out: W, options: TtyOptions) -> Tty<W> {
        Tty { out, options, terminals: BTreeMap::new(), drawn_lines: 0 }
    }

    /// Takes in what changed; [`Tty::draw`] shows it.
    pub fn note(&mut self, changes: &[Change], size: Size) {
        for change in changes {
            if let Change::Log(id, _, data) = change {
                let (rows, cols) =
                    (at_least_one(self.options.log_lines), at_least_one(size.width.saturating_sub(LOG_PAD)));
                let window = self.terminals.entry(*id).or_insert_with(|| LogWindow {
                    parser: vt100::Parser::new(rows, cols, 0),
                    bytes: 0,
                    shown: 0,
                });
                window.write(data, rows, cols);
            }
        }
    }

    /// Draws a frame; `last` is the final one, which shows all steps whatever the height of the terminal.
    pub fn draw(&mut self, state: &ProgressState, now: Stamp, size: Size, last: bool) -> io::Result<()> {
        let now = state.engine_time(now);
        let width = usize::from(size.width.max(20));
        let height = usize::from(size.height.max(4));
        let mut lines = lines_of(state, now, &self.options.style);
        let windows = self.choose_windows(&lines, height);
        if !last {
            let hidden: usize = windows.iter().filter_map(|id| self.terminals.get(id)).map(|w| w.rows().len()).sum();
            lines = fit(lines, height.saturating_sub(2 + hidden));
        }
        let mut frame = String::from("\x1b[?25l");
        if self.drawn_lines > 0 {
            frame.push_str(&format!("\x1b[{}A", self.drawn_lines));
        }
        frame.push('\r');
        let mut count = 1;
        self.push_line(&mut frame, &self.headline(state, now, width, last));
        for line in &lines {
            let Some(text) = render(line, width) else { continue };
            let text = match &line.colour {
                Some(code) => Style::paint(code, &text),
                None => text,
            };
            self.push_line(&mut frame, &text);
            count += 1;
            let Some(id) = line.step.filter(|id| windows.contains(id)) else { continue };
            for row in self.terminals.get(&id).map(LogWindow::rows).unwrap_or_default() {
                let text = cut(&format!(" => => # {row}"), width);
                self.push_line(&mut frame, &Style::paint(&self.options.style.faint, &text));
                count += 1;
            }
        }
        for id in windows {
            if let Some(window) = self.terminals.get_mut(&id) {
                window.shown += 1;
            }
        }
        frame.push_str("\x1b[J\x1b[?25h");
        self.drawn_lines = count;
        self.out.write_all(frame.as_bytes())?;
        self.out.flush()
    }

    fn push_line(&self, frame: &mut String, text: &str) {
        frame.push_str(text);
        frame.push_str("\x1b[K\r\n");
    }

    fn headline(&self, state: &ProgressState, now: Stamp, width: usize, last: bool) -> String {
        let (done, total) = state.counts();
        let seconds = now.seconds_since(state.first_start().unwrap_or(now)).max(0.0);
        let finished = if last && done > 0 && done == total { " FINISHED" } else { "" };
        let left = format!("[+] {} {seconds:.1}s ({done}/{total}){finished}", self.options.phase);
        if self.options.description.is_empty() {
            return cut(&left, width);
        }
        align(&left, &self.options.description, width.saturating_sub(1))
    }

    /// Chooses the running steps whose output is shown: those that wrote most, as far as the height allows.
    fn choose_windows(&self, lines: &[Line], height: usize) -> Vec<StepId> {
        let running = lines.iter().filter(|l| l.running).count();
        let mut free = height.saturating_sub(2 + running);
        let mut ids: Vec<StepId> = lines
            .iter()
            .filter(|l| l.running)
            .filter_map(|l| l.step)
            .filter(|id| self.terminals.get(id).is_some_and(|w| w.bytes > 0))
            .collect();
        ids.sort_by_key(|id| std::cmp::Reverse(self.terminals.get(id).map_or(0, LogWindow::weight)));
        let need = usize::from(self.options.log_lines) + 3;
        ids.retain(|_| {
            let fits = free > need;
            free = free.saturating_sub(need);
            fits
        });
        ids
    }
}

fn at_least_one(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap_or(NonZeroU16::MIN)
}

impl LogWindow {
    fn write(&mut self, data: &[u8], rows: NonZeroU16, cols: NonZeroU16) {
        if self.parser.screen().size() != (rows, cols) {
            self.parser.screen_mut().set_size(rows, cols);
        }
        self.bytes += data.len();
        // A pipe gives bare line feeds; a terminal driver would have added the carriage return.
        for piece in data.split_inclusive(|&b| b == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(text) => {
                    self.parser.process(text);
                    self.parser.process(b"\r\n");
                }
                None => self.parser.process(piece),
            }
        }
    }

    /// Returns the rows that hold text.
    fn rows(&self) -> Vec<String> {
        let screen = self.parser.screen();
        let (_, cols) = screen.size();
        screen.rows(0, cols.get()).map(|row| row.trim_end().to_owned()).filter(|row| !row.is_empty()).collect()
    }

    /// A window that is shown stays for a while although another wrote a little more.
    fn weight(&self) -> usize {
        self.bytes + self.shown * 50
    }
}

fn lines_of(state: &ProgressState, now: Stamp, style: &Style) -> Vec<Line> {
    let mut lines = Vec::new();
    for (id, step) in state.started() {
        lines.push(step_line(id, step, now, style));
        for status in &step.statuses {
            let Some(started) = status.started else { continue };
            lines.push(Line {
                step: None,
                text: format!("=> {}", status.id),
                amount: units::transfer(status.current, status.total),
                seconds: status.completed.map_or(now, Stamp::from).seconds_since(started.into()),
                running: status.completed.is_none() && step.is_running(),
                colour: status.completed.is_some().then(|| style.run.clone()),
            });
        }
        for warning in &step.warnings {
            lines.push(Line {
                step: None,
                text: format!("WARN: {}", String::from_utf8_lossy(&warning.short)),
                amount: String::new(),
                seconds: step.intervals.seconds(now),
                running: false,
                colour: Some(style.cancel.clone()),
            });
        }
    }
    lines
}

fn step_line(id: StepId, step: &Step, now: Stamp, style: &Style) -> Line {
    let name = step.name.replace(['\t', '\n', '\r'], " ");
    let (mark, colour) = if step.is_canceled() {
        ("CANCELED ", &style.cancel)
    } else if !step.error.is_empty() {
        ("ERROR ", &style.error)
    } else {
        ("", &style.run)
    };
    let cached = if step.cached { "CACHED " } else { "" };
    Line {
        step: Some(id),
        text: format!("{cached}{mark}{name}"),
        amount: String::new(),
        seconds: step.intervals.seconds(now),
        running: step.is_running(),
        colour: step.is_completed().then(|| colour.clone()),
    }
}

/// Keeps the last `limit` lines; running ones that would be cut take the places of the first that have ended.
fn fit(lines: Vec<Line>, limit: usize) -> Vec<Line> {
    let Some(cut) = lines.len().checked_sub(limit).filter(|&cut| cut > 0) else { return lines };
    let mut kept: Vec<Line> = Vec::with_capacity(limit);
    let mut lines = lines.into_iter();
    let mut rescued: Vec<Line> = lines.by_ref().take(cut).filter(|l| l.running).collect();
    let rest: Vec<Line> = lines.collect();
    let mut room = rescued.len();
    let droppable = rest.iter().filter(|l| !l.running).count().min(room);
    rescued.drain(..room - droppable);
    room = droppable;
    kept.append(&mut rescued);
    for line in rest {
        if room > 0 && !line.running {
            room -= 1;
        } else {
            kept.push(line);
        }
    }
    kept
}

fn render(line: &Line, width: usize) -> Option<String> {
    let seconds = if line.seconds < 0.05 { 0.0 } else { line.seconds };
    let timer = format!("{seconds:3.1}s");
    let mut room = width.checked_sub(" => ".len() + timer.len() + 2)?;
    let mut amount = "";
    if !line.amount.is_empty() && room > 20 {
        amount = &line.amount;
        room -= amount.len() + 1;
    }
    if room < MIN_NAME {
        return None;
    }
    let mut left = format!(" => {}", cut(&line.text, room));
    if !amount.is_empty() {
        left.push(' ');
        left.push_str(amount);
    }
    Some(align(&left, &timer, width.saturating_sub(1)))
}

/// Puts `left` and `right` at the ends of a line of `width` columns.
fn align(left: &str, right: &str, width: usize) -> String {
    let left = cut(left, width.saturating_sub(right.width() + 1));
    let gap = width.saturating_sub(left.width() + right.width());
    format!("{left}{:gap$}{right}", "")
}

/// Cuts `text` to `width` columns.
fn cut(text: &str, width: usize) -> String {
    let mut used = 0;
    text.chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .filter(|c| !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests;
