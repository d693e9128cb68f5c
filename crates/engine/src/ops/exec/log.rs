//! What a step prints: values of its secrets are masked, then it goes to every build that wants the step.

use bytes::Bytes;
use kiln_executor::mask::SecretMasker;
use kiln_executor::{Output, ProcessIo};
use kiln_solver::OpContext;
use kiln_stdx::Secret;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::build::Progress;

/// Pieces of output that may wait; a step that prints faster than its log is written is held back.
const PIECES: usize = 16;
/// How many bytes of the end of the output are kept for explaining a failure.
const TAIL: usize = 16 << 10;

/// Moves the output of one process into the logs.
pub struct LogPump {
    tasks: JoinSet<Vec<u8>>,
}

impl LogPump {
    /// Returns the streams for a process and the pump that empties them.
    pub fn start(cx: &OpContext, secrets: &[Secret]) -> (ProcessIo, Self) {
        let mut tasks = JoinSet::new();
        let mut stream = |number: i32| {
            let (sender, receiver) = mpsc::channel(PIECES);
            tasks.spawn(pump(Progress::new(cx), number, receiver, SecretMasker::new(secrets)));
            Output::Channel(sender)
        };
        let io = ProcessIo { stdout: stream(1), stderr: stream(2), ..ProcessIo::default() };
        (io, Self { tasks })
    }

    /// Waits until everything printed is logged and returns the end of it. The process must be gone.
    pub async fn finish(mut self) -> Vec<u8> {
        let mut tail = Vec::new();
        while let Some(part) = self.tasks.join_next().await {
            tail.extend(part.unwrap_or_default());
        }
        tail
    }
}

async fn pump(progress: Progress, stream: i32, mut pieces: mpsc::Receiver<Bytes>, mut masker: SecretMasker) -> Vec<u8> {
    let mut tail = Vec::new();
    let mut put = |data: &[u8]| {
        if data.is_empty() {
            return;
        }
        // A log that cannot be spooled must not fail the step; the end of it is still in `tail`.
        let _ = progress.log(stream, data);
        tail.extend_from_slice(data);
        if tail.len() > 2 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    };
    while let Some(piece) = pieces.recv().await {
        put(&masker.push(&piece));
    }
    put(&masker.finish());
    tail
}
