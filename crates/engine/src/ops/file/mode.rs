//! Symbolic file modes, `u+x,go-w`, as `chmod(1)` of POSIX has them.

/// Why a text is no symbolic mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode {0:?}: expected octal digits or a list like u+x,go-w")]
pub struct BadMode(String);

/// Applies a symbolic mode to the bits of a file.
///
/// # Errors
/// A text that is not of the form.
pub fn apply(text: &str, mode: u32, is_dir: bool) -> Result<u32, BadMode> {
    let bad = || BadMode(text.to_owned());
    if text.is_empty() {
        return Err(bad());
    }
    let mut result = mode & 0o7777;
    for clause in text.split(',') {
        let actions = clause.find(['+', '-', '=']).ok_or_else(bad)?;
        let who = who(&clause[..actions]).ok_or_else(bad)?;
        let mut rest = &clause[actions..];
        while let Some(action) = rest.chars().next() {
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |i| i + 1);
            let bits = bits(&rest[1..end], result, is_dir, who).ok_or_else(bad)?;
            result = match action {
                '+' => result | bits,
                '-' => result & !bits,
                _ => (result & !clearing(who, is_dir)) | bits,
            };
            rest = &rest[end..];
        }
    }
    Ok(result)
}

/// Returns the permission bits of the classes named, all without set-id bits.
fn who(text: &str) -> Option<u32> {
    text.chars()
        .try_fold(0, |mask, c| {
            Some(
                mask | match c {
                    'u' => 0o700,
                    'g' => 0o070,
                    'o' => 0o007,
                    'a' => 0o777,
                    _ => return None,
                },
            )
        })
        .map(|mask| if mask == 0 { 0o777 } else { mask })
}

fn bits(text: &str, mode: u32, is_dir: bool, who: u32) -> Option<u32> {
    let mut bits = 0;
    for c in text.chars() {
        bits |= match c {
            'r' => 0o444 & who,
            'w' => 0o222 & who,
            'x' => 0o111 & who,
            'X' if is_dir || mode & 0o111 != 0 => 0o111 & who,
            'X' => 0,
            's' => (if who & 0o700 != 0 { 0o4000 } else { 0 }) | (if who & 0o070 != 0 { 0o2000 } else { 0 }),
            't' => 0o1000,
            'u' => spread(mode >> 6) & who,
            'g' => spread(mode >> 3) & who,
            'o' => spread(mode) & who,
            _ => return None,
        };
    }
    Some(bits)
}

/// What `=` takes away first. A directory keeps its set-group bit unless it is named, as GNU chmod does.
fn clearing(who: u32, is_dir: bool) -> u32 {
    let special =
        (if who & 0o700 != 0 && !is_dir { 0o4000 } else { 0 }) | (if who & 0o070 != 0 && !is_dir { 0o2000 } else { 0 });
    who | special
}

fn spread(bits: u32) -> u32 {
    let bits = bits & 0o7;
    bits << 6 | bits << 3 | bits
}

#[cfg(test)]
mod tests {
    use super::apply;

    #[test]
    fn symbolic_modes() {
        for (text, mode, dir, want) in [
            ("u+x", 0o644, false, 0o744),
            ("go-w", 0o666, false, 0o644),
            ("a=rX", 0o644, false, 0o444),
            ("a=rX", 0o744, false, 0o555),
            ("a=rX", 0o700, true, 0o555),
            ("u=rwx,go=rx", 0, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("g=u", 0o740, false, 0o770),
            ("u+s,+t", 0o755, false, 0o5755),
            ("u+x-w", 0o600, false, 0o500),
        ] {
            assert_eq!(apply(text, mode, dir).map(|m| format!("{m:o}")), Ok(format!("{want:o}")), "{text}");
        }
        for text in ["", "755", "z+x", "u", "u+q", "u+x,"] {
            assert!(apply(text, 0, false).is_err(), "{text}");
        }
    }
}
