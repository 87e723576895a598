//! Randomness from the operating system.

/// `N` random bytes in hex.
///
/// # Panics
/// If the operating system has none to give.
pub(crate) fn hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 32 random bits.
///
/// # Panics
/// If the operating system has none to give.
pub(crate) fn bits() -> u32 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u32::from_le_bytes(bytes)
}

/// 64 random bits.
///
/// # Panics
/// If the operating system has none to give.
pub(crate) fn word() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_le_bytes(bytes)
}
