//! The tab's identity: an Ed25519 key that it made itself and keeps as long as the browser
//! keeps this origin's files.

use ed25519_dalek::{Signer, SigningKey};

use super::js;
use super::storage::Store;

const FILE: &str = "key";

/// A key.
pub struct Identity(SigningKey);

impl Identity {
    /// The key that is kept, or a new one, which is kept if that is possible.
    ///
    /// # Errors
    /// The browser gives no random numbers.
    pub async fn open(store: Option<&Store>) -> Result<Identity, String> {
        if let Some(store) = store
            && let Ok(Some(key)) = store.read_small(FILE).await
            && let Ok(key) = <[u8; 32]>::try_from(key)
        {
            return Ok(Identity(SigningKey::from_bytes(&key)));
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| format!("the browser gives no random key: {e}"))?;
        if let Some(store) = store
            && let Err(error) = store.write_small(FILE, &key).await
        {
            js::warn(&format!("the key is not kept: {error}"));
        }
        Ok(Identity(SigningKey::from_bytes(&key)))
    }

    /// The public key, hex.
    pub fn public_key(&self) -> String {
        hex(self.0.verifying_key().as_bytes())
    }

    /// A signature, hex.
    pub fn sign(&self, message: &[u8]) -> String {
        hex(&self.0.sign(message).to_bytes())
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}
