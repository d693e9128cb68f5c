//! The flags of `kiln run`, as written; `options.rs` gives them meaning. They are those of `docker run`.

use std::ffi::OsString;

use clap::{ArgAction, Args, Command};

/// Arguments of `kiln run`.
#[derive(Clone, Debug, Default, Args)]
#[command(override_usage = "kiln run [OPTIONS] IMAGE [COMMAND] [ARG...]", args_override_self = true)]
pub struct RunFlags {
    /// The image: a name, or oci-layout://DIR[:TAG][@DIGEST]
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The command, in place of the image's; nothing of it is taken for an option
    #[arg(value_name = "COMMAND")]
    pub command: Vec<String>,

    /// Program to run in place of the image's entrypoint
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub entrypoint: Option<String>,
    /// Set a variable; without a value, as it is here
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    pub env: Vec<String>,
    /// Set the variables of a file, one a line
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub env_file: Vec<String>,
    /// Host name of the process
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub hostname: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i', action = ArgAction::SetTrue)]
    pub interactive: bool,
    /// Network of the process: auto, host or none
    #[arg(long, value_name = "MODE", default_value = "auto", hide_default_value = true)]
    pub network: String,
    /// How a pull is shown: auto, none, plain, rawjson, tty
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    pub progress: Option<String>,
    /// Reach a port of the process on 127.0.0.1
    #[arg(long, short = 'p', value_name = "[HOSTPORT:]PORT", allow_hyphen_values = true)]
    pub publish: Vec<String>,
    /// When to ask the registry: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing", hide_default_value = true)]
    pub pull: String,
    /// The process cannot write to its root
    #[arg(long, action = ArgAction::SetTrue)]
    pub read_only: bool,
    /// For those who are used to it: nothing is ever left behind
    #[arg(long, action = ArgAction::SetTrue)]
    pub rm: bool,
    /// Give the process a terminal
    #[arg(long, short = 't', action = ArgAction::SetTrue)]
    pub tty: bool,
    /// User of the process (USER|UID[:GROUP|GID])
    #[arg(long, short = 'u', value_name = "USER", allow_hyphen_values = true)]
    pub user: Option<String>,
    /// Show a file or directory of this host to the process
    #[arg(long, short = 'v', value_name = "SOURCE:DEST[:ro]", allow_hyphen_values = true)]
    pub volume: Vec<String>,
    /// Working directory of the process
    #[arg(long, short = 'w', value_name = "DIR", allow_hyphen_values = true)]
    pub workdir: Option<String>,
}

/// Ends the options of a `kiln run` after its image, as `docker run` has it: what follows is the command's, whatever it
/// looks like. Other command lines are left as they are.
pub fn end_options(grammar: &Command, args: &[OsString]) -> Vec<OsString> {
    let mut out = args.to_vec();
    let Some(run) = grammar.find_subcommand("run") else { return out };
    let known: Vec<_> = grammar.get_arguments().chain(run.get_arguments()).collect();
    let takes_value = |found: Option<&&clap::Arg>| found.is_some_and(|arg| arg.get_action().takes_values());
    let mut place = 1;
    let mut command = false;
    while let Some(word) = args.get(place).and_then(|word| word.to_str()) {
        place += 1;
        if word == "--" {
            return out;
        } else if let Some(long) = word.strip_prefix("--") {
            let alone = !long.contains('=') && takes_value(known.iter().find(|a| a.get_long() == Some(long)));
            place += usize::from(alone);
        } else if let Some(shorts) = word.strip_prefix('-').filter(|shorts| !shorts.is_empty()) {
            let valued = |letter: char| takes_value(known.iter().find(|a| a.get_short() == Some(letter)));
            // The value is the rest of the word, or the next one.
            let alone = shorts
                .char_indices()
                .find(|(_, c)| valued(*c))
                .is_some_and(|(at, c)| at + c.len_utf8() == shorts.len());
            place += usize::from(alone);
        } else if command {
            out.insert(place, "--".into());
            return out;
        } else if word == "run" {
            command = true;
        } else {
            return out;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_end_with_the_image() {
        let grammar = crate::args::Cli::command();
        let end = |line: &str| {
            let args: Vec<OsString> = line.split(' ').map(Into::into).collect();
            let out = end_options(&grammar, &args);
            out.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        for (line, want) in [
            ("kiln run app ls -e", "kiln run app -- ls -e"),
            ("kiln run -e A app -e", "kiln run -e A app -- -e"),
            ("kiln run -eA --rm app --help", "kiln run -eA --rm app -- --help"),
            (
                "kiln --root /x run -ite A --env-file f --pull=never app",
                "kiln --root /x run -ite A --env-file f --pull=never app --",
            ),
            ("kiln run -it -p80 app sh", "kiln run -it -p80 app -- sh"),
            ("kiln run --rm -- app -x", "kiln run --rm -- app -x"),
            ("kiln run --help", "kiln run --help"),
            ("kiln build -t run .", "kiln build -t run ."),
        ] {
            assert_eq!(end(line), want);
        }
    }
}
