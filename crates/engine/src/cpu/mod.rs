//! The CPU backend: kernels whose bits do not depend on the instruction set.

/// An instruction set that the kernels are written for; all give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, which the compiler vectorises as far as the target goes.
    Portable,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 (F, BW, VL, VNNI).
    Avx512,
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
        found
    }

    /// The fastest that this machine can run.
    pub fn best() -> Isa {
        Isa::available().into_iter().max().unwrap_or(Isa::Portable)
    }
}
