//! The exec form: a JSON array of strings.

/// What an argument text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JsonArray {
    /// An array of strings.
    Strings(Vec<String>),
    /// A JSON array with something else in it.
    NotStrings,
    /// No JSON array: shell form.
    No,
}

/// Reads a text as JSON array.
pub(crate) fn parse(text: &str) -> JsonArray {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return JsonArray::No;
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return JsonArray::No };
    let mut out = Vec::with_capacity(values.len());
    for value in values {
        match value {
            serde_json::Value::String(s) => out.push(s),
            _ => return JsonArray::NotStrings,
        }
    }
    JsonArray::Strings(out)
}

#[cfg(test)]
mod tests {
    use super::{JsonArray, parse};

    #[test]
    fn only_arrays_of_strings() {
        assert_eq!(parse(" [\"a\", \"b\\n\"] "), JsonArray::Strings(vec!["a".into(), "b\n".into()]));
        assert_eq!(parse("[]"), JsonArray::Strings(Vec::new()));
        assert_eq!(parse("[1]"), JsonArray::NotStrings);
        assert_eq!(parse("['a']"), JsonArray::No);
        assert_eq!(parse("[\"a\"] b"), JsonArray::No);
        assert_eq!(parse("echo"), JsonArray::No);
    }
}
