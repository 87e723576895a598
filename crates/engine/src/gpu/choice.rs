//! Which variant of the kernels a device uses: of those that it can run and that compute
//! correctly there, the fastest.

use web_time::Instant;

use super::benchmark::Lab;
use super::device::RejectedVariant;
use super::error::GpuError;
use super::handle::Handle;
use super::kernels::{Kernels, Variant, self_test};

/// No further round of timing begins after this, ms.
const TIMING_MS: f64 = 200.0;
/// A variant has to take so much less than [`Variant::Base`]: less than that is noise.
const FASTER: f64 = 0.97;

/// What was chosen.
pub(super) struct Chosen {
    /// The variant's kernels, some of them compiled.
    pub(super) kernels: Kernels,
    /// Why it was, in words.
    pub(super) reason: String,
    /// The others, and why not.
    pub(super) rejected: Vec<RejectedVariant>,
}

/// Tests all variants that the device can run, then times those that passed.
///
/// # Errors
/// [`GpuError::SelfTest`] if [`Variant::Base`] computes wrongly, which the others are built
/// on; [`GpuError::Device`] if the device is lost.
pub(super) async fn choose(handle: &Handle, name: &str) -> Result<Chosen, GpuError> {
    let lost = |reason| GpuError::Device { name: name.to_owned(), reason };
    let base = Kernels::new(&handle.device, Variant::Base, Lab::shapes());
    let tested = self_test(&base, &handle.queue).await;
    if let Some(reason) = handle.lost() {
        return Err(lost(reason));
    }
    if let Err(reason) = tested {
        let reasons = format!("{}: {reason}", Variant::Base.name());
        return Err(GpuError::SelfTest { name: name.to_owned(), reasons });
    }
    let mut rejected = Vec::new();
    let mut passed = vec![base];
    for variant in Variant::ALL.into_iter().filter(|&variant| variant != Variant::Base) {
        let kernels = passed[0].for_variant(variant);
        match self_test(&kernels, &handle.queue).await {
            Ok(()) => passed.push(kernels),
            Err(reason) => rejected.push(reject(variant, reason)),
        }
        if let Some(reason) = handle.lost() {
            return Err(lost(reason));
        }
    }
    let timed = if passed.len() > 1 { time(handle, &passed).await } else { None };
    if let Some(reason) = handle.lost() {
        return Err(lost(reason));
    }
    let Some(timed) = timed else {
        let reason = match passed.len() {
            1 => "the only one that can be used here".to_owned(),
            _ => "the others could not be timed".to_owned(),
        };
        let others = passed.drain(1..);
        rejected.extend(others.map(|kernels| reject(kernels.variant(), reason.clone())));
        return Ok(Chosen { kernels: passed.remove(0), reason, rejected });
    };
    let best = fastest(&timed);
    let said = |ms: f64| format!("{:.0} \u{b5}s for a token's share of a product", ms * 1e3);
    for (i, kernels) in passed.iter().enumerate().filter(|(i, _)| *i != best) {
        let (this, chosen) = (timed[i], timed[best] * 1e3);
        let reason = match () {
            () if this.is_nan() => "the device refused it when it was timed".to_owned(),
            () if this < timed[best] => format!("{}, too little less than {chosen:.0}", said(this)),
            () => format!("slower: {}, not {chosen:.0}", said(this)),
        };
        rejected.push(reject(kernels.variant(), reason));
    }
    let reason = format!("the fastest of {}: {}", passed.len(), said(timed[best]));
    Ok(Chosen { kernels: passed.swap_remove(best), reason, rejected })
}

fn reject(variant: Variant, reason: String) -> RejectedVariant {
    RejectedVariant { variant: variant.name().to_owned(), reason }
}

/// Which of these times is used; the first is [`Variant::Base`]'s.
fn fastest(ms: &[f64]) -> usize {
    let better = (1..ms.len()).filter(|&i| ms[i] < ms[0] * FASTER);
    better.min_by(|&a, &b| ms[a].total_cmp(&ms[b])).unwrap_or(0)
}

/// What a token costs with each of these, ms; `None` if there is no room to try, or the device
/// fails.
async fn time(handle: &Handle, all: &[Kernels]) -> Option<Vec<f64>> {
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64() * 1e3;
    Lab::for_choice(handle, &all[0], &clock).await?.token_ms(all, &clock, TIMING_MS).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_used_where_it_is_worth_it() {
        assert_eq!(fastest(&[1.0]), 0);
        assert_eq!(fastest(&[1.0, 0.5, 0.4]), 2);
        assert_eq!(fastest(&[1.0, 0.5, 0.6]), 1);
        assert_eq!(fastest(&[1.0, 0.99, 1.5]), 0, "that may be noise");
        assert_eq!(fastest(&[1.0, f64::NAN]), 0);
    }
}
