//! The `kiln` binary: commands, the client side of builds, progress views. Only this crate prints.
//!
//! Standard output is for data (an image id, an archive, a table); everything said to people goes to standard error.

mod args;
mod build;
mod buildctl;
mod client;
mod commands;
mod env;
mod error;
mod face;
mod launch;
mod lint;
mod parse;
mod progress;
mod run;
mod units;

use std::ffi::OsString;
use std::io::Write;

use error::CliError;
use face::Face;

fn main() {
    // The executor starts this binary again as the helper that sets up a sandbox; nothing may run before it.
    if kiln_executor::is_sandbox_init() {
        kiln_executor::sandbox_init_main()
    }
    let args: Vec<OsString> = std::env::args_os().collect();
    let face = args.first().map_or(Face::Kiln, |name| Face::of(name));
    let result = match face {
        Face::Kiln => kiln(&args),
        Face::Buildkitd => buildkitd(&args),
        Face::Buildctl => buildctl::run(&args, &env::Env::of_process()),
        other => Err(CliError::environment(format!("this build of kiln has no {} commands", other.name()))
            .hint("invoke the binary as `kiln`")),
    };
    let code = match result {
        Ok(code) => code,
        Err(error) => {
            // Nothing can be done about a standard error that is closed.
            let _ = error.write(&mut std::io::stderr());
            error.exit_code()
        }
    };
    // Threads that still wait (a terminal, a lock) must not hold the process.
    std::process::exit(i32::from(code));
}

/// Returns the exit code, as does every face.
fn kiln(args: &[OsString]) -> Result<u8, CliError> {
    match parse::parse(args)? {
        parse::Parsed::Run(cli) => commands::run(*cli, env::Env::of_process()),
        parse::Parsed::Show(text) => print(&text).map(|()| 0),
    }
}

fn buildkitd(args: &[OsString]) -> Result<u8, CliError> {
    match commands::buildkitd::parse(args)? {
        Ok(flags) => commands::buildkitd::run(flags)?,
        Err(text) => print(&text)?,
    }
    Ok(0)
}

/// Writes data to standard output. A reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::environment(format!("cannot write to standard output: {}", error::io_text(&e))))
        }
        _ => Ok(()),
    }
}
