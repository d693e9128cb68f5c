//! Everything client and engine say to each other: the control API's messages, the session tunnel, file sync, secrets,
//! SSH, registry logins, blob stores, uploads, progress.
//!
//! A session is a byte stream inside a call of the client, in which the roles are reversed: the client serves, the
//! engine calls. [`engine`] is the caller's side, [`client`] the server's; [`transfer`] and [`tunnel`] are shared.

pub mod attrs;
pub mod client;
pub mod codec;
pub mod connect;
pub mod direct;
pub mod engine;
pub mod errdetail;
mod error;
pub mod headers;
pub mod progress;
pub mod proto;
pub mod stat;
pub mod tls;
pub mod transfer;
pub mod tree;
pub mod tunnel;

pub use connect::{Address, connect, connect_unix, connect_with};
pub use engine::{
    BlockingFileSender, ContentInfo, ContentStore, ContentWriter, Credentials, FileSender, SendOutcome, Session,
    SessionHeaders, SessionRegistry, SshForward, SshSocket, SyncRequest,
};
pub use error::SessionError;
pub use progress::Progress;
pub use transfer::{ProgressFn, SyncTarget, TransferOptions, TreeSource};
