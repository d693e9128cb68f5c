//! Which view is used: `--progress`, `-q`, `BUILDKIT_PROGRESS`, and whether standard error is a terminal.

use super::style::Style;
use crate::error::CliError;

/// A view of the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The live view.
    Tty,
    /// Text lines.
    Plain,
    /// JSON lines.
    RawJson,
    /// Nothing, and the image id on standard output at the end.
    Quiet,
    /// Nothing at all.
    None,
}

/// Names accepted by `--progress`.
pub const NAMES: [&str; 6] = ["auto", "none", "plain", "quiet", "rawjson", "tty"];

/// What the environment says about progress.
#[derive(Clone, Debug)]
pub struct ProgressEnv {
    /// What is going on, at the head of the live view.
    pub phase: &'static str,
    /// Value of `BUILDKIT_PROGRESS`; used when the mode is `auto`.
    pub mode: Option<String>,
    /// Whether standard error is a terminal.
    pub terminal: bool,
    /// Lines of step output in the live view (`BUILDKIT_TTY_LOG_LINES`, default 6).
    pub log_lines: u16,
    /// Milliseconds between frames (`TTY_DISPLAY_RATE`).
    pub frame_millis: Option<u64>,
    /// Whether plain names are cut (`PROGRESS_NO_TRUNC=0`).
    pub short_names: bool,
    /// Colours (`NO_COLOR`, `BUILDKIT_COLORS`).
    pub style: Style,
}

impl ProgressEnv {
    /// Reads the variables through `var`.
    pub fn read(var: impl Fn(&str) -> Option<String>, terminal: bool) -> ProgressEnv {
        ProgressEnv {
            phase: "Building",
            mode: var("BUILDKIT_PROGRESS").filter(|v| !v.is_empty()),
            terminal,
            log_lines: var("BUILDKIT_TTY_LOG_LINES").and_then(|v| v.parse().ok()).filter(|&n| n > 0).unwrap_or(6),
            frame_millis: var("TTY_DISPLAY_RATE").and_then(|v| v.parse().ok()).filter(|&n| n > 0),
            short_names: var("PROGRESS_NO_TRUNC").as_deref() == Some("0"),
            style: Style::from_env(var("NO_COLOR").as_deref(), var("BUILDKIT_COLORS").as_deref()),
        }
    }
}

impl Mode {
    /// Chooses the view for the value of `--progress` (`auto` when absent) and `-q`.
    pub fn choose(flag: Option<&str>, quiet: bool, env: &ProgressEnv) -> Result<Mode, CliError> {
        let asked = flag.unwrap_or("auto");
        let name = match &env.mode {
            Some(mode) if asked == "auto" && !quiet => mode.as_str(),
            _ => asked,
        };
        if quiet && !matches!(asked, "auto" | "quiet" | "none") {
            return Err(CliError::user(format!("progress={asked} and quiet cannot be used together")));
        }
        match name {
            "none" if !quiet => Ok(Mode::None),
            _ if quiet => Ok(Mode::Quiet),
            "quiet" => Ok(Mode::Quiet),
            "plain" => Ok(Mode::Plain),
            "rawjson" => Ok(Mode::RawJson),
            "auto" => Ok(if env.terminal { Mode::Tty } else { Mode::Plain }),
            "tty" if env.terminal => Ok(Mode::Tty),
            "tty" => Err(CliError::user("failed to get console: standard error is not a terminal")
                .hint("use --progress=plain, or leave --progress out")),
            other => Err(CliError::user(format!("invalid progress mode {other}")).nearest(
                "progress mode",
                other,
                NAMES.iter().copied(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(mode: Option<&str>, terminal: bool) -> ProgressEnv {
        let mode = mode.map(str::to_owned);
        ProgressEnv::read(|name| mode.clone().filter(|_| name == "BUILDKIT_PROGRESS"), terminal)
    }

    #[test]
    fn modes() {
        type Case<'a> = (Option<&'a str>, bool, Option<&'a str>, bool, Result<Mode, &'a str>);
        let table: &[Case] = &[
            (None, false, None, true, Ok(Mode::Tty)),
            (None, false, None, false, Ok(Mode::Plain)),
            (Some("auto"), false, Some("plain"), true, Ok(Mode::Plain)),
            (Some("rawjson"), false, Some("plain"), true, Ok(Mode::RawJson)),
            (Some("none"), false, None, true, Ok(Mode::None)),
            (Some("quiet"), false, None, true, Ok(Mode::Quiet)),
            (None, true, Some("plain"), true, Ok(Mode::Quiet)),
            (Some("plain"), true, None, true, Err("progress=plain and quiet cannot be used together")),
            (Some("fancy"), false, None, true, Err("invalid progress mode fancy")),
            (Some("tty"), false, None, false, Err("failed to get console: standard error is not a terminal")),
        ];
        for (flag, quiet, variable, terminal, want) in table {
            let got = Mode::choose(*flag, *quiet, &env(*variable, *terminal));
            assert_eq!(got.map_err(|e| e.message().to_owned()), want.map_err(str::to_owned), "{flag:?} {variable:?}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_ignored() {
        let env = ProgressEnv::read(|_| Some("0".to_owned()), false);
        assert_eq!((env.log_lines, env.frame_millis, env.short_names), (6, None, true));
    }
}
