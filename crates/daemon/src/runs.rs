//! One stream of `Kiln.Run`: a process in an image with its streams, signals and terminal sizes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{StreamExt, stream};
use kiln_engine::{Engine, EngineError, Port, RunRequest, Volume};
use kiln_executor::{Control, Exit, NetworkMode, Output, ProcessIo, Stdin, TtySize};
use kiln_session::proto::kiln_v1 as pb;
use kiln_session::proto::kiln_v1::run_input::Input;
use kiln_session::proto::kiln_v1::run_output::Output as Said;
use tokio::sync::mpsc::{self, Receiver, Sender, UnboundedReceiver};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::convert;

/// Pieces of output that may wait for a slow client.
const PIECES: usize = 16;
/// Signals and sizes that may wait.
const ORDERS: usize = 64;
/// Bytes of standard input that may be under way. Signals come over the same stream and must never wait behind them.
const ROOM: usize = 1 << 20;
/// Metadata of an error: the exit code that a shell would give for it.
const EXIT_CODE: &str = "kiln-exit-code";

/// Standard input as it comes, and the room that is left for more of it.
type Keys = (UnboundedReceiver<Bytes>, Arc<AtomicUsize>);
type Outgoing = Sender<Result<pb::RunOutput, Status>>;

/// Serves one stream until the process has ended. `own` tells that the client is the engine's own user.
pub async fn serve(engine: Engine, own: bool, mut incoming: Streaming<pb::RunInput>, outgoing: Outgoing) {
    let request = match incoming.message().await {
        Ok(Some(pb::RunInput { input: Some(Input::Start(start)) })) => request(start, own),
        Ok(_) => Err(Status::invalid_argument("the first message is the request")),
        Err(_) => return,
    };
    let (request, wants_stdin) = match request {
        Ok(request) => request,
        Err(status) => {
            let _ = outgoing.send(Err(status)).await;
            return;
        }
    };
    let (typed, keys) = mpsc::unbounded_channel();
    let (control, orders) = mpsc::channel(ORDERS);
    let cancel = CancellationToken::new();
    let room = Arc::new(AtomicUsize::new(ROOM));
    let keys = wants_stdin.then(|| (keys, room.clone()));
    let mut input = Incoming { stream: incoming, typed: wants_stdin.then_some(typed), room, control };
    let work = run(&engine, request, keys, orders, &outgoing, &cancel);
    tokio::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        // A client that is gone, or breaks the rules, takes its process with it.
        () = input.serve(&outgoing) => {
            cancel.cancel();
            work.await
        }
    };
    let last = match result {
        Ok(exit) => Ok(said(Said::Exit(pb::RunExit { code: exit.code, out_of_memory: exit.oom }))),
        Err(error) => Err(failed(&error)),
    };
    let _ = outgoing.send(last).await;
}

fn said(output: Said) -> pb::RunOutput {
    pb::RunOutput { output: Some(output) }
}

fn failed(error: &EngineError) -> Status {
    let mut status = convert::status(error);
    if let Some(code) = error.exit_code {
        status.metadata_mut().insert(EXIT_CODE, code.into());
    }
    status
}

/// What comes from the client after its request.
struct Incoming {
    stream: Streaming<pb::RunInput>,
    typed: Option<mpsc::UnboundedSender<Bytes>>,
    /// Bytes that the client may send without being told of more.
    room: Arc<AtomicUsize>,
    control: Sender<Control>,
}

impl Incoming {
    /// Passes on what comes, until the client is gone.
    async fn serve(&mut self, outgoing: &Outgoing) {
        loop {
            let message = tokio::select! {
                message = self.stream.message() => message,
                () = outgoing.closed() => return,
            };
            let Ok(Some(message)) = message else { return };
            match message.input {
                Some(Input::Stdin(data)) => {
                    let left = |room: usize| room.checked_sub(data.len());
                    if self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err() {
                        return;
                    }
                    // A process that closed its input does not care.
                    let _ = self.typed.as_ref().map(|typed| typed.send(data));
                }
                Some(Input::StdinEnd(_)) => self.typed = None,
                Some(Input::Signal(number)) => self.order(Control::Felt(number)),
                Some(Input::Resize(wanted)) => self.order(Control::Resize(size(wanted))),
                Some(Input::Start(_)) | None => return,
            }
        }
    }

    /// Passes an order on. One that finds no place is dropped: so many mean the same.
    fn order(&self, order: Control) {
        let _ = self.control.try_send(order);
    }
}

async fn run(
    engine: &Engine,
    request: RunRequest,
    keys: Option<Keys>,
    orders: Receiver<Control>,
    outgoing: &Outgoing,
    cancel: &CancellationToken,
) -> Result<Exit, EngineError> {
    // Nothing that the process says goes out before the word that it runs.
    let (open, gate) = watch::channel(false);
    let mut pumps = JoinSet::new();
    let mut stream = |tell: fn(Bytes) -> Said| {
        let (sender, pieces) = mpsc::channel(PIECES);
        pumps.spawn(pump(pieces, outgoing.clone(), tell, gate.clone()));
        Output::Channel(sender)
    };
    let stdout = stream(Said::Stdout);
    let stderr = if request.tty.is_some() { Output::Null } else { stream(Said::Stderr) };
    let stdin = match keys {
        Some(keys) => {
            let room = said(Said::StdinRoom(ROOM as u64));
            let _ = outgoing.send(Ok(room)).await;
            reader(keys, outgoing.clone())
        }
        None => Stdin::Null,
    };
    let (started, running) = oneshot::channel::<Vec<Port>>();
    let io = ProcessIo { stdin, stdout, stderr, control: Some(orders), started: None };
    let announce = async {
        if let Ok(ports) = running.await {
            let port = |p: Port| pb::PublishedPort { host: p.host.into(), port: p.port.into() };
            let ports = ports.into_iter().map(port).collect();
            let _ = outgoing.send(Ok(said(Said::Started(pb::RunStarted { ports })))).await;
        }
        let _ = open.send(true);
    };
    let (exit, ()) = tokio::join!(engine.run_image(request, io, started, cancel), announce);
    while pumps.join_next().await.is_some() {}
    exit
}

/// Returns standard input made of what the client sends; it is told of the room that is free again.
fn reader(keys: Keys, outgoing: Outgoing) -> Stdin {
    let pieces = stream::unfold((keys, outgoing), |((mut keys, room), outgoing)| async move {
        let piece = keys.recv().await?;
        room.fetch_add(piece.len(), Ordering::Relaxed);
        let _ = outgoing.send(Ok(said(Said::StdinRoom(piece.len() as u64)))).await;
        Some((Ok::<_, std::io::Error>(piece), ((keys, room), outgoing)))
    });
    Stdin::Reader(Box::pin(StreamReader::new(pieces.boxed())))
}

async fn pump(
    mut pieces: Receiver<Bytes>,
    outgoing: Outgoing,
    tell: fn(Bytes) -> Said,
    mut gate: watch::Receiver<bool>,
) {
    // An error means that it never ran, and then it says nothing.
    let _ = gate.wait_for(|open| *open).await;
    while let Some(piece) = pieces.recv().await {
        if outgoing.send(Ok(said(tell(piece)))).await.is_err() {
            return;
        }
    }
}

fn size(size: pb::TerminalSize) -> TtySize {
    let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    TtySize { rows: short(size.rows), cols: short(size.columns) }
}

/// Returns the request as the engine knows it, and whether the process has an input.
fn request(start: pb::RunRequest, own: bool) -> Result<(RunRequest, bool), Status> {
    let bad = |what: String| Status::invalid_argument(what);
    if !start.volumes.is_empty() && !own {
        // Whoever may bind any directory as the engine's user is that user.
        return Err(Status::permission_denied(
            "only the engine's own user may show directories of the host to a process",
        ));
    }
    let network = match start.network.as_str() {
        "" | "auto" => NetworkMode::Auto,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        other => return Err(bad(format!("unknown network {other}"))),
    };
    let mut volumes = Vec::new();
    for volume in start.volumes {
        let source = PathBuf::from(volume.source);
        if !source.is_absolute() || !volume.dest.starts_with('/') {
            return Err(bad("the paths of a volume are absolute".to_owned()));
        }
        volumes.push(Volume { source, dest: volume.dest, readonly: volume.readonly });
    }
    let number = |n: u32| u16::try_from(n).map_err(|_| bad(format!("{n} is no port")));
    let port = |p: pb::PublishedPort| Ok(Port { host: number(p.host)?, port: number(p.port)? });
    let request = RunRequest {
        reference: start.r#ref,
        session: start.session,
        image: start.image,
        layout: Some(start.layout).filter(|l| !l.is_empty()),
        pull: start.pull,
        stored_only: start.stored_only,
        args: start.args,
        entrypoint: start.replace_entrypoint.then_some(start.entrypoint),
        env: start.env,
        cwd: start.cwd,
        user: start.user,
        hostname: start.hostname,
        network,
        volumes,
        ports: start.ports.into_iter().map(port).collect::<Result<_, Status>>()?,
        tty: start.terminal.map(size),
        readonly: start.readonly,
    };
    Ok((request, start.stdin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_are_refused() {
        let volume = |source: &str, dest: &str| pb::RunRequest {
            volumes: vec![pb::Volume { source: source.into(), dest: dest.into(), readonly: false }],
            ..pb::RunRequest::default()
        };
        let port =
            |host, port| pb::RunRequest { ports: vec![pb::PublishedPort { host, port }], ..pb::RunRequest::default() };
        let network = pb::RunRequest { network: "bridge".into(), ..pb::RunRequest::default() };
        for (start, own, word) in [
            (volume("/a", "/b"), false, "own user"),
            (volume("a", "/b"), true, "absolute"),
            (volume("/a", "b"), true, "absolute"),
            (port(70_000, 1), true, "no port"),
            (network, true, "unknown network"),
        ] {
            let status = request(start, own).expect_err(word);
            assert!(status.message().contains(word), "{status}");
        }
        assert!(request(volume("/a", "/b"), true).is_ok());
    }
}
