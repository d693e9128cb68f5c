//! Registry logins and tokens from the client.

use kiln_stdx::Secret;
use tonic::Code;

use super::session::Session;
use crate::error::SessionError;
use crate::proto::filesync::auth_client::AuthClient;
use crate::proto::filesync::{
    CredentialsRequest, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};

/// A login. An empty user name says that the secret is an identity token.
pub struct Credentials {
    pub username: String,
    pub secret: Secret,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Old clients and those without a store of tokens do not serve some of these methods.
fn absent(error: &SessionError) -> bool {
    match error {
        SessionError::Unsupported { .. } => true,
        SessionError::Rejected(s) => matches!(s.code(), Code::Unimplemented | Code::Unavailable),
        _ => false,
    }
}

impl Session {
    /// Returns the login for a registry host; none when the client has none.
    ///
    /// # Errors
    /// The client fails or is gone.
    pub async fn credentials(&self, host: &str) -> Result<Option<Credentials>, SessionError> {
        let answer = async {
            self.need("/moby.filesync.v1.Auth/Credentials")?;
            let mut client = AuthClient::new(self.channel());
            let request = CredentialsRequest { host: host.to_owned() };
            self.call("reading a registry login", client.credentials(request)).await
        };
        match answer.await {
            Ok(answer) if answer.secret.is_empty() => Ok(None),
            Ok(answer) => {
                Ok(Some(Credentials { username: answer.username, secret: Secret::new(answer.secret.into_bytes()) }))
            }
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the client fetch a registry token; none when it leaves that to the engine.
    ///
    /// # Errors
    /// The client fails or is gone.
    pub async fn fetch_token(&self, request: FetchTokenRequest) -> Result<Option<FetchTokenResponse>, SessionError> {
        let answer = async {
            self.need("/moby.filesync.v1.Auth/FetchToken")?;
            let mut client = AuthClient::new(self.channel());
            self.call("fetching a registry token", client.fetch_token(request)).await
        };
        match answer.await {
            Ok(answer) => Ok(Some(answer).filter(|a| !a.token.is_empty())),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the public key that stands for the client's login at `host`: two sessions with the same key have the
    /// same login. None when the client leaves fetching tokens to the engine.
    ///
    /// # Errors
    /// The client fails, is gone, or sends a key of another size.
    pub async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<[u8; 32]>, SessionError> {
        let answer = async {
            self.need("/moby.filesync.v1.Auth/GetTokenAuthority")?;
            let mut client = AuthClient::new(self.channel());
            let request = GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() };
            self.call("asking for a token authority", client.get_token_authority(request)).await
        };
        match answer.await {
            Ok(answer) => match answer.public_key.try_into() {
                Ok(key) => Ok(Some(key)),
                Err(_) => Err(SessionError::Protocol("the token authority's key has not 32 bytes".into())),
            },
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the client sign `payload` for its login at `host`; none when it does not.
    ///
    /// # Errors
    /// The client fails or is gone.
    pub async fn verify_token_authority(
        &self,
        host: &str,
        payload: &[u8],
        salt: &[u8],
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let answer = async {
            self.need("/moby.filesync.v1.Auth/VerifyTokenAuthority")?;
            let mut client = AuthClient::new(self.channel());
            let request =
                VerifyTokenAuthorityRequest { host: host.to_owned(), payload: payload.to_vec(), salt: salt.to_vec() };
            self.call("verifying a token authority", client.verify_token_authority(request)).await
        };
        match answer.await {
            Ok(answer) => Ok(Some(answer.signed)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
