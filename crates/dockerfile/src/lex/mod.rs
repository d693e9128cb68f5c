//! Lexers: lines and continuations, heredocs, words and variables, JSON arrays, comma lists.

pub(crate) mod csv;
pub(crate) mod glob;
pub(crate) mod heredoc;
pub(crate) mod json_array;
pub(crate) mod line;
pub(crate) mod split;
pub mod word;

pub use word::{Expansion, NoVars, Vars, WordLexer};
