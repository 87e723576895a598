//! The KV cache's pages on the device: a buffer per layer, `[page][kv head]{ K, V }` as
//! `rope.wgsl` says, f16.

use std::ops::Range;

use numerics::PAGE_POSITIONS;

use crate::kv::PageCopy;
use crate::types::LoadError;

use super::buffers::Allocator;
use super::kernels::Shapes;

/// The pages of a shard's layers.
pub(crate) struct KvPages {
    pub(crate) layers: Vec<wgpu::Buffer>,
    /// Of one layer.
    page_bytes: u64,
    /// Where a page waits on its way to another: no buffer is copied onto itself.
    bounce: Option<wgpu::Buffer>,
}

impl KvPages {
    /// Makes room for `pages_max` pages of `layers` layers.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`] if a layer's pages exceed what a kernel can see.
    pub(crate) fn allocate(
        shapes: &Shapes,
        layers: usize,
        pages_max: u32,
        allocator: &mut Allocator<'_>,
    ) -> Result<KvPages, LoadError> {
        let page_bytes = KvPages::page_bytes(shapes);
        let bytes = page_bytes * u64::from(pages_max);
        let buffer =
            |layer| allocator.storage(&format!("{pages_max} KV pages, layer {layer}"), bytes);
        let layers = (0..layers).map(buffer).collect::<Result<Vec<_>, _>>()?;
        let bounce = match layers.len() {
            0 => None,
            _ => Some(allocator.storage("a KV page", page_bytes)?),
        };
        Ok(KvPages { layers, page_bytes, bounce })
    }

    /// Bytes of one page of one layer.
    pub(crate) fn page_bytes(shapes: &Shapes) -> u64 {
        let position = u64::from(shapes.kv_heads) * u64::from(shapes.head_dim) * 2 * 2;
        position * PAGE_POSITIONS as u64
    }

    /// Copies pages of the layers `layers`, one after the other.
    pub(crate) fn copy(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        copies: &[PageCopy],
        layers: Range<usize>,
    ) {
        let Some(bounce) = &self.bounce else { return };
        let at = |page: u32| u64::from(page) * self.page_bytes;
        for kv in &self.layers[layers] {
            for &PageCopy { from, to } in copies {
                encoder.copy_buffer_to_buffer(kv, at(from), bounce, 0, self.page_bytes);
                encoder.copy_buffer_to_buffer(bounce, 0, kv, at(to), self.page_bytes);
            }
        }
    }
}
