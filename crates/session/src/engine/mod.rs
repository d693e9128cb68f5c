//! The engine's side: sessions that clients opened, and what can be asked of them.

mod auth;
mod content;
mod files;
mod liveness;
mod registry;
mod session;
mod ssh;

pub use auth::Credentials;
pub use content::{ContentInfo, ContentStore, ContentWriter};
pub(crate) use files::decode_packet;
pub use files::{BlockingFileSender, FileSender, SendOutcome, SyncRequest};
pub use registry::{SessionHeaders, SessionRegistry};
pub use session::Session;
pub use ssh::{SshForward, SshSocket};
