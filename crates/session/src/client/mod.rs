//! The client's side: what a session offers to the engine.

mod agent;
mod auth;
mod content;
mod dir_writer;
mod docker_config;
mod keys;
mod layout;
mod receive;
mod secrets;
mod server;
mod ssh;
mod sync;
mod upload;

pub use auth::AuthProvider;
pub use content::ContentProvider;
pub use dir_writer::DirWriter;
pub use docker_config::{DockerConfig, Login};
pub use layout::{IndexName, LayoutStore};
pub use receive::{FileReceivers, ReceiveTarget};
pub use secrets::{SecretSource, SecretsProvider};
pub use server::{RunningSession, SessionServer, SessionServerBuilder};
pub use ssh::{SshAgent, SshProvider};
pub use sync::{FileSyncProvider, LocalDir};
pub use upload::{UploadProvider, UploadSource};
