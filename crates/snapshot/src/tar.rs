//! The tar format as image layers use it: ustar with POSIX.1-2001 (PAX) extended headers and, for reading, the
//! GNU and old formats.
//!
//! The crate has its own reader since it needs what the evaluated ones lack together: raw bytes as names, times
//! before 1970 and below a second, all four forms of sparse files, attributes, and errors with types.

mod encode;
mod header;
mod pax;
mod probe;
mod reader;
mod sparse;

pub use encode::{END, Header, encode};
pub use probe::{BLOCK, is_tar};
pub use reader::{Member, MemberKind, Reader};
