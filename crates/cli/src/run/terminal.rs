//! The user's terminal while a process of `kiln run` has it.

use std::io::{IsTerminal, stderr, stdin, stdout};

use kiln_session::proto::kiln_v1::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode: keys go to the process as they are. Dropping it puts the terminal back as it was.
pub struct Raw(Termios);

impl Raw {
    /// Puts the terminal on standard input into raw mode; none when there is none.
    pub fn enter() -> Option<Raw> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Returns whether standard input is a terminal.
pub fn input_is_terminal() -> bool {
    stdin().is_terminal()
}

/// Returns the size of the terminal that the process is shown on.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).or_else(|_| tcgetwinsize(stderr())).ok()?;
    let known = size.ws_row > 0 && size.ws_col > 0;
    known.then(|| TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}
