//! HMAC over SHA-256, as RFC 2104 has it.

use kiln_stdx::Digest;

pub fn keyed(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    match key.len() > block.len() {
        true => block[..32].copy_from_slice(Digest::of(key).as_bytes()),
        false => block[..key.len()].copy_from_slice(key),
    }
    let inner = Digest::of([&block.map(|b| b ^ 0x36)[..], text].concat());
    *Digest::of([&block.map(|b| b ^ 0x5c)[..], inner.as_bytes()].concat()).as_bytes()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_known_value() {
        // RFC 4231, test case 2.
        let found = super::hex(&super::keyed(b"Jefe", b"what do ya want for nothing?"));
        assert_eq!(found, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
