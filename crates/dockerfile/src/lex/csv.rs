//! One line of comma-separated values, quoted with `"` where needed: the form of `--mount` and of list options.

/// Splits a line into its fields.
///
/// # Errors
/// A quote inside a bare field, or an unclosed one.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        let tail;
        if let Some(quoted) = rest.strip_prefix('"') {
            let (value, after) = quoted_field(quoted).ok_or("extraneous or missing \" in quoted-field")?;
            out.push(value);
            tail = after;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let value = &rest[..end];
            if value.contains('"') {
                return Err("bare \" in non-quoted-field".into());
            }
            out.push(value.to_owned());
            tail = &rest[end..];
        }
        match tail.strip_prefix(',') {
            Some(next) => rest = next,
            None if tail.is_empty() => return Ok(out),
            None => return Err("extraneous or missing \" in quoted-field".into()),
        }
    }
}

/// Reads up to the closing quote; a doubled quote stands for one.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let at = rest.find('"')?;
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                value.push('"');
                rest = next;
            }
            None => return Some((value, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn fields_and_quotes() {
        assert_eq!(fields("a=b,c").unwrap(), ["a=b", "c"]);
        assert_eq!(fields("\"x=1,2\",\"say \"\"hi\"\"\",").unwrap(), ["x=1,2", "say \"hi\"", ""]);
        assert_eq!(fields("").unwrap(), [""]);
        for bad in ["a\"b", "\"a", "\"a\"b,c"] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }
}
