//! What the session offers to the engine: directories, secrets, agents, logins, blob stores, the uploaded context, and the
//! places for outputs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use kiln_session::client::{
    AuthProvider, ContentProvider, DockerConfig, FileReceivers, FileSyncProvider, LayoutStore, LocalDir, ReceiveTarget,
    RunningSession, SecretSource, SecretsProvider, SessionServer, SshAgent, SshProvider, UploadProvider, UploadSource,
};
use kiln_session::{SessionError, direct};
use kiln_stdx::Secret;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::build::ca;
use crate::build::context::Inputs;
use crate::build::load::Loading;
use crate::build::local_cache::Caches;
use crate::build::options::BuildOptions;
use crate::build::output::Dest;
use crate::build::secret::{SecretFrom, SshSpec};
use crate::build::write::AsideFile;
use crate::env::Env;
use crate::error::{CliError, io_text};
use crate::launch::Engine;
use crate::launch::socket::ShortPath;

/// Store name under which an engine writes an image directory.
const EXPORT_STORE: &str = "export";

/// A session about to be opened.
pub struct Offer {
    server: SessionServer,
    dirs: Vec<(String, PathBuf)>,
    upload_url: Option<String>,
    files: Vec<PendingFile>,
    loads: Vec<Loading>,
}

/// A file that an exporter may be writing.
#[derive(Clone)]
struct PendingFile {
    path: PathBuf,
    aside: Arc<Mutex<Option<AsideFile>>>,
}

/// An open session.
pub struct OpenOffer {
    session: RunningSession,
    files: Vec<PendingFile>,
    loads: Vec<Loading>,
}

impl Offer {
    /// Prepares the session of a build. Takes the upload out of `inputs`.
    pub fn new(options: &BuildOptions, inputs: &mut Inputs, caches: &Caches, env: &Env) -> Result<Offer, CliError> {
        let mut builder = SessionServer::builder(inputs.shared_key.clone());
        let local = |(name, path): (&String, &PathBuf)| (name.clone(), LocalDir::new(path.clone()));
        builder = builder.file_sync(FileSyncProvider::new(inputs.dirs.iter().map(local)));
        let config = env.docker_config().map_or_else(|| Ok(DockerConfig::default()), |dir| DockerConfig::load(&dir));
        builder = builder.auth(AuthProvider::new(config.map_err(wrong)?));
        let secrets = secrets(options, env)?;
        if !secrets.is_empty() {
            builder = builder.secrets(SecretsProvider::new(secrets).map_err(wrong)?);
        }
        if !options.ssh.is_empty() {
            builder = builder.ssh(ssh(&options.ssh)?);
        }
        let stores = stores(options, inputs, caches)?;
        if !stores.is_empty() {
            builder = builder.content(ContentProvider::new(stores));
        }
        let mut upload_url = None;
        if let Some(reader) = inputs.upload.take() {
            let provider = UploadProvider::new();
            upload_url = Some(provider.add(UploadSource::Stream(Box::new(Blocking::new(reader)))));
            builder = builder.upload(provider);
        }
        let (receivers, files, loads) = receivers(options);
        builder = builder.file_send(receivers);
        let dirs = inputs.dirs.iter().map(|(n, p)| (n.clone(), p.clone())).collect();
        Ok(Offer { server: builder.build(), dirs, upload_url, files, loads })
    }

    /// Returns the address that stands for the uploaded context.
    pub fn upload_url(&self) -> Option<String> {
        self.upload_url.clone()
    }

    /// Opens the session. An engine on this host that belongs to the same user is handed the directories themselves; it
    /// reads them beneath the descriptors, others sync files.
    pub async fn open(self, engine: &Engine) -> Result<OpenOffer, CliError> {
        let session = self.server.start(engine.channel.clone());
        if let (Some(root), true) =
            (&engine.root, engine.is_kiln() && engine.uid == Some(rustix::process::geteuid().as_raw()))
        {
            let socket = direct::socket_path(&root.socket());
            for (name, path) in &self.dirs {
                if let Err(error) = hand_over(&socket, session.id(), name, path).await {
                    tracing::debug!(%error, name, "the directory is synced instead");
                    break;
                }
            }
        }
        Ok(OpenOffer { session, files: self.files, loads: self.loads })
    }
}

impl OpenOffer {
    /// Returns the session's id.
    pub fn id(&self) -> &str {
        self.session.id()
    }

    /// Ends the session; what exporters have written is dropped.
    pub async fn close(self) {
        self.session.close().await;
    }

    /// Ends the session of a build that succeeded: its output files appear.
    pub async fn finish(self) -> Result<(), CliError> {
        self.session.close().await;
        for load in self.loads {
            load.finish().await?;
        }
        for file in self.files {
            let aside = file.aside.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            if let Some(aside) = aside {
                aside
                    .commit()
                    .map_err(|e| CliError::environment(format!("writing {}: {}", file.path.display(), io_text(&e))))?;
            }
        }
        Ok(())
    }
}

fn wrong(error: SessionError) -> CliError {
    CliError::new(error.class(), error.to_string())
}

async fn hand_over(socket: &Path, session: &str, name: &str, path: &Path) -> Result<(), SessionError> {
    let open = || -> io::Result<(ShortPath, OwnedFd)> {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        Ok((ShortPath::of(socket)?, rustix::fs::open(path, flags, rustix::fs::Mode::empty())?))
    };
    let (short, dir) = open().map_err(|e| SessionError::io(format!("opening {}", path.display()), e))?;
    direct::offer(short.path(), session, name, dir).await
}

fn secrets(options: &BuildOptions, env: &Env) -> Result<Vec<(String, SecretSource)>, CliError> {
    let mut out = Vec::new();
    for secret in &options.secrets {
        let source = match &secret.from {
            SecretFrom::File(path) => SecretSource::File(path.clone()),
            SecretFrom::Env(name) => {
                use std::os::unix::ffi::OsStrExt;
                let value = env.var_os(name).ok_or_else(|| {
                    CliError::user(format!("secret {}: environment variable {name} is not set", secret.id))
                })?;
                SecretSource::Value(Secret::new(value.as_bytes()))
            }
        };
        out.push((secret.id.clone(), source));
    }
    if let Some(bundle) = &options.build_ca {
        out.push((ca::SESSION_ID.to_owned(), SecretSource::File(bundle.path.clone())));
    }
    Ok(out)
}

fn ssh(specs: &[SshSpec]) -> Result<SshProvider, CliError> {
    let agent = |spec: &SshSpec| Ok((spec.id.clone(), SshAgent::from_paths(&spec.paths, false).map_err(wrong)?));
    SshProvider::new(specs.iter().map(agent).collect::<Result<Vec<_>, CliError>>()?).map_err(wrong)
}

fn stores(options: &BuildOptions, inputs: &Inputs, caches: &Caches) -> Result<Vec<(String, LayoutStore)>, CliError> {
    let mut out = Vec::new();
    for (name, dir) in &inputs.layouts {
        out.push((format!("oci:{name}"), LayoutStore::open(dir).map_err(wrong)?));
    }
    for (name, dir) in &caches.stores {
        out.push((name.clone(), LayoutStore::create(dir).map_err(wrong)?));
    }
    for output in &options.outputs {
        if let Dest::Layout(dir) = &output.dest {
            out.push((EXPORT_STORE.to_owned(), LayoutStore::create(dir).map_err(wrong)?));
        }
    }
    Ok(out)
}

/// Returns the places for outputs, by the number of the exporter.
fn receivers(options: &BuildOptions) -> (FileReceivers, Vec<PendingFile>, Vec<Loading>) {
    let mut targets = Vec::new();
    let (mut files, mut loads) = (Vec::new(), Vec::new());
    for (id, output) in (0u32..).zip(&options.outputs) {
        let target = match &output.dest {
            Dest::Engine | Dest::Layout(_) | Dest::Load(None) => continue,
            Dest::Load(Some(docker)) => {
                let load = Loading::new(docker.clone());
                loads.push(load.clone());
                ReceiveTarget::Chosen(Box::new(move |_| Ok(Some(Box::new(load.begin()?)))))
            }
            Dest::Stdout => ReceiveTarget::stream(tokio::io::stdout()),
            Dest::Dir(path) => {
                let delete = output.attrs.get("mode").is_some_and(|m| m == "delete");
                ReceiveTarget::Dir { path: path.clone(), delete }
            }
            // A device or a pipe is written as it is.
            Dest::File(path) if path.metadata().is_ok_and(|m| !m.is_file()) => ReceiveTarget::File(path.clone()),
            Dest::File(path) => {
                let file = PendingFile { path: path.clone(), aside: Arc::default() };
                files.push(file.clone());
                ReceiveTarget::Chosen(Box::new(move |_| file.begin()))
            }
        };
        targets.push((id, target));
    }
    (FileReceivers::new(targets), files, loads)
}

impl PendingFile {
    /// Begins the file anew; it appears only when the build has succeeded.
    fn begin(&self) -> io::Result<Option<Box<dyn AsyncWrite + Send + Unpin>>> {
        let aside = AsideFile::create(&self.path)?;
        let writer = tokio::fs::File::from_std(aside.handle()?);
        *self.aside.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(aside);
        Ok(Some(Box::new(Named { writer, path: self.path.clone() })))
    }
}

/// A file whose errors name it by the path that it will have.
struct Named {
    writer: tokio::fs::File,
    path: PathBuf,
}

impl Named {
    fn name<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))
    }
}

impl AsyncWrite for Named {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.writer).poll_write(cx, data);
        self.name(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.writer).poll_flush(cx);
        self.name(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.writer).poll_shutdown(cx);
        self.name(polled)
    }
}

/// A blocking reader as an asynchronous one: a thread reads ahead by a few pieces.
struct Blocking {
    pieces: tokio::sync::mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: io::Cursor<Vec<u8>>,
}

impl Blocking {
    /// Bytes read at once.
    const PIECE: usize = 64 * 1024;
    /// Pieces read ahead.
    const AHEAD: usize = 8;

    fn new(mut reader: Box<dyn io::Read + Send>) -> Blocking {
        let (sender, pieces) = tokio::sync::mpsc::channel(Self::AHEAD);
        std::thread::spawn(move || {
            loop {
                let mut piece = vec![0; Self::PIECE];
                let result = reader.read(&mut piece);
                let end = !matches!(result, Ok(n) if n > 0);
                let message = result.map(|n| {
                    piece.truncate(n);
                    piece
                });
                // Nobody listens once the build has ended.
                if sender.blocking_send(message).is_err() || end {
                    return;
                }
            }
        });
        Blocking { pieces, rest: io::Cursor::default() }
    }
}

impl AsyncRead for Blocking {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let at = usize::try_from(self.rest.position()).unwrap_or(usize::MAX);
        if at >= self.rest.get_ref().len() {
            match self.pieces.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(e)),
                Poll::Ready(Some(Ok(piece))) => self.rest = io::Cursor::new(piece),
            }
        }
        let at = usize::try_from(self.rest.position()).unwrap_or(0);
        let n = buf.remaining().min(self.rest.get_ref().len() - at);
        buf.put_slice(&self.rest.get_ref()[at..at + n]);
        self.rest.set_position((at + n) as u64);
        Poll::Ready(Ok(()))
    }
}
