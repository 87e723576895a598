//! The page on which a visitor lends a tab: what it decides and says ([`donor`],
//! [`settings`], [`words`]), and the views.
//!
//! The page only draws and holds its owner's choices. All computing is in the worker, a module
//! of its own that is fetched at the first click and not before. What stands in `index.html`
//! shows before any of this has arrived; the views take the place of its parts.

pub mod donor;
pub mod settings;
pub mod words;

#[cfg(target_arch = "wasm32")]
mod browser;
#[cfg(target_arch = "wasm32")]
mod page;
