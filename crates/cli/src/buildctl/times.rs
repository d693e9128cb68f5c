//! Times and sizes in the forms that client writes.

use jiff::Timestamp;

/// Returns a moment of the wire.
pub fn moment(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// Words a moment for JSON: UTC, as many digits as it has.
pub fn json(time: &prost_types::Timestamp) -> String {
    moment(time).map(|t| t.to_string()).unwrap_or_default()
}

/// Words a moment for people: `2026-01-02 15:04:05.123 +0000 UTC`.
pub fn long(time: &prost_types::Timestamp) -> String {
    let text = json(time);
    let (date, clock) = text.split_once('T').unwrap_or((&text, ""));
    format!("{date} {} +0000 UTC", clock.trim_end_matches('Z'))
}

/// Words a moment for a table, in whole seconds and local time: `2026-01-02T15:04:05+01:00`.
pub fn local(time: &prost_types::Timestamp) -> String {
    // SAFETY: `tm` is a plain structure that `localtime_r` fills in; both pointers are of live values.
    let offset = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        let seconds: libc::time_t = time.seconds;
        if libc::localtime_r(&raw const seconds, &raw mut tm).is_null() { 0 } else { tm.tm_gmtoff }
    };
    let text = Timestamp::from_second(time.seconds + offset).map(|t| t.to_string()).unwrap_or_default();
    let clock = text.trim_end_matches('Z');
    if offset == 0 {
        return format!("{clock}Z");
    }
    let (sign, minutes) = (if offset < 0 { '-' } else { '+' }, offset.abs() / 60);
    format!("{clock}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

/// Words a size: `123B`, `1.23kB`; with `digits` behind the point, or as few as it takes.
pub fn size(bytes: i64, digits: Option<usize>) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut power = 0;
    let mut base = 1_u64;
    while power + 1 < UNITS.len() && bytes.unsigned_abs() >= base * 1000 {
        base *= 1000;
        power += 1;
    }
    if power == 0 {
        return format!("{bytes}B");
    }
    let value = bytes as f64 / base as f64;
    match digits {
        Some(digits) => format!("{value:.digits$}{}", UNITS[power]),
        None => format!("{value}{}", UNITS[power]),
    }
}

/// Words a span of nanoseconds: `48h0m0s`.
pub fn span(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(size(999, Some(2)), "999B");
        assert_eq!(size(1234, Some(2)), "1.23kB");
        assert_eq!(size(10_000_000_000, None), "10GB");
        assert_eq!(size(1_200, None), "1.2kB");
        assert_eq!(size(0, Some(2)), "0B");
    }

    #[test]
    fn times_have_three_forms() {
        let time = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 120_000_000 };
        assert_eq!(json(&time), "2023-11-14T22:13:20.12Z");
        assert_eq!(long(&time), "2023-11-14 22:13:20.12 +0000 UTC");
        assert!(local(&time).starts_with("2023-11-1") && !local(&time).contains('.'));
        assert_eq!(span(172_800_000_000_000), "48h0m0s");
        assert_eq!(span(61_000_000_000), "1m1s");
    }
}
