//! Secrets the engine may ask for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_stdx::{Secret, limits};
use tokio::io::AsyncReadExt;
use tonic::{Request, Response, Status};

use crate::error::SessionError;
use crate::proto::secrets::secrets_server::Secrets;
use crate::proto::secrets::{GetSecretRequest, GetSecretResponse};

/// Where a secret comes from.
pub enum SecretSource {
    /// A file, read when the engine asks.
    File(PathBuf),
    /// A value.
    Value(Secret),
}

/// Serves secrets by id.
#[derive(Clone, Default)]
pub struct SecretsProvider {
    secrets: Arc<BTreeMap<String, SecretSource>>,
}

impl SecretsProvider {
    /// Makes a provider.
    ///
    /// # Errors
    /// A file that is missing or too large: better said now than in the middle of a build.
    pub fn new(secrets: impl IntoIterator<Item = (String, SecretSource)>) -> Result<Self, SessionError> {
        let secrets: BTreeMap<String, SecretSource> = secrets.into_iter().collect();
        for (id, source) in &secrets {
            let too_large = || SessionError::Input(format!("secret {id} is larger than {} KB", limits::SECRET / 1024));
            match source {
                SecretSource::File(path) => {
                    let meta = std::fs::metadata(path)
                        .map_err(|e| SessionError::io(format!("failed to stat secret {}", path.display()), e))?;
                    if meta.len() > limits::SECRET as u64 {
                        return Err(too_large());
                    }
                }
                SecretSource::Value(value) if value.len() > limits::SECRET => return Err(too_large()),
                SecretSource::Value(_) => {}
            }
        }
        Ok(Self { secrets: Arc::new(secrets) })
    }
}

#[async_trait::async_trait]
impl Secrets for SecretsProvider {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let source = self.secrets.get(&id).ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        let data = match source {
            SecretSource::Value(value) => value.expose().to_vec(),
            SecretSource::File(path) => {
                let mut data = Vec::new();
                let read = async {
                    let file = tokio::fs::File::open(path).await?;
                    file.take(limits::SECRET as u64 + 1).read_to_end(&mut data).await
                };
                read.await.map_err(|e| Status::internal(format!("secret {id}: {}: {e}", path.display())))?;
                data
            }
        };
        if data.len() > limits::SECRET {
            return Err(Status::invalid_argument(format!("invalid secret size {} for {id}", data.len())));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}
