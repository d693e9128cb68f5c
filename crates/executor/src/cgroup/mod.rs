//! Control groups, used only for what nothing else does: keeping devices out of reach (one group for all steps), limits,
//! and counting. Processes are tracked and killed by their PID namespace.

mod devices;
mod group;
mod layout;

pub(crate) use group::{Groups, StepGroup};
