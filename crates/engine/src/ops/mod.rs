//! The operations of LLB over store, executor and sources: one file each.

pub mod build;
pub mod diff;
pub mod exec;
pub mod file;
pub mod merge;
pub mod passthrough;
pub mod source;

use kiln_solver::OpError;

use crate::error::EngineError;

/// Returns one input of an operation.
///
/// # Errors
/// A bug: the graph was checked, so the input is there.
pub(crate) fn input<R>(inputs: &[R], index: usize) -> Result<&R, OpError> {
    inputs
        .get(index)
        .ok_or_else(|| EngineError::new(kiln_stdx::ErrorClass::Bug, format!("operation has no input {index}")).into())
}
