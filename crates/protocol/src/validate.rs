//! Control messages to and from JSON, every length and range checked on both sides.

use litemap::LiteMap;
use serde::{Serialize, de::DeserializeOwned};

use crate::control::{Assignment, BlobRef, FromWorker, Hello, TensorRank, ToWorker};
use crate::frame::Dtype;
use crate::limits::*;

/// What is wrong with a control message. Its sender is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Longer than [`CONTROL_BYTES_MAX`].
    #[error("control message of {got} bytes, at most {max} are allowed")]
    TooLong {
        /// The bound.
        max: usize,
        /// What came.
        got: usize,
    },
    /// Not JSON, or not one of our messages.
    #[error("control message: {0}")]
    Json(String),
    /// A text or a list is longer than its bound.
    #[error("{field}: length {got}, at most {max} is allowed")]
    Length {
        /// Which field.
        field: &'static str,
        /// The bound.
        max: usize,
        /// Its length.
        got: usize,
    },
    /// A field's value makes no sense.
    #[error("{field}: {problem}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// `text` made fit for a `reason` field: control characters become spaces, and it is cut at
/// [`TEXT_BYTES_MAX`] bytes.
pub fn clean_text(text: &str) -> String {
    clean_text_to(text, TEXT_BYTES_MAX)
}

/// As [`clean_text`], cut at `bytes_max` bytes or the character boundary before.
pub fn clean_text_to(text: &str, bytes_max: usize) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut = (0..=bytes_max.min(clean.len())).rev().find(|&at| clean.is_char_boundary(at));
    clean.truncate(cut.unwrap_or(0));
    clean
}

impl ToWorker {
    /// The message as JSON.
    ///
    /// # Errors
    /// As [`ToWorker::validate`], or longer than [`CONTROL_BYTES_MAX`].
    pub fn to_json(&self) -> Result<String, ControlError> {
        self.validate()?;
        write_json(self)
    }

    /// Reads and checks a message.
    ///
    /// # Errors
    /// Too long, not one of our messages, or as [`ToWorker::validate`].
    pub fn from_json(json: &str) -> Result<ToWorker, ControlError> {
        let message: ToWorker = read_json(json)?;
        message.validate()?;
        Ok(message)
    }

    /// Checks every length and range.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), ControlError> {
        match self {
            ToWorker::Challenge { protocol: _, nonce } => hex("nonce", nonce, 64),
            ToWorker::Welcome { worker: _, blob_token, trusted: _ } => {
                text("blob_token", blob_token, TEXT_BYTES_MAX)?;
                check("blob_token", blob_token.bytes().all(|b| b.is_ascii_graphic()), || {
                    "only printable ASCII without spaces is allowed".into()
                })
            }
            ToWorker::Assign(assignment) => assignment.validate(),
            ToWorker::Unassign { assignment: _ } | ToWorker::Ping { nonce: _ } => Ok(()),
            ToWorker::Fork { assignment: _, from: _, to: _, epoch: _, positions }
            | ToWorker::Truncate { assignment: _, session: _, epoch: _, positions } => {
                at_most("positions", *positions, POSITIONS_MAX)
            }
            ToWorker::Idle { reason } | ToWorker::Dismiss { reason, retry: _ } => {
                text("reason", reason, TEXT_BYTES_MAX)
            }
        }
    }
}

impl FromWorker {
    /// The message as JSON.
    ///
    /// # Errors
    /// As [`FromWorker::validate`], or longer than [`CONTROL_BYTES_MAX`].
    pub fn to_json(&self) -> Result<String, ControlError> {
        self.validate()?;
        write_json(self)
    }

    /// Reads and checks a message.
    ///
    /// # Errors
    /// Too long, not one of our messages, or as [`FromWorker::validate`].
    pub fn from_json(json: &str) -> Result<FromWorker, ControlError> {
        let message: FromWorker = read_json(json)?;
        message.validate()?;
        Ok(message)
    }

    /// Checks every length and range.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), ControlError> {
        match self {
            FromWorker::Hello(hello) => hello.validate(),
            FromWorker::Ready { assignment: _ }
            | FromWorker::Pong { nonce: _ }
            | FromWorker::Visibility { hidden: _ } => Ok(()),
            FromWorker::Failed { assignment: _, reason } | FromWorker::Drain { reason } => {
                text("reason", reason, TEXT_BYTES_MAX)
            }
            FromWorker::Progress { assignment: _, bytes_done, bytes_total } => {
                at_most("bytes_done", *bytes_done, *bytes_total)
            }
        }
    }
}

impl Assignment {
    /// Weight bytes of all its blobs, the manifest left out.
    pub fn weight_bytes(&self) -> u64 {
        self.blobs.iter().map(|b| b.bytes).fold(0, u64::saturating_add)
    }

    /// Whether it is a rank of a tensor group that is given orders by its leader, and no steps.
    pub fn follows(&self) -> bool {
        self.tensor.as_ref().is_some_and(|tensor| tensor.rank > 0)
    }

    fn validate(&self) -> Result<(), ControlError> {
        text("model", &self.model, TEXT_BYTES_MAX)?;
        text("class", &self.class, NAME_BYTES_MAX)?;
        self.manifest.validate("manifest", MANIFEST_BYTES_MAX)?;
        let span = self.span;
        check("span", span.first < span.end, || format!("{}..{} is empty", span.first, span.end))?;
        at_most("span", span.end, PARTS_MAX)?;
        at_most("kv_pages", self.kv_pages, KV_PAGES_MAX)?;
        if let Some(tensor) = &self.tensor {
            tensor.validate()?;
        }
        length("blobs", self.blobs.len(), BLOBS_MAX)?;
        for blob in &self.blobs {
            blob.validate("blobs", BLOB_BYTES_MAX)?;
        }
        distinct("blobs", self.blobs.iter().map(|b| &b.hash))
    }
}

impl TensorRank {
    fn validate(&self) -> Result<(), ControlError> {
        let ranks = self.weights.len();
        length("tensor", ranks, RANKS_MAX)?;
        text("form", &self.form, NAME_BYTES_MAX)?;
        check("tensor", ranks >= 2, || format!("{ranks} ranks are no group"))?;
        check("tensor", (self.rank as usize) < ranks, || format!("rank {} of {ranks}", self.rank))?;
        for &weight in &self.weights {
            check("tensor", (1..=RANK_WEIGHT_MAX).contains(&weight), || {
                format!("a weight of {weight}, 1 to {RANK_WEIGHT_MAX} are possible")
            })?;
        }
        Ok(())
    }
}

impl BlobRef {
    fn validate(&self, field: &'static str, bytes_max: u64) -> Result<(), ControlError> {
        hex(field, &self.hash, 64)?;
        check(field, self.bytes > 0, || format!("blob {} of 0 bytes", self.hash))?;
        at_most(field, self.bytes, bytes_max)
    }
}

impl Hello {
    fn validate(&self) -> Result<(), ControlError> {
        hex("public_key", &self.public_key, 64)?;
        hex("signature", &self.signature, 128)?;
        if let Some(token) = &self.token {
            text("token", token, TEXT_BYTES_MAX)?;
        }
        text("name", &self.name, NAME_BYTES_MAX)?;
        text("backend", &self.backend, NAME_BYTES_MAX)?;
        text("device", &self.device, NAME_BYTES_MAX)?;
        length("notes", self.notes.len(), NOTES_MAX)?;
        for note in &self.notes {
            text("notes", note, NOTE_BYTES_MAX)?;
        }
        check("classes", !self.classes.is_empty(), || "at least one is needed".into())?;
        length("classes", self.classes.len(), CLASSES_MAX)?;
        for class in &self.classes {
            text("classes", class, NAME_BYTES_MAX)?;
        }
        distinct("classes", self.classes.iter())?;
        length("boundaries", self.boundaries.len(), Dtype::LOSSY.len())?;
        check("boundaries", self.boundaries.iter().all(|d| Dtype::LOSSY.contains(d)), || {
            "only f16 and int8 can be named beside f32".into()
        })?;
        at_most("memory_bytes", self.memory_bytes, MEMORY_BYTES_MAX)?;
        for rate in self.bytes_per_s {
            check("bytes_per_s", rate > 0.0 && rate <= BYTES_PER_S_MAX, || {
                format!("{rate} is not above 0 and at most {BYTES_PER_S_MAX}")
            })?;
        }
        check("step_credits", self.step_credits >= 1, || "at least 1 is needed".into())?;
        at_most("step_credits", self.step_credits, STEP_CREDITS_MAX)?;
        length("cached", self.cached.len(), CACHED_MAX)?;
        for hash in &self.cached {
            hex("cached", hash, 64)?;
        }
        distinct("cached", self.cached.iter())
    }
}

fn write_json<T: Serialize>(message: &T) -> Result<String, ControlError> {
    let json = serde_json::to_string(message).map_err(|e| ControlError::Json(e.to_string()))?;
    fits(&json)?;
    Ok(json)
}

fn read_json<T: DeserializeOwned>(json: &str) -> Result<T, ControlError> {
    fits(json)?;
    serde_json::from_str(json).map_err(|e| ControlError::Json(clean_text(&e.to_string())))
}

fn fits(json: &str) -> Result<(), ControlError> {
    match json.len() {
        got if got > CONTROL_BYTES_MAX => {
            Err(ControlError::TooLong { max: CONTROL_BYTES_MAX, got })
        }
        _ => Ok(()),
    }
}

fn check(
    field: &'static str,
    good: bool,
    problem: impl FnOnce() -> String,
) -> Result<(), ControlError> {
    if good { Ok(()) } else { Err(ControlError::Value { field, problem: problem() }) }
}

fn at_most<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    got: T,
    max: T,
) -> Result<(), ControlError> {
    check(field, got <= max, || format!("{got}, at most {max} is allowed"))
}

fn length(field: &'static str, got: usize, max: usize) -> Result<(), ControlError> {
    if got <= max { Ok(()) } else { Err(ControlError::Length { field, max, got }) }
}

/// Bounded, and without control characters: it will stand in logs and on terminals.
fn text(field: &'static str, text: &str, max: usize) -> Result<(), ControlError> {
    length(field, text.len(), max)?;
    check(field, !text.chars().any(char::is_control), || {
        "control characters are not allowed".into()
    })
}

fn hex(field: &'static str, text: &str, digits: usize) -> Result<(), ControlError> {
    let good = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    check(field, good, || format!("{digits} lower-case hex digits are needed"))
}

fn distinct<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a String>,
) -> Result<(), ControlError> {
    let mut seen: LiteMap<_, ()> = LiteMap::new();
    for text in texts {
        check(field, seen.insert(text, ()).is_none(), || format!("{text} stands there twice"))?;
    }
    Ok(())
}
