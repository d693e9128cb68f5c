//! Where graphs begin: images, local directories, repositories, files from the web.

pub mod attested;
pub mod blob;
pub mod fetch;
pub mod file_attrs;
pub mod git;
pub mod http;
pub mod http_date;
pub mod images;
pub mod layout;
pub mod lazy;
pub mod local;
pub mod lookup;
pub mod meta;
pub mod offline;
pub mod pins;
pub mod registry;
pub mod resolve;
pub mod stack;
pub mod time;
