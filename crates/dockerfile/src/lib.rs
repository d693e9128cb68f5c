//! A compiler from Dockerfiles to build graphs: text → tree ([`parse`]) → plan ([`plan`]) → definition ([`lower`]).
//!
//! What has to be looked up outside (base images, ignore files of named contexts, times) is listed by the plan; the
//! caller fetches it and plans again, until nothing is wanted.
//!
//! ```
//! use kiln_dockerfile::{BuildOptions, Resolved, lower, parse, plan};
//!
//! let file = parse("Dockerfile", b"FROM scratch\nCOPY hello /\nCMD [\"/hello\"]\n")?;
//! let (options, resolved) = (BuildOptions::default(), Resolved::default());
//! let plan = plan(&file, &options, &resolved)?;
//! assert!(plan.wanted.is_empty(), "scratch needs no base image");
//! let lowered = lower(&file, &plan, &options, &resolved)?;
//! assert_eq!(lowered.context_paths, ["hello"]);
//! assert_eq!(lowered.config.config.cmd, Some(vec!["/hello".to_owned()]));
//! # Ok::<(), kiln_dockerfile::DockerfileError>(())
//! ```
//!
//! Invariant: no I/O, no async, and no panic, whatever the input.

pub mod advice;
pub mod ast;
pub mod attrs;
pub mod context;
pub mod diag;
pub mod directive;
mod epoch;
#[cfg(test)]
mod fuzz;
pub mod git_ref;
mod gofmt;
mod gofmt_size;
pub mod ignore;
mod image;
pub mod lex;
pub mod lint;
mod lower;
mod named;
mod names;
pub mod options;
pub mod parse;
mod plan;
pub mod render;
pub mod resolve;
mod scope;
pub mod source;
mod stage;
pub mod subrequest;

pub use attrs::FrontendOptions;
pub use context::MainContext;
pub use diag::{Diagnostic, DockerfileError, Severity};
pub use lower::{Lowered, Outline, lower};
pub use options::{BuildOptions, Input, NoCache};
pub use parse::parse;
pub use plan::{Plan, plan};
pub use resolve::{Resolved, ResolvedImage, Wanted, WantedIgnoreFile, WantedImage, WantedTime};
pub use scope::ArgInfo;
