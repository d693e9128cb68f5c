//! Everything client and engine say to each other: the control API's messages, the session tunnel, file sync, secrets,
//!
//! A session is a byte stream inside a call of the client, in which the roles are reversed: the client serves, the
//! engine calls. [`engine`] is the caller's side, [`client`] the server's; [`transfer`] and [`tunnel`] are shared.

pub mod codec;
pub mod connect;
pub mod engine;
mod error;
pub mod headers;
pub mod proto;
pub mod stat;
pub mod transfer;
pub mod tunnel;

pub use connect::{Address, connect, connect_unix};
pub use engine::{
    BlockingFileSender, ContentInfo, ContentStore, ContentWriter, Credentials, FileSender, SendOutcome, Session,
    SessionHeaders, SessionRegistry, SshForward, SshSocket, SyncRequest,
};
pub use error::SessionError;
pub use transfer::{ProgressFn, SyncTarget, TransferOptions, TreeSource};
