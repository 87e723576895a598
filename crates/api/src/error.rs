//! The error body.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What every answer but 200 carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The one field.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For people: what went wrong, where, and what to do about it.
    pub message: String,
    /// Whose doing it is.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// The request's field that is at fault, if one is.
    pub param: Option<String>,
    /// For programs: `invalid_type`, `context_length_exceeded`, ...
    pub code: Option<String>,
}

/// Whose doing an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request's.
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    /// Too much is asked at once.
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    /// The server's, or its workers'.
    #[serde(rename = "server_error")]
    Server,
}

/// A request that cannot be served as it is: status 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong with it.
    pub message: String,
    /// Which field.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
}

impl Invalid {
    /// A field's value is wrong.
    pub fn field(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Invalid { message: message.into(), param: Some(param.into()), code: Some(code) }
    }

    /// The body as a whole is wrong.
    pub fn body(message: impl Into<String>) -> Self {
        Invalid { message: message.into(), param: None, code: None }
    }

    /// A field asks for something that is not implemented.
    pub(crate) fn unsupported(param: &str, why: &str) -> Self {
        let message = format!("Unsupported parameter: '{param}': {why}");
        Invalid::field(param, "unsupported_parameter", message)
    }

    /// As the body of an answer.
    pub fn into_detail(self) -> ErrorDetail {
        ErrorDetail {
            message: self.message,
            kind: ErrorKind::InvalidRequest,
            param: self.param,
            code: self.code.map(str::to_owned),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Invalid {}
