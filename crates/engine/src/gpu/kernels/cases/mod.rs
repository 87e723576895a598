//! One table of cases for all kernels, run natively and in a browser.
//!
//! Each case compares an op with `numerics` within a bound that is derived where it stands,
//! looks at what was not to be written (outputs are filled with a NaN beforehand, guard words
//! lie behind them), and then runs the same rows in other company: their bits must not change.

mod attention;
mod compare;
mod products;
mod qkv;
mod rows;

use std::fmt::Write as _;

use super::lab::Lab;
use super::types::Variant;

/// How a case went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// Variant, op, layout, shape.
    pub name: String,
    /// What was wrong.
    pub outcome: Result<(), String>,
}

/// Runs all cases of a variant whose name contains `filter`, in order.
pub async fn run_all(device: &wgpu::Device, queue: &wgpu::Queue, filter: &str) -> Vec<CaseResult> {
    let mut runner = Runner { filter: filter.to_owned(), results: Vec::new() };
    for variant in Variant::ALL {
        if variant.unsupported(device).is_some() {
            continue;
        }
        let lab = Lab { device, queue, variant };
        products::run(&lab, &mut runner).await;
        qkv::run(&lab, &mut runner).await;
        // What follows is the same in all variants.
        if variant == Variant::Base {
            rows::run(&lab, &mut runner).await;
            attention::run(&lab, &mut runner).await;
        }
    }
    runner.results
}

struct Runner {
    filter: String,
    results: Vec<CaseResult>,
}

impl Runner {
    /// Runs one case, if it is asked for; validation errors of the device count against it.
    async fn case<F>(&mut self, lab: &Lab<'_>, name: String, case: F)
    where
        F: AsyncFnOnce() -> Result<(), String>,
    {
        let name = format!("{} {name}", lab.variant.name());
        if !name.contains(&self.filter) {
            return;
        }
        let scope = lab.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut outcome = case().await;
        if let Some(error) = scope.pop().await {
            let mut text = outcome.err().unwrap_or_default();
            let _ = write!(text, " {error}");
            outcome = Err(text);
        }
        self.results.push(CaseResult { name, outcome });
    }
}
