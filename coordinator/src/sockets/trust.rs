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

    /// What a peer's origin and token say by themselves.
    pub(super) fn judge<'a>(
        &self,
        origin: Origin,
        kind: WorkerKind,
        token: Option<&'a str>,
    ) -> Judgement<'a> {
        let loopback = origin.address.ip().to_canonical().is_loopback();
        let here = self.loopback && loopback && origin.direct && kind == WorkerKind::Native;
        match token {
            Some(token) if self.tokens.contains(&hash(token)) => Judgement::Trusted,
            Some(token) => Judgement::Shows(token),
            None if here => Judgement::Trusted,
            None => Judgement::Stranger,
        }
    }
}

/// What is to be thought of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement<'a> {
    /// It may hold the ends.
    Trusted,
    /// It may not.
    Stranger,
    /// It shows a token of which only the database knows whether it is an invite.
    Shows(&'a str),
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
        match trust.judge(origin, kind, token) {
            Judgement::Trusted => Some(true),
            Judgement::Stranger => Some(false),
            Judgement::Shows(shown) => {
                assert_eq!(Some(shown), token);
                None
            }
        }
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
    fn a_token_is_trusted_from_anywhere_and_another_one_looked_up() {
        let trust = Trust::new(false, &["open sesame".into(), "second".into()]);
        let far = "192.0.2.1:9";
        let native = WorkerKind::Native;
        assert_eq!(judge(&trust, far, false, native, Some("open sesame")), Some(true));
        assert_eq!(judge(&trust, far, false, native, Some("second")), Some(true));
        assert_eq!(judge(&trust, far, false, native, Some("open")), None);
        assert_eq!(judge(&trust, far, false, native, Some("")), None);
    }
}
