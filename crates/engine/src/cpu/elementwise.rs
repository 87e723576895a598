//! Ops on one row: quantise, norm, RoPE, SwiGLU, add, finite check.
//!
//! Each body is plain Rust that vectorises, compiled once for the target's baseline and
//! once for AVX2. Neither the compiler nor the bodies fuse or reorder float operations,
//! so both give the bits of `numerics`.

use numerics::finite::NOT_FINITE;
use numerics::quantise::QUANTISE_MIN;
use numerics::rope::Pairs;
use numerics::{BLOCK, Fault};

use super::Isa;
use super::quants::QuantBlock;

/// Adding and subtracting 1.5·2²³ rounds |x| < 2²² to the nearest integer, ties to even.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Defines `$name(isa, args)`, which runs `$body(args)` compiled for the instruction set.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $name:ident, $avx2:ident, $body:ident ($($arg:ident: $type:ty),*) $(-> $ret:ty)?) => {
        $(#[$doc])*
        pub(crate) fn $name(isa: Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx2 {
                // SAFETY: an Isa beyond Portable is used only where it was detected.
                return unsafe { $avx2($($arg),*) };
            }
            let _ = isa;
            $body($($arg),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,f16c")]
        fn $avx2($($arg: $type),*) $(-> $ret)? {
            $body($($arg),*)
        }
    };
}
pub(crate) use for_each_isa;

for_each_isa! {
    /// Quantises `x`, `[C]`, to `[C / 32]` blocks.
    quantise, quantise_avx2, quantise_body(x: &[f32], out: &mut [QuantBlock]) -> Result<(), Fault>
}

#[inline(always)]
fn quantise_body(x: &[f32], out: &mut [QuantBlock]) -> Result<(), Fault> {
    let (blocks, _) = x.as_chunks::<BLOCK>();
    for (x, out) in blocks.iter().zip(out) {
        let mut max = 0u32;
        for v in x {
            max = max.max(v.to_bits() & 0x7fff_ffff);
        }
        if max >= NOT_FINITE {
            return Err(Fault);
        }
        let a = f32::from_bits(max);
        if a < QUANTISE_MIN {
            *out = QuantBlock::ZERO;
            continue;
        }
        let inv = 127.0 / a;
        let mut whole = [0i32; BLOCK];
        for i in 0..BLOCK {
            let v = (x[i] * inv).clamp(-127.0, 127.0) + ROUND_MAGIC;
            whole[i] = v.to_bits() as i32 - ROUND_MAGIC.to_bits() as i32;
        }
        let mut sums = [0; 2];
        for i in 0..BLOCK / 2 {
            sums[0] += whole[i];
            sums[1] += whole[BLOCK / 2 + i];
        }
        for i in 0..BLOCK {
            out.q[i] = whole[i] as i8;
        }
        out.d = a / 127.0;
        out.s = out.d * (sums[0] + sums[1]) as f32;
        out.sums = sums;
    }
    Ok(())
}

/// Folds 16 lanes as `numerics::sum::fold` does.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; 16]) -> f32 {
    for j in 0..8 {
        lanes[j] += lanes[j + 8];
    }
    for j in 0..4 {
        lanes[j] += lanes[j + 4];
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// Striped dot product; see `numerics::sum::striped_dot`.
#[inline(always)]
pub(crate) fn striped_dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a16, a_rest), (b16, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a16.iter().zip(b16) {
        for j in 0..16 {
            lanes[j] += a[j] * b[j];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * b;
    }
    fold(lanes)
}

for_each_isa! {
    /// `y = (x·r)·gain`, all `[D]`; see `numerics::norm`.
    rms_norm, rms_norm_avx2, rms_norm_body(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) -> Result<(), Fault>
}

#[inline(always)]
fn rms_norm_body(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) -> Result<(), Fault> {
    let s = striped_dot(x, x);
    if s.to_bits() & 0x7fff_ffff >= NOT_FINITE {
        return Err(Fault);
    }
    let r = 1.0 / (s / x.len() as f32 + eps).sqrt();
    for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
        *y = (x * r) * g;
    }
    Ok(())
}

/// eˣ; see `numerics::exp`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const C: [f32; 8] = [
        1.0,
        1.0,
        0.5,
        (1.0f64 / 6.0) as f32,
        (1.0f64 / 24.0) as f32,
        (1.0f64 / 120.0) as f32,
        (1.0f64 / 720.0) as f32,
        (1.0f64 / 5040.0) as f32,
    ];
    let capped = if x < 88.0 { x } else { 88.0 };
    // Below the range the result is discarded; this keeps the rounding trick in bounds.
    let capped = if capped > -88.0 { capped } else { -88.0 };
    let shifted = capped * f32::from_bits(0x3fb8_aa3b) + ROUND_MAGIC;
    let n = shifted - ROUND_MAGIC;
    let r = (capped - n * f32::from_bits(0x3f31_7200)) - n * f32::from_bits(0x35bf_be8e);
    let mut p = C[7];
    for k in (0..7).rev() {
        p = p * r + C[k];
    }
    let n = shifted.to_bits().wrapping_sub(ROUND_MAGIC.to_bits());
    let e = f32::from_bits(p.to_bits().wrapping_add(n << 23));
    if x < -87.0 { 0.0 } else { e }
}

for_each_isa! {
    /// `gate = silu(gate)·up`, both `[F]`.
    swiglu, swiglu_avx2, swiglu_body(gate: &mut [f32], up: &[f32])
}

#[inline(always)]
fn swiglu_body(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = (*g / (1.0 + exp(-*g))) * u;
    }
}

for_each_isa! {
    /// `x = x + y`.
    add, add_avx2, add_body(x: &mut [f32], y: &[f32])
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

for_each_isa! {
    /// A fault unless every value is finite.
    check, check_avx2, check_body(x: &[f32]) -> Result<(), Fault>
}

#[inline(always)]
fn check_body(x: &[f32]) -> Result<(), Fault> {
    let mut max = 0u32;
    for v in x {
        max = max.max(v.to_bits() & 0x7fff_ffff);
    }
    if max >= NOT_FINITE { Err(Fault) } else { Ok(()) }
}

for_each_isa! {
    /// Rotates every head of `x`; `sin` and `cos` are `[hd / 2]`.
    rope, rope_avx2, rope_body(x: &mut [f32], sin: &[f32], cos: &[f32], pairs: Pairs)
}

#[inline(always)]
fn rope_body(x: &mut [f32], sin: &[f32], cos: &[f32], pairs: Pairs) {
    let half = sin.len();
    for head in x.chunks_exact_mut(2 * half) {
        match pairs {
            Pairs::Adjacent => {
                let (head, _) = head.as_chunks_mut::<2>();
                for ((pair, s), c) in head.iter_mut().zip(sin).zip(cos) {
                    let [a, b] = *pair;
                    *pair = [a * c - b * s, a * s + b * c];
                }
            }
            Pairs::HalfSplit => {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), s), c) in first.iter_mut().zip(second).zip(sin).zip(cos) {
                    (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                }
            }
        }
    }
}
