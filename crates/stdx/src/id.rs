//! Random identifiers in the form BuildKit's clients use: 25 characters of lower-case base 36.

use std::cell::Cell;

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes the identifiers of this thread follow from `seed`, for simulations that must be repeatable; `None` makes them
/// random again.
pub fn seed_ids(seed: Option<u64>) {
    SEEDED.set(seed);
}

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
    if let Some(seed) = SEEDED.get() {
        SEEDED.set(Some(seed.wrapping_add(1)));
        let digest = crate::Digest::of(seed.to_le_bytes());
        bytes.copy_from_slice(&digest.as_bytes()[..bytes.len()]);
        return;
    }
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

    #[test]
    fn seeded_ids_repeat_on_their_thread_only() {
        super::seed_ids(Some(7));
        let (a, b) = (super::rand_id(), super::rand_id());
        super::seed_ids(Some(7));
        assert_eq!((&a, &b), (&super::rand_id(), &super::rand_id()));
        assert_ne!(a, b);
        super::seed_ids(Some(7));
        assert_ne!(std::thread::spawn(super::rand_id).join().unwrap(), a);
        super::seed_ids(None);
        assert_ne!(super::rand_id(), a);
    }
}
