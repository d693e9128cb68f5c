//! `kiln build` from flags to a request, and from the answer to files.

pub mod annotation;
pub mod answer;
pub mod archive;
pub mod ca;
pub mod cache;
pub mod cache_env;
pub mod call;
pub mod context;
pub mod csv;
pub mod flags;
pub mod layout;
pub mod limits;
pub mod load;
pub mod local_cache;
pub mod options;
pub mod output;
pub mod proxy;
pub mod question;
pub mod request;
pub mod result;
pub mod secret;
pub mod write;
