//! Small synthetic models as GGUF bytes, for tests of this and other crates.
//!
//! [`TinyModel`] makes a whole model of any shapes and tensor types from a seed, the same
//! bytes on every machine; [`GgufWriter`] writes any GGUF file, also wrong ones.

mod gguf_writer;
mod tiny_model;
mod tiny_tokenizer;

pub use gguf_writer::{Entry, GgufWriter};
pub use tiny_model::{TinyModel, random_blocks};

/// A seeded stream of numbers (splitmix64): the same on every machine.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of that seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
