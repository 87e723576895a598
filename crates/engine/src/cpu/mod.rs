//! The CPU backend: kernels whose bits do not depend on the instruction set.

#![allow(clippy::needless_range_loop)] // lanes are indexed: it is what vectorises
#![allow(clippy::too_many_arguments)] // a kernel's operands are what they are

#[cfg(target_arch = "x86_64")]
mod ahead;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_attention;
pub(crate) mod elementwise;
pub(crate) mod formats;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_attention;
#[cfg(target_arch = "aarch64")]
mod neon_dots;
mod portable;
pub(crate) mod product;
pub(crate) mod quants;
pub(crate) mod rows;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod wasm;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm_attention;

use elementwise::for_each_isa;
use formats::{Format, Lanes};
use model::Layout;
use numerics::{Fault, PAGE_POSITIONS};
use product::{dot_body, widen_body};
use quants::QuantBlock;

/// An instruction set that the kernels are written for; all give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, which the compiler vectorises as far as the target goes.
    Portable,
    /// AArch64 with NEON, which all of them have.
    Neon,
    /// AArch64 with NEON and dot products (FEAT_DotProd).
    NeonDot,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 (F, BW, VL, VNNI).
    Avx512,
    /// WASM built with simd128.
    Simd128,
    /// WASM built with relaxed SIMD, of which only that is used which is the same everywhere.
    RelaxedSimd,
}

impl Isa {
    /// What this machine can run, slowest first; never empty.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            found.push(Isa::Avx2);
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                found.push(Isa::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            found.push(Isa::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                found.push(Isa::NeonDot);
            }
        }
        // A module runs only where all that it was built with is there.
        if cfg!(all(target_arch = "wasm32", target_feature = "simd128")) {
            found.push(Isa::Simd128);
            if cfg!(target_feature = "relaxed-simd") {
                found.push(Isa::RelaxedSimd);
            }
        }
        found
    }

    /// The fastest that this machine can run.
    pub fn best() -> Isa {
        Isa::available().into_iter().max().unwrap_or(Isa::Portable)
    }

    /// The instruction set that is used where this one is asked for: itself, but in a module
    /// for browsers, which is as small as can be and so has the fastest only. A constant
    /// there, so that no other's kernels are compiled in.
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    #[inline(always)]
    pub(crate) fn compiled(self) -> Isa {
        match () {
            () if cfg!(feature = "testing") => self,
            () if cfg!(target_feature = "relaxed-simd") => Isa::RelaxedSimd,
            () => Isa::Simd128,
        }
    }
}

/// Canonical products of one tile (its `cells`) with N columns: `[N][16 rows]`.
#[inline(always)]
fn quantised<F: Format, const N: usize>(
    isa: Isa,
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Portable => {}
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        Isa::Avx2 => return unsafe { avx2::quantised::<F, N>(cells, columns) },
        // SAFETY: as above.
        Isa::Avx512 => return unsafe { avx512::quantised::<F, N>(cells, columns) },
        _ => unreachable!("{isa:?} is another processor's"),
    }
    #[cfg(target_arch = "aarch64")]
    match isa {
        Isa::Portable => {}
        Isa::Neon => return neon::quantised::<F, N>(cells, columns),
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        Isa::NeonDot => return unsafe { neon::quantised_dotprod::<F, N>(cells, columns) },
        _ => unreachable!("{isa:?} is another processor's"),
    }
    let _ = isa;
    portable::quantised::<F, N>(cells, columns)
}

/// Exact products of one tile with N columns; see [`portable::exact`].
fn exact<F: Format, const N: usize>(isa: Isa, cells: &[u8], columns: [&[f32]; N]) -> [Lanes; N] {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        return unsafe { exact_avx2::<F, N>(cells, columns) };
    }
    let _ = isa;
    portable::exact::<F, N>(cells, columns)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn exact_avx2<F: Format, const N: usize>(cells: &[u8], columns: [&[f32]; N]) -> [Lanes; N] {
    portable::exact::<F, N>(cells, columns)
}

for_each_isa! {
    /// Row `r` of a row-major matrix as f32.
    widen, widen_avx2, widen_body(layout: Layout, bytes: &[u8], r: usize, out: &mut [f32])
}

for_each_isa! {
    /// Striped dot product.
    dot, dot_avx2, dot_body(a: &[f32], b: &[f32]) -> f32
}

/// An element of the KV cache.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// Reads elements back as f32; lengths equal.
    fn widen(isa: Isa, from: &[Self], to: &mut [f32]);
    /// Rounds a row to the cache's precision, lengths equal; a fault where that overflows.
    fn narrow(isa: Isa, from: &[f32], to: &mut [Self]) -> Result<(), Fault>;
}

/// Writes one position of one kv head, `key` and `value` `[hd]`, at `slot` of its page:
/// `k` is `[hd][64]`, `v` `[64][hd]`.
pub(crate) fn append<E: Element>(
    isa: Isa,
    key: &[f32],
    value: &[f32],
    slot: usize,
    k: &mut [E],
    v: &mut [E],
) -> Result<(), Fault> {
    let head_dim = key.len();
    // The value's place serves as scratch for the key's rounding.
    let row = &mut v[slot * head_dim..(slot + 1) * head_dim];
    E::narrow(isa, key, row)?;
    for (keys, &rounded) in k.chunks_exact_mut(PAGE_POSITIONS).zip(&*row) {
        keys[slot] = rounded;
    }
    E::narrow(isa, value, row)
}

impl Element for u16 {
    fn widen(isa: Isa, from: &[u16], to: &mut [f32]) {
        widen_f16(isa, from, to);
    }

    fn narrow(isa: Isa, from: &[f32], to: &mut [u16]) -> Result<(), Fault> {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx2 {
            // SAFETY: an Isa beyond Portable is used only where it was detected.
            return unsafe { avx2::narrow_f16(from, to) };
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        if isa.compiled() >= Isa::Simd128 {
            return wasm_attention::narrow_f16(from, to);
        }
        #[cfg(target_arch = "aarch64")]
        if isa >= Isa::Neon {
            return neon_attention::narrow_f16(from, to);
        }
        let _ = isa;
        for (t, &f) in to.iter_mut().zip(from) {
            *t = numerics::f16::f32_to_f16(f)?;
        }
        Ok(())
    }
}

impl Element for f32 {
    fn widen(_isa: Isa, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn narrow(_isa: Isa, from: &[f32], to: &mut [f32]) -> Result<(), Fault> {
        to.copy_from_slice(from);
        Ok(())
    }
}

/// Finite f16 to f32, lengths equal.
pub(crate) fn widen_f16(isa: Isa, from: &[u16], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        return unsafe { avx2::widen_f16(from, to) };
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    if isa.compiled() >= Isa::Simd128 {
        return wasm_attention::widen_f16(from, to);
    }
    #[cfg(target_arch = "aarch64")]
    if isa >= Isa::Neon {
        return neon_attention::widen_f16(from, to);
    }
    let _ = isa;
    for (t, &f) in to.iter_mut().zip(from) {
        *t = formats::f16_to_f32(f);
    }
}
