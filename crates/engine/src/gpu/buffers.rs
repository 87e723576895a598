//! Making buffers: too large and out of memory are errors, not surprises.

use std::pin::Pin;

use crate::types::LoadError;

use super::handle::Handle;

/// Buffers are a multiple of this, so that all of one can be seen as `array<vec4<u32>>`.
const GRAIN: u64 = 16;

type Outcome = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

/// Buffers that are freed when this is dropped. Dropping the last handle of one does so only
/// natively: in a browser it leaves that to the garbage collector, which sees no need.
///
/// What was submitted or written before still sees them.
#[derive(Default)]
pub(crate) struct Owned(Vec<wgpu::Buffer>);

impl Owned {
    /// Owns one more; a handle of it.
    pub(crate) fn keep(&mut self, buffer: wgpu::Buffer) -> wgpu::Buffer {
        self.0.push(buffer.clone());
        buffer
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(wgpu::Buffer::size).sum()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.iter().for_each(wgpu::Buffer::destroy);
    }
}

/// Makes buffers and gathers what the device says about each, which it says later. Until
/// [`Allocator::settle`] says that all of them are there, none may be used: a bind group of
/// one that was refused is an error that ends the device for all.
pub(crate) struct Allocator<'a> {
    handle: &'a Handle,
    outcomes: Vec<(String, u64, Outcome)>,
    owned: Owned,
}

impl<'a> Allocator<'a> {
    pub(crate) fn new(handle: &'a Handle) -> Allocator<'a> {
        Allocator { handle, outcomes: Vec::new(), owned: Owned::default() }
    }

    /// A storage buffer that can be copied from and to.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] if it exceeds what a kernel can see of one.
    pub(crate) fn storage(&mut self, what: &str, bytes: u64) -> Result<wgpu::Buffer, LoadError> {
        use wgpu::BufferUsages as Usage;
        self.buffer(what, bytes, Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST)
    }

    /// A buffer of any usage.
    ///
    /// # Errors
    /// As [`Allocator::storage`].
    pub(crate) fn buffer(
        &mut self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, LoadError> {
        let device = &self.handle.device;
        let bytes = bytes_of(bytes);
        let max = binding_bytes_max(&device.limits());
        if bytes > max {
            let reason = format!("a buffer there has at most {max}");
            return Err(LoadError::OutOfMemory { what: what.to_owned(), bytes, reason });
        }
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes,
            usage,
            mapped_at_creation: false,
        });
        let (internal, memory) = (internal.pop(), memory.pop());
        let outcome = async move { memory.await.or(internal.await) };
        self.outcomes.push((what.to_owned(), bytes, Box::pin(outcome)));
        Ok(self.owned.keep(buffer))
    }

    /// Waits for the verdicts; all buffers made. An error frees them.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] for the first buffer that was refused,
    /// [`LoadError::Device`] if the device is lost.
    pub(crate) async fn settle(self) -> Result<Owned, LoadError> {
        for (what, bytes, outcome) in self.outcomes {
            if let Some(error) = outcome.await {
                let reason = error.to_string();
                return Err(LoadError::OutOfMemory { what, bytes, reason });
            }
        }
        match self.handle.lost() {
            Some(reason) => Err(LoadError::Device(reason)),
            None => Ok(self.owned),
        }
    }
}

/// What a buffer for so many bytes has.
pub(crate) fn bytes_of(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(GRAIN)
}

/// The most that a kernel can see of one buffer, bytes.
pub(crate) fn binding_bytes_max(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / GRAIN * GRAIN
}
