//! A failed operation on a store, in words that say which kind of trouble it is.

use kiln_registry::ErrorKind;
use kiln_stdx::ErrorClass;

/// A store that does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[error("{store}: {}{kind}", .object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default())]
pub struct ObjectError {
    /// The store's name.
    pub store: String,
    /// What of it the failure is about, where that is one object.
    pub object: Option<String>,
    #[source]
    pub kind: ErrorKind,
}

impl ObjectError {
    /// Returns a failure of a whole store.
    pub fn new(store: &str, kind: ErrorKind) -> Self {
        Self { store: store.to_owned(), object: None, kind }
    }

    /// Returns a failure over one object, such as `layer sha256:…`.
    pub fn of(store: &str, object: impl Into<String>, kind: ErrorKind) -> Self {
        Self { object: Some(object.into()), ..Self::new(store, kind) }
    }

    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        match &self.kind {
            ErrorKind::NotFound | ErrorKind::Unauthorized(_) | ErrorKind::Denied(_) | ErrorKind::Config(_) => {
                ErrorClass::UserInput
            }
            ErrorKind::Source(_) => ErrorClass::Environment,
            ErrorKind::SourceDamaged => ErrorClass::Damage,
            _ => ErrorClass::Remote,
        }
    }

    /// Returns what the user can do, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match &self.kind {
            ErrorKind::Unauthorized(_) | ErrorKind::Denied(_) => {
                Some("check the keys or the token of the cache, and what they allow")
            }
            ErrorKind::NotFound => Some("it appears with the first export; check name, prefix and bucket"),
            _ => None,
        }
    }
}

/// Returns the error of attributes that cannot be used.
pub(crate) fn config(why: impl Into<String>) -> ErrorKind {
    ErrorKind::Config(why.into())
}

/// Returns the error of an answer that the protocol does not know.
pub(crate) fn protocol(why: impl Into<String>) -> ErrorKind {
    ErrorKind::Protocol(why.into())
}
