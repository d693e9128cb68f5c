//! Sizes as the docker command line writes them.

/// Parses a size such as `64m`, `1.5GB` or `512`; `base` is 1000 or 1024, letter case does not matter, `b` may follow.
pub fn parse_size(text: &str, base: u64) -> Result<u64, String> {
    let bad = || format!("invalid size: '{text}'");
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let suffix = suffix.trim_start().to_ascii_lowercase();
    // `ib` is only written after a unit letter.
    let unit = match suffix.as_str() {
        "" | "b" => "",
        s => s.strip_suffix("ib").or_else(|| s.strip_suffix('b')).unwrap_or(s),
    };
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(format!("invalid suffix: '{suffix}'")),
    };
    let bytes = number * (base as f64).powi(power);
    if bytes >= i64::MAX as f64 { Err(bad()) } else { Ok(bytes as u64) }
}

/// Formats a byte count for a table: four significant digits in decimal units, `1.234GB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, base, want) in [
            ("512", 1024, Some(512)),
            ("64m", 1024, Some(64 << 20)),
            ("64M", 1024, Some(64 << 20)),
            ("1.5GB", 1000, Some(1_500_000_000)),
            ("2 gib", 1024, Some(2 << 30)),
            ("10kb", 1000, Some(10_000)),
            ("0", 1024, Some(0)),
            ("", 1024, None),
            ("m", 1024, None),
            ("-5m", 1024, None),
            ("12x", 1024, None),
            ("99999999p", 1024, None),
        ] {
            assert_eq!(parse_size(text, base).ok(), want, "{text}");
        }
    }

    #[test]
    fn human_sizes() {
        for (bytes, want) in
            [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_234_567, "1.235MB"), (45_600_000_000, "45.6GB")]
        {
            assert_eq!(human_size(bytes), want);
        }
    }
}
