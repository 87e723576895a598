//! Products in every layout, alone and with SwiGLU.

use model::Layout;
use model::dequant::Matrix;
use model::manifest::RopePairs;
use numerics::exp::silu;
use numerics::product::f32_dot;

use super::compare::{ULP, same_bits};
use super::{Extent, Runner, Tester};
#[cfg(feature = "testing")]
use crate::gpu::kernels::Variant;
use crate::gpu::kernels::lab::{Random, UNWRITTEN};
use crate::gpu::kernels::{Epilogue, MATVEC_ROWS_MAX, Rows, Shapes, StepData, StepRow};

#[cfg(feature = "testing")]
const LAYOUTS: [Layout; 8] = [
    Layout::Q4S,
    Layout::Q4M,
    Layout::Q4K,
    Layout::Q5S,
    Layout::Q6K,
    Layout::Q8,
    Layout::F16,
    Layout::F32,
];
/// What lies beside the rows of an output that is added to: a NaN would hide that it was.
const ADDED_TO: u32 = 0x4b3c_614e;

/// The largest step and then other companies: first row and rows. The largest is two tiles of
/// the matrix-matrix kernel, the second one partial.
#[cfg(feature = "testing")]
const WHOLE: [(usize, usize); 8] =
    [(0, 70), (0, 1), (69, 1), (3, 2), (10, 3), (5, 4), (20, 5), (50, 17)];
/// The same at start-up: each way to compute it once.
const START: [(usize, usize); 3] = [(0, 20), (10, 5), (19, 1)];

fn companies(extent: Extent) -> &'static [(usize, usize)] {
    match extent {
        Extent::Start => &START,
        #[cfg(feature = "testing")]
        Extent::Whole => &WHOLE,
    }
}

/// Shapes that products alone need.
pub(super) fn plain_shapes(d_model: u32, d_ff: u32, vocab: u32) -> Shapes {
    Shapes {
        d_model,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        d_ff,
        vocab,
        pairs: RopePairs::Adjacent,
        rms_eps: 1e-5,
    }
}

/// A step of so many rows of nothing in particular, all of which want logits.
pub(super) fn plain_step(rows: usize) -> StepData {
    let row = |i| StepRow { position: i as u32, session: 0, token: 0 };
    StepData {
        rows: (0..rows).map(row).collect(),
        page_tables: vec![vec![]],
        kept: (0..rows as u32).collect(),
    }
}

/// Rows of weights, widened.
pub(super) fn dequantised(layout: Layout, rows: u32, cols: u32, bytes: &[u8]) -> Vec<Vec<f32>> {
    let matrix = Matrix::new(layout, rows as usize, cols as usize, bytes).expect("its bytes");
    let row = |r| {
        let mut weights = vec![0.0; cols as usize];
        matrix.dequant_row(r, &mut weights);
        weights
    };
    (0..rows as usize).map(row).collect()
}

/// The product in exact-f32 and the bound of what another order may give: each of the two
/// sums of n terms is off by at most (n/16 + 16) roundings of Σ|w·x|, and a weight with a min
/// was rounded twice on one side, whose terms may be larger than w: two more of Σ|m·x|.
pub(super) fn expected(weights: &[Vec<f32>], x: &[f32], mins: f32) -> (Vec<f32>, Vec<f32>) {
    let cols = weights[0].len();
    let roundings = 2.0 * (cols as f32 / 16.0 + 16.0) * ULP;
    let mut want = Vec::new();
    let mut bounds = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in weights {
            want.push(f32_dot(w, x));
            let size: f32 = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
            let whole: f32 = x.iter().map(|x| x.abs()).sum();
            bounds.push(roundings * size + 4.0 * ULP * mins * whole + f32::MIN_POSITIVE);
        }
    }
    (want, bounds)
}

/// The largest part that a weight of random cells may be the difference of.
pub(super) fn largest_min(weights: &[Vec<f32>]) -> f32 {
    2.0 * weights.iter().flatten().fold(0.0f32, |m, w| m.max(w.abs()))
}

pub(super) async fn run(runner: &mut Runner<'_>, extent: Extent) {
    #[cfg(feature = "testing")]
    if extent == Extent::Whole {
        run_layouts(runner).await;
    }
    for (name, kind) in [("bias", Kind::Bias), ("add", Kind::Add)] {
        for (layout, rows, cols) in
            [(Layout::Q4M, 50, 96), (Layout::Q8, 50, 96), (Layout::F16, 70, 24)]
        {
            if extent == Extent::Start && !(kind == Kind::Add && layout == Layout::Q4M) {
                continue;
            }
            let name = format!("product {layout:?} [{rows}, {cols}] {name} in pieces");
            let case = async |t: Tester<'_>| product(t, layout, rows, cols, 7, kind).await;
            runner.case(name, case).await;
        }
    }
    for (gate, up, rows, cols) in [
        (Layout::Q4M, Layout::Q4M, 100, 576),
        (Layout::Q4K, Layout::Q6K, 33, 512),
        (Layout::Q5S, Layout::Q8, 16, 64),
        (Layout::F32, Layout::F16, 21, 9),
    ] {
        if extent == Extent::Start && gate != Layout::Q4K {
            continue;
        }
        let name = format!("gate_up {gate:?} {up:?} [{rows}, {cols}]");
        runner.case(name, async |t| gate_up(t, [gate, up], rows, cols).await).await;
    }
}

/// Every layout, at odd shapes and at some of real models.
#[cfg(feature = "testing")]
async fn run_layouts(runner: &mut Runner<'_>) {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        let cell = layout.cell_cols() as u32;
        let mut shapes = vec![(40, cell.max(32) * 3), (17, cell.max(32))];
        match layout {
            // The others read weights as `Base` does, and what they add up is the same for all.
            _ if runner.variant != Variant::Base => match layout {
                Layout::Q4M | Layout::Q6K | Layout::F16 => shapes.truncate(1),
                _ => shapes.clear(),
            },
            Layout::Q4M => shapes.extend([(1536, 576), (576, 1536)]),
            Layout::Q6K => shapes.push((100, 4864)),
            Layout::Q5S => shapes.push((128, 896)),
            Layout::F16 => shapes.extend([(33, 7), (5, 130)]),
            Layout::F32 => shapes.extend([(3, 1), (18, 150)]),
            _ => {}
        }
        for (rows, cols) in shapes {
            let name = format!("product {layout:?} [{rows}, {cols}]");
            let seed = (i as u64) << 32 | u64::from(rows * cols);
            let kind = Kind::Store;
            let case = async |t: Tester<'_>| product(t, layout, rows, cols, seed, kind).await;
            runner.case(name, case).await;
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    #[cfg(feature = "testing")]
    Store,
    Bias,
    Add,
}

async fn product(
    tester: Tester<'_>,
    layout: Layout,
    rows: u32,
    cols: u32,
    seed: u64,
    kind: Kind,
) -> Result<(), String> {
    let Tester { lab, extent, .. } = tester;
    let companies = companies(extent);
    let step_rows = companies[0].1;
    assert!(step_rows as u32 > MATVEC_ROWS_MAX);
    let mut random = Random::new(seed);
    let bytes = random.matrix(layout, rows, cols);
    let x = random.floats(step_rows * cols as usize);
    let bias = random.floats(rows as usize);
    let before = random.floats(step_rows * rows as usize);
    let weights = dequantised(layout, rows, cols, &bytes);
    let (mut want, mut bounds) = expected(&weights, &x, largest_min(&weights));
    for (i, (want, bound)) in want.iter_mut().zip(&mut bounds).enumerate() {
        *want += match kind {
            #[cfg(feature = "testing")]
            Kind::Store => 0.0,
            Kind::Bias => bias[i % rows as usize],
            Kind::Add => before[i],
        };
        *bound += 2.0 * ULP * (want.abs() + 1.0);
    }

    let shapes = plain_shapes(cols, 4, rows);
    let kernels = lab.kernels(shapes);
    let piece_rows = if kind == Kind::Bias || kind == Kind::Add { 32 } else { rows };
    let matrix = lab.matrix(layout, rows, cols, &bytes, piece_rows);
    let epilogue = match kind {
        #[cfg(feature = "testing")]
        Kind::Store => Epilogue::Store,
        // The matrix's biases begin in the middle of the vector.
        Kind::Bias => {
            let vector = lab.vector(&[&[f32::NAN; 3], &bias[..]].concat());
            Epilogue::Bias { vector, first: 3 }
        }
        Kind::Add => Epilogue::Add,
    };
    let (r, c) = (rows as usize, cols as usize);
    let mut whole = Vec::new();
    for &(start, count) in companies {
        let scratch = lab.scratch(&shapes, count as u32, 64);
        let op = kernels.product(
            &matrix,
            &scratch.normed,
            &scratch.logits,
            &epilogue,
            Rows::Kept,
            &scratch,
        );
        lab.write_rows(&scratch.normed, c, &x[start * c..(start + count) * c]);
        if kind == Kind::Add {
            lab.write_words(&scratch.logits, &vec![ADDED_TO; scratch.logits.size() as usize / 4]);
            lab.write_rows(&scratch.logits, r, &before[start * r..(start + count) * r]);
        }
        lab.run(&[&op], &plain_step(count), &[0.0], &scratch);
        let filled = if kind == Kind::Add { ADDED_TO } else { UNWRITTEN };
        let words = lab.words(&scratch.logits).await?;
        let got = tester.take_rows_of(&words, r, count, filled)?;
        if count == step_rows {
            tester.within(&got, &want, |i| bounds[i], r)?;
            whole = got;
        } else {
            let what = format!("rows {start}..{} by themselves", start + count);
            same_bits(&got, &whole[start * r..(start + count) * r], r, &what)?;
        }
    }
    Ok(())
}

async fn gate_up(
    tester: Tester<'_>,
    layouts: [Layout; 2],
    rows: u32,
    cols: u32,
) -> Result<(), String> {
    let Tester { lab, extent, .. } = tester;
    let companies = companies(extent);
    let step_rows = companies[0].1;
    let mut random = Random::new(u64::from(rows + cols));
    let x = random.floats(step_rows * cols as usize);
    let bytes = layouts.map(|layout| random.matrix(layout, rows, cols));
    let shapes = plain_shapes(cols, rows, 4);
    let kernels = lab.kernels(shapes);
    let mut matrices = Vec::new();
    let mut results = Vec::new();
    for (layout, bytes) in layouts.into_iter().zip(&bytes) {
        let weights = dequantised(layout, rows, cols, bytes);
        results.push(expected(&weights, &x, largest_min(&weights)));
        matrices.push(lab.matrix(layout, rows, cols, bytes, 16));
    }
    let [(gates, gate_bounds), (ups, up_bounds)] = &results[..] else { unreachable!("two") };
    let want: Vec<f32> = gates.iter().zip(ups).map(|(&g, &u)| silu(g) * u).collect();
    // silu has a slope of at most 1.1; itself it is good to 4 roundings here and there, and
    // 3 of a division that need not be exact.
    let bound = |i: usize| {
        let (g, u) = (gates[i], ups[i]);
        1.1 * gate_bounds[i] * (u.abs() + up_bounds[i])
            + silu(g).abs() * up_bounds[i]
            + 16.0 * ULP * want[i].abs()
            + f32::MIN_POSITIVE
    };
    let (r, c) = (rows as usize, cols as usize);
    let mut whole = Vec::new();
    for &(start, count) in companies {
        let scratch = lab.scratch(&shapes, count as u32, 64);
        let op = kernels.gate_up(&matrices[0], &matrices[1], &scratch);
        lab.write_rows(&scratch.normed, c, &x[start * c..(start + count) * c]);
        lab.run(&[&op], &plain_step(count), &[0.0], &scratch);
        let words = lab.words(&scratch.gate).await?;
        if count == step_rows {
            // The last step of it works on whole vec4s: what lies between rows is its own.
            let got = lab.rows(&scratch.gate, r, count).await?;
            tester.within(&got, &want, bound, r)?;
            whole = got;
        } else {
            let got = if count as u32 <= MATVEC_ROWS_MAX {
                tester.take_rows(&words, r, count)?
            } else {
                lab.rows(&scratch.gate, r, count).await?
            };
            let what = format!("rows {start}..{} by themselves", start + count);
            same_bits(&got, &whole[start * r..(start + count) * r], r, &what)?;
        }
    }
    Ok(())
}
