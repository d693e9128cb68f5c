//! Percent encoding of what stands in addresses and package URLs.

use std::fmt::Write as _;

/// Escapes all but letters, digits, `-._~`, and what is `also_plain`.
pub fn escape(text: &str, also_plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also_plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // A string takes everything.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_plain_bytes_are_escaped() {
        assert_eq!(escape("a b/é~:", b""), "a%20b%2F%C3%A9~%3A");
        assert_eq!(escape("a b/é~:", b"/:"), "a%20b/%C3%A9~:");
    }
}
