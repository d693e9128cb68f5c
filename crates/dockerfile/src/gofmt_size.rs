//! Sizes as docker's options have them: `64m`, `1.5g`, `100kb`, binary units.

/// Reads a size in bytes: a number, an optional unit of `b k m g t p`, an optional `i` and `b`.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' '))? + 1;
    let (number, unit) = text.split_at(end);
    let number: f64 = number.trim_end_matches(' ').parse().ok().filter(|n: &f64| *n >= 0.0 && n.is_finite())?;
    let unit = unit.to_ascii_lowercase();
    let (prefix, rest) = match unit.chars().next() {
        None => return to_bytes(number, 1.0),
        Some(c) => (c, &unit[c.len_utf8()..]),
    };
    let power = match prefix {
        'b' => return if rest.is_empty() { to_bytes(number, 1.0) } else { None },
        'k' => 1,
        'm' => 2,
        'g' => 3,
        't' => 4,
        'p' => 5,
        _ => return None,
    };
    matches!(rest, "" | "b" | "ib").then(|| to_bytes(number, 1024f64.powi(power))).flatten()
}

fn to_bytes(number: f64, unit: f64) -> Option<i64> {
    let bytes = number * unit;
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64m", Some(64 << 20)),
            ("1.5KiB", Some(1536)),
            ("2 gb", Some(2 << 30)),
            ("8b", Some(8)),
            ("", None),
            ("x", None),
            ("-1", None),
            ("1mm", None),
            ("1bi", None),
            ("9999999p", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
