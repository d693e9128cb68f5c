//! Drives one view with the events of a build.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use kiln_session::progress::{Progress, WarningProgress};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::event::Stamp;
use super::mode::{Mode, ProgressEnv};
use super::plain::Plain;
use super::state::ProgressState;
use super::style::Style;
use super::tail::Keep;
use super::tty::{Size, Tty, TtyOptions};

/// Time between two redraws when nothing happens.
const TICK: Duration = Duration::from_millis(150);
/// Least time between two redraws.
const FRAME: Duration = Duration::from_millis(100);
/// Progresses that may wait for the display; the status stream is held back beyond it.
const QUEUE: usize = 256;

/// A view with the model it shows. `W` is where it writes.
pub struct Display<W: Write> {
    state: ProgressState,
    view: View<W>,
}

enum View<W: Write> {
    Tty(Tty<W>, W),
    Plain(Plain<W>, W),
    RawJson(W),
    Nothing,
}

/// What is left when a display has ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Warnings, each once.
    pub warnings: Vec<WarningProgress>,
}

impl<W: Write + Clone> Display<W> {
    /// Returns a display in the given mode. `header` describes where the build runs.
    pub fn new(out: W, mode: Mode, env: &ProgressEnv, header: &str) -> Display<W> {
        let keep = if mode == Mode::Tty { Keep::Full } else { Keep::Tail };
        let view = match mode {
            Mode::Tty => {
                let options = TtyOptions {
                    phase: env.phase.to_owned(),
                    description: "kiln".to_owned(),
                    style: env.style.clone(),
                    log_lines: env.log_lines,
                };
                View::Tty(Tty::new(out.clone(), options), out)
            }
            Mode::Plain => {
                let header = (!header.is_empty()).then(|| header.to_owned());
                View::Plain(Plain::new(out.clone(), header, env.short_names), out)
            }
            Mode::RawJson => View::RawJson(out),
            Mode::Quiet | Mode::None => View::Nothing,
        };
        Display { state: ProgressState::new(keep), view }
    }

    /// Takes in news; it shows at the next [`Display::refresh`], JSON at once.
    pub fn update(&mut self, news: &Progress, now: Stamp, size: Size) -> io::Result<()> {
        let changes = self.state.apply(news, now);
        match &mut self.view {
            View::Tty(view, _) => view.note(&changes, size),
            View::Plain(view, _) => view.note(&changes, now),
            View::RawJson(out) => write_json(out, news)?,
            View::Nothing => {}
        }
        Ok(())
    }

    /// Draws what is due.
    pub fn refresh(&mut self, now: Stamp, size: Size) -> io::Result<()> {
        match &mut self.view {
            View::Tty(view, _) => view.draw(&self.state, now, size, false),
            View::Plain(view, _) => view.refresh(&self.state, now),
            View::RawJson(_) | View::Nothing => Ok(()),
        }
    }

    /// Draws the end: the last state, and the output of the steps that failed.
    pub fn finish(mut self, now: Stamp, size: Size) -> io::Result<Outcome> {
        match &mut self.view {
            View::Tty(view, out) => {
                view.draw(&self.state, now, size, true)?;
                write_reasons(out, &self.state)?;
                write_failures(out, &self.state)?;
            }
            View::Plain(view, out) => {
                view.refresh(&self.state, now)?;
                write_failures(out, &self.state)?;
            }
            View::RawJson(_) | View::Nothing => {}
        }
        Ok(Outcome { warnings: self.state.warnings().into_iter().cloned().collect() })
    }
}

/// Writes news as one line of JSON.
fn write_json(out: &mut impl Write, news: &Progress) -> io::Result<()> {
    let mut line = serde_json::to_vec(news)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// Writes why steps ran; lines have told it already where steps are told by lines.
fn write_reasons(out: &mut impl Write, state: &ProgressState) -> io::Result<()> {
    let reasons = state.reasons();
    if !reasons.is_empty() {
        writeln!(out, "\nWhy steps ran:")?;
    }
    for (name, texts) in reasons {
        writeln!(out, " {name}")?;
        texts.iter().try_for_each(|text| writeln!(out, "    {text}"))?;
    }
    out.flush()
}

/// Writes the last output of each failed step.
fn write_failures(out: &mut impl Write, state: &ProgressState) -> io::Result<()> {
    for (_, step) in state.started().filter(|(_, step)| step.is_failed()) {
        writeln!(out, "------\n > {}:", step.name)?;
        for line in step.tail.lines() {
            out.write_all(line)?;
            writeln!(out)?;
        }
        writeln!(out, "------")?;
    }
    out.flush()
}

/// Writes the list of warnings that follows a build; `expand` adds details and places.
pub fn write_warnings(
    out: &mut impl Write,
    warnings: &[WarningProgress],
    expand: bool,
    style: &Style,
) -> io::Result<()> {
    if warnings.is_empty() {
        return Ok(());
    }
    let count = match warnings.len() {
        1 => "1 warning found".to_owned(),
        n => format!("{n} warnings found"),
    };
    let hint = if expand { "" } else { " (use --debug to expand)" };
    write!(out, "\n {}", Style::paint(&style.warning, &format!("{count}{hint}:\n")))?;
    for warning in warnings {
        writeln!(out, " - {}", String::from_utf8_lossy(&warning.short))?;
        if !expand {
            continue;
        }
        for line in &warning.detail {
            writeln!(out, "{}", String::from_utf8_lossy(line))?;
        }
        if !warning.url.is_empty() {
            writeln!(out, "More info: {}", warning.url)?;
        }
        if let Some(text) = warning.source_info.as_ref().and_then(|s| super::excerpt::render(s, &warning.range)) {
            write!(out, "{text}")?;
        }
        writeln!(out)?;
    }
    out.flush()
}

/// Where a display is shown.
#[derive(Clone, Debug)]
pub enum Place {
    Stderr,
    Stdout,
    File(Arc<File>),
}

impl Write for Place {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr => io::stderr().write(data),
            Self::Stdout => io::stdout().write(data),
            Self::File(file) => file.as_ref().write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().flush(),
            Self::Stdout => io::stdout().flush(),
            Self::File(file) => file.as_ref().flush(),
        }
    }
}

/// Returns the size of the terminal on standard error.
pub fn terminal_size() -> Size {
    let default = Size { width: 80, height: 24 };
    let stderr = io::stderr();
    if !stderr.is_terminal() {
        return default;
    }
    match rustix::termios::tcgetwinsize(&stderr) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size { width: size.ws_col, height: size.ws_row },
        _ => default,
    }
}

/// The sending side of a running display. Dropping it ends the display.
#[derive(Clone, Debug)]
pub struct Feed(Vec<mpsc::Sender<Progress>>);

impl Feed {
    /// Returns a feed of both displays.
    #[must_use]
    pub fn and(mut self, other: Feed) -> Feed {
        self.0.extend(other.0);
        self
    }

    /// Shows news; waits while the display is behind.
    pub async fn send(&self, news: Progress) {
        for display in &self.0 {
            // A display that ended early (standard error is closed) must not fail the build.
            let _ = display.send(news.clone()).await;
        }
    }
}

/// Starts a display on standard error on a thread of its own, since a terminal may block. The receiver gives the outcome
/// after the last [`Feed`] is gone.
pub fn start(mode: Mode, env: &ProgressEnv, header: &str) -> (Feed, oneshot::Receiver<Outcome>) {
    start_at(Place::Stderr, mode, env, header)
}

/// Starts a display somewhere, as [`start`] does.
pub fn start_at(place: Place, mode: Mode, env: &ProgressEnv, header: &str) -> (Feed, oneshot::Receiver<Outcome>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (done, outcome) = oneshot::channel();
    let display = Display::new(place, mode, env, header);
    let frame = env.frame_millis.map(Duration::from_millis);
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let result = handle.block_on(run(display, receiver, frame));
        // The receiver is gone only when the whole command ends.
        let _ = done.send(result.unwrap_or_default());
    });
    (Feed(vec![sender]), outcome)
}

async fn run(
    mut display: Display<Place>,
    mut receiver: mpsc::Receiver<Progress>,
    frame: Option<Duration>,
) -> io::Result<Outcome> {
    let least = frame.unwrap_or(FRAME);
    let mut ticks = interval(frame.unwrap_or(TICK));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drawn: Option<Instant> = None;
    let mut broken = None;
    loop {
        let due = tokio::select! {
            news = receiver.recv() => match news {
                Some(news) => {
                    // After a write error the queue is still drained, so that the build goes on without a display.
                    if broken.is_none() {
                        broken = display.update(&news, Stamp::now(), terminal_size()).err();
                    }
                    drawn.is_none_or(|at| at.elapsed() >= least)
                }
                None => break,
            },
            _ = ticks.tick() => true,
        };
        if due && broken.is_none() {
            broken = display.refresh(Stamp::now(), terminal_size()).err();
            drawn = Some(Instant::now());
        }
    }
    match broken {
        Some(error) => Err(error),
        None => display.finish(Stamp::now(), terminal_size()),
    }
}
