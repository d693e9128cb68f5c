//! A failed call of the engine becomes an error for people: message, place in the Dockerfile, hints, exit code.
//!
//! Lines of the message that begin with `hint: ` are hints.

use kiln_session::errdetail::{Detail, details};
use kiln_stdx::ErrorClass;
use tonic::{Code, Status};

use crate::error::{CliError, EXIT_CANCELED, EXIT_EXHAUSTED, EXIT_INTERNAL};
use crate::launch::Engine;
use crate::progress::excerpt;

/// Words a failed solve. `dockerfile` is the name the user knows the Dockerfile by.
pub fn of_solve(status: &Status, engine: &Engine, dockerfile: &str) -> CliError {
    if is_lost(status) {
        return lost(engine);
    }
    let mut error = of_status(status, "failed to solve");
    for detail in details(status) {
        let Detail::Source { mut info, ranges } = detail else { continue };
        if info.filename == "Dockerfile" {
            dockerfile.clone_into(&mut info.filename);
        }
        if let Some(text) = excerpt::render(&info, &ranges) {
            error = error.excerpt(text);
        }
    }
    error
}

/// Words any failed call; `what` stands before the engine's text.
pub fn of_status(status: &Status, what: &str) -> CliError {
    let (message, hints) = split_hints(status.message());
    let code = status.code();
    let prefix = match code {
        Code::Unknown | Code::Ok => String::new(),
        _ if message.starts_with(&format!("{code:?}: ")) => String::new(),
        Code::Cancelled => "Canceled: ".to_owned(),
        code => format!("{code:?}: "),
    };
    let (class, exit) = match code {
        Code::Cancelled => (ErrorClass::Canceled, EXIT_CANCELED),
        Code::Internal => (ErrorClass::Bug, EXIT_INTERNAL),
        Code::ResourceExhausted => (ErrorClass::Environment, EXIT_EXHAUSTED),
        _ => (ErrorClass::UserInput, 1),
    };
    hints.into_iter().fold(CliError::new(class, format!("{what}: {prefix}{message}")).exit(exit), CliError::hint)
}

/// Returns whether the connection ended, as opposed to an answer of the engine.
pub fn is_lost(status: &Status) -> bool {
    // An answer has no source; a broken transport leaves its error there.
    std::error::Error::source(status).is_some() && status.code() != Code::Cancelled
}

/// Returns the error of an engine that ended while it was needed.
pub fn lost(engine: &Engine) -> CliError {
    let error = CliError::environment(format!("lost the connection to the engine at {}", engine.place));
    match &engine.root {
        Some(root) => error
            .hint("run the command again: an engine is started, and what was built is kept")
            .hint(format!("why the engine ended may be in {}", root.log().display())),
        None => error.hint("see whether the engine still runs"),
    }
}

fn split_hints(text: &str) -> (String, Vec<String>) {
    let (hints, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.starts_with("hint: "));
    let hints = hints.into_iter().filter_map(|h| h.strip_prefix("hint: ")).map(str::to_owned).collect();
    (lines.join("\n"), hints)
}

#[cfg(test)]
mod tests {
    use kiln_llb::pb;

    use super::*;

    fn engine() -> Engine {
        let channel = tonic::transport::Endpoint::from_static("http://localhost").connect_lazy();
        Engine { channel, pid: None, uid: None, info: Default::default(), place: "unix:///s".into(), root: None }
    }

    fn shown(error: &CliError) -> String {
        let mut out = Vec::new();
        error.write(&mut out).expect("write");
        String::from_utf8(out).expect("text")
    }

    #[tokio::test]
    async fn place_message_and_hint() {
        let info = pb::SourceInfo {
            filename: "Dockerfile".into(),
            data: b"FROM x\nRUN false\n".to_vec().into(),
            ..Default::default()
        };
        let text = "process \"/bin/sh -c false\" did not complete successfully: exit code: 1\nhint: try true";
        let detail = Detail::Source { info, ranges: vec![kiln_llb::builder::range(2, 2)] };
        let status = kiln_session::errdetail::to_status(Code::Unknown, text, &[detail]);
        let error = of_solve(&status, &engine(), "sub/Dockerfile");
        assert_eq!(
            shown(&error),
            "sub/Dockerfile:2\n--------------------\n   1 |     FROM x\n   2 | >>> RUN false\n   3 |     \n--------------------\n\
             ERROR: failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 1\nhint: try true\n"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[tokio::test]
    async fn codes() {
        for (code, message, exit) in [
            (Code::Unknown, "failed to solve: x", 1),
            (Code::NotFound, "failed to solve: NotFound: x", 1),
            (Code::Internal, "failed to solve: Internal: x", 100),
            (Code::ResourceExhausted, "failed to solve: ResourceExhausted: x", 102),
            (Code::Cancelled, "failed to solve: Canceled: x", 130),
        ] {
            let error = of_solve(&Status::new(code, "x"), &engine(), "Dockerfile");
            assert_eq!((error.message(), error.exit_code()), (message, exit));
        }
    }

    #[tokio::test]
    async fn a_broken_connection_is_told_as_such() {
        let mut status = Status::unavailable("tcp connect error");
        status.set_source(std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        let error = of_solve(&status, &engine(), "Dockerfile");
        assert_eq!(error.message(), "lost the connection to the engine at unix:///s");
    }
}
