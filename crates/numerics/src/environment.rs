//! The floating-point mode of a thread.

/// Checks that this thread rounds to nearest even and keeps subnormals.
///
/// On x86-64 reads MXCSR (flush-to-zero, denormals-are-zero, rounding), on AArch64 FPCR
/// (FZ, FZ16, RMode, AHP); elsewhere the mode cannot be changed. The error says which
/// register held what.
pub fn check_float_environment() -> Result<(), String> {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut mxcsr = 0u32;
        // SAFETY: stmxcsr writes four bytes to the given address, which is a live u32.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack, preserves_flags));
        }
        // FTZ is bit 15, the rounding mode bits 13 and 14, DAZ bit 6.
        if mxcsr & 0xe040 != 0 {
            return Err(format!("MXCSR is {mxcsr:#06x}"));
        }
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    {
        let fpcr: u64;
        // SAFETY: reading FPCR is allowed at EL0 and changes nothing.
        unsafe {
            std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags));
        }
        // AHP is bit 26, FZ bit 24, RMode bits 22 and 23, FZ16 bit 19.
        if fpcr & ((1 << 26) | (0b111 << 22) | (1 << 19)) != 0 {
            return Err(format!("FPCR is {fpcr:#x}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_thread_passes() {
        assert_eq!(check_float_environment(), Ok(()));
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[test]
    fn flush_to_zero_is_noticed() {
        std::thread::spawn(|| {
            let set = |value: u32| {
                // SAFETY: loads a valid MXCSR value from a live u32; only this thread.
                unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack)) }
            };
            for bad in [0x9f80, 0x1fc0, 0x3f80, 0x5f80] {
                set(bad);
                let found = check_float_environment();
                set(0x1f80);
                assert!(found.is_err(), "{bad:#x}");
            }
            assert_eq!(check_float_environment(), Ok(()));
        })
        .join()
        .unwrap();
    }
}
