//! What the 8-bit activations cost in quality, and boundaries in f16 and int8 on top: perplexity
//! on a long text, beside llama.cpp's on the same file and text.
//!
//! As `llama-perplexity -c 512` has it: the text's ids are cut into chunks of 512, what is left
//! over is dropped; each chunk is read by itself, and its second half counts: the mean of
//! -ln p(next id), over all chunks, as a power of e.

#[allow(dead_code, reason = "the kernels' tests use the rest")]
#[path = "../kernels/ranks.rs"]
mod ranks;
mod real;

use engine::{Class, Input, Output, Segment, Shard};
use model::tensor::TensorForm;
use protocol::{Dtype, boundary};
use ranks::group;
use real::Model;
use serde_json::Value;
use text::{Special, Tokenizer};

/// Positions of a chunk, and how many of them are context only.
const CHUNK: usize = 512;
const CONTEXT: usize = CHUNK / 2;
/// Chunks that `exact-f32`, which is ten times slower, is looked at.
const EXACT_CHUNKS: usize = 1;
/// How much worse than llama.cpp's default path canonical-1 may be.
const WORSE_MAX: f64 = 0.005;
/// Parts that begin a stage: three workers in a row with ten layers each, the ends elsewhere.
const STAGES: [u32; 6] = [0, 1, 11, 21, 31, 32];
/// How far from f32 boundaries each dtype may take it. Measured: +0.067 % and -0.090 %, which is
/// as much as any change in the last bits does through activations of 8 bits.
const F16_COST_MAX: f64 = 0.001;
const INT8_COST_MAX: f64 = 0.002;
/// How far from its f32 path `exact-f32` may be: sums in another order, four decimals printed.
const EXACT_APART_MAX: f64 = 1e-4;

/// Chunks that the sums of a tensor group are looked at, and how far from llama.cpp's default path
/// they may be.
const SUMS_CHUNKS: usize = 2;
const SUMS_APART_MAX: f64 = 0.02;

/// The text's ids, as the model's file tokenizes them.
fn tokens() -> Vec<u32> {
    let text = std::fs::read_to_string(tests::required_text()).expect("the text");
    let tokenizer = Tokenizer::new(&real::tokenizer_data(&tests::required_model())).expect("BPE");
    // llama.cpp drops the newline at a file's end.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    tokenizer.encode_prompt(text, Special::Parse).expect("a short text")
}

/// The perplexity after each of these chunks, over it and those before it; `step` gives their
/// logits.
fn perplexities(mut step: impl FnMut(Segment, &[u32]) -> Output, chunks: &[&[u32]]) -> Vec<f64> {
    let (mut sum, mut count) = (0.0, 0);
    let mut found = Vec::new();
    for chunk in chunks {
        // The last id is only foretold.
        let (rows, logits_rows) = (CHUNK - 1, CHUNK - 1 - CONTEXT);
        let segment =
            Segment { session: 1, position: 0, rows: rows as u32, logits_rows: logits_rows as u32 };
        let Output::Logits(logits) = step(segment, &chunk[..rows]) else {
            panic!("the shard has the head")
        };
        let vocabulary = logits.len() / logits_rows;
        for (logits, next) in logits.chunks_exact(vocabulary).zip(&chunk[CONTEXT + 1..]) {
            sum -= log_probability(logits, *next as usize);
            count += 1;
        }
        found.push((sum / f64::from(count)).exp());
    }
    found
}

/// ln p(id).
fn log_probability(logits: &[f32], id: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[id] - max) - sum.ln()
}

fn running(golden: &Value, path: &str) -> Vec<f64> {
    let values = golden[path].as_array().expect("a value after each chunk");
    values.iter().map(|value| value.as_f64().expect("a number")).collect()
}

#[test]
fn perplexity_is_llama_cpps() {
    let golden = tests::golden("perplexity_gpl3.json");
    let ids = tokens();
    let chunks: Vec<&[u32]> = ids.chunks_exact(CHUNK).collect();
    let model = Model::open(&tests::required_model());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let whole = |class| {
        let mut shard = model.shard(0..model.parts(), class, threads);
        move |segment, tokens: &[u32]| {
            shard.step(&[segment], Input::Tokens(tokens)).expect("a sound step")
        }
    };

    let exact = perplexities(whole(Class::ExactF32), &chunks[..EXACT_CHUNKS]);
    let theirs = running(&golden, "f32");
    assert_eq!(theirs.len(), chunks.len());
    println!("exact-f32: {exact:.4?}, llama.cpp in f32 {:.4?}", &theirs[..EXACT_CHUNKS]);
    for (ours, theirs) in exact.iter().zip(&theirs) {
        assert!((ours / theirs - 1.0).abs() <= EXACT_APART_MAX, "{ours}, llama.cpp {theirs}");
    }

    let canonical = perplexities(whole(Class::Canonical1), &chunks);
    let default = running(&golden, "default");
    println!("canonical-1 after each chunk: {canonical:.4?}");
    let last = |values: &[f64]| values[values.len() - 1];
    let (ours, theirs, in_f32) = (last(&canonical), last(&default), last(&running(&golden, "f32")));
    println!("canonical-1: {ours:.4}, llama.cpp by default {theirs:.4}, in f32 {in_f32:.4}");
    assert!(ours <= theirs * (1.0 + WORSE_MAX), "{ours}, llama.cpp {theirs}");
    // Better than all of f32 by more than the rounding's noise would be a mistake of this test.
    assert!(ours >= in_f32 * (1.0 - WORSE_MAX), "{ours}, llama.cpp in f32 {in_f32}");
}

/// What one rank's sums and then the other's cost, beside sums from the first column to the last.
#[test]
fn summed_ranks_cost_no_perplexity() {
    let golden = tests::golden("perplexity_gpl3.json");
    let ids = tokens();
    let chunks: Vec<&[u32]> = ids.chunks_exact(CHUNK).take(SUMS_CHUNKS).collect();
    let model = Model::open(&tests::required_model());
    let (class, last) = (Class::Canonical1, model.parts() - 1);
    let theirs = running(&golden, "default")[SUMS_CHUNKS - 1];
    for weights in [&[1, 1][..], &[1; 4]] {
        let load = |share: &_, link| model.rank(class, share, link);
        let mut layers = group(TensorForm::Sums, weights, load, |_, _| {});
        let (mut embedding, mut head) =
            (model.shard(0..1, class, 1), model.shard(last..last + 1, class, 1));
        let step = |segment: Segment, tokens: &[u32]| {
            let mut row = None;
            for shard in [&mut embedding, layers.leader()] {
                let input = row.as_deref().map_or(Input::Tokens(tokens), Input::Hidden);
                let output = shard.step(&[segment], input).expect("a sound step");
                let Output::Hidden(values) = output else { panic!("the head is elsewhere") };
                row = Some(values);
            }
            let hidden = Input::Hidden(row.as_deref().expect("two stages"));
            head.step(&[segment], hidden).expect("a sound step")
        };
        let ours = perplexities(step, &chunks)[SUMS_CHUNKS - 1];
        println!("sums of {} ranks: {ours:.4}, llama.cpp by default {theirs:.4}", weights.len());
        assert!((ours / theirs - 1.0).abs() <= SUMS_APART_MAX, "{ours}, llama.cpp {theirs}");
    }
}

/// A step through shards in a row, with what goes from one to the next sent in `dtype`.
fn through(shards: &mut [Shard], dtype: Dtype) -> impl FnMut(Segment, &[u32]) -> Output {
    move |segment, tokens| {
        let mut row: Option<Vec<f32>> = None;
        for shard in &mut *shards {
            let input = row.as_deref().map_or(Input::Tokens(tokens), Input::Hidden);
            match shard.step(&[segment], input).expect("a sound step") {
                Output::Hidden(values) => {
                    let width = values.len() / tokens.len();
                    let sent = boundary::encode(values, dtype, width).expect("finite values");
                    let came = boundary::decode(&sent, dtype, width).expect("whole rows");
                    row = Some(came.into_owned());
                }
                logits @ Output::Logits(_) => return logits,
            }
        }
        panic!("the last shard has the head")
    }
}

#[test]
fn lossy_boundaries_cost_no_more_than_is_said() {
    let ids = tokens();
    let chunks: Vec<&[u32]> = ids.chunks_exact(CHUNK).collect();
    let model = Model::open(&tests::required_model());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let shard = |span| model.shard(span, Class::Canonical1, threads);
    let mut stages: Vec<Shard> = STAGES.windows(2).map(|s| shard(s[0]..s[1])).collect();
    assert_eq!(STAGES[STAGES.len() - 1], model.parts());

    // f32 boundaries cost nothing at all: to the bit what the whole model gives.
    let whole = perplexities(through(&mut [shard(0..model.parts())], Dtype::F32), &chunks[..1]);
    let exact = perplexities(through(&mut stages, Dtype::F32), &chunks);
    assert_eq!(exact[0].to_bits(), whole[0].to_bits());
    let last = |values: &[f64]| values[values.len() - 1];
    let cost = |dtype: Dtype| {
        let lossy = perplexities(through(&mut stages, dtype), &chunks);
        let cost = last(&lossy) / last(&exact) - 1.0;
        let name = dtype.name();
        println!("{name}: {:.4}, f32 {:.4}: {:+.3} %", last(&lossy), last(&exact), cost * 100.0);
        assert_ne!(last(&lossy).to_bits(), last(&exact).to_bits(), "{name} rounds");
        cost
    };
    // Rounding may as well be for the better, by as little.
    let costs = Dtype::LOSSY.map(cost);
    for (cost, cost_max) in costs.into_iter().zip([F16_COST_MAX, INT8_COST_MAX]) {
        assert!(cost.abs() <= cost_max, "{cost}, at most {cost_max} is said");
    }
}
