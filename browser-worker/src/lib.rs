//! A worker inside a browser tab: the same [`worker_core::WorkerCore`] as the native one, in
//! a dedicated module Web Worker.
//!
//! The page and this worker talk in JSON, [`api::ToTab`] and [`api::FromTab`]; the coordinator is
//! the page's own origin. Nothing happens before [`api::ToTab::Start`]: no request, no
//! measurement, no GPU.
//!
//! `browser` has what touches the browser, and exists only in WASM; the other modules decide
//! what can be decided without one, and are tested natively. Of `browser`, `tab` is the loop
//! that everything else reports to:
//!
//! ```text
//! page ──ToTab──> Tab ──> Stay: WorkerCore ──> compute ──> Shards
//!      <─FromTab──  ^        │   └──> weights: OPFS, fetch
//!                   └─ Inbox ┴──> socket
//! ```

#[cfg(target_arch = "wasm32")]
mod browser;
pub mod figures;
pub mod kept;
pub mod meter;
pub mod settings;
pub mod view;
pub mod wake;
