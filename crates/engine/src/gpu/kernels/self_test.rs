//! Whether a variant computes correctly on this device: asked before it is used.

use super::{Kernels, cases};

/// Runs some of each kernel's cases (of those kernels that differ from [`super::Variant::Base`]'s,
/// for the others) and compares them with what the CPU says; also that a row's bits are the
/// same in steps of few rows and of many, and that nothing is written beside the outputs. What
/// it compiles stays with the kernels.
///
/// # Errors
/// Says which case gave what, where something else was right, or how the device failed.
pub async fn self_test(kernels: &Kernels, queue: &wgpu::Queue) -> Result<(), String> {
    match kernels.variant().unsupported(kernels.pipelines.device()) {
        Some(reason) => Err(reason),
        None => cases::run_start(kernels, queue).await,
    }
}
