//! Layers on a real file system: every kind of file, hostile archives, damage, drivers.

mod apply;
mod builder;
mod damage;
mod diff;
mod drivers;
mod formats;
mod hostile;
mod roundtrip;
mod support;
