//! The class of an error: it fixes the exit code, whether to try again, and who has to act.

use std::fmt;

/// Who or what an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The user's file, flag or command is wrong; trying again changes nothing.
    UserInput,
    /// The machine lacks something: space, a permission, a kernel feature.
    Environment,
    /// Another machine or the client failed; trying again may help.
    Remote,
    /// Something in the store is not what was written; it is repaired and the work is done again.
    Damage,
    /// The work was called off.
    Canceled,
    /// kiln itself is wrong.
    Bug,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserInput => "user input",
            Self::Environment => "environment",
            Self::Remote => "remote",
            Self::Damage => "damage",
            Self::Canceled => "canceled",
            Self::Bug => "bug",
        })
    }
}
