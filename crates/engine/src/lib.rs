//! Joins the parts: LLB operations over solver, store and executor; sources, frontends, outputs, history.
//!
//! Invariant: glue only. Whatever belongs to one build (session, progress) is reached through its context.

pub mod again;
pub mod attest;
pub mod bridge;
pub mod build;
pub mod cache;
pub mod container;
pub mod content;
pub mod engine;
pub mod error;
pub mod events;
pub mod export;
pub mod frontend;
pub mod history;
pub mod inspect;
pub mod keys;
pub mod keystore;
pub mod layers;
pub mod live;
pub mod load;
pub mod ops;
pub mod parts;
pub mod paths;
pub mod policy;
pub mod provenance;
mod publish;
pub mod remote;
pub mod request;
pub mod runtime_dir;
pub mod sbom;
pub mod session;
pub mod source;
pub mod verify;
pub mod why;
pub mod wreck;

pub use bridge::{Bridge, FrontendResult, Ref, ResultRefs};
pub use engine::Engine;
pub use engine::run::{RunRequest, Volume};
pub use error::EngineError;
pub use history::History;
pub use ops::exec::RunningSteps;
pub use parts::Parts;
pub use publish::Port;
pub use request::{CacheSpec, ExporterSpec, FrontendRequest, SolveRequest, SolveResponse};

impl From<kiln_store::StoreError> for EngineError {
    fn from(error: kiln_store::StoreError) -> Self {
        let damaged = matches!(error, kiln_store::StoreError::Mismatch { .. } | kiln_store::StoreError::Size { .. });
        let full = error.is_no_space();
        let mut this = Self::from_error(error.class(), error).hinting_at(full);
        if damaged {
            this.further_mut().damaged = true;
        }
        this
    }
}

impl From<kiln_snapshot::Error> for EngineError {
    fn from(error: kiln_snapshot::Error) -> Self {
        Self::from_error(error.class(), error)
    }
}
