//! The streams between the user and a running process: standard streams, signals, terminal sizes.

use std::io::{self, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_session::proto::kiln_v1 as pb;
use kiln_session::proto::kiln_v1::run_input::Input;
use kiln_session::proto::kiln_v1::run_output::Output;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

use super::pull::Pull;
use super::terminal::{self, Raw};
use crate::error::{CliError, io_text};

/// Largest piece of standard input sent at once, in bytes.
const PIECE: usize = 64 << 10;
/// Exit code of a process that nobody listens to any more, as of one that writes into a closed pipe.
const BROKEN_PIPE: u8 = 141;

/// A run that has been asked for.
pub struct Attached {
    /// To the process.
    pub input: Sender<pb::RunInput>,
    /// From the process.
    pub output: Streaming<pb::RunOutput>,
    /// The process has a terminal.
    pub tty: bool,
    /// Standard input goes to the process.
    pub stdin: bool,
    /// The ports that were asked for.
    pub ports: Vec<pb::PublishedPort>,
    /// What is shown until the process runs.
    pub pull: Pull,
    /// Set once it runs: from then on signals are its own.
    pub runs: Arc<AtomicBool>,
}

/// How a run ended.
pub enum End {
    /// With this exit code.
    Exit(u8),
    /// The engine says why not.
    Failed(Status),
    /// What the process says cannot be written.
    Unwritable(CliError),
}

impl Attached {
    /// Passes everything on until the process has ended.
    pub async fn follow(self) -> End {
        let Attached { input, mut output, tty, stdin, ports, pull, runs } = self;
        let mut pull = Some(pull);
        let mut helpers = JoinSet::new();
        let room = Arc::new(Semaphore::new(0));
        let mut raw = None;
        // What comes before the process runs is told to it then.
        let mut signals = Some(listen());
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        let end = loop {
            let said = match output.message().await {
                Ok(Some(said)) => said.output,
                Ok(None) => break End::Failed(Status::unavailable("the engine ended the stream")),
                Err(status) => break End::Failed(status),
            };
            // Once anything of the process is seen, the terminal is its own.
            if let Some(pull) = pull.take_if(|_| !matches!(said, Some(Output::StdinRoom(_)))) {
                pull.end().await;
            }
            let written = match said {
                Some(Output::Started(started)) => {
                    runs.store(true, Ordering::Relaxed);
                    tell_ports(&ports, &started.ports);
                    if tty && stdin {
                        raw = Raw::enter();
                    }
                    if let Some(signals) = signals.take() {
                        helpers.spawn(forward_signals(signals, input.clone()));
                    }
                    if tty {
                        helpers.spawn(forward_sizes(input.clone()));
                    }
                    if stdin {
                        helpers.spawn(forward_input(input.clone(), room.clone()));
                    }
                    Ok(())
                }
                Some(Output::Stdout(data)) => write(&mut out, &data).await,
                Some(Output::Stderr(data)) => write(&mut err, &data).await,
                Some(Output::StdinRoom(bytes)) => {
                    let more = usize::try_from(bytes).unwrap_or(0).min(Semaphore::MAX_PERMITS / 2);
                    room.add_permits(more);
                    Ok(())
                }
                Some(Output::Exit(exit)) => break End::Exit(code(&exit)),
                None => Ok(()),
            };
            if let Err(error) = written {
                break match error.kind() {
                    io::ErrorKind::BrokenPipe => End::Exit(BROKEN_PIPE),
                    _ => End::Unwritable(CliError::environment(format!("cannot write output: {}", io_text(&error)))),
                };
            }
        };
        drop(raw);
        if let Some(pull) = pull {
            pull.end().await;
        }
        end
    }
}

fn code(exit: &pb::RunExit) -> u8 {
    if exit.out_of_memory {
        say("the process was killed for want of memory");
    }
    u8::try_from(exit.code).unwrap_or(u8::MAX)
}

/// Tells the numbers that the engine has chosen.
fn tell_ports(asked: &[pb::PublishedPort], given: &[pb::PublishedPort]) {
    for (_, port) in asked.iter().zip(given).filter(|(asked, _)| asked.host == 0) {
        say(&format!("port {} is published on 127.0.0.1:{}", port.port, port.host));
    }
}

fn say(text: &str) {
    use std::io::Write;
    // There is no other place to tell that standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

async fn write(out: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    out.write_all(data).await?;
    out.flush().await
}

async fn send(to: &Sender<pb::RunInput>, input: Input) -> bool {
    to.send(pb::RunInput { input: Some(input) }).await.is_ok()
}

/// Begins to take the signals that are passed on.
fn listen() -> Vec<(i32, Signal)> {
    let kinds = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
    kinds.into_iter().filter_map(|number| Some((number, signal(SignalKind::from_raw(number)).ok()?))).collect()
}

/// Sends the signals that this process gets to the other.
async fn forward_signals(signals: Vec<(i32, Signal)>, to: Sender<pb::RunInput>) {
    let mut tasks = JoinSet::new();
    for (number, mut comes) in signals {
        let to = to.clone();
        tasks.spawn(async move { while comes.recv().await.is_some() && send(&to, Input::Signal(number)).await {} });
    }
    while tasks.join_next().await.is_some() {}
}

/// Tells the process when the size of the terminal has changed.
async fn forward_sizes(to: Sender<pb::RunInput>) {
    let Ok(mut comes) = signal(SignalKind::window_change()) else { return };
    loop {
        // The first one is told too: it may have changed since it was asked for.
        if let Some(size) = terminal::size()
            && !send(&to, Input::Resize(size)).await
        {
            return;
        }
        if comes.recv().await.is_none() {
            return;
        }
    }
}

/// Reads standard input on a thread of its own, which ends with the process: a terminal may never answer.
fn read_input() -> Receiver<Vec<u8>> {
    let (pieces, input) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = io::stdin().read(&mut buffer).unwrap_or(0);
            let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { return };
            if pieces.blocking_send(data.to_vec()).is_err() {
                return;
            }
        }
    });
    input
}

/// Sends standard input as far as there is room for it.
async fn forward_input(to: Sender<pb::RunInput>, room: Arc<Semaphore>) {
    let mut input = read_input();
    while let Some(data) = input.recv().await {
        let Ok(permits) = room.acquire_many(u32::try_from(data.len()).unwrap_or(u32::MAX)).await else { return };
        permits.forget();
        if !send(&to, Input::Stdin(data.into())).await {
            return;
        }
    }
    send(&to, Input::StdinEnd(true)).await;
}

/// Refuses what cannot work: a terminal for input that comes from none.
pub fn check(tty: bool, stdin: bool) -> Result<(), CliError> {
    if tty && stdin && !terminal::input_is_terminal() {
        return Err(CliError::user("the input device is not a TTY").hint("leave -t out: -i alone passes input on"));
    }
    Ok(())
}

/// Returns whether somebody may be looking at the progress of a pull.
pub fn has_screen() -> bool {
    io::stderr().is_terminal()
}
