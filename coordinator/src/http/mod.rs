//! The HTTP API: OpenAI-shaped generation, the fleet, health.
//!
//! The path of one token here: a handler ([`chat`], [`completions`], [`generate`]) reads the
//! request ([`body`]) and makes a plan of it ([`plan`]: template, tokens, checks); a task per
//! prompt ([`generation`]) takes its logits from the driver, samples, turns tokens into text
//! and says what came; [`answer`] collects that into one body or streams it. Prompts and
//! answers are never logged.

mod answer;
mod body;
mod chat;
mod completions;
mod failure;
mod fleet;
mod generate;
mod generation;
mod models;
pub mod pages;
mod plan;
mod state;
#[cfg(test)]
mod tests;
mod tokens;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{get, post};

use failure::Failure;
pub use state::{AppState, Model, REQUESTS_MAX};

/// Everything that is served over HTTP, but the workers' sockets and blobs.
pub fn router(state: AppState) -> Router {
    Router::new()
        .merge(pages::router())
        .route("/healthz", get(fleet::healthz))
        .route("/readyz", get(fleet::readyz))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/generate", post(generate::generate))
        .route("/v1/fleet", get(fleet::fleet))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(state)
}

async fn unknown_path(method: Method, uri: Uri) -> Failure {
    let message = format!("Unknown request URL: {method} {}.", uri.path());
    Failure::request(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn wrong_method(method: Method, uri: Uri) -> Failure {
    let message = format!("Not allowed to {method} on {}.", uri.path());
    Failure::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
