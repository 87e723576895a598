//! Output buffers that notice what was not written, and what was written beyond.

use model::testing::Random;

/// A NaN that no kernel makes by itself.
const UNWRITTEN: u32 = 0x7fc0_beef;
/// Guard words behind the output.
const GUARD: usize = 64;

/// A buffer for `len` floats with guards behind.
pub struct Guarded {
    values: Vec<f32>,
    len: usize,
}

impl Guarded {
    pub fn new(len: usize) -> Guarded {
        Guarded { values: vec![f32::from_bits(UNWRITTEN); len + GUARD], len }
    }

    /// All of it, guards included: a kernel knows its own length.
    pub fn buffer(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Asserts that exactly `want` was written, `None` meaning untouched.
    pub fn expect(&self, want: &[Option<f32>], what: &dyn std::fmt::Display) {
        assert_eq!(want.len(), self.len);
        for (i, got) in self.values.iter().enumerate() {
            let want = want.get(i).copied().flatten().map_or(UNWRITTEN, f32::to_bits);
            let got = got.to_bits();
            assert_eq!(got, want, "{what}: element {i} of {}: {got:#x} {want:#x}", self.len);
        }
    }

    /// Asserts that all of it was written.
    pub fn expect_all(&self, want: &[f32], what: &dyn std::fmt::Display) {
        let want: Vec<Option<f32>> = want.iter().map(|&x| Some(x)).collect();
        self.expect(&want, what);
    }
}

/// Numbers of very different sizes, with some zeros, of both signs.
pub fn random_floats(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n)
        .map(|_| match random.below(20) {
            0 => 0.0,
            1 => -0.0,
            2 => random.unit() * 50.0,
            3 => random.unit() * 1e-6,
            _ => random.unit() * 2.0,
        })
        .collect()
}
