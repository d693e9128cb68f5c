//! The tree of a parsed Dockerfile. Nothing in it is expanded yet.

use std::sync::Arc;

use crate::directive::Directives;
use crate::source::{Lines, SourceFile};

/// A whole file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Dockerfile {
    pub source: SourceFile,
    pub directives: Directives,
    /// The escape character: `\` or a backtick.
    pub escape: char,
    /// `ARG` instructions before the first `FROM`.
    pub global_args: Vec<Arc<Instruction>>,
    pub stages: Vec<Stage>,
    /// Last lines of instructions that hold an empty continuation line.
    pub empty_continuations: Vec<u32>,
}

/// One build stage: a `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The keyword as written, `FROM` or `from`.
    pub keyword: String,
    /// `AS` as written, and the name as written.
    pub alias: Option<(String, String)>,
    /// The name in lower case.
    pub name: Option<String>,
    /// Image, stage or context, before expansion.
    pub base: String,
    /// Value of `--platform`, before expansion.
    pub platform: Option<String>,
    /// The instruction's text without line breaks.
    pub code: String,
    pub lines: Lines,
    /// Comment lines above, without `#`.
    pub comments: Vec<String>,
    /// Shared with the plan, which holds each again.
    pub instructions: Vec<Arc<Instruction>>,
}

impl Stage {
    /// Returns the description in the comments above: `# <name> <description>`.
    pub fn description(&self) -> Option<&str> {
        self.name.as_deref().and_then(|name| doc_comment(&self.comments, name))
    }
}

/// Finds `<name> <description>` in comments.
pub(crate) fn doc_comment<'a>(comments: &'a [String], name: &str) -> Option<&'a str> {
    comments.iter().find_map(|c| c.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')))
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// The keyword as written.
    pub keyword: String,
    /// The instruction's text without line breaks, continuations joined.
    pub code: String,
    pub lines: Lines,
    /// Comment lines above, without `#`.
    pub comments: Vec<String>,
    pub kind: Kind,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Add(Add),
    Arg(Vec<ArgDef>),
    Cmd(CommandLine),
    Copy(Copy),
    Entrypoint(CommandLine),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// The instruction to run later, with its heredocs, as text.
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `key=value`, or the old form `key value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
    /// Written without `=`.
    pub legacy: bool,
}

/// One name of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDef {
    pub name: String,
    pub default: Option<String>,
    pub description: Option<String>,
}

/// A command in exec form, shell form, or shell form with heredocs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// The words of the exec form; one text for the shell form; none for an empty command.
    pub args: Vec<String>,
    pub heredocs: Vec<Heredoc>,
    /// Shell form.
    pub shell: bool,
}

/// An inline document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heredoc {
    /// The delimiter without quotes.
    pub name: String,
    /// The text as written, tabs included.
    pub content: String,
    /// The delimiter was not quoted.
    pub expand: bool,
    /// `<<-`: leading tabs are dropped.
    pub strip_tabs: bool,
    /// The number before `<<`, 0 when there was none.
    pub descriptor: u64,
}

impl Heredoc {
    /// Returns the text that counts: without leading tabs for `<<-`.
    pub fn text(&self) -> String {
        if self.strip_tabs { crate::lex::heredoc::strip_tabs(&self.content) } else { self.content.clone() }
    }
}

/// A `RUN`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    pub command: CommandLine,
    /// Values of `--mount`.
    pub mounts: Vec<RunMount>,
    pub network: Network,
    pub security: Security,
    /// Values of `--device`.
    pub devices: Vec<RunDevice>,
    /// How old a result may be that is taken from the cache, in seconds: `# kiln: max-age=...`.
    pub max_age: Option<u64>,
}

/// A `--mount` as written; its values are expanded when the instruction is lowered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunMount {
    pub text: String,
    /// The value of `from`, which may not hold variables.
    pub from: Option<String>,
}

/// `RUN --network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    #[default]
    Default,
    None,
    Host,
}

/// `RUN --security`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    #[default]
    Sandbox,
    Insecure,
}

/// `RUN --device`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunDevice {
    pub name: String,
    pub required: bool,
}

/// Sources and destination of `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfer {
    pub sources: Vec<String>,
    /// Heredocs that become files.
    pub inline: Vec<Heredoc>,
    pub dest: String,
    pub chown: String,
    pub chmod: String,
    pub link: bool,
    pub exclude: Vec<String>,
}

/// A `COPY`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    pub transfer: Transfer,
    pub from: Option<String>,
    pub parents: bool,
}

/// An `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    pub transfer: Transfer,
    pub keep_git_dir: Option<bool>,
    pub checksum: String,
    pub unpack: Option<bool>,
}

/// A `HEALTHCHECK`; durations are nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` / `CMD-SHELL` and the command.
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i64,
}
