//! What goes wrong, as status, headers and error body.

use api::{ErrorBody, ErrorDetail, ErrorKind, Invalid};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use scheduler::{Doing, RequestError};

use crate::driver::DriverGone;

/// A request that is not answered as asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub status: StatusCode,
    pub detail: ErrorDetail,
    /// Seconds after which to try again.
    pub retry_after_s: Option<u32>,
}

impl Failure {
    /// The client's doing.
    pub fn request(status: StatusCode, code: &str, message: String) -> Failure {
        Failure::new(status, ErrorKind::InvalidRequest, code, message)
    }

    /// Ours, or our workers'.
    pub fn server(status: StatusCode, code: &str, message: String) -> Failure {
        Failure::new(status, ErrorKind::Server, code, message)
    }

    /// Too much at once.
    pub fn busy(message: String, retry_after_s: u32) -> Failure {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let failure = Failure::new(status, ErrorKind::RateLimit, "rate_limit_exceeded", message);
        Failure { retry_after_s: Some(retry_after_s), ..failure }
    }

    /// A task of ours ended without saying why.
    pub fn internal() -> Failure {
        let message =
            "The server failed while it generated. This is its own fault; please report it.";
        Failure::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message.to_owned())
    }

    /// The client did not read its stream until the deadline had passed.
    pub fn slow_reader() -> Failure {
        let message = "The deadline passed while the client did not read its stream.";
        Failure::server(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message.to_owned())
    }

    fn new(status: StatusCode, kind: ErrorKind, code: &str, message: String) -> Failure {
        let detail = ErrorDetail { message, kind, param: None, code: Some(code.to_owned()) };
        Failure { status, detail, retry_after_s: None }
    }

    /// The field that is at fault.
    pub fn of_param(mut self, param: &str) -> Failure {
        self.detail.param = Some(param.to_owned());
        self
    }

    /// The error body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Failure {
        Failure {
            status: StatusCode::BAD_REQUEST,
            detail: invalid.into_detail(),
            retry_after_s: None,
        }
    }
}

impl From<DriverGone> for Failure {
    fn from(gone: DriverGone) -> Failure {
        let message = format!("{gone}: try again when it is back.");
        Failure::server(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
    }
}

impl From<text::Error> for Failure {
    fn from(error: text::Error) -> Failure {
        let message = error.to_string();
        match error.fault() {
            text::Fault::Request => {
                let failure = Failure::request(StatusCode::BAD_REQUEST, "invalid_value", message);
                match error {
                    text::Error::BadParameter { name, .. } => failure.of_param(name),
                    _ => failure,
                }
            }
            text::Fault::Numbers => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Failure::server(status, "numeric_overflow", message)
            }
            text::Fault::File => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Failure::server(status, "model_file_broken", message)
            }
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        let message = error.to_string();
        match error {
            RequestError::NoModel { .. } => {
                Failure::request(StatusCode::NOT_FOUND, "model_not_found", message)
                    .of_param("model")
            }
            RequestError::Busy { retry_after_s, .. } => Failure::busy(message, retry_after_s),
            RequestError::TooManyChoices { .. } => {
                Failure::request(StatusCode::BAD_REQUEST, "invalid_value", message).of_param("n")
            }
            RequestError::TooLong { .. } => {
                Failure::request(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            RequestError::NoRoute { field, .. } => {
                Failure::request(StatusCode::BAD_REQUEST, "no_such_route", message).of_param(field)
            }
            RequestError::Deadline { doing, .. } => match doing {
                Doing::Generating => {
                    Failure::server(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
                }
                Doing::WaitingForPlace | Doing::WaitingFor(_) => {
                    Failure::server(StatusCode::SERVICE_UNAVAILABLE, "not_ready_in_time", message)
                }
            },
            RequestError::Numeric { .. } => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Failure::server(status, "numeric_overflow", message)
            }
        }
    }
}
