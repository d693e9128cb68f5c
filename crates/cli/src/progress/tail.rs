//! The last lines of a step's output, kept to be shown again when the step fails.
//!
//! The plain view has shown every line already and repeats only a few; the terminal view has shown a window of six lines,
//! so it keeps as much as a step may write at all.

use std::collections::VecDeque;

use super::units;

/// Lines repeated below a failed step by views that have shown all output before.
pub const ERROR_LINES: usize = 10;

/// Bytes kept of a step by views that have not; what the engine lets a step write before it clips the log.
pub const FULL_BYTES: usize = 2 * 1024 * 1024;

/// Bytes kept of one line; a step that never ends a line must not fill the memory.
const LINE_LIMIT: usize = 16 * 1024;

/// How much of a step's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The last [`ERROR_LINES`] lines.
    Tail,
    /// The last [`FULL_BYTES`] bytes.
    Full,
}

/// The last lines of a step, each with the seconds since the step's start before it.
#[derive(Debug)]
pub struct LogTail {
    keep: Keep,
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    partial: bool,
}

impl LogTail {
    /// Returns an empty tail.
    pub fn new(keep: Keep) -> LogTail {
        LogTail { keep, lines: VecDeque::new(), bytes: 0, partial: false }
    }

    /// Adds output written `since` nanoseconds after the step's start; a line may arrive in pieces.
    pub fn push(&mut self, since: i64, data: &[u8]) {
        for piece in data.split_inclusive(|&b| b == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            match self.lines.back_mut() {
                Some(last) if self.partial => self.bytes += append(last, text),
                _ => {
                    let mut line = format!("{} ", units::log_seconds(since as f64 / 1e9)).into_bytes();
                    append(&mut line, text);
                    self.bytes += line.len();
                    self.lines.push_back(line);
                }
            }
            self.partial = !ends;
            self.drop_old();
        }
    }

    fn drop_old(&mut self) {
        while match self.keep {
            Keep::Tail => self.lines.len() > ERROR_LINES,
            Keep::Full => self.bytes > FULL_BYTES,
        } {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    /// Returns the lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(Vec::as_slice)
    }
}

fn append(line: &mut Vec<u8>, text: &[u8]) -> usize {
    let room = LINE_LIMIT.saturating_sub(line.len()).min(text.len());
    line.extend_from_slice(&text[..room]);
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tail: &LogTail) -> Vec<String> {
        tail.lines().map(|l| String::from_utf8_lossy(l).into_owned()).collect()
    }

    #[test]
    fn pieces_become_lines() {
        let mut tail = LogTail::new(Keep::Tail);
        tail.push(120_000_000, b"one\ntw");
        tail.push(480_000_000, b"o\n\nthree");
        assert_eq!(shown(&tail), ["0.120 one", "0.120 two", "0.480 ", "0.480 three"]);
    }

    #[test]
    fn only_the_last_lines_stay() {
        let mut tail = LogTail::new(Keep::Tail);
        for i in 0..25 {
            tail.push(0, format!("line {i}\n").as_bytes());
        }
        assert_eq!(shown(&tail).len(), ERROR_LINES);
        assert_eq!(shown(&tail)[0], "0.000 line 15");
    }

    #[test]
    fn a_full_tail_is_bounded_by_bytes() {
        let mut tail = LogTail::new(Keep::Full);
        for _ in 0..400_000 {
            tail.push(0, b"0123456789\n");
        }
        let bytes: usize = tail.lines().map(<[u8]>::len).sum();
        assert!(bytes <= FULL_BYTES && bytes > FULL_BYTES / 2, "{bytes}");
    }

    #[test]
    fn an_endless_line_is_bounded() {
        let mut tail = LogTail::new(Keep::Tail);
        for _ in 0..10 {
            tail.push(0, &[b'x'; 8192]);
        }
        assert_eq!(tail.lines().next().map(<[u8]>::len), Some(LINE_LIMIT));
    }
}
