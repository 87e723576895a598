//! Who may hold the embedding and the head, and so see text.

use protocol::WorkerKind;
use sha2::{Digest, Sha256};

use super::Origin;

/// Whom to trust.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Native workers that connect from this machine are trusted.
    pub loopback: bool,
    /// SHA-256 of each invite token. Comparing hashes takes no time that tells of the token.
    tokens: Vec<[u8; 32]>,
}

impl Trust {
    /// Trusts loopback or not, and whoever shows one of the tokens.
    pub fn new(loopback: bool, invite_tokens: &[String]) -> Trust {
        Trust { loopback, tokens: invite_tokens.iter().map(|token| hash(token)).collect() }
    }

    /// Whether a peer is trusted.
    ///
    /// # Errors
    /// It shows a token that is none of ours.
    pub(super) fn judge(
        &self,
        origin: Origin,
        kind: WorkerKind,
        token: Option<&str>,
    ) -> Result<bool, String> {
        if let Some(token) = token {
            return match self.tokens.contains(&hash(token)) {
                true => Ok(true),
                false => Err("the invite token is not one of this coordinator's: \
                              ask its operator for one, or join without"
                    .into()),
            };
        }
        let loopback = origin.address.ip().to_canonical().is_loopback();
        Ok(self.loopback && loopback && origin.direct && kind == WorkerKind::Native)
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(
        trust: &Trust,
        address: &str,
        direct: bool,
        kind: WorkerKind,
        token: Option<&str>,
    ) -> Option<bool> {
        let origin = Origin { address: address.parse().unwrap(), direct };
        trust.judge(origin, kind, token).ok()
    }

    #[test]
    fn loopback_is_trusted_for_native_workers_that_come_themselves() {
        let trust = Trust::new(true, &[]);
        for here in ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert_eq!(judge(&trust, here, true, WorkerKind::Native, None), Some(true), "{here}");
        }
        let here = "127.0.0.1:9";
        assert_eq!(judge(&trust, here, false, WorkerKind::Native, None), Some(false), "proxied");
        assert_eq!(judge(&trust, here, true, WorkerKind::Browser, None), Some(false));
        assert_eq!(judge(&trust, "192.0.2.1:9", true, WorkerKind::Native, None), Some(false));
        let strict = Trust::new(false, &[]);
        assert_eq!(judge(&strict, here, true, WorkerKind::Native, None), Some(false));
    }

    #[test]
    fn a_token_is_trusted_from_anywhere_and_a_wrong_one_turned_away() {
        let trust = Trust::new(false, &["open sesame".into(), "second".into()]);
        let far = "192.0.2.1:9";
        let native = WorkerKind::Native;
        assert_eq!(judge(&trust, far, false, native, Some("open sesame")), Some(true));
        assert_eq!(judge(&trust, far, false, native, Some("second")), Some(true));
        assert_eq!(judge(&trust, far, false, native, Some("open")), None);
        assert_eq!(judge(&trust, far, false, native, Some("")), None);
    }
}
