//! Reads the command line, and says what is wrong with it in the words people know.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command as Grammar, CommandFactory, Parser};

use crate::args::Cli;
use crate::error::CliError;
use crate::run::flags::end_options;
use kiln_stdx::suggest::nearest;

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A command.
    Run(Box<Cli>),
    /// A text for standard output: help or version.
    Show(String),
}

/// Parses the arguments, the first of which is the name of the program.
pub fn parse(args: &[OsString]) -> Result<Parsed, CliError> {
    match Cli::try_parse_from(end_options(&Cli::command(), args)) {
        Ok(cli) => Ok(Parsed::Run(Box::new(cli))),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Show(error.render().to_string())),
            _ => Err(explain(&error, args)),
        },
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(s) => Some(s.clone()),
        ContextValue::Strings(s) => s.first().cloned(),
        _ => None,
    }
}

fn explain(error: &clap::Error, args: &[OsString]) -> CliError {
    let grammar = Cli::command();
    let (command, path) = invoked(&grammar, args);
    let help = format!("see '{path} --help'");
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with("--") => unknown_flag(command, &argument).hint(help),
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let letter = argument.chars().nth(1).unwrap_or('-');
            CliError::user(format!("unknown shorthand flag: '{letter}' in {argument}")).hint(help)
        }
        ErrorKind::UnknownArgument => CliError::user(format!("unexpected argument \"{argument}\"")).hint(help),
        ErrorKind::InvalidSubcommand => {
            let name = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            let names: Vec<&str> = command.get_subcommands().map(Grammar::get_name).collect();
            CliError::user(format!("unknown command: \"{name}\"")).nearest("command", &name, names.iter().copied())
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            CliError::user(format!("{path} needs a command")).hint(help)
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            CliError::user(format!("flag needs an argument: {}", flag_name(&argument))).hint(help)
        }
        ErrorKind::NoEquals => CliError::user(format!("flag needs an argument: {}", flag_name(&argument))).hint(help),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
            let flag = flag_name(&argument);
            CliError::user(format!("invalid argument \"{value}\" for \"{flag}\" flag{why}")).hint(help)
        }
        ErrorKind::InvalidUtf8 => CliError::user("an argument is not valid UTF-8"),
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            CliError::user(first.strip_prefix("error: ").unwrap_or(first)).hint(help)
        }
    }
}

/// Returns the bare name of a flag that is given with its placeholder, `--file <FILE>`.
fn flag_name(argument: &str) -> &str {
    argument.split([' ', '=', '[']).next().unwrap_or(argument)
}

fn unknown_flag(command: &Grammar, argument: &str) -> CliError {
    let name = flag_name(argument);
    let error = CliError::user(format!("unknown flag: {name}"));
    let known: Vec<String> = command.get_arguments().filter_map(|a| a.get_long()).map(|l| format!("--{l}")).collect();
    match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error,
    }
}

/// Returns the grammar of the command that was invoked, and its name for messages.
fn invoked<'a>(grammar: &'a Grammar, args: &[OsString]) -> (&'a Grammar, String) {
    let mut command = grammar;
    let mut path = grammar.get_name().to_owned();
    for word in args.iter().skip(1).filter_map(|a| a.to_str()) {
        match command.find_subcommand(word) {
            Some(sub) => {
                command = sub;
                path = format!("{path} {}", sub.get_name());
            }
            None if word.starts_with('-') => {}
            None => break,
        }
    }
    (command, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(line: &str) -> (String, Vec<String>) {
        let args: Vec<OsString> = std::iter::once("kiln").chain(line.split_whitespace()).map(OsString::from).collect();
        match parse(&args) {
            Err(e) => (e.message().to_owned(), e.hints().to_vec()),
            Ok(other) => panic!("`{line}` was accepted: {other:?}"),
        }
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_name_the_place_and_the_nearest_name() {
        for (line, message, hint) in [
            ("build --fiel x .", "unknown flag: --fiel", "did you mean --file?"),
            ("build --buildarg=x .", "unknown flag: --buildarg", "did you mean --build-arg?"),
            ("build --zzz .", "unknown flag: --zzz", "see 'kiln build --help'"),
            ("build -z .", "unknown shorthand flag: 'z' in -z", "see 'kiln build --help'"),
            ("biuld .", "unknown command: \"biuld\"", "did you mean `build`?"),
            ("daemon strat", "unknown command: \"strat\"", "the command is one of run, status, stop"),
            ("build . -f", "flag needs an argument: --file", "see 'kiln build --help'"),
            (
                "build --pull=maybe .",
                "invalid argument \"maybe\" for \"--pull\" flag: true or false is expected",
                "see 'kiln build --help'",
            ),
            (
                "prune --reserved-space 5x",
                "invalid argument \"5x\" for \"--reserved-space\" flag: invalid suffix: 'x'",
                "see 'kiln prune --help'",
            ),
            ("daemon", "kiln daemon needs a command", "see 'kiln daemon --help'"),
        ] {
            let (got, hints) = fail(line);
            assert_eq!(got, message, "{line}");
            assert!(hints.iter().any(|h| h == hint), "{line}: {hints:?}");
        }
    }

    #[test]
    fn values_may_begin_with_a_dash() {
        use crate::build::flags::NoCache;
        let args: Vec<OsString> =
            ["kiln", "build", "-o", "-", "-f", "-", "--build-arg", "-x=1", "--pull", "--no-cache=false", "-q", "."]
                .map(OsString::from)
                .to_vec();
        let Ok(Parsed::Run(cli)) = parse(&args) else { panic!("refused") };
        let crate::args::Command::Build(flags) = cli.command else { panic!("not a build") };
        assert_eq!((flags.output, flags.file.as_deref()), (vec!["-".to_owned()], Some("-")));
        assert_eq!((flags.pull, flags.no_cache, flags.quiet), (Some(true), Some(NoCache::Nothing), Some(true)));
        assert_eq!((flags.build_arg, flags.context), (vec!["-x=1".to_owned()], vec![".".to_owned()]));
    }
}
