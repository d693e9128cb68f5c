//! Repository chores that are too much for a shell line: `cargo run -p xtask -- tidy` prints what breaks the rules.

fn main() -> std::process::ExitCode {
    let Some(task) = std::env::args().nth(1) else {
        return usage();
    };
    match task.as_str() {
        "tidy" => report(&xtask::tidy::check(&xtask::root())),
        "layers" => report(&xtask::layers::check(&xtask::root())),
        "rules" => written(xtask::rules::write(&xtask::root())),
        "features" => written(xtask::features::write(&xtask::root())),
        _ => usage(),
    }
}

fn written(result: std::io::Result<()>) -> std::process::ExitCode {
    report(&result.err().map(|e| e.to_string()).into_iter().collect::<Vec<_>>())
}

#[expect(clippy::print_stderr, reason = "xtask is a command of its own")]
fn usage() -> std::process::ExitCode {
    eprintln!("usage: cargo run -p xtask -- tidy|layers|rules|features");
    std::process::ExitCode::from(2)
}

#[expect(clippy::print_stderr, reason = "xtask is a command of its own")]
fn report(findings: &[String]) -> std::process::ExitCode {
    for finding in findings {
        eprintln!("{finding}");
    }
    std::process::ExitCode::from(u8::from(!findings.is_empty()))
}
