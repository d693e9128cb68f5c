//! Private keys that stand in for an SSH agent.

use std::path::{Path, PathBuf};

use signature::Signer;
use ssh_key::private::KeypairData;
use ssh_key::{PrivateKey, Signature};

use crate::error::SessionError;

/// Largest key file in bytes.
const MAX_FILE: u64 = 100 * 1024;
/// Flag of a request to sign with an RSA key.
const RSA_SHA2_512: u32 = 4;

/// Keys by their public half. Nothing prints them.
pub struct KeyRing {
    keys: Vec<Entry>,
}

struct Entry {
    blob: Vec<u8>,
    comment: String,
    key: PrivateKey,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("keys", &self.keys.len()).finish()
    }
}

impl KeyRing {
    /// Reads key files in OpenSSH's format.
    ///
    /// # Errors
    /// A file that cannot be read, is of another format, or needs a passphrase.
    pub fn load(paths: &[PathBuf]) -> Result<Self, SessionError> {
        paths.iter().map(|p| Entry::load(p)).collect::<Result<_, _>>().map(|keys| Self { keys })
    }

    /// Returns the public keys, encoded, with their comments.
    pub(super) fn public_keys(&self) -> impl Iterator<Item = (&[u8], &str)> {
        self.keys.iter().map(|e| (e.blob.as_slice(), e.comment.as_str()))
    }

    /// Signs `data` with the key whose public half is `blob`; none when it is not here or cannot.
    pub(super) fn sign(&self, blob: &[u8], data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let entry = self.keys.iter().find(|e| e.blob == blob)?;
        // Of RSA only with SHA-512, which every maintained server takes; SHA-1 is what is left without flags.
        if matches!(entry.key.key_data(), KeypairData::Rsa(_)) && flags & RSA_SHA2_512 == 0 {
            return None;
        }
        let signature: Signature = entry.key.try_sign(data).ok()?;
        signature.try_into().ok()
    }
}

impl Entry {
    fn load(path: &Path) -> Result<Self, SessionError> {
        let shown = path.display();
        let failed = |e| SessionError::io(format!("failed to read {shown}"), e);
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
            return Err(SessionError::Input(format!("{shown} is too large for a private key")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        if text.contains("ENCRYPTED") {
            return Err(encrypted(path));
        }
        let key = PrivateKey::from_openssh(&text).map_err(|e| {
            let hint = if text.contains("PRIVATE KEY-----") && !text.contains("OPENSSH") {
                format!("; convert a copy of it with: ssh-keygen -p -N '' -f {shown}")
            } else {
                String::new()
            };
            SessionError::Input(format!("failed to parse {shown} as an OpenSSH private key: {e}{hint}"))
        })?;
        if key.is_encrypted() {
            return Err(encrypted(path));
        }
        let blob = key.public_key().to_bytes();
        let blob = blob.map_err(|e| SessionError::Input(format!("failed to encode the public key of {shown}: {e}")))?;
        Ok(Self { blob, comment: key.comment().to_owned(), key })
    }
}

fn encrypted(path: &Path) -> SessionError {
    let shown = path.display();
    SessionError::Input(format!(
        "{shown} is protected by a passphrase: add it to an agent with: ssh-add {shown}, and use --ssh default"
    ))
}
