//! What every handler has.

use std::sync::Arc;

use axum::http::StatusCode;
use text::{ChatTemplate, Tokenizer, TokenizerData};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::Failure;
use crate::blobs::Sent;
use crate::driver::Handle;
use crate::ledger::Ledger;

/// Requests for generation that are handled at once, from reading their body to the last byte
/// of their answer; further ones are refused with 429. The scheduler's own bounds (sessions,
/// queue) are below it.
pub const REQUESTS_MAX: usize = 512;
/// Seconds after which a request refused for [`REQUESTS_MAX`] should try again.
const RETRY_AFTER_S: u32 = 2;
/// Requests whose prompts are turned into tokens at once; others wait.
const TOKENIZE_MAX: usize = 4;

/// A model's side of text.
#[derive(Debug)]
pub struct Model {
    /// Its name in requests.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: ChatTemplate,
    /// Longest prompt and answer together, positions.
    pub context: u32,
    /// Since when it is there, seconds since 1970.
    pub created_s: u64,
    /// `fp_...`: changes when its weights or numerics do.
    pub fingerprint: String,
}

impl Model {
    /// Builds the tokenizer and compiles the template.
    ///
    /// # Errors
    /// If the model's file has broken ones.
    pub fn new(
        name: String,
        data: &TokenizerData,
        context: u32,
        created_s: u64,
        fingerprint: String,
    ) -> text::Result<Model> {
        let tokenizer = Tokenizer::new(data)?;
        let template = ChatTemplate::new(data)?;
        Ok(Model { name, tokenizer, template, context, created_s, fingerprint })
    }
}

/// What every handler has; clones share it.
#[derive(Clone)]
pub struct AppState {
    pub(super) driver: Handle,
    pub(super) models: Arc<[Arc<Model>]>,
    pub(super) blobs_sent: Sent,
    pub(super) ledger: Option<Ledger>,
    requests: Arc<Semaphore>,
    tokenizing: Arc<Semaphore>,
}

impl AppState {
    /// The first model is the one for requests that name none.
    pub fn new(driver: Handle, models: Vec<Model>) -> AppState {
        AppState {
            driver,
            models: models.into_iter().map(Arc::new).collect(),
            blobs_sent: Sent::default(),
            ledger: None,
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            tokenizing: Arc::new(Semaphore::new(TOKENIZE_MAX)),
        }
    }

    /// Tells the fleet view what `sent` counts.
    #[must_use]
    pub fn with_blobs_sent(self, sent: Sent) -> AppState {
        AppState { blobs_sent: sent, ..self }
    }

    /// Tells the fleet view what is kept of workers.
    #[must_use]
    pub fn with_ledger(self, ledger: Ledger) -> AppState {
        AppState { ledger: Some(ledger), ..self }
    }

    /// A place among [`REQUESTS_MAX`], held until the answer has gone out.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.requests.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{REQUESTS_MAX} requests are being handled; try again soon.");
            Failure::busy(message, RETRY_AFTER_S)
        })
    }

    /// The model that a request names.
    pub(super) fn model(&self, name: Option<&str>) -> Result<Arc<Model>, Failure> {
        let found = match name {
            Some(name) => self.models.iter().find(|m| m.name == name),
            None => self.models.first(),
        };
        found.cloned().ok_or_else(|| {
            let names: Vec<&str> = self.models.iter().map(|m| m.name.as_str()).collect();
            let message = format!(
                "The model '{}' does not exist here; there is: {}.",
                name.unwrap_or_default().escape_default(),
                names.join(", ")
            );
            Failure::request(StatusCode::NOT_FOUND, "model_not_found", message).of_param("model")
        })
    }

    /// Runs work of milliseconds, such as tokenizing, off the sockets' threads.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = self.tokenizing.clone().acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.unwrap_or_else(|_| Err(Failure::internal()))
    }
}
