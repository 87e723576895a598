//! What JavaScript calls. A trap ends the instance; the log says why.

use std::cell::RefCell;

use engine::{Class, Isa};

use crate::cases::CASES;
use crate::real::Real;

thread_local! {
    /// What was said since the log was last taken.
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
    /// The real model, once it was loaded.
    static REAL: RefCell<Option<Real>> = const { RefCell::new(None) };
}

fn say(line: &str) {
    LOG.with_borrow_mut(|log| {
        log.push_str(line);
        log.push('\n');
    });
}

/// Call first: from then on a panic is told in the log.
#[unsafe(no_mangle)]
pub extern "C" fn init() {
    std::panic::set_hook(Box::new(|panic| say(&panic.to_string())));
    say(&format!("instruction sets: {:?}", Isa::available()));
}

/// Length of the log, which [`log_start`] gives; valid until the next call of anything else.
#[unsafe(no_mangle)]
pub extern "C" fn log_len() -> usize {
    LOG.with_borrow(|log| log.len())
}

/// Start of the log, UTF-8.
#[unsafe(no_mangle)]
pub extern "C" fn log_start() -> *const u8 {
    LOG.with_borrow(|log| log.as_ptr())
}

/// Empties the log.
#[unsafe(no_mangle)]
pub extern "C" fn log_clear() {
    LOG.with_borrow_mut(String::clear);
}

/// Room for `len` bytes that JavaScript fills; each is handed back to exactly one call.
#[unsafe(no_mangle)]
pub extern "C" fn reserve(len: usize) -> *mut u8 {
    Box::into_raw(vec![0u8; len].into_boxed_slice()).cast()
}

/// # Safety
/// `start` is what [`reserve`] gave for `len`, and not yet taken.
unsafe fn take(start: *mut u8, len: usize) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, len)) }.into_vec()
}

/// How many cases there are.
#[unsafe(no_mangle)]
pub extern "C" fn case_count() -> usize {
    CASES.len()
}

/// Says the name of a case.
#[unsafe(no_mangle)]
pub extern "C" fn case_name(index: usize) {
    say(CASES[index].0);
}

/// Runs a case; traps where it fails.
#[unsafe(no_mangle)]
pub extern "C" fn case_run(index: usize) {
    CASES[index].1();
}

/// Converts a GGUF file for the calls below.
///
/// # Safety
/// The file is what [`reserve`] gave, filled.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn real_open(file: *mut u8, len: usize) {
    // SAFETY: passed on.
    let file = unsafe { take(file, len) };
    REAL.set(Some(Real::open(file)));
}

/// Meets the hashes of the golden JSON in both classes; traps where one differs.
///
/// # Safety
/// The JSON is what [`reserve`] gave, filled.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn real_golden(json: *mut u8, len: usize) {
    // SAFETY: passed on.
    let json = unsafe { take(json, len) };
    REAL.with_borrow_mut(|real| {
        let real = real.as_mut().expect("real_open comes first");
        real.meet_golden(&json).iter().for_each(|line| say(line));
    });
}

/// Loads all parts in `canonical-1` on instruction set `isa`, counted from the slowest;
/// 0 if this module has no such set.
#[unsafe(no_mangle)]
pub extern "C" fn bench_load(isa: usize) -> u32 {
    let Some(&isa) = Isa::available().get(isa) else { return 0 };
    say(&format!("{isa:?}"));
    REAL.with_borrow_mut(|real| {
        real.as_mut().expect("real_open comes first").load(Class::Canonical1, isa)
    });
    1
}

/// A prompt of `rows` tokens from position 0, with the last one's logits.
#[unsafe(no_mangle)]
pub extern "C" fn bench_prefill(rows: u32) {
    REAL.with_borrow_mut(|real| real.as_mut().expect("real_open comes first").prefill(rows));
}

/// `tokens` greedy tokens after what the last call left.
#[unsafe(no_mangle)]
pub extern "C" fn bench_decode(tokens: u32) {
    REAL.with_borrow_mut(|real| real.as_mut().expect("real_open comes first").decode(tokens));
}

/// One row each of `sessions` sessions.
#[unsafe(no_mangle)]
pub extern "C" fn bench_batch(sessions: u32, position: u32) {
    REAL.with_borrow_mut(|real| {
        real.as_mut().expect("real_open comes first").batch(sessions, position);
    });
}

/// Bytes of weights that a token reads.
#[unsafe(no_mangle)]
pub extern "C" fn bench_bytes() -> f64 {
    REAL.with_borrow(|real| real.as_ref().expect("real_open comes first").bytes_per_token())
}
