//! Decode and prefill tokens per second of the default model, on one and two threads.
//!
//! `cargo bench -p engine [-- ISA...]`, with `WEFT_TEST_MODELS` naming the folder that holds
//! smollm2-135m.gguf (`cargo xtask test` fetches it). Medians of interleaved rounds; the
//! floor is the weights' bytes over the memory's bandwidth.

use std::sync::Arc;
use std::time::Instant;

use engine::{BlobBytes, Class, Input, Isa, Limits, Segment, Shard};
use model::{Gguf, Manifest, MemoryBlobs};

const ROUNDS: usize = 7;
const DECODE_TOKENS: u32 = 48;
const PREFILL_TOKENS: u32 = 512;
const CHUNK: u32 = 256;

fn main() {
    let Some(folder) = std::env::var_os("WEFT_TEST_MODELS") else {
        println!("SKIPPED: WEFT_TEST_MODELS names no folder of models");
        return;
    };
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let name = std::env::var("WEFT_BENCH_MODEL").unwrap_or_else(|_| "smollm2-135m".into());
    let path = std::path::Path::new(&folder).join(format!("{name}.gguf"));
    let file = std::fs::read(&path).expect("the model's file");
    let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
    let mut sink = MemoryBlobs::default();
    let manifest = model::convert(&gguf, &name, &mut sink).expect("a supported model");
    let blobs: std::collections::BTreeMap<String, BlobBytes> = sink
        .by_hash
        .into_iter()
        .map(|(hash, bytes)| (hash, Arc::new(bytes) as BlobBytes))
        .collect();
    let parts = manifest.parts.len() as u32;
    let bytes: u64 = manifest.span_bytes(1..parts);
    println!("{name}: {:.1} MB of weights read per token", bytes as f64 / 1e6);
    bandwidth();

    let mut cases = Vec::new();
    for isa in Isa::available() {
        let named = format!("{isa:?}").to_lowercase();
        if !wanted.is_empty() && !wanted.contains(&named) {
            continue;
        }
        for threads in [1, 2] {
            for class in [Class::Canonical1, Class::ExactF32] {
                if class == Class::ExactF32 && (isa != Isa::best() || !wanted.is_empty()) {
                    continue;
                }
                cases.push(Case::new(&manifest, &blobs, isa, threads, class));
            }
        }
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            case.round();
        }
    }
    println!("isa       class        threads  prefill t/s  decode t/s  GB/s  8 sessions t/s");
    for case in &mut cases {
        let decode = median(&mut case.decode);
        println!(
            "{:9} {:12} {:7}  {:11.1}  {:10.1}  {:4.1}  {:14.1}",
            format!("{:?}", case.isa),
            case.class.name(),
            case.threads,
            median(&mut case.prefill),
            decode,
            decode * bytes as f64 / 1e9,
            median(&mut case.batch),
        );
    }
}

struct Case {
    isa: Isa,
    threads: u32,
    class: Class,
    shard: Shard,
    prefill: Vec<f64>,
    decode: Vec<f64>,
    batch: Vec<f64>,
}

impl Case {
    fn new(
        manifest: &Manifest,
        blobs: &std::collections::BTreeMap<String, BlobBytes>,
        isa: Isa,
        threads: u32,
        class: Class,
    ) -> Case {
        let limits = Limits { isa, ..Limits::new(64, threads) };
        let span = 0..manifest.parts.len() as u32;
        let get = |hash: &str| blobs.get(hash).cloned();
        let shard = Shard::load(manifest, span, class, get, limits).expect("it loads");
        let (prefill, decode, batch) = (Vec::new(), Vec::new(), Vec::new());
        Case { isa, threads, class, shard, prefill, decode, batch }
    }

    fn round(&mut self) {
        let tokens: Vec<u32> = (0..PREFILL_TOKENS).map(|i| 100 + i * 37 % 40_000).collect();
        let prefill_tokens = if self.isa == Isa::Portable { CHUNK } else { PREFILL_TOKENS };
        let start = Instant::now();
        for position in (0..prefill_tokens).step_by(CHUNK as usize) {
            let logits_rows = u32::from(position + CHUNK == prefill_tokens);
            let segment = Segment { session: 1, position, rows: CHUNK, logits_rows };
            let chunk = &tokens[position as usize..(position + CHUNK) as usize];
            self.shard.step(&[segment], Input::Tokens(chunk)).expect("a sound step");
        }
        self.prefill.push(f64::from(prefill_tokens) / start.elapsed().as_secs_f64());

        self.shard.release(1);
        let start = Instant::now();
        for position in 0..DECODE_TOKENS {
            let segment = Segment { session: 1, position, rows: 1, logits_rows: 1 };
            self.shard.step(&[segment], Input::Tokens(&tokens[..1])).expect("a sound step");
        }
        self.decode.push(f64::from(DECODE_TOKENS) / start.elapsed().as_secs_f64());

        let steps = 8;
        let start = Instant::now();
        for position in 0..steps {
            let segment = |session| Segment { session, position, rows: 1, logits_rows: 1 };
            let segments: Vec<Segment> = (1..=8).map(segment).collect();
            self.shard.step(&segments, Input::Tokens(&tokens[..8])).expect("a sound step");
        }
        self.batch.push(f64::from(8 * steps) / start.elapsed().as_secs_f64());
        (1..=8).for_each(|session| self.shard.release(session));
    }
}

/// One thread's reading bandwidth over 256 MiB.
fn bandwidth() {
    let data = vec![1u64; 32 << 20];
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let mut lanes = [0u64; 32];
            for chunk in data.as_chunks::<32>().0 {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane = lane.wrapping_add(*x);
                }
            }
            std::hint::black_box(lanes);
            (data.len() * 8) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    println!("memory: {:.1} GB/s read by one thread", median(&mut rates));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
