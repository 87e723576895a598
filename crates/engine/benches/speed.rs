//! One measurement for `cargo xtask bench --peers`, which interleaves it with those of other
//! engines: `speed --blobs FOLDER --threads N --prompt N --decode N [--no-warmup]`, wall clock.
//!
//! The weights are read from a folder, into which `--model FILE` puts them first where they
//! are not there: what a worker has on its disk when it starts.
//!
//! Prints one line of JSON: tokens per second of a prompt's prefill and of decoding after an
//! empty one, as `llama-bench -p N` and `-n N` do.

use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{Class, Input, Limits, Segment, Shard};

#[path = "real/stored.rs"]
mod stored;

use stored::Stored;

/// Rows of a prefill that go in one step.
const CHUNK: u32 = 512;
/// Tokens before the clock starts: threads are awake and memory is there.
const WARM_UP: u32 = 16;

fn main() {
    let Some(flags) = Flags::parse() else {
        println!("SKIPPED: cargo xtask bench --peers gives --blobs");
        return;
    };
    if let Some(model) = &flags.model {
        Stored::make(model, &flags.blobs).expect("room for the weights");
    }
    if flags.prompt + flags.decode == 0 {
        return;
    }
    let (prefill, decode) = measure(&flags, &flags.blobs);
    println!("{{\"prefill\": {prefill:.2}, \"decode\": {decode:.2}}}");
}

struct Flags {
    model: Option<PathBuf>,
    blobs: PathBuf,
    threads: u32,
    prompt: u32,
    decode: u32,
    warm_up: u32,
}

impl Flags {
    /// `None` without a folder of weights.
    fn parse() -> Option<Flags> {
        let [mut model, mut blobs] = [None, None];
        let [mut threads, mut prompt, mut decode, mut warm_up] = [1, 512, 128, WARM_UP];
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().expect("a value");
            let count = |text: String| text.parse().expect("a count");
            match name.as_str() {
                "--model" => model = Some(PathBuf::from(value())),
                "--blobs" => blobs = Some(PathBuf::from(value())),
                "--threads" => threads = count(value()),
                "--prompt" => prompt = count(value()),
                "--decode" => decode = count(value()),
                "--no-warmup" => warm_up = 0,
                // What `cargo bench` adds.
                _ => {}
            }
        }
        Some(Flags { model, blobs: blobs?, threads, prompt, decode, warm_up })
    }
}

/// Tokens per second of prefill and of decode.
fn measure(flags: &Flags, blobs: &Path) -> (f64, f64) {
    let &Flags { threads, prompt, decode, warm_up, .. } = flags;
    let stored = Stored::open(blobs, threads).expect("the weights");
    let pages = |positions: u32| positions.div_ceil(engine::PAGE_POSITIONS as u32);
    let get = |hash: &str| stored.blobs.get(hash).cloned();
    let limits = Limits::new(pages(prompt) + pages(warm_up + decode), threads);
    let mut shard =
        Shard::load(&stored.manifest, 0..stored.parts(), Class::Canonical1, get, limits)
            .expect("room");
    let tokens: Vec<u32> = (0..prompt.max(1)).map(|i| 100 + i * 37 % 40_000).collect();
    let mut step = |session, position, part: &[u32], logits_rows| {
        let segment = Segment { session, position, rows: part.len() as u32, logits_rows };
        shard.step(&[segment], Input::Tokens(part)).expect("a sound step");
    };
    (0..warm_up).for_each(|position| step(1, position, &tokens[..1], 1));
    let decode_rate = rate(decode, || {
        (warm_up..warm_up + decode).for_each(|position| step(1, position, &tokens[..1], 1));
    });
    let prefill_rate = rate(prompt, || {
        let tokens = &tokens[..prompt as usize];
        for (position, part) in (0..).step_by(CHUNK as usize).zip(tokens.chunks(CHUNK as usize)) {
            let is_last = position + part.len() as u32 == prompt;
            step(2, position, part, u32::from(is_last));
        }
    });
    (prefill_rate, decode_rate)
}

/// Tokens per second; 0 of none.
fn rate(tokens: u32, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    f64::from(tokens) / start.elapsed().as_secs_f64()
}
