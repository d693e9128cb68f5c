//! Random identifiers in the form BuildKit's clients use: 25 characters of lower-case base 36.

/// Returns a fresh random identifier of 25 characters from `0-9a-z`; about 128 bits of it are random.
pub fn rand_id() -> String {
    let mut bytes = [0u8; 16];
    fill(&mut bytes);
    let mut value = u128::from_le_bytes(bytes);
    let mut text = [b'0'; 25];
    for place in text.iter_mut().rev() {
        let digit = (value % 36) as u8;
        *place = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        value /= 36;
    }
    text.iter().map(|&b| char::from(b)).collect()
}

fn fill(bytes: &mut [u8]) {
    let mut done = 0;
    while done < bytes.len() {
        // SAFETY: the pointer and length describe the part of `bytes` that is not filled yet.
        let n = unsafe { libc::getrandom(bytes[done..].as_mut_ptr().cast(), bytes.len() - done, 0) };
        if n > 0 {
            done += n.unsigned_abs();
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_well_formed_and_differ() {
        let (a, b) = (super::rand_id(), super::rand_id());
        assert_eq!(a.len(), 25);
        assert!(a.bytes().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()));
        assert_ne!(a, b);
    }
}
