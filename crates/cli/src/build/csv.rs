//! One line of comma-separated fields, as flag values are written: `type=oci,"dest=a,b"`.

/// Splits `text` into fields. A field in double quotes may hold commas; a quote in it is written twice.
pub fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        let (field, tail) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted, text)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err(format!("bare \" in field of `{text}`"));
                }
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        out.push(field);
        match tail.strip_prefix(',') {
            Some(tail) => rest = tail,
            None => return Ok(out),
        }
    }
}

fn quoted_field<'a>(quoted: &'a str, text: &str) -> Result<(String, &'a str), String> {
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let Some(end) = rest.find('"') else {
            return Err(format!("quote is not closed in `{text}`"));
        };
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.chars().next() {
            Some('"') => {
                field.push('"');
                rest = &rest[1..];
            }
            None | Some(',') => return Ok((field, rest)),
            Some(_) => return Err(format!("extraneous text after a quoted field in `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let ok: &[(&str, &[&str])] = &[
            ("", &[""]),
            ("a", &["a"]),
            ("a,b=c", &["a", "b=c"]),
            ("a,,", &["a", "", ""]),
            (r#"type=oci,"dest=x,y",z=1"#, &["type=oci", "dest=x,y", "z=1"]),
            (r#""say ""hi""""#, &[r#"say "hi""#]),
        ];
        for (text, want) in ok {
            assert_eq!(fields(text).unwrap_or_default(), *want, "{text}");
        }
        for text in [r#"a"b"#, r#""a"#, r#""a"b"#] {
            assert!(fields(text).is_err(), "{text}");
        }
    }
}
