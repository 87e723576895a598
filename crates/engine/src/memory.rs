//! Memory for weights, of which a step reads every byte once.
//!
//! In pages of 4 KiB one core spends as long on looking up where they are as on reading them:
//! on a virtual machine with Zen 4 cores it read 16 GB/s so, and 25 to 30 in pages of 2 MiB.

use std::io;

/// Zeroed memory, in huge pages where the system gives them.
pub struct WeightMemory {
    #[cfg(not(target_arch = "wasm32"))]
    map: memmap2::MmapMut,
    #[cfg(target_arch = "wasm32")]
    map: Vec<u8>,
    /// Where it begins in `map`.
    start: usize,
    len: usize,
}

/// Pages that hold more than one in a shorter piece are not worth aligning it.
#[cfg(not(target_arch = "wasm32"))]
const HUGE_PAGE: usize = 2 << 20;

impl WeightMemory {
    /// Memory for `len` bytes. It takes up what is written to, in whole pages.
    ///
    /// # Errors
    /// The system gives no more.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new(len: usize) -> io::Result<WeightMemory> {
        if len < HUGE_PAGE {
            let map = memmap2::MmapMut::map_anon(len.max(1))?;
            return Ok(WeightMemory { map, start: 0, len });
        }
        // Not every kernel aligns what is large by itself.
        let total = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = memmap2::MmapMut::map_anon(total)?;
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        // A kernel built without huge pages refuses; it reads as well, and slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
        Ok(WeightMemory { map, start, len })
    }

    /// Memory for `len` bytes; a tab's has no pages to choose.
    #[cfg(target_arch = "wasm32")]
    pub fn new(len: usize) -> io::Result<WeightMemory> {
        Ok(WeightMemory { map: vec![0; len], start: 0, len })
    }
}

impl AsRef<[u8]> for WeightMemory {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }
}

impl AsMut<[u8]> for WeightMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}
