//! What can go wrong with a registry, with its class, host, status and what to do about it.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use kiln_stdx::{Digest, ErrorClass};
use reqwest::StatusCode;

/// Longest part of a server's own message that is shown, in characters.
const MESSAGE_MAX: usize = 300;

/// A failed operation on a registry. Its text holds no credentials, tokens or signed URLs.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} {target}: {kind}")]
pub struct RegistryError {
    /// What was tried: `resolve`, `fetch blob`, `push manifest`, …
    pub operation: &'static str,
    /// On what: a reference, or a repository and a digest.
    pub target: Box<str>,
    /// The host that answered or did not, with its port.
    pub host: Box<str>,
    /// What went wrong.
    #[source]
    pub kind: ErrorKind,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// 404, or an equivalent answer.
    #[error("not found")]
    NotFound,
    /// No credentials, or wrong ones.
    #[error("authorization failed: {0}")]
    Unauthorized(String),
    /// The credentials are good but not for this.
    #[error("access denied: {0}")]
    Denied(String),
    /// Too many requests; the server asked to wait longer than the client is willing to.
    #[error("rate limited by the server")]
    RateLimited { retry_after: Option<Duration> },
    /// Any other unexpected status.
    #[error("unexpected status {status}{message}")]
    Status { status: u16, message: String, retry_after: Option<Duration> },
    /// No connection: name resolution, refused, unreachable.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// Nothing came in time.
    #[error("timed out: {0}")]
    Timeout(&'static str),
    /// A connection broke more often than the client retries.
    #[error("connection broken: {0}")]
    Interrupted(String),
    /// Other content came than was asked for.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch { expected: Digest, actual: Digest },
    /// Content of another length came than was asked for.
    #[error("length mismatch: expected {expected} bytes, got {actual}")]
    LengthMismatch { expected: u64, actual: u64 },
    /// An answer that the protocol does not allow.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The client's configuration cannot be used.
    #[error("configuration: {0}")]
    Config(String),
    /// The source of credentials failed.
    #[error("credentials: {0}")]
    Credentials(String),
    /// Content to push cannot be read.
    #[error("cannot read content to push: {0}")]
    Source(#[source] io::Error),
    /// Content to push is not what its descriptor says.
    #[error("content to push is damaged: it does not match its digest")]
    SourceDamaged,
}

impl RegistryError {
    /// Returns who has to act.
    pub fn class(&self) -> ErrorClass {
        match &self.kind {
            ErrorKind::NotFound | ErrorKind::Unauthorized(_) | ErrorKind::Denied(_) => ErrorClass::UserInput,
            ErrorKind::Config(_) | ErrorKind::Source(_) => ErrorClass::Environment,
            ErrorKind::SourceDamaged => ErrorClass::Damage,
            _ => ErrorClass::Remote,
        }
    }

    /// Returns the HTTP status, where there was an answer that explains the failure.
    pub fn status(&self) -> Option<u16> {
        match &self.kind {
            ErrorKind::NotFound => Some(404),
            ErrorKind::Unauthorized(_) => Some(401),
            ErrorKind::Denied(_) => Some(403),
            ErrorKind::RateLimited { .. } => Some(429),
            ErrorKind::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Tells whether the content does not exist, as far as this client may know.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind, ErrorKind::NotFound)
    }

    /// Returns what the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        let host = login_host(&self.host);
        match &self.kind {
            ErrorKind::Unauthorized(_) => {
                Some(format!("the repository may not exist or may be private; log in with `docker login {host}`"))
            }
            ErrorKind::Denied(_) => Some(format!(
                "the account has no such right on this repository; log in as another with `docker login {host}`"
            )),
            ErrorKind::RateLimited { retry_after: Some(wait) } => Some(format!(
                "wait {} seconds, log in with `docker login {host}`, or configure a mirror",
                wait.as_secs()
            )),
            ErrorKind::RateLimited { retry_after: None } => {
                Some(format!("wait, log in with `docker login {host}`, or configure a mirror"))
            }
            ErrorKind::NotFound => Some("check the name, the tag and the registry host".to_owned()),
            ErrorKind::Connect(_) => {
                Some(format!("check that {} is reachable from the engine, and its proxy settings", self.host))
            }
            ErrorKind::Tls(_) => Some(format!(
                "for a private authority set `ca` in [registry.\"{0}\"], for a registry without TLS set `http = true`",
                self.host
            )),
            _ => None,
        }
    }
}

/// Returns the name that `docker login` wants for an API host.
fn login_host(host: &str) -> &str {
    match host {
        "registry-1.docker.io" | "docker.io" => "docker.io",
        other => other,
    }
}

impl ErrorKind {
    /// Classifies a failure of the HTTP client. URLs are dropped: they may be signed.
    pub fn from_http(error: reqwest::Error) -> Self {
        let error = error.without_url();
        if error.is_timeout() {
            return Self::Timeout("no answer");
        }
        let text = chain(&error);
        if error.is_builder() {
            Self::Config(text)
        } else if error.is_connect() {
            let lower = text.to_lowercase();
            if ["certificate", "tls", "handshake", "invalidcontenttype", "corrupt message"]
                .iter()
                .any(|w| lower.contains(w))
            {
                Self::Tls(text)
            } else {
                Self::Connect(text)
            }
        } else {
            Self::Interrupted(text)
        }
    }

    /// Makes an error of an unsuccessful status and the body that came with it.
    pub(crate) fn from_status(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Self {
        let message = server_message(body);
        match status {
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::UNAUTHORIZED => Self::Unauthorized(message.unwrap_or_else(|| "401 Unauthorized".to_owned())),
            StatusCode::FORBIDDEN => Self::Denied(message.unwrap_or_else(|| "403 Forbidden".to_owned())),
            StatusCode::TOO_MANY_REQUESTS => Self::RateLimited { retry_after },
            other => Self::Status {
                status: other.as_u16(),
                message: message.map(|m| format!(": {m}")).unwrap_or_default(),
                retry_after,
            },
        }
    }

    /// Tells whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Timeout(_) | Self::Interrupted(_) => true,
            // Name resolution and refusals heal when a registry restarts; the number of attempts bounds it.
            Self::Connect(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

/// Returns an error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            let _ = write!(text, ": {part}");
        }
        cause = error.source();
    }
    text
}

/// Returns `CODE: message` from the distribution spec's error body, without control characters.
fn server_message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let first = value.get("errors")?.get(0)?;
    let part = |name| first.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let text = match (part("code"), part("message")) {
        ("", "") => return None,
        ("", message) => message.to_owned(),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    Some(text.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_messages_are_shown_and_cut() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m such right"}]}"#;
        let kind = ErrorKind::from_status(StatusCode::FORBIDDEN, body, None);
        assert_eq!(kind.to_string(), "access denied: DENIED: no[31m such right");
        let long = format!(r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#, "y".repeat(9000));
        let kind = ErrorKind::from_status(StatusCode::IM_A_TEAPOT, long.as_bytes(), None);
        assert!(kind.to_string().len() < 400);
    }

    #[test]
    fn only_passing_trouble_is_tried_again() {
        for (status, transient) in [(500, true), (503, true), (429, true), (404, false), (401, false), (400, false)] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(ErrorKind::from_status(status, b"", None).is_transient(), transient, "{status}");
        }
    }
}
