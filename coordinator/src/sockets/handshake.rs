//! Challenge and hello: who a peer is.

use ed25519_dalek::{Signature, VerifyingKey};
use protocol::{
    FromWorker, Hello, PROTOCOL_VERSION, SUBPROTOCOL, WorkerId, WorkerKind, challenge_bytes,
};
use scheduler::{Holds, Standing, WorkerSpec};

use super::{Origin, Trust};

/// Why a peer is turned away.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For the peer.
    pub(super) reason: String,
    /// Whether coming back could end otherwise.
    pub(super) retry: bool,
}

/// Names both versions.
pub(super) fn other_subprotocol(offered: &str) -> Refusal {
    let reason =
        format!("this coordinator speaks {SUBPROTOCOL} and the worker {offered}: update the older");
    Refusal { reason, retry: false }
}

/// The hello in a peer's first message.
///
/// # Errors
/// It is another message, or of another version.
pub(super) fn read_hello(json: &str) -> Result<Hello, Refusal> {
    let message = FromWorker::from_json(json).map_err(|error| {
        // A hello of another version may well have other fields: the version is what matters.
        match version_of(json) {
            Some(theirs) if theirs != u64::from(PROTOCOL_VERSION) => other_version(theirs),
            _ => fault(error.to_string()),
        }
    })?;
    let FromWorker::Hello(hello) = message else {
        return Err(fault("the first message has to be a hello".into()));
    };
    if hello.protocol != PROTOCOL_VERSION {
        return Err(other_version(hello.protocol.into()));
    }
    Ok(*hello)
}

/// Checks the signature, and tells whether the peer is trusted.
///
/// # Errors
/// A bad key, signature, kind or token.
pub(super) fn verify(
    hello: &Hello,
    nonce: &str,
    origin: Origin,
    trust: &Trust,
) -> Result<bool, Refusal> {
    let key = from_hex::<32>(&hello.public_key)
        .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
        .ok_or_else(|| fault("public_key is no Ed25519 key".into()))?;
    let signature = from_hex::<64>(&hello.signature)
        .map(|bytes| Signature::from_bytes(&bytes))
        .ok_or_else(|| fault("signature is not 64 bytes in hex".into()))?;
    key.verify_strict(&challenge_bytes(PROTOCOL_VERSION, nonce), &signature)
        .map_err(|_| fault("the signature is not that key's over this challenge".into()))?;
    if hello.kind == WorkerKind::Embedded {
        return Err(fault("only the coordinator's own worker is embedded".into()));
    }
    trust
        .judge(origin, hello.kind, hello.token.as_deref())
        .map_err(|reason| Refusal { reason, retry: false })
}

/// The worker as the scheduler sees it.
pub(super) fn spec(hello: Hello, id: WorkerId, trusted: bool) -> WorkerSpec {
    WorkerSpec {
        id,
        key: hello.public_key,
        name: hello.name,
        kind: hello.kind,
        backend: hello.backend,
        device: hello.device,
        notes: hello.notes,
        trusted,
        holds: Holds::Anything,
        memory_bytes: hello.memory_bytes,
        bytes_per_s: hello.bytes_per_s,
        step_credits: hello.step_credits,
        classes: hello.classes,
        cached: hello.cached,
        standing: Standing::default(),
    }
}

fn fault(reason: String) -> Refusal {
    Refusal { reason, retry: false }
}

fn other_version(theirs: u64) -> Refusal {
    let reason = format!(
        "this coordinator speaks protocol version {PROTOCOL_VERSION} and the worker {theirs}: \
         update the older"
    );
    Refusal { reason, retry: false }
}

fn version_of(json: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(json).ok()?.get("protocol")?.as_u64()
}

fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if hex.len() != 2 * N || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}
