//! The flags of `kiln run`, as written; `options.rs` gives them meaning. They are those of `docker run`.

use clap::{ArgAction, Args};

/// Arguments of `kiln run`.
#[derive(Clone, Debug, Default, Args)]
#[command(override_usage = "kiln run [OPTIONS] IMAGE [COMMAND] [ARG...]", args_override_self = true)]
pub struct RunFlags {
    /// The image (a name, oci-layout://DIR[:TAG][@DIGEST]), and the command in place of its own; nothing after the image is
    /// taken for an option
    #[arg(value_name = "IMAGE", required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,

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
