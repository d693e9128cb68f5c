//! Where credentials come from: the seam to the client's session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kiln_stdx::{Secret, StableHasher};

/// The shared form in which credentials travel through the client.
pub type Credentials = Arc<dyn CredentialSource>;

/// A user's login for one registry.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Empty when `secret` is an identity token (OAuth refresh token) and not a password.
    pub username: String,
    /// Password or identity token.
    pub secret: Secret,
}

/// A bearer token that somebody else fetched.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token itself.
    pub value: Secret,
    /// How long it holds; none means the customary 60 seconds.
    pub expires_in: Option<Duration>,
}

/// What a bearer token is wanted for (distribution's "Token Authentication").
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenRequest {
    /// The API host of the registry, `registry-1.docker.io` for Docker Hub.
    pub host: String,
    /// URL of the token server.
    pub realm: String,
    /// Name of the service as the registry calls itself; may be empty.
    pub service: String,
    /// Scopes, sorted: `repository:library/alpine:pull`.
    pub scopes: Vec<String>,
}

/// Why credentials could not be had. The text must not hold any of them.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CredentialError(pub String);

/// Gives credentials and, where it can, tokens.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// Returns what tells this source's users apart; tokens are shared only within one identity.
    fn identity(&self) -> String;

    /// Returns the login for API host `host`, if there is one.
    async fn credentials(&self, host: &str) -> Result<Option<Credential>, CredentialError>;

    /// Fetches a token in place of this client, so that the password need not leave the user's machine.
    ///
    /// None means that the source cannot, and the client fetches the token with [`Self::credentials`].
    async fn token(&self, request: &TokenRequest) -> Result<Option<Token>, CredentialError> {
        let _ = request;
        Ok(None)
    }
}

/// No credentials for anybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[async_trait]
impl CredentialSource for Anonymous {
    fn identity(&self) -> String {
        String::new()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Credential>, CredentialError> {
        Ok(None)
    }
}

/// A fixed table of logins per API host.
#[derive(Debug, Clone, Default)]
pub struct StaticCredentials(pub BTreeMap<String, Credential>);

#[async_trait]
impl CredentialSource for StaticCredentials {
    fn identity(&self) -> String {
        let mut hasher = StableHasher::new("kiln.registry.static-credentials.v1");
        for (host, credential) in &self.0 {
            hasher =
                hasher.str("host", host).str("user", &credential.username).bytes("secret", credential.secret.expose());
        }
        hasher.finish().hex()
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credential>, CredentialError> {
        Ok(self.0.get(host).cloned())
    }
}
