//! A span of parts as a list of ops, made once and recorded for every pass.

use std::ops::Range;

use super::kernels::{Epilogue, GpuMatrix, Kernels, Op, Rows, Scratch, StepShape};
use super::kv::KvPages;
use super::weights::{Head, Layer, Weights};

/// An op, and what it costs.
pub(crate) struct Planned {
    name: &'static str,
    pub(crate) op: Op,
    rows: Rows,
    /// Multiply-adds per row, without those that grow with the position.
    macs: f64,
    /// Multiply-adds per row and key.
    macs_per_key: f64,
}

impl Planned {
    fn new(name: &'static str, op: Op, rows: Rows, macs: f64) -> Planned {
        Planned { name, op, rows, macs, macs_per_key: 0.0 }
    }

    /// Multiply-adds of a row that sees so many keys.
    fn row_macs(&self, keys: u32) -> f64 {
        self.macs + self.macs_per_key * f64::from(keys)
    }

    /// Multiply-adds of a pass.
    pub(crate) fn macs(&self, shape: &StepShape) -> f64 {
        let rows = match self.rows {
            Rows::All => shape.rows,
            Rows::Kept => shape.kept_rows,
        };
        f64::from(rows) * self.row_macs(shape.keys_max)
    }
}

/// The ops of every part of a shard.
pub(crate) struct Plan {
    /// The shard's first part.
    first: u32,
    /// The layers, as parts.
    layers: Range<u32>,
    parts: Vec<Vec<Planned>>,
}

impl Plan {
    /// Compiles the parts from `first` on that the weights are of.
    pub(crate) fn compile(
        first: u32,
        weights: &Weights,
        kernels: &Kernels,
        kv: &KvPages,
        scratch: &Scratch,
    ) -> Plan {
        let mut parts = Vec::new();
        if let Some(table) = &weights.embedding {
            let op = kernels.embed(table, scratch);
            parts.push(vec![Planned::new("embed", op, Rows::All, f64::from(table.cols))]);
        }
        let first_layer = first + parts.len() as u32;
        for (layer, kv) in weights.layers.iter().zip(&kv.layers) {
            parts.push(compile_layer(layer, kernels, kv, scratch));
        }
        let layers = first_layer..first + parts.len() as u32;
        if let Some(head) = &weights.head {
            parts.push(compile_head(head, kernels, scratch));
        }
        Plan { first, layers, parts }
    }

    /// The layers of `span`, counted from the shard's first layer.
    pub(crate) fn layers_of(&self, span: &Range<u32>) -> Range<usize> {
        let start = span.start.max(self.layers.start);
        let end = span.end.min(self.layers.end).max(start);
        (start - self.layers.start) as usize..(end - self.layers.start) as usize
    }

    /// The ops of `span`.
    pub(crate) fn ops(&self, span: &Range<u32>) -> impl Iterator<Item = &Planned> {
        self.parts[(span.start - self.first) as usize..(span.end - self.first) as usize]
            .iter()
            .flatten()
    }

    /// Multiply-adds per row of the largest op of `span` that such rows go through, if one
    /// sees so many keys.
    pub(crate) fn macs_largest(&self, span: &Range<u32>, rows: Rows, keys_max: u32) -> f64 {
        let ops = self.ops(span).filter(|planned| planned.rows == rows);
        ops.map(|planned| planned.row_macs(keys_max)).fold(1.0, f64::max)
    }

    /// One line for each dispatch of a pass of that shape.
    pub(crate) fn describe(&self, span: &Range<u32>, shape: &StepShape) -> String {
        self.ops(span)
            .flat_map(|planned| {
                (0..planned.op.dispatches(shape)).map(|i| match i {
                    0 => format!("{}\n", planned.name),
                    i => format!("{} ({})\n", planned.name, i + 1),
                })
            })
            .collect()
    }
}

fn macs(matrices: &[&GpuMatrix]) -> f64 {
    matrices.iter().map(|m| f64::from(m.rows) * f64::from(m.cols)).sum()
}

fn compile_layer(
    layer: &Layer,
    kernels: &Kernels,
    kv: &wgpu::Buffer,
    scratch: &Scratch,
) -> Vec<Planned> {
    let all = Rows::All;
    let shapes = kernels.shapes();
    let qkv = [&layer.q, &layer.k, &layer.v];
    let norm = |gain| {
        let op = kernels.rms_norm(gain, all, scratch);
        Planned::new("norm", op, all, f64::from(shapes.d_model))
    };
    let add = |matrix, input| {
        kernels.product(matrix, input, &scratch.hidden, &Epilogue::Add, all, scratch)
    };
    let attention = Planned {
        macs_per_key: 2.0 * f64::from(shapes.heads * shapes.head_dim),
        ..Planned::new("attention", kernels.attention(kv, scratch), all, 0.0)
    };
    let projected = kernels.qkv(qkv, layer.biases.as_ref(), kv, scratch);
    let inner = kernels.gate_up(&layer.gate, &layer.up, scratch);
    let output = add(&layer.output, &scratch.mixed);
    let down = add(&layer.down, &scratch.gate);
    vec![
        norm(&layer.attn_norm),
        Planned::new("q|k|v, rope, append", projected, all, macs(&qkv)),
        attention,
        Planned::new("hidden += output", output, all, macs(&[&layer.output])),
        norm(&layer.ffn_norm),
        Planned::new("gate|up, swiglu", inner, all, macs(&[&layer.gate, &layer.up])),
        Planned::new("hidden += down", down, all, macs(&[&layer.down])),
    ]
}

fn compile_head(head: &Head, kernels: &Kernels, scratch: &Scratch) -> Vec<Planned> {
    let kept = Rows::Kept;
    let (matrix, input, output) = (&head.output, &scratch.normed, &scratch.logits);
    let product = kernels.product(matrix, input, output, &Epilogue::Store, kept, scratch);
    let norm = kernels.rms_norm(&head.norm, kept, scratch);
    vec![
        Planned::new("norm", norm, kept, f64::from(head.norm.len)),
        Planned::new("logits", product, kept, macs(&[matrix])),
    ]
}
