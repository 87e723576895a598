//! Ops on one row.

use engine::testing::QuantBlock;
use engine::{Isa, testing};
use model::testing::Random;
use numerics::rope::{Pairs, sin_cos};
use numerics::{BLOCK, Fault};

use crate::guard::{Guarded, random_floats};

const LENGTHS: [usize; 9] = [1, 7, 15, 16, 17, 48, 100, 576, 1531];

/// Runs `check` for every instruction set and length with a random row.
fn for_each(seed: u64, check: impl Fn(Isa, &mut Random, usize)) {
    for isa in Isa::available() {
        for (i, n) in LENGTHS.into_iter().enumerate() {
            check(isa, &mut Random::new(seed * 100 + i as u64), n);
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn rms_norm() {
    for_each(1, |isa, random, n| {
        let (x, gain) = (random_floats(random, n), random_floats(random, n));
        let mut y = Guarded::new(n);
        testing::rms_norm(isa, &x, &gain, 1e-5, &mut y.buffer()[..n]).expect("finite");
        let want = numerics::norm::rms_norm(&x, &gain, 1e-5).expect("finite");
        y.expect_all(&want, &format!("{n}, {isa:?}"));
        let mut wide = x.clone();
        wide[n / 2] = 2e19; // its square overflows
        assert_eq!(testing::rms_norm(isa, &wide, &gain, 1e-5, &mut vec![0.0; n]), Err(Fault));
    });
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn swiglu() {
    for_each(2, |isa, random, n| {
        let (mut gate, up) = (random_floats(random, n), random_floats(random, n));
        for (i, special) in [-86.9, -87.1, -88.5, 87.0, 88.0, 89.0, 1e30, -1e30, 1e-30, f32::MAX]
            .into_iter()
            .enumerate()
        {
            if i < n {
                gate[n - 1 - i] = special;
            }
        }
        let want = numerics::exp::swiglu(&gate, &up);
        let mut output = Guarded::new(n);
        output.buffer()[..n].copy_from_slice(&gate);
        testing::swiglu(isa, &mut output.buffer()[..n], &up);
        output.expect_all(&want, &format!("{n}, {isa:?}"));
    });
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn exp_over_its_whole_range() {
    // silu(-x)·(-1/x)… hides exp; a gate of tiny steps covers it densely instead.
    let gate: Vec<f32> = (0..400_000).map(|i| (i as f32 - 200_000.0) * 0.00045).collect();
    let up = vec![1.0; gate.len()];
    let want = numerics::exp::swiglu(&gate, &up);
    for isa in Isa::available() {
        let mut got = gate.clone();
        testing::swiglu(isa, &mut got, &up);
        assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn add() {
    for_each(3, |isa, random, n| {
        let (x, y) = (random_floats(random, n), random_floats(random, n));
        let mut output = Guarded::new(n);
        output.buffer()[..n].copy_from_slice(&x);
        testing::add(isa, &mut output.buffer()[..n], &y);
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        output.expect_all(&want, &format!("{n}, {isa:?}"));
    });
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn check() {
    for_each(4, |isa, random, n| {
        let mut x = random_floats(random, n);
        x[0] = f32::MAX;
        assert_eq!(testing::check(isa, &x), Ok(()));
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
            let mut x = x.clone();
            x[random.below(n as u64) as usize] = bad;
            assert_eq!(testing::check(isa, &x), Err(Fault), "{n}, {isa:?}");
        }
    });
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn quantise() {
    for isa in Isa::available() {
        for case in 0..400u64 {
            let mut random = Random::new(500 + case);
            let blocks = 1 + random.below(4) as usize;
            let mut x = random_floats(&mut random, blocks * BLOCK);
            // Whole exponent range, ties included.
            let scale = 2.0f32.powi(random.below(240) as i32 - 120);
            x.iter_mut().for_each(|v| *v *= scale);
            if case % 5 == 0 {
                for (i, v) in x.iter_mut().enumerate() {
                    *v = (i as f32 - 63.5) * scale; // q + ½ everywhere once a block has 127
                }
                x[0] = 127.0 * scale;
            }
            let n = x.len() / BLOCK;
            let guard = QuantBlock { d: f32::NAN, s: f32::NAN, sums: [9; 2], q: [99; BLOCK] };
            let mut got = vec![guard; n + 1];
            testing::quantise(isa, &x, &mut got).expect("finite");
            let want = numerics::quantise::quantise(&x).expect("finite");
            assert_eq!(got[n].q, guard.q, "written beyond the end");
            for (got, want) in got.iter().zip(&want) {
                let bits = |d: f32, s: f32| [d.to_bits(), s.to_bits()];
                assert_eq!(bits(got.d, got.s), bits(want.d, want.s), "case {case}, {isa:?}");
                assert_eq!(got.q, want.q, "case {case}, {isa:?}");
                let sum = |half: &[i8]| half.iter().map(|&q| i32::from(q)).sum::<i32>();
                let sums = [sum(&want.q[..16]), sum(&want.q[16..])];
                assert_eq!(got.sums, sums, "case {case}, {isa:?}");
            }
            let at = random.below(x.len() as u64) as usize;
            x[at] = f32::NEG_INFINITY;
            assert_eq!(testing::quantise(isa, &x, &mut got), Err(Fault));
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn rope() {
    for isa in Isa::available() {
        for pairs in [Pairs::Adjacent, Pairs::HalfSplit] {
            for (heads, head_dim) in [(1, 2), (3, 6), (2, 16), (3, 64), (2, 128), (1, 100)] {
                let mut random = Random::new(600 + head_dim as u64);
                let x = random_floats(&mut random, heads * head_dim);
                let inv_freq: Vec<f64> = (0..head_dim / 2)
                    .map(|i| 1e4f64.powf(-2.0 * i as f64 / head_dim as f64))
                    .collect();
                let position = random.below(131_072) as u32;
                let (sin, cos): (Vec<f32>, Vec<f32>) =
                    inv_freq.iter().map(|&f| sin_cos(position, f)).unzip();
                let mut want = x.clone();
                numerics::rope::rope(&mut want, position, &inv_freq, pairs);
                let mut output = Guarded::new(x.len());
                output.buffer()[..x.len()].copy_from_slice(&x);
                testing::rope(isa, &mut output.buffer()[..x.len()], &sin, &cos, pairs);
                output.expect_all(&want, &format!("{heads} of {head_dim}, {pairs:?}, {isa:?}"));
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn f16_and_back() {
    for isa in Isa::available() {
        for n in LENGTHS {
            let mut random = Random::new(700 + n as u64);
            let mut x = random_floats(&mut random, n);
            x[n / 2] = -65_519.996;
            x[0] = 3e-8; // subnormal in f16
            let want: Vec<f32> = x
                .iter()
                .map(|&v| {
                    numerics::f16::f16_to_f32(numerics::f16::f32_to_f16(v).expect("in range"))
                })
                .collect();
            let mut output = Guarded::new(n);
            testing::through_f16(isa, &x, &mut output.buffer()[..n]).expect("in range");
            output.expect_all(&want, &format!("{n}, {isa:?}"));
            for bad in [65_520.0, -65_520.0, f32::NAN, f32::INFINITY, 1e30] {
                x[n - 1] = bad;
                assert_eq!(testing::through_f16(isa, &x, &mut vec![0.0; n]), Err(Fault));
            }
        }
    }
}
