//! Attention over pages.

use std::ops::Range;

use model::manifest::RopePairs;
use numerics::f16::{f16_to_f32, f32_to_f16};

use super::compare::{ULP, same_bits};
use super::{Extent, Runner, Tester};
use crate::gpu::kernels::lab::Random;
use crate::gpu::kernels::{Shapes, StepData, StepRow, attention::SPLIT_ROWS_MAX, kv_page_words};

/// Pages of the layer's cache.
const PAGES: u32 = 12;
/// Positions that the longest session has.
const KEYS_MAX: u32 = 420;

pub(super) async fn run(runner: &mut Runner<'_>, extent: Extent) {
    for (heads, kv_heads, head_dim) in
        [(9, 3, 64), (4, 1, 128), (14, 2, 64), (2, 2, 2), (3, 1, 10), (8, 1, 32)]
    {
        if extent == Extent::Start && heads != 9 {
            continue;
        }
        let name = format!("attention {heads}/{kv_heads} heads of {head_dim}");
        runner.case(name, async |t| attention(t, heads, kv_heads, head_dim).await).await;
    }
    #[cfg(feature = "testing")]
    if extent == Extent::Whole {
        runner.case("attention with an infinite score".to_owned(), faults).await;
    }
}

/// How the step's `t` rows are cut: all at once, then as each other way to compute them takes
/// them, with one split of the keys and with several.
fn runs(extent: Extent, t: usize) -> Vec<Vec<Range<usize>>> {
    match extent {
        Extent::Start => vec![vec![0..t], vec![21..25], vec![t - 5..t]],
        #[cfg(feature = "testing")]
        Extent::Whole => {
            let cut = |count: usize| {
                (0..t).step_by(count).map(|start| start..(start + count).min(t)).collect()
            };
            [t, SPLIT_ROWS_MAX as usize, 17, 3, 1].map(cut).into()
        }
    }
}

fn shapes(heads: u32, kv_heads: u32, head_dim: u32) -> Shapes {
    Shapes {
        d_model: 4,
        heads,
        kv_heads,
        head_dim,
        d_ff: 4,
        vocab: 4,
        pairs: RopePairs::Adjacent,
        rms_eps: 1e-5,
    }
}

/// Keys and values `[page][kv head][position][hd]` as f32, and the cache's words.
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
    words: Vec<u32>,
}

impl Cache {
    fn new(shapes: &Shapes, random: &mut Random) -> Cache {
        let hd = shapes.head_dim as usize;
        let n = PAGES as usize * kv_page_words(shapes) as usize;
        let mut half = |size: f32| {
            let bits = f32_to_f16(random.unit() * size).expect("in range");
            (f16_to_f32(bits), u32::from(bits))
        };
        let mut words = vec![0; n];
        let (mut keys, mut values) = (vec![0.0; n], vec![0.0; n]);
        for head in 0..n / (64 * hd) {
            let start = head * 64 * hd;
            for slot in 0..64 {
                for i in 0..hd {
                    let (k, k_bits) = half(3.0);
                    let (v, v_bits) = half(1.0);
                    keys[start + slot * hd + i] = k;
                    values[start + slot * hd + i] = v;
                    let shift = 16 * (i % 2);
                    words[start + 64 * (i / 2) + slot] |= k_bits << shift;
                    words[start + 32 * hd + slot * (hd / 2) + i / 2] |= v_bits << shift;
                }
            }
        }
        Cache { keys, values, words }
    }

    /// What the first `n` positions of a session hold for one K/V head.
    fn of(&self, what: &[f32], shapes: &Shapes, table: &[u32], head: u32, n: usize) -> Vec<f32> {
        let hd = shapes.head_dim as usize;
        let row = |position: usize| {
            let page = table[position / 64] as usize;
            let at = ((page * shapes.kv_heads as usize + head as usize) * 64 + position % 64) * hd;
            &what[at..at + hd]
        };
        (0..n).flat_map(row).copied().collect()
    }
}

/// Three sessions: one that crosses page and split edges, one at its start, one far along.
fn step() -> StepData {
    let mut rows = Vec::new();
    for (session, positions) in [(0, 120..141), (1, 0..2), (2, 62..66), (3, 415..420)] {
        rows.extend(positions.map(|position| StepRow { position, session, token: 0 }));
    }
    let page_tables = vec![vec![5, 2, 11], vec![7], vec![0, 3], vec![1, 4, 6, 8, 9, 10, 5]];
    StepData { rows, page_tables, kept: vec![] }
}

async fn attention(
    tester: Tester<'_>,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
) -> Result<(), String> {
    let lab = tester.lab;
    let shapes = shapes(heads, kv_heads, head_dim);
    let (width, hd) = ((heads * head_dim) as usize, head_dim as usize);
    let mut random = Random::new(u64::from(heads * 1000 + head_dim));
    let cache = Cache::new(&shapes, &mut random);
    let kv = lab.kv(&shapes, PAGES);
    lab.write_words(&kv, &cache.words);
    let step = step();
    let t = step.rows.len();
    assert!(t as u32 > SPLIT_ROWS_MAX);
    let queries = random.floats(t * width);
    let mut want = Vec::new();
    for (row, query) in step.rows.iter().zip(queries.chunks_exact(width)) {
        let (n, table) = (row.position as usize + 1, &step.page_tables[row.session as usize]);
        for (head, query) in query.chunks_exact(hd).enumerate() {
            let kv_head = head as u32 / (heads / kv_heads);
            let k = cache.of(&cache.keys, &shapes, table, kv_head, n);
            let v = cache.of(&cache.values, &shapes, table, kv_head, n);
            want.extend(numerics::attention::attention(query, &k, &v).expect("finite"));
        }
    }
    // Scores are at most 3·√hd in size, each off by hd roundings of that on either side: so
    // much relative error of a weight, of values up to 1. Then a few of exp and of the sums.
    let score = 3.0 * (head_dim as f32).sqrt();
    let bound = 2.0 * (head_dim as f32 * score + KEYS_MAX as f32 / 16.0 + 40.0) * ULP;

    let kernels = lab.kernels(shapes);
    let mut whole = Vec::new();
    for run in runs(tester.extent, t) {
        let mut got = Vec::new();
        for &Range { start, end } in &run {
            let part = StepData { rows: step.rows[start..end].to_vec(), ..step.clone() };
            let scratch = lab.scratch(&shapes, (end - start) as u32, KEYS_MAX);
            let op = kernels.attention(&kv, &scratch);
            lab.write_rows(&scratch.query, width, &queries[start * width..end * width]);
            lab.run(&[&op], &part, &[], &scratch);
            let words = lab.words(&scratch.mixed).await?;
            got.extend(tester.take_rows(&words, width, end - start)?);
        }
        if whole.is_empty() {
            tester.within(&got, &want, |_| bound, width)?;
            whole = got;
        } else {
            let want = run.iter().flat_map(|r| &whole[r.start * width..r.end * width]);
            let want: Vec<f32> = want.copied().collect();
            same_bits(&got, &want, width, &format!("in steps {run:?}"))?;
        }
    }
    Ok(())
}

/// A score that is not finite makes its row NaN, and no other.
#[cfg(feature = "testing")]
async fn faults(tester: Tester<'_>) -> Result<(), String> {
    let lab = tester.lab;
    let shapes = shapes(3, 1, 16);
    let width = 48;
    let mut random = Random::new(11);
    let mut cache = Cache::new(&shapes, &mut random);
    // Key 65 of page table [0, 1] is infinite in one element.
    cache.words[kv_page_words(&shapes) as usize + 1] = 0x0000_7c00;
    let kv = lab.kv(&shapes, PAGES);
    lab.write_words(&kv, &cache.words);
    for (rows, positions) in [(4u32, 63..67), (20, 50..70)] {
        let step = StepData {
            rows: positions
                .clone()
                .map(|position| StepRow { position, session: 0, token: 0 })
                .collect(),
            page_tables: vec![vec![0, 1]],
            kept: vec![],
        };
        let mut queries = random.floats(rows as usize * width);
        queries[0] = f32::NAN; // The first row's first head.
        let kernels = lab.kernels(shapes);
        let scratch = lab.scratch(&shapes, rows, KEYS_MAX);
        lab.write_rows(&scratch.query, width, &queries);
        lab.run(&[&kernels.attention(&kv, &scratch)], &step, &[], &scratch);
        let got = lab.rows(&scratch.mixed, width, rows as usize).await?;
        for (i, (row, position)) in got.chunks_exact(width).zip(positions).enumerate() {
            for (head, values) in row.chunks_exact(16).enumerate() {
                let faulty = position >= 65 || (i == 0 && head == 0);
                if values.iter().any(|v| v.is_finite() == faulty) {
                    let what = if faulty { "hides a fault" } else { "has another's fault" };
                    return Err(format!("{rows} rows: position {position}, head {head} {what}"));
                }
            }
        }
        tester.saw(got.len(), 0.0, 0);
    }
    Ok(())
}
