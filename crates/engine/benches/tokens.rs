//! Decode and prefill tokens per second of the default model, on one and two threads.
//!
//! `cargo bench -p engine [-- ISA...]`, with `WEFT_TEST_MODELS` naming the folder that holds
//! smollm2-135m.gguf (`cargo xtask test` fetches it). Medians of interleaved rounds; the
//! floor is the weights' bytes over the memory's bandwidth. One thread is timed by its time
//! on a core, two by the clock: on a busy machine only the former says much.

use std::time::Instant;

use engine::{Class, Input, Isa, Limits, Segment, Shard};

#[path = "real/mod.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod real;

use real::{Real, median};

const ROUNDS: usize = 7;
/// Tokens of a round; the slow cases (portable, exact) take the second figure.
const DECODE_TOKENS: [u32; 2] = [48, 8];
const PREFILL_TOKENS: [u32; 2] = [512, 64];
const CHUNK: u32 = 256;

fn main() {
    let Some(real) = Real::open() else { return };
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
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
                cases.push(Case::new(&real, isa, threads, class));
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
            decode * real.token_bytes as f64 / 1e9,
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
    fn new(real: &Real, isa: Isa, threads: u32, class: Class) -> Case {
        let limits = Limits { isa, ..Limits::new(64, threads) };
        let get = |hash: &str| real.blobs.get(hash).cloned();
        let shard =
            Shard::load(&real.manifest, 0..real.parts(), class, get, limits).expect("it loads");
        let (prefill, decode, batch) = (Vec::new(), Vec::new(), Vec::new());
        Case { isa, threads, class, shard, prefill, decode, batch }
    }

    fn round(&mut self) {
        let slow = self.isa == Isa::Portable || self.class == Class::ExactF32;
        let [prefill_tokens, decode_tokens] =
            [PREFILL_TOKENS, DECODE_TOKENS].map(|n| n[usize::from(slow)]);
        let chunk = CHUNK.min(prefill_tokens);
        let tokens: Vec<u32> = (0..prefill_tokens).map(|i| 100 + i * 37 % 40_000).collect();
        let start = seconds(self.threads);
        for position in (0..prefill_tokens).step_by(chunk as usize) {
            let logits_rows = u32::from(position + chunk == prefill_tokens);
            let segment = Segment { session: 1, position, rows: chunk, logits_rows };
            let part = &tokens[position as usize..(position + chunk) as usize];
            self.shard.step(&[segment], Input::Tokens(part)).expect("a sound step");
        }
        self.prefill.push(f64::from(prefill_tokens) / (seconds(self.threads) - start));

        self.shard.release(1);
        let start = seconds(self.threads);
        for position in 0..decode_tokens {
            let segment = Segment { session: 1, position, rows: 1, logits_rows: 1 };
            self.shard.step(&[segment], Input::Tokens(&tokens[..1])).expect("a sound step");
        }
        self.decode.push(f64::from(decode_tokens) / (seconds(self.threads) - start));

        let steps = if slow { 1 } else { 8 };
        let start = seconds(self.threads);
        for position in 0..steps {
            let segment = |session| Segment { session, position, rows: 1, logits_rows: 1 };
            let segments: Vec<Segment> = (1..=8).map(segment).collect();
            self.shard.step(&segments, Input::Tokens(&tokens[..8])).expect("a sound step");
        }
        self.batch.push(f64::from(8 * steps) / (seconds(self.threads) - start));
        (1..=8).for_each(|session| self.shard.release(session));
    }
}

/// Seconds from any start: the calling thread's time on a core where Linux counts it (so
/// that a busy machine takes less away) and the case has one thread, else the clock.
fn seconds(threads: u32) -> f64 {
    let on_core = || -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(stat.split_whitespace().next()?.parse::<u64>().ok()? as f64 / 1e9)
    };
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let clock = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    if threads == 1 { on_core().unwrap_or(clock) } else { clock }
}

/// One thread's reading bandwidth over 256 MiB.
fn bandwidth() {
    let data = vec![1u64; 32 << 20];
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let start = seconds(1);
            let mut lanes = [0u64; 32];
            for chunk in data.as_chunks::<32>().0 {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane = lane.wrapping_add(*x);
                }
            }
            std::hint::black_box(lanes);
            (data.len() * 8) as f64 / (seconds(1) - start) / 1e9
        })
        .collect();
    println!("memory: {:.1} GB/s read by one thread", median(&mut rates));
}
