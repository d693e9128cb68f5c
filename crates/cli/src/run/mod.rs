//! The parts of `kiln run`: its flags, what they ask for, the user's terminal, and the streams to and from the process.

pub mod attach;
pub mod flags;
pub mod options;
pub mod pull;
pub mod terminal;
