//! What a user sees when a command fails: what failed, where, and what to do about it.

use std::fmt;
use std::io::Write;

use kiln_stdx::ErrorClass;
use kiln_stdx::suggest::nearest;

/// A failed command. Shown as the excerpts, a line `ERROR: message`, and a line `hint: ...` for each hint.
#[derive(Debug)]
pub struct CliError {
    message: String,
    class: ErrorClass,
    exit: Option<u8>,
    excerpts: Vec<String>,
    hints: Vec<String>,
}

/// Exit code of an engine failure that is a bug.
pub const EXIT_INTERNAL: u8 = 100;
/// Exit code when a resource (space, memory, a limit) is exhausted.
pub const EXIT_EXHAUSTED: u8 = 102;
/// Exit code of a cancelled command, as of a process that Ctrl-C ended.
pub const EXIT_CANCELED: u8 = 130;

impl CliError {
    /// Returns an error of the given class.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> CliError {
        CliError { message: message.into(), class, exit: None, excerpts: Vec::new(), hints: Vec::new() }
    }

    /// Returns an error of the user's making.
    pub fn user(message: impl Into<String>) -> CliError {
        CliError::new(ErrorClass::UserInput, message)
    }

    /// Returns an error of the machine: a file that cannot be written, an engine that does not start.
    pub fn environment(message: impl Into<String>) -> CliError {
        CliError::new(ErrorClass::Environment, message)
    }

    /// Returns the error of a command the user has called off.
    pub fn canceled() -> CliError {
        CliError::new(ErrorClass::Canceled, "failed to solve: Canceled: context canceled").exit(EXIT_CANCELED)
    }

    /// Adds a hint: what to do, a command to run where there is one.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hints.push(hint.into());
        self
    }

    /// Adds lines of a source file, shown before the message.
    #[must_use]
    pub fn excerpt(mut self, text: String) -> CliError {
        self.excerpts.push(text);
        self
    }

    /// Sets the exit code; it is 1 otherwise.
    #[must_use]
    pub fn exit(mut self, code: u8) -> CliError {
        self.exit = Some(code);
        self
    }

    /// Adds a hint with the nearest of `names`, or all of them when none is near.
    #[must_use]
    pub fn nearest<'a>(self, what: &str, name: &str, names: impl Iterator<Item = &'a str> + Clone) -> CliError {
        match nearest(name, names.clone()) {
            Some(near) => self.hint(format!("did you mean `{near}`?")),
            None => {
                let all: Vec<&str> = names.collect();
                self.hint(format!("the {what} is one of {}", all.join(", ")))
            }
        }
    }

    /// Returns the message without excerpts and hints.
    #[cfg(test)]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hints.
    #[cfg(test)]
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.exit.unwrap_or(match self.class {
            ErrorClass::Canceled => EXIT_CANCELED,
            ErrorClass::Bug => EXIT_INTERNAL,
            _ => 1,
        })
    }

    /// Writes the error as it is shown.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        for excerpt in &self.excerpts {
            out.write_all(excerpt.as_bytes())?;
        }
        writeln!(out, "ERROR: {}", self.message)?;
        for hint in &self.hints {
            writeln!(out, "hint: {hint}")?;
        }
        out.flush()
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

/// Returns the text of an I/O error as system tools print it: lower case, without the number.
pub fn io_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_form_and_codes() {
        let mut out = Vec::new();
        let error = CliError::user("bad").hint("do this").excerpt("Dockerfile:1\n".into());
        assert!(error.write(&mut out).is_ok());
        assert_eq!(String::from_utf8_lossy(&out), "Dockerfile:1\nERROR: bad\nhint: do this\n");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(CliError::canceled().exit_code(), 130);
        assert_eq!(CliError::new(ErrorClass::Bug, "x").exit_code(), 100);
        assert_eq!(CliError::user("x").exit(7).exit_code(), 7);
    }

    #[test]
    fn io_errors_read_like_other_tools() {
        let error = std::io::Error::from_raw_os_error(2);
        assert_eq!(io_text(&error), "no such file or directory");
    }
}
