//! Registry logins for the engine. Tokens are fetched by the engine with them, not here.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::docker_config::{DockerConfig, Login};
use crate::proto::filesync::auth_server::Auth;
use crate::proto::filesync::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};

/// Seconds a configured registry token is said to live: nobody knows how long it does.
const TOKEN_SECONDS: i64 = 60;

/// Serves logins of docker's configuration.
#[derive(Debug, Clone)]
pub struct AuthProvider {
    config: Arc<DockerConfig>,
    /// One helper at a time: some cannot bear more.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl AuthProvider {
    /// Makes a provider.
    pub fn new(config: DockerConfig) -> Self {
        Self { config: Arc::new(config), turn: Arc::default() }
    }

    async fn login(&self, host: &str) -> Result<Login, Status> {
        let _turn = self.turn.lock().await;
        self.config.login(host).await.map_err(|e| e.to_status())
    }
}

#[async_trait::async_trait]
impl Auth for AuthProvider {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let login = self.login(&request.into_inner().host).await?;
        Ok(Response::new(if login.identity_token.is_empty() {
            CredentialsResponse { username: login.username, secret: login.password }
        } else {
            CredentialsResponse { username: String::new(), secret: login.identity_token }
        }))
    }

    async fn fetch_token(&self, request: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        let login = self.login(&request.into_inner().host).await?;
        if login.registry_token.is_empty() {
            return Err(Status::unimplemented("tokens are fetched by the engine"));
        }
        let answer = FetchTokenResponse { token: login.registry_token, expires_in: TOKEN_SECONDS, issued_at: 0 };
        Ok(Response::new(answer))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("client side tokens disabled"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("client side tokens disabled"))
    }
}
