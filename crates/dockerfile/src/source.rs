//! The text of a Dockerfile and places in it.

use std::fmt;

/// A place in a file. Both numbers count from one; column 0 means the whole line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    pub line: u32,
    /// In characters.
    pub column: u32,
}

/// From one place to another: the end's line is included, its column is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    pub start: Position,
    pub end: Position,
}

/// First and last line of an instruction, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lines {
    pub first: u32,
    pub last: u32,
}

impl Lines {
    /// Returns the lines `first..=last`.
    pub fn new(first: u32, last: u32) -> Self {
        Self { first, last: last.max(first) }
    }

    /// Returns one range a line, the form of source maps on the wire.
    pub fn ranges(self) -> Vec<kiln_llb::pb::Range> {
        let signed = |line: u32| i32::try_from(line).unwrap_or(i32::MAX);
        (self.first..=self.last).map(|line| kiln_llb::builder::range(signed(line), signed(line))).collect()
    }
}

impl From<Lines> for Span {
    fn from(lines: Lines) -> Self {
        Self { start: Position { line: lines.first, column: 0 }, end: Position { line: lines.last, column: 0 } }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            0 => write!(f, "{}", self.line),
            column => write!(f, "{}:{column}", self.line),
        }
    }
}

/// A named text, as the user sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceFile {
    /// The path the user gave, for example `Dockerfile`.
    pub name: String,
    /// The bytes as they were read.
    pub data: Vec<u8>,
}

impl SourceFile {
    /// Returns the lines without their ends.
    pub fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.data).lines().map(str::to_owned).collect()
    }
}
