//! Ages as people write them for what is cached: `90s`, `30m`, `12h`, `7d`, `2w`, `1d12h`.

/// What a number of a unit is in seconds.
const UNITS: [(char, u64); 5] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];

/// What is said of a text that is no age.
pub const EXPECTED: &str = "an age is a number with a unit (s, m, h, d, w), for example 12h or 7d";

/// Reads an age; returns seconds. A number needs a unit, but for 0.
pub fn parse(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut total: Option<u64> = None;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        total = Some(total.unwrap_or(0).checked_add(number.checked_mul(seconds)?)?);
        rest = &rest[digits + unit.len_utf8()..];
    }
    total
}

/// Writes an age in the largest unit that is exact.
pub fn show(seconds: u64) -> String {
    let exact = |(_, unit): &&(char, u64)| seconds > 0 && seconds.is_multiple_of(*unit);
    UNITS.iter().rev().find(exact).map_or("0s".to_owned(), |(name, unit)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (text, seconds) in
            [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("1d12h", 129_600)]
        {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
        for bad in
            ["", "7", "d", "7 d", "-1d", "1.5h", "7y", "7d1", "99999999999999999999d", "99999999999999999w", "7\u{e4}"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for (seconds, text) in [(0, "0s"), (604_800, "1w"), (86_400, "1d"), (5400, "90m"), (61, "61s")] {
            assert_eq!(show(seconds), text);
        }
    }
}
