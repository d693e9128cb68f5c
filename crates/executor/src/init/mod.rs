//! The helper process: a single-threaded copy of this program that makes sandboxes.
//!
//! The engine has many threads and must never fork; it spawns one helper (this program again, under the name [`NAME`])
//! and sends it a packet per step. The helper forks for each, which is safe and cheap for a small process with one
//! thread. The fork prepares what can be seen from outside (root, mount targets, user), clones PID 1 of the sandbox into its
//! namespaces, watches it, tidies up and reports. Every hold on the engine is a socket: when the engine dies, however it
//! dies, the sockets close, and each fork kills its sandbox.
//!
//! Invariant: nothing here runs in the engine's own process.

mod child;
pub(crate) mod defaults;
mod devices;
mod felt;
mod files;
mod identity;
mod join;
mod launch;
mod masks;
mod mounts;
mod overlay;
mod privileges;
mod runtime;
mod server;
mod step;
mod stubs;
mod terminal;
mod tree;
mod userns;

/// The helper's `argv[0]`.
pub(crate) const NAME: &str = "kiln-sandbox-init";

/// Tells whether this process was started as a helper, so that `main` must hand over to [`sandbox_init_main`].
pub fn is_sandbox_init() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Serves as a helper until the engine goes away; the first thing `main` calls when [`is_sandbox_init`] says so.
pub fn sandbox_init_main() -> ! {
    server::serve()
}
