//! Where graphs begin: images, local directories, files from the web.

pub mod images;
pub mod layout;
pub mod lazy;
pub mod local;
pub mod lookup;
pub mod registry;
pub mod resolve;
