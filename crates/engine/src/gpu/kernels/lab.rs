//! A device with buffers made of numbers: what self-test, cases and benchmark run kernels in.

use model::Layout;
use model::layout::TENSOR_ALIGN;

use super::readback::read;
use super::step::StepData;
use super::types::{GpuMatrix, GpuVector, Piece, Place, Scratch, Shapes, row_stride};
use super::{Kernels, Op, kv_page_words, partials_bytes};

/// What buffers are filled with beforehand: a NaN that no kernel makes by itself.
pub(super) const UNWRITTEN: u32 = 0x7fc0_beef;
/// Words behind every output that no kernel may touch.
pub(super) const GUARD_WORDS: u64 = 64;

/// A seeded stream of numbers (splitmix64), the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    /// In [-1, 1).
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    /// An f16 of modest size and either sign; one in eight is subnormal.
    fn half(&mut self) -> u16 {
        let bits = self.next();
        let exponent = if bits & 7 == 0 { 0 } else { 4 + (bits >> 3) % 5 };
        (bits >> 16 & 0x83ff) as u16 | (exponent << 10) as u16
    }

    /// The bytes of a matrix in canonical layout, every bit of them random, but for scales
    /// and floats, which are of modest size.
    pub(super) fn matrix(&mut self, layout: Layout, rows: u32, cols: u32) -> Vec<u8> {
        let bytes = layout.matrix_bytes(rows as usize, cols as usize).expect("whole cells");
        let mut out = Vec::with_capacity(bytes + 3);
        match layout {
            Layout::F32 => {
                (0..bytes / 4).for_each(|_| out.extend(self.unit().to_le_bytes()));
                return out;
            }
            Layout::F16 => {
                (0..bytes / 2).for_each(|_| out.extend(self.half().to_le_bytes()));
                return out;
            }
            _ => {}
        }
        while out.len() < bytes {
            out.extend(self.next().to_le_bytes());
        }
        out.truncate(bytes);
        let halves = match layout {
            Layout::Q4S => 256..288,
            Layout::Q4M => 256..320,
            Layout::Q5S => 320..352,
            Layout::Q8 => 512..544,
            Layout::Q4K => 0..64,
            Layout::Q6K => 0..32,
            Layout::F16 | Layout::F32 => 0..0,
        };
        for cell in out.chunks_exact_mut(layout.cell_bytes()) {
            for half in cell[halves.clone()].chunks_exact_mut(2) {
                half.copy_from_slice(&self.half().to_le_bytes());
            }
        }
        out
    }
}

/// Kernels, and the device and queue to run them on.
pub(super) struct Lab<'a> {
    pub(super) device: &'a wgpu::Device,
    pub(super) queue: &'a wgpu::Queue,
    kernels: &'a Kernels,
}

impl<'a> Lab<'a> {
    pub(super) fn new(kernels: &'a Kernels, queue: &'a wgpu::Queue) -> Lab<'a> {
        Lab { device: kernels.pipelines.device(), queue, kernels }
    }

    /// The kernels for some shapes; what was compiled for others serves them too.
    pub(super) fn kernels(&self, shapes: Shapes) -> Kernels {
        self.kernels.for_shapes(shapes)
    }

    /// A storage buffer of these bytes, padded to whole vec4s.
    pub(super) fn buffer(&self, bytes: &[u8]) -> wgpu::Buffer {
        use wgpu::BufferUsages as Usage;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("lab"),
            size: (bytes.len() as u64).max(16).next_multiple_of(16),
            usage: Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST,
            mapped_at_creation: false,
        });
        let whole = bytes.len() / 4 * 4;
        self.queue.write_buffer(&buffer, 0, &bytes[..whole]);
        if whole < bytes.len() {
            let mut word = [0; 4];
            word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.queue.write_buffer(&buffer, whole as u64, &word);
        }
        buffer
    }

    /// A buffer of so many unwritten words, and guards behind.
    pub(super) fn unwritten(&self, words: u64) -> wgpu::Buffer {
        let len = (words.next_multiple_of(4) + GUARD_WORDS) as usize;
        self.buffer(&UNWRITTEN.to_le_bytes().repeat(len))
    }

    /// A matrix, cut into pieces of so many rows; each lies at its own odd place of a buffer.
    pub(super) fn matrix(
        &self,
        layout: Layout,
        rows: u32,
        cols: u32,
        bytes: &[u8],
        piece_rows: u32,
    ) -> GpuMatrix {
        let mut pieces = Vec::new();
        let mut first_row = 0;
        while first_row < rows {
            let n = piece_rows.min(rows - first_row);
            let before = match first_row {
                0 => 0,
                n => layout.matrix_bytes(n as usize, cols as usize).expect("whole tiles"),
            };
            let len = layout.matrix_bytes(n as usize, cols as usize).expect("whole cells");
            let offset = TENSOR_ALIGN * (1 + pieces.len());
            let mut placed = vec![0xff; offset];
            placed.extend_from_slice(&bytes[before..before + len]);
            let place = Place { buffer: self.buffer(&placed), offset_bytes: offset as u64 };
            pieces.push(Piece { place, first_row, rows: n });
            first_row += n;
        }
        GpuMatrix { layout, rows, cols, pieces }
    }

    /// A vector, not at the start of its buffer.
    pub(super) fn vector(&self, values: &[f32]) -> GpuVector {
        let mut bytes = vec![0xff; TENSOR_ALIGN];
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let place = Place { buffer: self.buffer(&bytes), offset_bytes: TENSOR_ALIGN as u64 };
        GpuVector { place, len: values.len() as u32 }
    }

    /// Scratch for so many rows and positions, all unwritten.
    pub(super) fn scratch(&self, shapes: &Shapes, rows: u32, keys_max: u32) -> Scratch {
        let of = |width: u32| self.unwritten(u64::from(rows) * u64::from(row_stride(width)));
        let step = StepData::bytes_max(rows, 4096, shapes.head_dim);
        Scratch {
            hidden: of(shapes.d_model),
            normed: of(shapes.d_model),
            query: of(shapes.heads * shapes.head_dim),
            key: of(shapes.kv_heads * shapes.head_dim),
            value: of(shapes.kv_heads * shapes.head_dim),
            mixed: of(shapes.heads * shapes.head_dim),
            gate: of(shapes.d_ff),
            up: of(shapes.d_ff),
            logits: of(shapes.vocab),
            partials: self.unwritten(partials_bytes(shapes, keys_max) / 4),
            step: self.unwritten(step / 4),
        }
    }

    /// A layer's cache of so many pages.
    pub(super) fn kv(&self, shapes: &Shapes, pages: u32) -> wgpu::Buffer {
        self.unwritten(u64::from(pages) * u64::from(kv_page_words(shapes)))
    }

    /// Writes rows `[T, width]` at the stride that kernels expect.
    pub(super) fn write_rows(&self, buffer: &wgpu::Buffer, width: usize, rows: &[f32]) {
        let stride = row_stride(width as u32) as u64;
        for (i, row) in rows.chunks_exact(width).enumerate() {
            let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.queue.write_buffer(buffer, 4 * stride * i as u64, &bytes);
        }
    }

    /// Writes words from a buffer's start on.
    pub(super) fn write_words(&self, buffer: &wgpu::Buffer, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.queue.write_buffer(buffer, 0, &bytes);
    }

    /// Runs ops for a step.
    pub(super) fn run(&self, ops: &[&Op], step: &StepData, inv_freq: &[f64], scratch: &Scratch) {
        self.write_words(&scratch.step, &step.words(inv_freq));
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for op in ops {
                op.record(&mut pass, &step.shape());
            }
        }
        self.queue.submit([encoder.finish()]);
    }

    /// A buffer's words.
    pub(super) async fn words(&self, buffer: &wgpu::Buffer) -> Result<Vec<u32>, String> {
        read(self.device, self.queue, buffer).await
    }

    /// Rows `[T, width]` of a buffer, without what lies between and behind.
    pub(super) async fn rows(
        &self,
        buffer: &wgpu::Buffer,
        width: usize,
        rows: usize,
    ) -> Result<Vec<f32>, String> {
        let words = self.words(buffer).await?;
        let stride = row_stride(width as u32) as usize;
        let rows = words.chunks(stride).take(rows);
        Ok(rows.flat_map(|row| &row[..width]).map(|&w| f32::from_bits(w)).collect())
    }
}
