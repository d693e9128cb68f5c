//! A compiler from Dockerfiles to build graphs: text → tree ([`parse`]) → plan ([`plan`]) → definition ([`lower`]).
//!
//! What has to be looked up outside (base images, ignore files of named contexts, times) is listed by the plan; the
//! caller fetches it and plans again, until nothing is wanted.
//!
//! Invariant: no I/O, no async, and no panic, whatever the input.

pub mod ast;
pub mod context;
pub mod diag;
pub mod directive;
pub mod git_ref;
mod gofmt;
pub mod ignore;
pub mod lex;
mod names;
pub mod options;
pub mod resolve;
pub mod source;

pub use context::MainContext;
pub use diag::{Diagnostic, DockerfileError, Severity};
pub use options::{BuildOptions, Input, NoCache};
pub use resolve::{Resolved, ResolvedImage, Wanted, WantedIgnoreFile, WantedImage, WantedTime};
