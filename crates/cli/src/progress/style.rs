//! Colours of the terminal view: `BUILDKIT_COLORS`, `NO_COLOR`.
//!
//! `BUILDKIT_COLORS` is a list of `what=colour` separated by `:`; `what` is `run`, `cancel`, `error` or `warning`, a colour
//! is a name (`blue`, `light-red`, `default`) or `R,G,B`. Parts that are not understood are ignored.

/// Escape sequences (without the reset) for the kinds of lines; empty for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// A step that ended well.
    pub run: String,
    /// A step that was cancelled, and warnings among the steps.
    pub cancel: String,
    /// A step that failed.
    pub error: String,
    /// The list of warnings at the end.
    pub warning: String,
    /// Output of steps.
    pub faint: String,
}

/// Ends what a style began.
pub const RESET: &str = "\x1b[0m";

impl Style {
    /// Returns a style without any colour.
    pub fn none() -> Style {
        let none = String::new();
        Style { run: none.clone(), cancel: none.clone(), error: none.clone(), warning: none.clone(), faint: none }
    }

    /// Returns the style asked for by the values of `NO_COLOR` and `BUILDKIT_COLORS`.
    pub fn from_env(no_color: Option<&str>, colors: Option<&str>) -> Style {
        if no_color.is_some_and(|v| !v.is_empty()) {
            return Style::none();
        }
        let named = |name: &str| named(name).unwrap_or_default();
        let mut style = Style {
            run: named("blue"),
            cancel: named("yellow"),
            error: named("red"),
            warning: named("yellow"),
            faint: "\x1b[2m".to_owned(),
        };
        for part in colors.unwrap_or_default().split(':') {
            let Some((what, colour)) = part.split_once('=') else { continue };
            let Some(code) = named_or_rgb(&colour.to_ascii_lowercase()) else { continue };
            match what.to_ascii_lowercase().as_str() {
                "run" => style.run = code,
                "cancel" => style.cancel = code,
                "error" => style.error = code,
                "warning" => style.warning = code,
                _ => {}
            }
        }
        style
    }

    /// Wraps `text` in the escape sequence `code`.
    pub fn paint(code: &str, text: &str) -> String {
        if code.is_empty() { text.to_owned() } else { format!("{code}{text}{RESET}") }
    }
}

fn named(name: &str) -> Option<String> {
    const NAMES: [&str; 8] = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
    if name == "default" {
        return Some("\x1b[39m".to_owned());
    }
    let (base, name) = match name.strip_prefix("light-") {
        Some(name) => (90, name),
        None => (30, name),
    };
    NAMES.iter().position(|n| *n == name).map(|i| format!("\x1b[{}m", base + i))
}

fn named_or_rgb(colour: &str) -> Option<String> {
    if let Some(code) = named(colour) {
        return Some(code);
    }
    let parts: Vec<u8> = colour.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [r, g, b] => Some(format!("\x1b[38;2;{r};{g};{b}m")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_chooses_colours() {
        let style = Style::from_env(None, Some("run=green:error=255,0,7:cancel=nonsense:warning=1,2"));
        assert_eq!(style.run, "\x1b[32m");
        assert_eq!(style.error, "\x1b[38;2;255;0;7m");
        assert_eq!(style.cancel, "\x1b[33m");
        assert_eq!(style.warning, "\x1b[33m");
        assert_eq!(Style::from_env(None, Some("run=light-cyan")).run, "\x1b[96m");
    }

    #[test]
    fn no_color_wins() {
        assert_eq!(Style::from_env(Some("1"), Some("run=green")), Style::none());
        assert_ne!(Style::from_env(Some(""), None), Style::none());
        assert_eq!(Style::paint("", "x"), "x");
    }
}
