//! Amounts of disk space and durations, as configuration files and flags write them.

use std::time::Duration;

/// An amount of disk space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// So many bytes.
    Bytes(u64),
    /// A part of the file system, in hundredths.
    Percent(u64),
}

impl Default for Space {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// What a percentage is taken for where the size of the file system is not known.
const UNKNOWN: u64 = 2_000_000_000;
const GIBI: u64 = 1 << 30;

impl Space {
    /// Reads `10%`, `512MB` (a multiple of 1024) or a number of bytes.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("invalid disk space {text:?}, write for example \"10GB\" or \"20%\"");
        let text = text.trim();
        if let Some(number) = text.strip_suffix('%') {
            return number.trim().parse().map(Self::Percent).map_err(|_| bad());
        }
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let number: f64 = text[..digits].parse().map_err(|_| bad())?;
        let unit = text[digits..].trim().to_ascii_lowercase();
        let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
        let power = ["", "k", "m", "g", "t", "p"].iter().position(|u| *u == unit).ok_or_else(bad)?;
        let bytes = number * 1024_f64.powi(i32::try_from(power).unwrap_or(0));
        if !(0.0..=9e18).contains(&bytes) {
            return Err(bad());
        }
        // Whole bytes: the amount is below 2^63.
        Ok(Self::Bytes(bytes as u64))
    }

    /// Reads a value of a configuration file: text or a number.
    ///
    /// # Errors
    /// Any other value.
    pub fn of_value(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(n) => {
                u64::try_from(*n).map(Self::Bytes).map_err(|_| format!("invalid disk space {n}"))
            }
            toml::Value::String(text) if text.is_empty() => Ok(Self::default()),
            toml::Value::String(text) => Self::parse(text),
            other => Err(format!("invalid disk space {other}")),
        }
    }

    /// Returns the bytes on a file system of `total` bytes; a percentage is rounded up to full gigabytes.
    pub fn bytes(self, total: Option<u64>) -> u64 {
        match (self, total) {
            (Self::Bytes(bytes), _) => bytes,
            (Self::Percent(0), _) => 0,
            (Self::Percent(_), None) => UNKNOWN,
            (Self::Percent(part), Some(total)) => {
                (total.saturating_mul(part) / 100 / GIBI + 1).saturating_mul(1_000_000_000)
            }
        }
    }

    /// Returns whether this is nothing.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Bytes(0) | Self::Percent(0))
    }
}

/// Reads `"48h"`, `"1h30m"` or a number of seconds.
///
/// # Errors
/// Any other value.
pub fn duration(value: &toml::Value) -> Result<Duration, String> {
    match value {
        toml::Value::Integer(seconds) => {
            u64::try_from(*seconds).map(Duration::from_secs).map_err(|_| format!("bad duration {seconds}"))
        }
        toml::Value::String(text) => text
            .parse()
            .map(Duration::from_secs)
            .ok()
            .or_else(|| parts(text))
            .ok_or_else(|| format!("bad duration {text:?}")),
        other => Err(format!("bad duration {other}")),
    }
}

/// Adds up numbers with units, largest first.
fn parts(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let seconds = match &rest[digits..unit_end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_bytes_units_or_a_part() {
        for (text, space) in [
            ("0", Space::Bytes(0)),
            ("1234", Space::Bytes(1234)),
            ("512MB", Space::Bytes(512 << 20)),
            ("1.5g", Space::Bytes(3 << 29)),
            ("2 GiB", Space::Bytes(2 << 30)),
            ("15%", Space::Percent(15)),
        ] {
            assert_eq!(Space::parse(text), Ok(space), "{text}");
        }
        for bad in ["", "x", "5 stones", "-1", "%", "1e400GB"] {
            assert!(Space::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_are_rounded_up() {
        assert_eq!(Space::Percent(10).bytes(Some(100 << 30)), 11_000_000_000);
        assert_eq!(Space::Percent(10).bytes(None), UNKNOWN);
        assert_eq!(Space::Percent(0).bytes(Some(1 << 40)), 0);
        assert_eq!(Space::Bytes(7).bytes(Some(1 << 40)), 7);
    }
}
