//! `--load`: the image goes to a docker engine where one answers, and stays in kiln's own image store where none does.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

use super::output::{Dest, Output};
use crate::env::Env;
use crate::error::{CliError, io_text};

/// How long a docker engine may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to take an image in after the last byte.
const TAKE_IN: Duration = Duration::from_secs(900);

/// The docker client of the host, whose engine takes images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Docker {
    program: PathBuf,
    env: Vec<(String, OsString)>,
}

/// An image on its way into a docker engine.
#[derive(Clone)]
pub struct Loading {
    docker: Docker,
    child: Arc<Mutex<Option<Child>>>,
}

/// Settles where images to be loaded go. Without a docker engine they become images of kiln's store, and a note says so.
pub async fn settle(outputs: &mut [Output], env: &Env) -> Option<String> {
    if !outputs.iter().any(|o| matches!(o.dest, Dest::Load(_))) {
        return None;
    }
    let docker = find(env).await;
    for output in outputs {
        if let Dest::Load(place) = &mut output.dest {
            match &docker {
                Some(docker) => *place = Some(docker.clone()),
                None => (output.kind, output.dest) = ("image".to_owned(), Dest::Engine),
            }
        }
    }
    docker.is_none().then(|| "no docker engine answers; the image stays in kiln's image store".to_owned())
}

/// Returns the docker client if its engine answers.
async fn find(env: &Env) -> Option<Docker> {
    let path = env.var_os("PATH")?;
    let program = std::env::split_paths(path).map(|dir| dir.join("docker")).find(|file| file.is_file())?;
    let docker = Docker { program, env: env.all().map(|(k, v)| (k.to_owned(), v.clone())).collect() };
    let mut command = docker.command(&["version", "--format", "{{.Server.Version}}"]);
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).output();
    let answer = tokio::time::timeout(ANSWER, output).await.ok()?.ok()?;
    (answer.status.success() && !answer.stdout.trim_ascii().is_empty()).then_some(docker)
}

impl Docker {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().envs(self.env.iter().cloned()).kill_on_drop(true);
        command
    }
}

impl Loading {
    /// Returns a load that has not begun.
    pub fn new(docker: Docker) -> Loading {
        Loading { docker, child: Arc::default() }
    }

    /// Starts the client; what is written goes to it.
    pub fn begin(&self) -> io::Result<ChildStdin> {
        let mut command = self.docker.command(&["load", "--quiet"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or_else(|| io::Error::other("the docker client takes no input"))?;
        // An earlier attempt, if there was one, ends here.
        *self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(child);
        Ok(input)
    }

    /// Waits until the engine has taken the image in.
    pub async fn finish(&self) -> Result<(), CliError> {
        let child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(child) = child else { return Ok(()) };
        let failed = |why: String| {
            CliError::environment(format!("docker load: {why}"))
                .hint("leave --load out to keep the image in kiln's image store")
        };
        let output = tokio::time::timeout(TAKE_IN, child.wait_with_output()).await;
        let output = output.map_err(|_| failed("the docker engine did not end".to_owned()))?;
        let output = output.map_err(|e| failed(io_text(&e)))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }
}
