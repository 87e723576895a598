//! One measurement for `cargo xtask bench --peers`, which interleaves it with those of other
//! engines: `speed --model FILE --threads N --prompt N --decode N`, wall clock.
//!
//! Prints one line of JSON: tokens per second of a prompt's prefill and of decoding after an
//! empty one, as `llama-bench -p N` and `-n N` do.

use std::path::PathBuf;
use std::time::Instant;

use engine::{Class, Input, Limits, Segment, Shard};

#[path = "real/mod.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod real;

use real::Real;

/// Rows of a prefill that go in one step.
const CHUNK: u32 = 512;
/// Tokens before the clock starts: threads are awake and pages mapped.
const WARM_UP: u32 = 16;

fn main() {
    let [mut model, mut threads, mut prompt, mut decode] = [None, None, None, None];
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--model" => model = arguments.next(),
            "--threads" => threads = arguments.next(),
            "--prompt" => prompt = arguments.next(),
            "--decode" => decode = arguments.next(),
            // What `cargo bench` adds.
            _ => {}
        }
    }
    let Some(model) = model.map(PathBuf::from) else {
        println!("SKIPPED: cargo xtask bench --peers gives --model");
        return;
    };
    let count = |value: Option<String>, otherwise: u32| -> u32 {
        value.map_or(otherwise, |value| value.parse().expect("a count"))
    };
    let (threads, prompt, decode) = (count(threads, 1), count(prompt, 512), count(decode, 128));
    let real = Real::read(&model, "model".into());
    let pages = |positions: u32| positions.div_ceil(engine::PAGE_POSITIONS as u32);
    let get = |hash: &str| real.blobs.get(hash).cloned();
    let limits = Limits::new(pages(prompt) + pages(WARM_UP + decode), threads);
    let mut shard =
        Shard::load(&real.manifest, 0..real.parts(), Class::Canonical1, get, limits).expect("room");
    let tokens: Vec<u32> = (0..prompt.max(1)).map(|i| 100 + i * 37 % 40_000).collect();
    let mut step = |session, position, part: &[u32], logits_rows| {
        let segment = Segment { session, position, rows: part.len() as u32, logits_rows };
        shard.step(&[segment], Input::Tokens(part)).expect("a sound step");
    };
    (0..WARM_UP).for_each(|position| step(1, position, &tokens[..1], 1));
    let decode_rate = rate(decode, || {
        (WARM_UP..WARM_UP + decode).for_each(|position| step(1, position, &tokens[..1], 1));
    });
    let prefill_rate = rate(prompt, || {
        for (position, part) in (0..).step_by(CHUNK as usize).zip(tokens.chunks(CHUNK as usize)) {
            let is_last = position + part.len() as u32 == prompt;
            step(2, position, part, u32::from(is_last));
        }
    });
    println!("{{\"prefill\": {prefill_rate:.2}, \"decode\": {decode_rate:.2}}}");
}

fn rate(tokens: u32, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    f64::from(tokens) / start.elapsed().as_secs_f64()
}
