//! Integer products of four rows by four columns on NEON: two ways to the same dots.

use std::arch::aarch64::*;

/// How products of quants are added up. A value is the proof that this processor can.
pub(crate) trait Products: Copy {
    /// Sums on the way, of four rows.
    type Sum: Copy;
    /// Registers that one sum takes.
    const REGISTERS: usize;

    /// A sum that continues `dots`.
    fn begin(self, dots: int32x4_t) -> Self::Sum;

    /// Adds the products of `w`, `[4 rows][4 columns]`, with the four activations
    /// `4·GROUP ..` of `x`.
    fn add<const GROUP: i32>(self, sum: Self::Sum, w: int8x16_t, x: int8x16_t) -> Self::Sum;

    /// The dots with the sum that began with them.
    fn end(self, dots: int32x4_t, sum: Self::Sum) -> int32x4_t;
}

/// By dot products, straight in 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Sdot(());

impl Sdot {
    /// # Safety
    /// The processor has `dotprod`. (Fast only inside functions that are compiled for it.)
    #[inline(always)]
    pub(crate) unsafe fn new() -> Sdot {
        Sdot(())
    }
}

impl Products for Sdot {
    type Sum = int32x4_t;
    const REGISTERS: usize = 1;

    #[inline(always)]
    fn begin(self, dots: int32x4_t) -> int32x4_t {
        dots
    }

    #[inline(always)]
    fn add<const GROUP: i32>(self, sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: who made this `Sdot` knew that there is `dotprod`.
        unsafe { sdot::<GROUP>(sum, w, x) }
    }

    #[inline(always)]
    fn end(self, _: int32x4_t, sum: int32x4_t) -> int32x4_t {
        sum
    }
}

/// `vdotq_laneq_s32`, which the stable standard library does not have yet.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot<const GROUP: i32>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: reads and writes nothing but these registers.
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{group}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            group = const GROUP,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// By widening products: quants of at most 5 bits over 8 groups add to at most
/// 8·31·127 = 31,496 in 16 bits, of 6 bits over 4 groups to 4·63·127 = 32,004, signed bytes
/// over 2 groups to 2·128·127 = 32,512. Then `end` must follow.
#[derive(Clone, Copy)]
pub(crate) struct Widening;

impl Products for Widening {
    /// Of rows 0 and 1, and of rows 2 and 3: four columns each.
    type Sum = [int16x8_t; 2];
    const REGISTERS: usize = 2;

    #[inline(always)]
    fn begin(self, _: int32x4_t) -> [int16x8_t; 2] {
        // SAFETY: NEON is in the baseline of every target that has this module.
        [unsafe { vdupq_n_s16(0) }; 2]
    }

    #[inline(always)]
    fn add<const GROUP: i32>(
        self,
        [low, high]: [int16x8_t; 2],
        w: int8x16_t,
        x: int8x16_t,
    ) -> [int16x8_t; 2] {
        // SAFETY: NEON is in the baseline of every target that has this module.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_laneq_s32::<GROUP>(vreinterpretq_s32_s8(x)));
            [vmlal_s8(low, vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(high, w, x)]
        }
    }

    #[inline(always)]
    fn end(self, dots: int32x4_t, [low, high]: [int16x8_t; 2]) -> int32x4_t {
        // SAFETY: NEON is in the baseline of every target that has this module.
        unsafe { vaddq_s32(dots, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))) }
    }
}
