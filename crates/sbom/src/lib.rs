//! What software is in a file system: from the records that package managers and compilers leave, to SPDX documents.
//!
//! Bytes of records in, packages out. Nothing here opens a file, asks a network or a clock, so one input gives one
//! document. Records are written by whoever built the image: every reader takes any bytes, reads a bounded part of
//! them and leaves out what it does not understand.

mod apk;
mod bytes;
mod cargo;
mod dpkg;
mod elf;
mod go;
mod license;
mod maven;
mod npm;
mod os;
mod package;
mod pypi;
mod record;
mod scanner;
mod spdx;
mod zip;

pub use bytes::ReadAt;
pub use os::OsRelease;
pub use package::{Ecosystem, Package};
pub use record::Record;
pub use scanner::Scanner;
pub use spdx::{About, PREDICATE_TYPE, document};
