//! How fast single kernels are at real models' shapes, with random weights.
//!
//! A kernel's time is a slope: between few and four times as many dispatches of it in one
//! submit, so that what a submit and its readback cost falls away. Each dispatch has other
//! weights, so many that no cache holds them.

use model::Layout;
use model::manifest::RopePairs;

use super::kv_page_words;
use super::lab::{Lab, Random};
use super::{Epilogue, Kernels, Op, Rows, Scratch, Shapes, StepData, StepRow, Variant};

/// Weights of one matrix's copies together, bytes: more than caches hold.
const ROTATED_BYTES: u64 = 256 << 20;
/// The same where the adapter is the CPU, which is slow and whose cache is small.
const ROTATED_BYTES_SOFTWARE: u64 = 8 << 20;
/// Copies at most.
const COPIES_MAX: u64 = 64;
/// Bytes of the buffer that is copied to measure bandwidth.
const COPY_BYTES: u64 = 128 << 20;
/// Positions of the session that is attended.
const KEYS: u32 = 2048;
/// Times that a slope is measured; the smallest counts.
const ROUNDS: u32 = 5;

/// One measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Kernel, layout, shape.
    pub name: String,
    /// Time of one dispatch (or of the dispatches of one op), seconds.
    pub seconds: f64,
    /// What it has to move, bytes: weights and cache once, activations once.
    pub bytes: u64,
    /// Multiplications and additions.
    pub flops: u64,
}

/// A model's shapes for the benchmark.
struct Model {
    name: &'static str,
    shapes: Shapes,
    layout: Layout,
}

fn models() -> [Model; 2] {
    let pairs = RopePairs::Adjacent;
    let rms_eps = 1e-5;
    let small = Shapes {
        d_model: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        d_ff: 1536,
        vocab: 49152,
        pairs,
        rms_eps,
    };
    let large = Shapes {
        d_model: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        d_ff: 14336,
        vocab: 128_256,
        pairs,
        rms_eps,
    };
    [
        Model { name: "smollm2-135m", shapes: small, layout: Layout::Q4M },
        Model { name: "8b", shapes: large, layout: Layout::Q4K },
    ]
}

/// Measures copies and all kernels whose name contains `filter`, with little work where the
/// device is `software`; `now` is a clock in seconds.
/// The first that is reported is the copy: its bytes are those read and those written.
///
/// # Errors
/// If the device fails.
pub async fn measure_all(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    variant: Variant,
    filter: &str,
    software: bool,
    now: &dyn Fn() -> f64,
    report: &mut dyn FnMut(&Measured),
) -> Result<(), String> {
    let kernels = Kernels::new(device, variant, models()[0].shapes);
    let lab = Lab::new(&kernels, queue);
    let mut bench = Bench { lab: &lab, now, software, filter, report };
    bench.copies().await?;
    for model in models() {
        if software && model.name == "8b" && filter.is_empty() {
            continue;
        }
        bench.model(&model).await?;
    }
    Ok(())
}

struct Bench<'a> {
    lab: &'a Lab<'a>,
    now: &'a dyn Fn() -> f64,
    software: bool,
    filter: &'a str,
    report: &'a mut dyn FnMut(&Measured),
}

impl Bench<'_> {
    /// Seconds until `repeats` rounds of `record` are done.
    async fn time(
        &self,
        repeats: u32,
        record: &dyn Fn(&mut wgpu::CommandEncoder),
    ) -> Result<f64, String> {
        let probe = self.lab.buffer(&[0; 16]);
        let start = (self.now)();
        let mut encoder = self.lab.device.create_command_encoder(&Default::default());
        (0..repeats).for_each(|_| record(&mut encoder));
        self.lab.queue.submit([encoder.finish()]);
        self.lab.words(&probe).await?;
        Ok((self.now)() - start)
    }

    /// Seconds of one round of `record`, by slope.
    async fn slope(&self, record: &dyn Fn(&mut wgpu::CommandEncoder)) -> Result<f64, String> {
        // As many rounds as take a few milliseconds.
        self.time(1, record).await?;
        let once = self.time(1, record).await?;
        let few = if self.software { 1 } else { ((5e-3 / once) as u32).clamp(1, 50) };
        let mut best = f64::INFINITY;
        for _ in 0..if self.software { 1 } else { ROUNDS } {
            let short = self.time(few, record).await?;
            let long = self.time(4 * few, record).await?;
            best = best.min((long - short) / f64::from(3 * few));
        }
        Ok(best)
    }

    async fn copies(&mut self) -> Result<(), String> {
        let bytes = if self.software { COPY_BYTES / 8 } else { COPY_BYTES };
        let [source, target] = [0; 2].map(|_| self.lab.unwritten(bytes / 4));
        let seconds = self
            .slope(&|encoder| encoder.copy_buffer_to_buffer(&source, 0, &target, 0, bytes))
            .await?;
        let name = format!("copy of {} MiB", bytes >> 20);
        (self.report)(&Measured { name, seconds, bytes: 2 * bytes, flops: 0 });
        Ok(())
    }

    /// One op, or several that stand for one with other weights.
    async fn ops(
        &mut self,
        name: String,
        ops: &[Op],
        step: &StepData,
        scratch: &Scratch,
        inv_freq: &[f64],
        (bytes, flops): (u64, u64),
    ) -> Result<(), String> {
        self.lab.write_words(&scratch.step, &step.words(inv_freq));
        let shape = step.shape();
        let seconds = self
            .slope(&|encoder| {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                ops.iter().for_each(|op| op.record(&mut pass, &shape));
            })
            .await?;
        let seconds = seconds / ops.len() as f64;
        (self.report)(&Measured { name, seconds, bytes, flops });
        Ok(())
    }

    async fn model(&mut self, model: &Model) -> Result<(), String> {
        let s = model.shapes;
        let kernels = self.lab.kernels(s);
        let inv_freq = vec![0.1; s.head_dim as usize / 2];
        let kv_width = s.kv_heads * s.head_dim;
        for rows in [1u32, 4, 512] {
            if rows == 512 && model.name == "8b" && self.software {
                continue;
            }
            let keys_max = KEYS;
            let scratch = self.lab.scratch(&s, rows, keys_max);
            let step = decode_step(rows, keys_max);
            // Products: (name, rows, cols).
            let d = s.d_model;
            for (what, out, cols) in
                [("output", d, s.heads * s.head_dim), ("down", d, s.d_ff), ("up", s.d_ff, d)]
            {
                let name =
                    format!("{} {what} {:?} [{out}, {cols}] x {rows}", model.name, model.layout);
                if !name.contains(self.filter) {
                    continue;
                }
                let (layout, bytes) = fit(model.layout, out, cols);
                let matrices: Vec<_> = (0..self.copies_of(bytes))
                    .map(|i| {
                        let cells = Random::new(i).matrix(layout, out, cols);
                        self.lab.matrix(layout, out, cols, &cells, out)
                    })
                    .collect();
                let x = if cols == s.d_ff { &scratch.gate } else { &scratch.normed };
                let y = if out == s.d_ff { &scratch.up } else { &scratch.hidden };
                let ops: Vec<Op> = matrices
                    .iter()
                    .map(|m| kernels.product(m, x, y, &Epilogue::Store, Rows::All, &scratch))
                    .collect();
                let (r, c, t) = (u64::from(out), u64::from(cols), u64::from(rows));
                let moved = bytes + 4 * t * (r + c);
                self.ops(name, &ops, &step, &scratch, &inv_freq, (moved, 2 * r * c * t)).await?;
            }
            let name =
                format!("{} gate|up {:?} [{}, {d}] x {rows}", model.name, model.layout, s.d_ff);
            if name.contains(self.filter) {
                let (layout, bytes) = fit(model.layout, s.d_ff, d);
                let ops: Vec<Op> = (0..self.copies_of(2 * bytes))
                    .map(|i| {
                        let [gate, up] = [2 * i, 2 * i + 1].map(|seed| {
                            let cells = Random::new(seed).matrix(layout, s.d_ff, d);
                            self.lab.matrix(layout, s.d_ff, d, &cells, s.d_ff)
                        });
                        kernels.gate_up(&gate, &up, &scratch)
                    })
                    .collect();
                let (r, c, t) = (u64::from(s.d_ff), u64::from(d), u64::from(rows));
                let cost = (2 * bytes + 4 * t * (r + c), 4 * r * c * t);
                self.ops(name, &ops, &step, &scratch, &inv_freq, cost).await?;
            }
            let pages = u64::from(keys_max / 64);
            let kv_bytes = 4 * u64::from(kv_page_words(&s)) * pages;
            let kv = self.lab.kv(&s, pages as u32);
            let name = format!("{} q|k|v {:?} {d} wide x {rows}", model.name, model.layout);
            if name.contains(self.filter) {
                let q_width = s.heads * s.head_dim;
                let all = q_width + 2 * kv_width;
                let (layout, bytes) = fit(model.layout, all, d);
                let ops: Vec<Op> = (0..self.copies_of(bytes))
                    .map(|i| {
                        let [q, k, v] = [q_width, kv_width, kv_width].map(|out| {
                            let cells = Random::new(i).matrix(layout, out, d);
                            self.lab.matrix(layout, out, d, &cells, out)
                        });
                        kernels.qkv([&q, &k, &v], None, &kv, &scratch)
                    })
                    .collect();
                let (r, c, t) = (u64::from(all), u64::from(d), u64::from(rows));
                let cost = (bytes + 4 * t * (r + c), 2 * r * c * t);
                self.ops(name, &ops, &step, &scratch, &inv_freq, cost).await?;
            }
            let name = format!("{} attention over {keys_max} keys x {rows}", model.name);
            if name.contains(self.filter) {
                // Rows of one session, so that they share its keys.
                let ops = [kernels.attention(&kv, &scratch)];
                let (h, t) = (u64::from(s.heads * s.head_dim), u64::from(rows));
                let moved = kv_bytes + 8 * t * h;
                let flops = 4 * h * t * u64::from(keys_max);
                self.ops(name, &ops, &step, &scratch, &inv_freq, (moved, flops)).await?;
            }
            let name = format!("{} rms_norm [{d}] x {rows}", model.name);
            if name.contains(self.filter) {
                let gain = self.lab.vector(&vec![1.0; d as usize]);
                let ops = [kernels.rms_norm(&gain, Rows::All, &scratch)];
                let n = u64::from(d) * u64::from(rows);
                self.ops(name, &ops, &step, &scratch, &inv_freq, (8 * n, 4 * n)).await?;
            }
        }
        Ok(())
    }

    fn copies_of(&self, bytes: u64) -> u64 {
        let all = if self.software { ROTATED_BYTES_SOFTWARE } else { ROTATED_BYTES };
        (all / bytes).clamp(1, COPIES_MAX)
    }
}

/// The layout, or the 4-bit one of smaller cells where the columns do not fit it; and bytes.
fn fit(layout: Layout, rows: u32, cols: u32) -> (Layout, u64) {
    let layout = if cols.is_multiple_of(layout.cell_cols() as u32) { layout } else { Layout::Q4S };
    (layout, layout.matrix_bytes_u64(rows, cols).expect("whole cells"))
}

/// The last rows of one session of so many positions.
fn decode_step(rows: u32, keys: u32) -> StepData {
    let row = |position| StepRow { position, session: 0, token: 0 };
    StepData {
        rows: (keys - rows..keys).map(row).collect(),
        page_tables: vec![(0..keys / 64).collect()],
        kept: (0..rows.min(1)).collect(),
    }
}
