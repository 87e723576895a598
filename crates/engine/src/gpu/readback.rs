//! Getting results out of the device: a ring of buffers that can be mapped.

use super::handle::Handle;
use super::wait::{self, Receiver};

/// Buffers that are kept for later steps.
const KEPT_MAX: usize = 3;
/// A kept buffer may be so much larger than what is asked for.
const SLACK: u64 = 8;

/// Buffers that results are copied to, reused from step to step.
pub(crate) struct Readback {
    handle: Handle,
    free: Vec<wgpu::Buffer>,
}

/// A buffer on its way: dropped midway, it is simply not reused.
pub(crate) struct Pending {
    buffer: wgpu::Buffer,
    bytes: u64,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Readback {
    pub(crate) fn new(handle: &Handle) -> Readback {
        Readback { handle: handle.clone(), free: Vec::new() }
    }

    /// A buffer of at least that size, to copy into.
    pub(crate) fn take(&mut self, bytes: u64) -> wgpu::Buffer {
        let fits = |b: &wgpu::Buffer| b.size() >= bytes && b.size() / SLACK <= bytes;
        if let Some(at) = self.free.iter().position(fits) {
            return self.free.swap_remove(at);
        }
        self.handle.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes.next_power_of_two(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Asks for the buffer's first `bytes`; to be called as soon as the copy is submitted.
    pub(crate) fn map(&self, buffer: wgpu::Buffer, bytes: u64) -> Pending {
        let (sender, mapped) = wait::channel(&self.handle);
        buffer.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| sender.send(result));
        Pending { buffer, bytes, mapped }
    }

    /// Waits for it and hands its bytes over as f32s; an error says how the device failed.
    pub(crate) async fn finish(&mut self, pending: Pending) -> Result<Vec<f32>, String> {
        let Pending { buffer, bytes, mapped } = pending;
        let failed = |what: String, handle: &Handle| handle.lost().unwrap_or(what);
        match mapped.await {
            // What a lost device still hands over need not be what was computed.
            Some(Ok(())) if self.handle.lost().is_some() => {
                return Err(failed(String::new(), &self.handle));
            }
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(failed(error.to_string(), &self.handle)),
            None => return Err(failed("it never answered".to_owned(), &self.handle)),
        }
        let values = {
            let view = buffer
                .slice(..bytes)
                .get_mapped_range()
                .map_err(|error| failed(error.to_string(), &self.handle))?;
            let (words, _) = view.as_chunks::<4>();
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        };
        buffer.unmap();
        if self.free.len() < KEPT_MAX {
            self.free.push(buffer);
        } else {
            buffer.destroy();
        }
        Ok(values)
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        self.free.iter().for_each(wgpu::Buffer::destroy);
    }
}
