//! One stream of `ExecProcess`: several processes of containers multiplexed by their ids, with their streams, signals
//! and terminal sizes.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use kiln_engine::container::{Container, ProcessRequest};
use kiln_engine::{Bridge, EngineError};
use kiln_executor::{Control, Output, ProcessIo, Stdin, TtySize};
use kiln_llb::op::{ExecMeta, SecretEnv, SecurityMode};
use kiln_llb::pb as llb;
use kiln_session::proto::gateway as pb;
use kiln_session::proto::gateway::exec_message::Input;
use kiln_session::proto::google::rpc;
use kiln_stdx::ErrorClass;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

/// Pieces that may wait for a slow peer, on each way.
const PIECES: usize = 16;
/// The exit code of a process that never ran.
const UNKNOWN: u32 = 255;

type Outgoing = Sender<Result<pb::ExecMessage, Status>>;

/// A running process as the stream reaches it.
struct Process {
    stdin: Option<Sender<Bytes>>,
    control: Sender<Control>,
}

/// Serves one stream until the client goes away or everything has ended and the client is done.
pub async fn serve(bridge: Bridge, mut incoming: Streaming<pb::ExecMessage>, outgoing: Outgoing) {
    let gone = CancellationToken::new();
    // Processes of a client that went away end with it.
    let _gone = gone.clone().drop_guard();
    let mut processes: HashMap<String, Process> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut open = true;
    while open || !tasks.is_empty() {
        let message = tokio::select! {
            message = incoming.next(), if open => message,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            () = outgoing.closed() => return,
        };
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(_)) => return,
            None => {
                open = false;
                continue;
            }
        };
        let id = message.process_id;
        match message.input {
            Some(Input::Init(init)) if !processes.contains_key(&id) => {
                let (process, task) = start(bridge.clone(), id.clone(), init, outgoing.clone(), gone.child_token());
                processes.insert(id, process);
                tasks.spawn(task);
            }
            Some(Input::Init(_)) => {
                let _ = outgoing.send(Err(Status::invalid_argument(format!("process {id} runs already")))).await;
                return;
            }
            Some(input) => {
                // One that has ended meanwhile needs no input any more; the client is being told.
                if let Some(process) = processes.get_mut(&id) {
                    process.take(input).await;
                }
            }
            None => {}
        }
    }
}

impl Process {
    async fn take(&mut self, input: Input) {
        match input {
            Input::File(file) if file.fd == 0 => {
                if let Some(stdin) = &self.stdin
                    && !file.data.is_empty()
                {
                    // A process that closed its input does not care.
                    let _ = stdin.send(file.data.to_vec().into()).await;
                }
                if file.eof {
                    self.stdin = None;
                }
            }
            Input::Resize(size) => {
                let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                let size = TtySize { rows: short(size.rows), cols: short(size.cols) };
                let _ = self.control.send(Control::Resize(size)).await;
            }
            Input::Signal(signal) => {
                if let Some(number) = signal_number(&signal.name) {
                    let _ = self.control.send(Control::Signal(number)).await;
                }
            }
            _ => {}
        }
    }
}

/// Returns the handle of a process and the task that runs it.
fn start(
    bridge: Bridge,
    id: String,
    init: pb::InitMessage,
    outgoing: Outgoing,
    cancel: CancellationToken,
) -> (Process, impl Future<Output = ()> + Send) {
    let (stdin, input) = mpsc::channel::<Bytes>(PIECES);
    let (control, orders) = mpsc::channel(PIECES);
    let wants = |fd: u32| init.fds.contains(&fd);
    let process = Process { stdin: wants(0).then_some(stdin), control };
    let task = async move {
        let say = |input: Input| {
            let message = pb::ExecMessage { process_id: id.clone(), input: Some(input) };
            let outgoing = outgoing.clone();
            async move {
                let _ = outgoing.send(Ok(message)).await;
            }
        };
        let ready = bridge.containers().get(&init.container_id).and_then(|container| {
            let request = request(&init)?;
            container.check(&bridge, &request)?;
            Ok((container, request))
        });
        let mut told = false;
        if let Ok((container, _)) = &ready
            && container.has_begun().await
        {
            // A client may not read what one process says before the next one has started, and waits for this word only.
            told = true;
            say(Input::Started(pb::StartedMessage {})).await;
        }
        let exit = match ready {
            Ok(ready) => run(&bridge, &id, init, ready, input, orders, &outgoing, cancel, &mut told).await,
            Err(error) => Err(error),
        };
        if !told {
            // Clients wait for this word and nothing else, also of a process that cannot even be tried.
            say(Input::Started(pb::StartedMessage {})).await;
        }
        say(Input::Exit(farewell(exit))).await;
        say(Input::Done(pb::DoneMessage {})).await;
    };
    (process, task)
}

/// Words how a process ended.
fn farewell(exit: Result<i32, EngineError>) -> pb::ExitMessage {
    match exit {
        Ok(0) => pb::ExitMessage { code: 0, error: None },
        Ok(code) => failed(u32::try_from(code).unwrap_or(UNKNOWN), Code::Unknown, format!("exit code: {code}")),
        Err(error) => {
            let kind = if error.class() == ErrorClass::Canceled { Code::Cancelled } else { Code::Unknown };
            let code = error.exit_code.and_then(|c| u32::try_from(c).ok()).unwrap_or(UNKNOWN);
            failed(code, kind, error.to_string())
        }
    }
}

fn failed(code: u32, kind: Code, message: String) -> pb::ExitMessage {
    let error = rpc::Status { code: kind as i32, message, details: Vec::new() };
    pb::ExitMessage { code, error: Some(error) }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one process")]
async fn run(
    bridge: &Bridge,
    id: &str,
    init: pb::InitMessage,
    (container, request): (Arc<Container>, ProcessRequest),
    input: Receiver<Bytes>,
    orders: Receiver<Control>,
    outgoing: &Outgoing,
    cancel: CancellationToken,
    told: &mut bool,
) -> Result<i32, EngineError> {
    // Nothing a process says goes out before the word that it has started.
    let (open, gate) = watch::channel(false);
    let wants = |fd: u32| init.fds.contains(&fd);
    let mut pumps = JoinSet::new();
    let mut stream = |fd: u32| {
        if !wants(fd) {
            return Output::Null;
        }
        let (sender, pieces) = mpsc::channel(PIECES);
        pumps.spawn(pump(id.to_owned(), fd, pieces, outgoing.clone(), gate.clone()));
        Output::Channel(sender)
    };
    let stdin = match wants(0) {
        true => {
            let pieces = ReceiverStream::new(input).map(Ok::<_, std::io::Error>);
            Stdin::Reader(Box::pin(StreamReader::new(pieces)))
        }
        false => Stdin::Null,
    };
    let (started, start) = oneshot::channel();
    let stdout = stream(1);
    let stderr = if init.tty { Output::Null } else { stream(2) };
    let io = ProcessIo { stdin, stdout, stderr, control: Some(orders), started: Some(started) };
    // The client's name for the process is told only when it runs.
    let announce = {
        let (id, outgoing) = (id.to_owned(), outgoing.clone());
        async move {
            if start.await.is_ok() && !std::mem::replace(told, true) {
                let input = Some(Input::Started(pb::StartedMessage {}));
                let _ = outgoing.send(Ok(pb::ExecMessage { process_id: id, input })).await;
            }
            let _ = open.send(true);
        }
    };
    let released = container.released();
    let watch = async {
        released.cancelled().await;
        cancel.cancel();
        std::future::pending::<()>().await;
    };
    let ran = async { tokio::join!(container.run(bridge, request, io, cancel.clone()), announce).0 };
    let exit = tokio::select! {
        exit = ran => exit,
        () = watch => Err(EngineError::canceled()),
    };
    while pumps.join_next().await.is_some() {}
    Ok(exit?.code)
}

async fn pump(
    process_id: String,
    fd: u32,
    mut pieces: Receiver<Bytes>,
    outgoing: Outgoing,
    mut gate: watch::Receiver<bool>,
) {
    // An error means that it never started, and then it says nothing.
    let _ = gate.wait_for(|open| *open).await;
    let say = |data: Bytes, eof: bool| {
        let input = Some(Input::File(pb::FdMessage { fd, eof, data: data.to_vec() }));
        outgoing.send(Ok(pb::ExecMessage { process_id: process_id.clone(), input }))
    };
    while let Some(piece) = pieces.recv().await {
        if say(piece, false).await.is_err() {
            return;
        }
    }
    let _ = say(Bytes::new(), true).await;
}

fn request(init: &pb::InitMessage) -> Result<ProcessRequest, EngineError> {
    let meta = init.meta.clone().unwrap_or_default();
    let security = SecurityMode::try_from(init.security)
        .map_err(|_| EngineError::user(format!("invalid security mode {}", init.security)))?;
    let secret = |s: &llb::SecretEnv| SecretEnv { id: s.id.clone(), name: s.name.clone(), optional: s.optional };
    Ok(ProcessRequest {
        meta: ExecMeta::try_from(meta).map_err(EngineError::user)?,
        tty: init.tty,
        security,
        secret_env: init.secretenv.iter().map(secret).collect(),
    })
}

/// Returns the number of a signal by its name, with or without `SIG`.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.to_uppercase();
    Some(match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ABRT" => libc::SIGABRT,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "PIPE" => libc::SIGPIPE,
        "ALRM" => libc::SIGALRM,
        "TERM" => libc::SIGTERM,
        "CHLD" => libc::SIGCHLD,
        "CONT" => libc::SIGCONT,
        "STOP" => libc::SIGSTOP,
        "TSTP" => libc::SIGTSTP,
        "TTIN" => libc::SIGTTIN,
        "TTOU" => libc::SIGTTOU,
        "WINCH" => libc::SIGWINCH,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name() {
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("kill"), Some(9));
        assert_eq!(signal_number("SIGNONSENSE"), None);
    }

    #[test]
    fn a_process_that_never_ran_has_an_exit_of_its_own() {
        assert_eq!(farewell(Ok(0)), pb::ExitMessage { code: 0, error: None });
        let refused = farewell(Err(EngineError::user("not here")));
        assert_eq!((refused.code, refused.error.unwrap().message.as_str()), (UNKNOWN, "not here"));
        assert_eq!(farewell(Err(EngineError::canceled())).error.unwrap().code, Code::Cancelled as i32);
        assert_eq!(farewell(Ok(7)).code, 7);
    }

    #[test]
    fn an_unknown_security_mode_is_refused() {
        let init = pb::InitMessage { security: 9, ..pb::InitMessage::default() };
        let error = request(&init).unwrap_err();
        assert!(error.to_string().contains("invalid security mode"), "{error}");
    }
}
