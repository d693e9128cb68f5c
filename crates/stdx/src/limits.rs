//! Every limit that several crates share, with its motive.

use std::time::Duration;

/// Largest gRPC message in bytes; BuildKit's clients send and accept this much.
pub const GRPC_MESSAGE: usize = 16 << 20;
/// Largest HTTP/2 header list in bytes: file sync sends its patterns as headers.
pub const GRPC_HEADERS: u32 = 16 << 20;
/// Largest secret in bytes, as in BuildKit's session protocol.
pub const SECRET: usize = 500 * 1024;
/// Largest Dockerfile line in bytes.
pub const DOCKERFILE_LINE: usize = 65_535;
/// Largest Dockerfile, ignore file or other text a frontend reads whole, in bytes.
pub const FRONTEND_FILE: u64 = 16 << 20;
/// Largest manifest, index or config read from elsewhere, in bytes.
pub const MANIFEST: u64 = 4 << 20;
/// Longest path inside a layer, in bytes; Linux refuses longer ones in one call.
pub const PATH: usize = 4095;
/// Most symbolic links followed while one path is resolved.
pub const SYMLINKS: u32 = 255;
/// Most memory that a peer's listing of files may take, in bytes: its entries as they travel, and [`LISTED`] for each.
/// Room for some three million files.
pub const LISTING: u64 = 512 << 20;
/// What an entry of a listing counts beside its own bytes.
pub const LISTED: u64 = 100;
/// Most layers of one overlay mount, the kernel's own limit.
pub const OVERLAY_LAYERS: usize = 500;
/// Most operations in one LLB definition: far above any real build; about as many as fit into one message of
/// [`GRPC_MESSAGE`] bytes.
pub const LLB_OPS: usize = 32_768;
/// How many processes' steps may run at once.
pub const STEPS: usize = 64;
/// How long the engine waits for a session that a request names.
pub const SESSION_WAIT: Duration = Duration::from_secs(5);
/// How long one answer of a session may take when no bytes move.
pub const SESSION_CALL: Duration = Duration::from_secs(60);
