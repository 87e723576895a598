//! Each core kernel once, at SmolLM2's shapes, for `cargo xtask instructions`: that runs this
//! under callgrind, which counts what [`counted`] executes, and nothing else.
//!
//! Prints a line for each count, in order: the instruction set and the kernel. Only instruction
//! sets that callgrind knows are run, whatever the machine has.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use engine::testing::{self, Columns, Keys, QuantBlock, Weights};
use engine::{BlobBytes, Class, Input, Isa, Limits, Segment, Shard};
use model::gguf::GgmlType;
use model::layout::TILE_ROWS;
use model::manifest::Dims;
use model::testing::{Random, TinyModel};
use model::{Gguf, Layout, Manifest, MemoryBlobs};
use numerics::BLOCK;
use numerics::rope::{Pairs, sin_cos};

/// SmolLM2-135M: width, heads, heads of keys, their size, feed-forward width.
const D: usize = 576;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const F: usize = 1536;
/// Keys that attention looks at: of eight pages, and of a part of the ninth.
const KEYS: usize = 530;
/// Rows of one attention task in prefill.
const QUERIES: usize = 16;
const EPS: f32 = 1e-5;

/// What callgrind knows; it has no AVX-512.
const ISAS: [Isa; 2] = [Isa::Portable, Isa::Avx2];

const TILED: [Layout; 6] =
    [Layout::Q4S, Layout::Q4M, Layout::Q4K, Layout::Q5S, Layout::Q6K, Layout::Q8];

fn main() {
    let layer = Layer::new();
    for isa in ISAS.into_iter().filter(|isa| Isa::available().contains(isa)) {
        let mut out = Counter { isa, random: Random::new(1) };
        for layout in TILED {
            // Decode, an odd batch, and what prefill is made of.
            out.product(Class::Canonical1, layout, &[1, 3, 8]);
        }
        for layout in [Layout::Q4M, Layout::Q8, Layout::F16, Layout::F32] {
            out.product(Class::ExactF32, layout, &[1, 4]);
        }
        for class in [Class::Canonical1, Class::ExactF32] {
            out.attention(class, 1);
            out.attention(class, QUERIES);
        }
        out.rows();
        out.layer(&layer, 1);
        out.layer(&layer, 64);
    }
}

/// The only function that callgrind counts; it ends the count when this returns.
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
    // A jump to `run` would be no call.
    black_box(());
}

struct Counter {
    isa: Isa,
    random: Random,
}

impl Counter {
    /// Counts the second run: the first touches memory and looks up functions for good.
    fn count(&self, name: &str, mut run: impl FnMut()) {
        run();
        counted(&mut run);
        println!("{} {name}", format!("{:?}", self.isa).to_lowercase());
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.random.unit()).collect()
    }

    /// `[D, F]`, the down projection: its rows divide into the cells of every layout.
    fn product(&mut self, class: Class, layout: Layout, columns: &[usize]) {
        let bytes = layout.matrix_bytes(D, F).expect("whole cells");
        // No two bytes make an f16 beyond 2: whatever is a scale is finite.
        let bytes = (0..bytes).map(|_| (self.random.next() >> 32) as u8 & 0x3f).collect();
        let weights = Weights::new(layout, D, F, bytes);
        for &n in columns {
            let input = self.floats(n * F);
            let prepared = Columns::new(self.isa, class, &weights, &input).expect("finite");
            let mut output = vec![0.0; n * D];
            let name = format!("product {} {layout:?} [{D}, {F}] x {n}", class.name());
            self.count(&name, || {
                let tiles = 0..D / TILE_ROWS;
                testing::multiply(self.isa, &weights, tiles, &prepared, None, &mut output);
            });
        }
    }

    /// All query heads of one kv head.
    fn attention(&mut self, class: Class, rows: usize) {
        let heads = HEADS / KV_HEADS;
        let (k, v) = (self.floats(KEYS * HEAD_DIM), self.floats(KEYS * HEAD_DIM));
        let keys = Keys::new(self.isa, class, HEAD_DIM, &k, &v);
        let queries = self.floats(rows * heads * HEAD_DIM);
        let mut output = vec![0.0; queries.len()];
        let name = format!("attention {} {rows} x {heads} heads, {KEYS} keys", class.name());
        self.count(&name, || {
            let shape = (rows, heads, HEAD_DIM);
            keys.attend(self.isa, shape, &queries, &mut output).expect("finite");
        });
    }

    /// What runs on one row: between the products, and to prepare it for one.
    fn rows(&mut self) {
        let isa = self.isa;
        let (x, gain) = (self.floats(D), self.floats(D));
        let (mut narrow, mut wide, up) = (self.floats(D), self.floats(F), self.floats(F));
        self.count(&format!("rms_norm [{D}]"), || {
            testing::rms_norm(isa, &x, &gain, EPS, &mut narrow).expect("finite");
        });
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            (0..HEAD_DIM / 2).map(|i| sin_cos(100, 1.0 / (i + 1) as f64)).unzip();
        for pairs in [Pairs::Adjacent, Pairs::HalfSplit] {
            self.count(&format!("rope {pairs:?} {HEADS} x [{HEAD_DIM}]"), || {
                testing::rope(isa, &mut narrow, &sin, &cos, pairs);
            });
        }
        self.count(&format!("swiglu [{F}]"), || testing::swiglu(isa, &mut wide, &up));
        self.count(&format!("add [{D}]"), || testing::add(isa, &mut narrow, &x));
        self.count(&format!("check [{D}]"), || testing::check(isa, &narrow).expect("finite"));
        let mut blocks = vec![QuantBlock::ZERO; F / BLOCK];
        self.count(&format!("quantise [{F}]"), || {
            testing::quantise(isa, &up, &mut blocks).expect("finite");
        });
        let bytes = Layout::Q8.matrix_bytes(TILE_ROWS, D).expect("whole cells");
        let table = Weights::new(Layout::Q8, TILE_ROWS, D, vec![1; bytes]);
        self.count(&format!("lookup Q8 [{D}]"), || testing::lookup(isa, &table, 5, &mut narrow));
    }

    /// A step of `rows` rows through one layer, so with all that lies between the kernels.
    fn layer(&mut self, layer: &Layer, rows: u32) {
        let get = |hash: &str| layer.blobs.get(hash).cloned();
        let limits = Limits { isa: self.isa, ..Limits::new(4, 1) };
        let mut shard =
            Shard::load(&layer.manifest, 1..2, Class::Canonical1, get, limits).expect("room");
        let hidden = self.floats(rows as usize * D);
        let mut position = 0;
        self.count(&format!("layer of Q4_1, {rows} rows"), || {
            let segment = Segment { session: 1, position, rows, logits_rows: 0 };
            black_box(shard.step(&[segment], Input::Hidden(&hidden)).expect("a sound step"));
            position += rows;
        });
    }
}

/// A model of one layer, with random weights.
struct Layer {
    manifest: Manifest,
    blobs: BTreeMap<String, BlobBytes>,
}

impl Layer {
    fn new() -> Layer {
        let dims = Dims {
            layers: 1,
            d_model: D as u32,
            heads: HEADS as u32,
            kv_heads: KV_HEADS as u32,
            head_dim: HEAD_DIM as u32,
            d_ff: F as u32,
            ..TinyModel::llama(1).dims
        };
        let model = TinyModel { dims, matrix_type: |_, _| GgmlType::Q4_1, ..TinyModel::llama(1) };
        let file = model.to_bytes();
        let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
        let mut sink = MemoryBlobs::default();
        let manifest = model::convert(&gguf, "layer", &mut sink).expect("a supported model");
        let share = |bytes: Vec<u8>| Arc::new(bytes) as BlobBytes;
        let blobs = sink.by_hash.into_iter().map(|(hash, bytes)| (hash, share(bytes))).collect();
        Layer { manifest, blobs }
    }
}
