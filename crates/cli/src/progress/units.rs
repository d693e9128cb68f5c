//! Numbers as the progress views print them.

/// Formats a byte count in decimal units with two decimals; whole bytes below 1 kB: `123B`, `1.23kB`, `45.00MB`.
pub fn bytes(n: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = n.unsigned_abs() as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{n}B");
    }
    let sign = if n < 0 { "-" } else { "" };
    format!("{sign}{value:.2}{}", UNITS[unit])
}

/// Formats `current / total`, or what of it is known; empty when neither is.
pub fn transfer(current: i64, total: i64) -> String {
    match (current, total) {
        (0, 0) => String::new(),
        (_, 0) => bytes(current),
        _ => format!("{} / {}", bytes(current), bytes(total)),
    }
}

/// Formats the time stamp of a log line in seconds: three decimals below 10 s, two below 100 s, then one.
pub fn log_seconds(seconds: f64) -> String {
    let precision = if seconds < 10.0 {
        3
    } else if seconds < 100.0 {
        2
    } else {
        1
    };
    format!("{seconds:.precision$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (n, want) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1234, "1.23kB"),
            (45_000_000, "45.00MB"),
            (3_999_000_000, "4.00GB"),
            (-2500, "-2.50kB"),
        ] {
            assert_eq!(bytes(n), want);
        }
        assert_eq!(transfer(0, 0), "");
        assert_eq!(transfer(12, 0), "12B");
        assert_eq!(transfer(0, 2000), "0B / 2.00kB");
        assert_eq!(log_seconds(0.1234), "0.123");
        assert_eq!(log_seconds(12.345), "12.35");
        assert_eq!(log_seconds(123.45), "123.5");
    }
}
