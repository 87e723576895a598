//! Challenge and hello: who a peer is.

use ed25519_dalek::{Signature, VerifyingKey};
use protocol::{
    FromWorker, Hello, PROTOCOL_VERSION, SUBPROTOCOL, WorkerId, WorkerKind, challenge_bytes,
    invited_bytes,
};
use scheduler::{Holds, WorkerSpec};

use super::trust::Judgement;
use super::{Origin, Trust};
use crate::ledger::{InviteError, Ledger, LedgerError, Record};

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

/// Checks the key and its signature. Answers whether the token, if there is one, is signed
/// too: workers from before invites do not sign it.
///
/// # Errors
/// A bad key, signature or kind.
pub(super) fn verify(hello: &Hello, nonce: &str) -> Result<bool, Refusal> {
    let key = from_hex::<32>(&hello.public_key)
        .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
        .ok_or_else(|| fault("public_key is no Ed25519 key".into()))?;
    let signature = from_hex::<64>(&hello.signature)
        .map(|bytes| Signature::from_bytes(&bytes))
        .ok_or_else(|| fault("signature is not 64 bytes in hex".into()))?;
    let signs = |message: &[u8]| key.verify_strict(message, &signature).is_ok();
    let token = hello.token.as_deref();
    let with_token =
        token.is_some_and(|token| signs(&invited_bytes(PROTOCOL_VERSION, nonce, token)));
    if !with_token && !signs(&challenge_bytes(PROTOCOL_VERSION, nonce)) {
        return Err(fault("the signature is not that key's over this challenge".into()));
    }
    if hello.kind == WorkerKind::Embedded {
        return Err(fault("only the coordinator's own worker is embedded".into()));
    }
    Ok(with_token)
}

/// Whether the peer is trusted, and by which invite if by one. An invite that was not used is
/// bound to the peer's key from here on.
///
/// # Errors
/// It shows a token that does not count.
pub(super) async fn admit(
    hello: &Hello,
    token_signed: bool,
    origin: Origin,
    trust: &Trust,
    ledger: &Ledger,
) -> Result<(bool, Option<i64>), Refusal> {
    let token = match trust.judge(origin, hello.kind, hello.token.as_deref()) {
        Judgement::Trusted => return Ok((true, None)),
        Judgement::Stranger => return Ok((false, None)),
        Judgement::Shows(token) => token,
    };
    if hello.kind != WorkerKind::Native {
        return Err(fault("invites are for native workers: join without".into()));
    }
    if !token_signed {
        return Err(fault("the hello does not sign its invite token: update the worker".into()));
    }
    match ledger.use_invite(token, &hello.public_key).await {
        Ok(invite) => Ok((true, Some(invite))),
        Err(InviteError::Ledger(error)) => Err(unreadable(&error)),
        Err(error) => Err(fault(error.to_string())),
    }
}

/// What is known of the peer's key from before.
///
/// # Errors
/// It is banned, or the database cannot be read.
pub(super) async fn recall(hello: &Hello, ledger: &Ledger) -> Result<Option<Record>, Refusal> {
    let record = ledger.record(&hello.public_key).await.map_err(|error| unreadable(&error))?;
    match record.as_ref().and_then(|record| record.ban.as_ref()) {
        Some(ban) => Err(fault(format!("this worker's key is banned here: {}", ban.because))),
        None => Ok(record),
    }
}

/// The coordinator's own trouble, which may pass.
pub(super) fn unreadable(error: &LedgerError) -> Refusal {
    tracing::error!("{error}");
    let reason = "this coordinator cannot look up who its workers are: come back later".into();
    Refusal { reason, retry: true }
}

/// The worker as the scheduler sees it.
pub(super) fn spec(
    hello: Hello,
    id: WorkerId,
    trusted: bool,
    origin: Origin,
    record: Option<&Record>,
) -> WorkerSpec {
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
        boundaries: hello.boundaries,
        bytes_per_s: hello.bytes_per_s,
        step_credits: hello.step_credits,
        classes: hello.classes,
        cached: hello.cached,
        standing: record.map(Record::standing).unwrap_or_default(),
        machine: origin.machine(),
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
