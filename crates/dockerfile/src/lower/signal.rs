//! Names of signals that `STOPSIGNAL` takes, on Linux.

use crate::diag::{Fault, Outcome};

const NAMES: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
];

/// Accepts numbers but 0, and names with or without `SIG`, in any case.
pub(super) fn check(text: &str) -> Outcome<()> {
    let bad = || Fault::new(format!("invalid signal: {text}")).hint("give a number, or a name such as SIGTERM");
    if let Ok(number) = text.parse::<i64>() {
        return if number == 0 { Err(bad()) } else { Ok(()) };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if NAMES.contains(&name) || real_time(name) { Ok(()) } else { Err(bad().did_you_mean(name, NAMES)) }
}

/// `RTMIN+1` to `RTMIN+15`, `RTMAX-14` to `RTMAX`.
fn real_time(name: &str) -> bool {
    let within = |text: &str, max: u8| {
        !text.starts_with('0') && text.parse::<u8>().is_ok_and(|n| (1..=max).contains(&n) && n.to_string() == text)
    };
    name == "RTMAX"
        || name.strip_prefix("RTMIN+").is_some_and(|n| within(n, 15))
        || name.strip_prefix("RTMAX-").is_some_and(|n| within(n, 14))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn signals() {
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3", "RTMAX-14", "sigusr1"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["0", "", "SIGNOPE", "RTMIN+16", "RTMIN+01", "SIGSIGTERM"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
