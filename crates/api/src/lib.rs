//! The HTTP API's types, shared by the server, the pages and the client.
//!
//! Chat completions, completions, models and errors have the shapes of the OpenAI API;
//! `/v1/generate`, `/v1/fleet` and the health checks are ours. Requests are read from JSON by
//! their own `parse`, so that an error names the parameter as OpenAI's does: unknown fields
//! are ignored, `null` is the same as absent, and what would change the answer but is not
//! implemented is refused. This crate knows nothing about HTTP, models or tokens.

mod chat;
mod completion;
mod error;
mod fields;
mod fleet;
mod generate;
mod logprobs;
mod models;
mod options;
mod tab;
mod usage;
mod weft;

pub use chat::*;
pub use completion::*;
pub use error::*;
pub use fleet::*;
pub use generate::*;
pub use logprobs::*;
pub use models::*;
pub use options::*;
pub use tab::*;
pub use usage::*;
pub use weft::*;
