//! What the history keeps of a build, in the messages that clients read back.

use kiln_engine::EngineError;
use kiln_engine::events::EventLog;
use kiln_engine::history::{Failure, Scribe};
use kiln_session::errdetail;
use kiln_session::proto::google::rpc;
use prost::Message as _;

use crate::{convert, status};

/// How many events are read at a time.
const AT_ONCE: usize = 256;
/// A stack trace in the form of BuildKit's clients, which they show with `--debug`.
const STACK_TYPE: &str = "github.com/moby/buildkit/stack.Stack+json";

/// Writes messages of BuildKit's API.
#[derive(Debug, Clone, Copy, Default)]
pub struct WireScribe;

impl Scribe for WireScribe {
    fn events(&self, log: &EventLog, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let events = log.snapshot();
        // A few at a time: what steps printed may be more than fits into memory.
        for response in events.chunks(AT_ONCE).flat_map(|some| status::responses(log, some)) {
            let message = response.encode_to_vec();
            let Ok(length) = u32::try_from(message.len()) else { break };
            if out.len() + message.len() + size_of::<u32>() > most {
                break;
            }
            out.extend(length.to_le_bytes());
            out.extend(message);
        }
        out
    }

    fn failure(&self, error: &EngineError) -> Failure {
        let status = convert::status(error);
        let status = errdetail::with_foreign(&status, &[(STACK_TYPE.to_owned(), stack())]);
        let message: rpc::Status = errdetail::status_to_rpc(&status);
        Failure { code: message.code, message: message.message.clone(), encoded: message.encode_to_vec() }
    }
}

/// Says which program failed. Errors of the engine say themselves what they come from, so one place is enough.
fn stack() -> Vec<u8> {
    let frame = serde_json::json!({ "Name": "kiln_daemon::scribe", "File": file!(), "Line": line!() });
    let command: Vec<String> = std::env::args().take(1).collect();
    serde_json::json!({
        "frames": [frame],
        "cmdline": command,
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use kiln_session::proto::control::StatusResponse;
    use kiln_stdx::Digest;

    use super::*;

    #[test]
    fn logs_are_messages_with_their_lengths() {
        let log = EventLog::new(tempfile::tempfile().unwrap());
        log.log(Digest::of("v"), 1, SystemTime::UNIX_EPOCH, b"said").unwrap();
        let bytes = WireScribe.events(&log, 1 << 20);
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 4 + length);
        let response = StatusResponse::decode(&bytes[4..]).unwrap();
        assert_eq!(response.logs[0].msg.as_ref(), b"said");
        // They can be told again, as far as they are whole.
        assert_eq!(status::replay(&bytes).collect::<Vec<_>>(), [response]);
        assert_eq!(status::replay(&bytes[..bytes.len() - 1]).count(), 0);
        assert!(WireScribe.events(&log, 4).is_empty());
    }

    #[test]
    fn a_failure_has_all_its_details() {
        let mut error = EngineError::user("no such file").with_hint("make it");
        error.vertex = Some(Digest::of("v"));
        let failure = WireScribe.failure(&error);
        let message = rpc::Status::decode(failure.encoded.as_slice()).unwrap();
        assert_eq!((message.code, &message.message), (failure.code, &failure.message));
        assert!(failure.message.contains("make it"));
        let types: Vec<&str> = message.details.iter().map(|d| d.type_url.as_str()).collect();
        assert!(types.contains(&STACK_TYPE), "{types:?}");
        assert!(types.contains(&"github.com/moby/buildkit/errdefs.Vertex+json"), "{types:?}");
    }
}
