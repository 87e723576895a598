//! Query, key and value: products, bias, RoPE and the cache.

use std::ops::Range;

use model::Layout;
use model::manifest::RopePairs;
use numerics::f16::f16_to_f32;
use numerics::rope::{Pairs, rope};

use super::compare::{ULP, same_bits};
use super::products::{dequantised, expected, largest_min};
use super::{Extent, Runner, Tester};
use crate::gpu::kernels::lab::{Random, UNWRITTEN};
use crate::gpu::kernels::{MATVEC_ROWS_MAX, Shapes, StepData, StepRow, kv_page_words};

/// Largest relative error of rounding to f16, either way.
const HALF_ULP: f32 = 1.0 / 1024.0;
/// Pages of the layer's cache.
const PAGES: u32 = 8;

struct Case {
    layouts: [Layout; 3],
    d_model: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    pairs: RopePairs,
    biased: bool,
}

pub(super) async fn run(runner: &mut Runner<'_>, extent: Extent) {
    use RopePairs::{Adjacent, HalfSplit};
    let case = |layouts, d_model, (heads, kv_heads, head_dim), pairs, biased| Case {
        layouts,
        d_model,
        heads,
        kv_heads,
        head_dim,
        pairs,
        biased,
    };
    for case in [
        case([Layout::Q4M; 3], 576, (9, 3, 64), Adjacent, false),
        case([Layout::Q4K, Layout::Q4K, Layout::Q6K], 256, (4, 1, 128), Adjacent, false),
        case([Layout::Q5S, Layout::Q5S, Layout::Q8], 128, (4, 2, 64), HalfSplit, true),
        case([Layout::Q4S, Layout::Q8, Layout::Q4S], 64, (3, 1, 32), HalfSplit, false),
        case([Layout::F16, Layout::F32, Layout::F16], 30, (5, 1, 10), Adjacent, true),
        case([Layout::Q8; 3], 64, (2, 2, 2), Adjacent, false),
        case([Layout::Q8; 3], 64, (3, 3, 16), HalfSplit, true),
    ] {
        // At start-up one that has all: biases, a rotation over both halves, two layouts.
        if extent == Extent::Start && case.d_model != 128 {
            continue;
        }
        let Case { layouts: [q, k, v], heads, kv_heads, head_dim, pairs, biased, .. } = case;
        let name = format!(
            "qkv {q:?} {k:?} {v:?} {heads}/{kv_heads} heads of {head_dim} {pairs:?}{}",
            if biased { " biased" } else { "" }
        );
        runner.case(name, async |t| qkv(t, &case).await).await;
    }
    #[cfg(feature = "testing")]
    if extent == Extent::Whole {
        runner.case("qkv beyond f16".to_owned(), beyond_half).await;
    }
}

/// Values on both sides of what f16 holds, in a step of many rows and of one: those of a row
/// are its activations, by turns one that fits and one that does not.
#[cfg(feature = "testing")]
async fn beyond_half(tester: Tester<'_>) -> Result<(), String> {
    let lab = tester.lab;
    const WIDTH: u32 = 32;
    /// What comes out of f16, as bits; `None` where it is beyond.
    const VALUES: [(f32, Option<u16>); 8] = [
        (65504.0, Some(0x7bff)),
        (65519.0, Some(0x7bff)),
        (-65519.0, Some(0xfbff)),
        (1.0, Some(0x3c00)),
        (65520.0, None),
        (-65536.0, None),
        (1e9, None),
        (-3e38, None),
    ];
    let shapes = Shapes {
        d_model: WIDTH,
        heads: 1,
        kv_heads: 1,
        head_dim: WIDTH,
        d_ff: 4,
        vocab: 4,
        pairs: RopePairs::Adjacent,
        rms_eps: 1e-5,
    };
    let n = WIDTH as usize;
    let mut identity = vec![0.0f32; n * n];
    (0..n).for_each(|i| identity[i * n + i] = 1.0);
    let identity: Vec<u8> = identity.iter().flat_map(|x| x.to_le_bytes()).collect();
    let kernels = lab.kernels(shapes);
    let matrix = lab.matrix(Layout::F32, WIDTH, WIDTH, &identity, WIDTH);
    let at = |row: usize, i: usize| VALUES[(i * 3 + i / 8 + row) % VALUES.len()];
    for rows in [20usize, 1] {
        let x: Vec<f32> = (0..rows * n).map(|i| at(i / n, i % n).0).collect();
        let kv = lab.kv(&shapes, 1);
        let scratch = lab.scratch(&shapes, rows as u32, 64);
        let op = kernels.qkv([&matrix, &matrix, &matrix], None, &kv, &scratch);
        lab.write_rows(&scratch.normed, n, &x);
        let row = |position| StepRow { position, session: 0, token: 0 };
        let step = StepData {
            rows: (0..rows as u32).map(row).collect(),
            page_tables: vec![vec![0]],
            kept: vec![],
        };
        // Without any rotation keys are as values.
        lab.run(&[&op], &step, &[0.0; WIDTH as usize / 2], &scratch);
        let cache = lab.words(&kv).await?;
        for (row, pair) in (0..rows).flat_map(|row| (0..n / 2).map(move |pair| (row, pair))) {
            let want = match (at(row, 2 * pair).1, at(row, 2 * pair + 1).1) {
                (Some(low), Some(high)) => u32::from(low) | u32::from(high) << 16,
                _ => 0x7e00_7e00,
            };
            let places = [("key", 64 * pair + row), ("value", 32 * n + row * (n / 2) + pair)];
            for (what, place) in places {
                if cache[place] != want {
                    let (got, x) = (cache[place], &x[row * n + 2 * pair..][..2]);
                    return Err(format!(
                        "{what} {x:?} of row {row} of {rows} is {got:#x}, not {want:#x}"
                    ));
                }
            }
        }
        tester.saw(2 * rows * n, 0.0, 0);
    }
    Ok(())
}

/// Three sessions, whose rows cross the edges of pages.
fn step() -> StepData {
    let mut rows = Vec::new();
    for (session, positions) in [(0, 60..72), (1, 0..3), (2, 127..132)] {
        rows.extend(positions.map(|position| StepRow { position, session, token: 0 }));
    }
    let page_tables = vec![vec![5, 2], vec![7], vec![0, 3, 1]];
    StepData { rows, page_tables, kept: vec![] }
}

/// How the step's `t` rows are cut: all at once, then as each other way to compute them takes
/// them.
fn runs(extent: Extent, t: usize) -> Vec<Vec<Range<usize>>> {
    match extent {
        Extent::Start => vec![vec![0..t], vec![7..12, t - 1..t]],
        #[cfg(feature = "testing")]
        Extent::Whole => {
            let cut = |count: usize| {
                (0..t).step_by(count).map(|start| start..(start + count).min(t)).collect()
            };
            [t, MATVEC_ROWS_MAX as usize, 3, 1].map(cut).into()
        }
    }
}

async fn qkv(tester: Tester<'_>, case: &Case) -> Result<(), String> {
    let lab = tester.lab;
    let hd = case.head_dim as usize;
    let (q_width, kv_width) = ((case.heads * case.head_dim), (case.kv_heads * case.head_dim));
    let shapes = Shapes {
        d_model: case.d_model,
        heads: case.heads,
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        d_ff: 4,
        vocab: 4,
        pairs: case.pairs,
        rms_eps: 1e-5,
    };
    let step = step();
    let t = step.rows.len();
    assert!(t as u32 > MATVEC_ROWS_MAX);
    let inv_freq: Vec<f64> = (0..hd / 2).map(|i| 0.37f64.powi(i as i32)).collect();
    let mut random = Random::new(u64::from(case.d_model + 1000 * case.head_dim));
    let x = random.floats(t * case.d_model as usize);
    let widths = [q_width, kv_width, kv_width];
    let bytes: Vec<Vec<u8>> = case
        .layouts
        .iter()
        .zip(widths)
        .map(|(&layout, rows)| random.matrix(layout, rows, case.d_model))
        .collect();
    let biases = random.floats((q_width + 2 * kv_width) as usize);

    // What should come out, turned and not yet f16, and how far it may be off.
    let pairs = match case.pairs {
        RopePairs::Adjacent => Pairs::Adjacent,
        RopePairs::HalfSplit => Pairs::HalfSplit,
    };
    let mut outputs = Vec::new();
    let mut first = 0;
    for (i, (&layout, rows)) in case.layouts.iter().zip(widths).enumerate() {
        let weights = dequantised(layout, rows, case.d_model, &bytes[i]);
        let (mut want, bounds) = expected(&weights, &x, largest_min(&weights));
        let mut bound = bounds.iter().copied().fold(0.0, f32::max);
        for row in want.chunks_exact_mut(rows as usize) {
            if case.biased {
                row.iter_mut().zip(&biases[first..]).for_each(|(y, b)| *y += b);
            }
        }
        let largest = want.iter().fold(0.0f32, |m, y| m.max(y.abs()));
        if i < 2 {
            for (row, at) in want.chunks_exact_mut(rows as usize).zip(&step.rows) {
                rope(row, at.position, &inv_freq, pairs);
            }
            // A rotation joins two elements.
            bound *= 2.0;
        }
        outputs.push((want, bound + 8.0 * ULP * largest));
        first += rows as usize;
    }

    let kernels = lab.kernels(shapes);
    let matrices: Vec<_> = (0..3)
        .map(|i| lab.matrix(case.layouts[i], widths[i], case.d_model, &bytes[i], widths[i]))
        .collect();
    let vector = lab.vector(&biases);
    let mut whole: Option<(Vec<f32>, Vec<u32>)> = None;
    for run in runs(tester.extent, t) {
        let kv = lab.kv(&shapes, PAGES);
        let mut query = Vec::new();
        for &Range { start, end } in &run {
            let part = StepData { rows: step.rows[start..end].to_vec(), ..step.clone() };
            let scratch = lab.scratch(&shapes, (end - start) as u32, 64);
            let op = kernels.qkv(
                [&matrices[0], &matrices[1], &matrices[2]],
                case.biased.then_some(&vector),
                &kv,
                &scratch,
            );
            let d = case.d_model as usize;
            lab.write_rows(&scratch.normed, d, &x[start * d..end * d]);
            lab.run(&[&op], &part, &inv_freq, &scratch);
            let words = lab.words(&scratch.query).await?;
            query.extend(tester.take_rows(&words, q_width as usize, end - start)?);
        }
        let cache = lab.words(&kv).await?;
        match &whole {
            None => {
                let (want, bound) = &outputs[0];
                tester.within(&query, want, |_| *bound, q_width as usize)?;
                check_cache(tester, &cache, &shapes, &step, &outputs[1], &outputs[2])?;
                whole = Some((query, cache));
            }
            Some((want, want_cache)) => {
                let width = q_width as usize;
                let want = run.iter().flat_map(|r| &want[r.start * width..r.end * width]);
                let want: Vec<f32> = want.copied().collect();
                same_bits(&query, &want, width, &format!("query in steps {run:?}"))?;
                check_words(tester, &cache, want_cache, run.iter().map(Range::len).sum(), &shapes)
                    .map_err(|problem| format!("cache in steps {run:?}: {problem}"))?;
            }
        }
    }
    Ok(())
}

/// The cache holds what the whole step left there, of so many rows, and nothing else.
fn check_words(
    tester: Tester<'_>,
    cache: &[u32],
    whole: &[u32],
    rows: usize,
    shapes: &Shapes,
) -> Result<(), String> {
    let written = |i: &usize| cache[*i] != UNWRITTEN;
    if let Some(i) = (0..cache.len()).filter(written).find(|&i| cache[i] != whole[i]) {
        let (got, want) = (cache[i], whole[i]);
        return Err(format!("word {i} is {got:#x}, not {want:#x}"));
    }
    let words = rows * (shapes.kv_heads * shapes.head_dim) as usize;
    match (0..cache.len()).filter(written).count() {
        n if n == words => {
            tester.saw(0, 0.0, cache.len() - words);
            Ok(())
        }
        n => Err(format!("{n} words were written, not {words}")),
    }
}

/// The cache holds the step's keys and values where they belong, and nothing else.
fn check_cache(
    tester: Tester<'_>,
    cache: &[u32],
    shapes: &Shapes,
    step: &StepData,
    keys: &(Vec<f32>, f32),
    values: &(Vec<f32>, f32),
) -> Result<(), String> {
    let (hd, kv_heads) = (shapes.head_dim as usize, shapes.kv_heads as usize);
    let (mut written, mut largest) = (0, 0f32);
    for (t, row) in step.rows.iter().enumerate() {
        let page = step.page_tables[row.session as usize][row.position as usize / 64] as usize;
        let slot = row.position as usize % 64;
        for head in 0..kv_heads {
            let start = page * kv_page_words(shapes) as usize + head * 64 * hd;
            for pair in 0..hd / 2 {
                let places = [start + 64 * pair + slot, start + 32 * hd + slot * (hd / 2) + pair];
                for (at, (want, bound)) in places.into_iter().zip([keys, values]) {
                    written += 1;
                    let word = cache[at];
                    for (i, half) in [word as u16, (word >> 16) as u16].into_iter().enumerate() {
                        let want = want[(t * kv_heads + head) * hd + 2 * pair + i];
                        let got = f16_to_f32(half);
                        let bound = bound + HALF_ULP * want.abs() + 6e-8;
                        let error = (got - want).abs();
                        if error.is_nan() || error > bound {
                            return Err(format!(
                                "row {t}, head {head}, element {}: the cache has {got}, not {want}",
                                2 * pair + i
                            ));
                        }
                        largest = largest.max(error / bound);
                    }
                }
            }
        }
    }
    match cache.iter().filter(|&&word| word != UNWRITTEN).count() {
        n if n == written => {
            tester.saw(2 * written, largest, cache.len() - written);
            Ok(())
        }
        n => Err(format!("{n} words of the cache were written, not {written}")),
    }
}
