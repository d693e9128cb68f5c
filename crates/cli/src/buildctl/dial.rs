//! `buildctl dial-stdio`: standard input and output become a connection with the engine, for clients that reach this host
//! by a command such as `ssh`.

use tokio::io::{AsyncWriteExt, copy};
use tokio::net::UnixStream;

use super::To;
use crate::error::{CliError, io_text};

/// Copies both ways until the engine closes; the end of standard input is passed on.
pub async fn run(to: &To<'_>) -> Result<(), CliError> {
    let address = to.address();
    let Some(path) = address.strip_prefix("unix://") else {
        return Err(CliError::user(format!("invalid address {address} (expected unix://PATH)")));
    };
    let failed = |what: &str, e: &std::io::Error| CliError::environment(format!("{what} {address}: {}", io_text(e)));
    let stream = UnixStream::connect(path).await.map_err(|e| failed("cannot connect to", &e))?;
    let (mut from_engine, mut to_engine) = stream.into_split();
    let upward = tokio::spawn(async move {
        copy(&mut tokio::io::stdin(), &mut to_engine).await?;
        to_engine.shutdown().await
    });
    let mut out = tokio::io::stdout();
    let copied = async {
        copy(&mut from_engine, &mut out).await?;
        out.flush().await
    };
    let done = copied.await.map_err(|e| failed("lost the connection to", &e));
    // Standard input of a terminal never ends by itself.
    upward.abort();
    done
}
