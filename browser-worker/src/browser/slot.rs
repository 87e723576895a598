//! Memory that two Web Workers share, for a chief and its helper.

use engine::crew::slot::Memory;
use js_sys::{Array, Atomics, Function, Int32Array, Reflect, SharedArrayBuffer, Uint8Array};
use wasm_bindgen::prelude::*;
use web_sys::Performance;

use super::js;

/// Views of one [`SharedArrayBuffer`]. Bytes are copied in and out; nothing of either
/// instance's own memory is shared.
pub struct SharedBytes {
    words: Int32Array,
    bytes: Uint8Array,
    clock: Performance,
}

/// Memory that threads can share; in words, why not.
pub fn shared(bytes: usize) -> Result<SharedArrayBuffer, String> {
    let make: Function = js::get(&js_sys::global(), "SharedArrayBuffer")
        .dyn_into()
        .map_err(|_| "this browser shares no memory between threads")?;
    let bytes = bytes.next_multiple_of(4) as f64;
    let made = Reflect::construct(&make, &Array::of1(&JsValue::from_f64(bytes)));
    Ok(made.map_err(|error| js::text(&error))?.unchecked_into())
}

impl SharedBytes {
    /// Of such a buffer; `None` if it is none.
    pub fn new(buffer: &JsValue) -> Option<SharedBytes> {
        if !buffer.is_instance_of::<SharedArrayBuffer>() {
            return None;
        }
        let (words, bytes) = (Int32Array::new(buffer), Uint8Array::new(buffer));
        Some(SharedBytes { words, bytes, clock: js::scope().performance()? })
    }

    fn part(&self, at: usize, bytes: usize) -> Uint8Array {
        self.bytes.subarray(at as u32, (at + bytes) as u32)
    }
}

/// Atomics throw only for what is no word of shared memory.
const WORD: &str = "a word of shared memory";

impl Memory for SharedBytes {
    fn load(&self, word: usize) -> i32 {
        Atomics::load(&self.words, word as u32).expect(WORD)
    }

    fn store(&self, word: usize, value: i32) {
        Atomics::store(&self.words, word as u32, value).expect(WORD);
    }

    fn replace(&self, word: usize, old: i32, new: i32) -> bool {
        Atomics::compare_exchange(&self.words, word as u32, old, new).expect(WORD) == old
    }

    fn sleep(&self, word: usize, old: i32) {
        Atomics::wait(&self.words, word as u32, old).expect(WORD);
    }

    fn wake(&self, word: usize) {
        Atomics::notify(&self.words, word as u32).expect(WORD);
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.part(at, bytes.len()).copy_to(bytes);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.part(at, bytes.len()).copy_from(bytes);
    }

    fn bytes(&self) -> usize {
        self.bytes.length() as usize
    }

    fn now_ms(&self) -> f64 {
        self.clock.now()
    }
}
