//! `cargo xtask bench`.
use anyhow::{Result, bail};
/// Written next.
pub fn run(_: &[String]) -> Result<bool> {
    bail!("not yet")
}
