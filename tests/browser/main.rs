//! The donate page as a person meets it: a real browser without a screen, driven through
//! chromedriver, and a real coordinator on loopback.
//!
//! The models are small and random, made here, but for one test with a few tokens of the real
//! one: the software adapter that stands in for a GPU takes about a second for each of those.
//! Screenshots of every state are left in the target folder's `screenshots`, to be looked at.

#![cfg(unix)]

mod altered;
mod between;
mod chrome;
#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests use the rest")]
mod harness;
mod kernels;
mod lent;
mod life;
mod looks;
mod lost;
mod manners;
mod mixed;
mod rates;
mod serving;
mod storage;
mod threads;
