//! Embedding and norm.

use model::Layout;

use super::compare::ULP;
use super::products::{dequantised, largest_min, plain_shapes, plain_step};
use super::{Extent, Runner, Tester};
use crate::gpu::kernels::Rows;
use crate::gpu::kernels::lab::Random;

pub(super) async fn run(runner: &mut Runner<'_>, extent: Extent) {
    for (layout, vocab, width) in [
        (Layout::Q4S, 49, 96),
        (Layout::Q4M, 49, 64),
        (Layout::Q4K, 49, 512),
        (Layout::Q5S, 49, 96),
        (Layout::Q6K, 49, 256),
        (Layout::Q8, 300, 576),
        (Layout::F16, 49, 21),
        (Layout::F32, 49, 6),
    ] {
        if extent == Extent::Start && layout != Layout::Q4S {
            continue;
        }
        let name = format!("embed {layout:?} [{vocab}, {width}] in pieces");
        runner.case(name, async |t| embed(t, layout, vocab, width).await).await;
    }
    for width in [1, 13, 64, 576, 896, 4096] {
        for rows in [Rows::All, Rows::Kept] {
            if extent == Extent::Start && (width, rows) != (576, Rows::Kept) {
                continue;
            }
            let name = format!("rms_norm [{width}] {rows:?}");
            runner.case(name, async |t| rms_norm(t, width, rows).await).await;
        }
    }
}

async fn embed(tester: Tester<'_>, layout: Layout, vocab: u32, width: u32) -> Result<(), String> {
    let lab = tester.lab;
    let bytes = Random::new(5).matrix(layout, vocab, width);
    let weights = dequantised(layout, vocab, width, &bytes);
    let tokens = [0, vocab - 1, 15, 16, 31, 32, 33, 0];
    let want: Vec<f32> = tokens.iter().flat_map(|&t| weights[t as usize].clone()).collect();
    let shapes = plain_shapes(width, 4, 4);
    let kernels = lab.kernels(shapes);
    let scratch = lab.scratch(&shapes, tokens.len() as u32, 64);
    let op = kernels.embed(&lab.matrix(layout, vocab, width, &bytes, 32), &scratch);
    let mut step = plain_step(tokens.len());
    for (row, token) in step.rows.iter_mut().zip(tokens) {
        row.token = token;
    }
    lab.run(&[&op], &step, &[0.0], &scratch);
    let words = lab.words(&scratch.hidden).await?;
    let got = tester.take_rows(&words, width as usize, tokens.len())?;
    // d·q + m is rounded once here and twice there; its terms may be larger than it is.
    let bound = 4.0 * ULP * largest_min(&weights);
    tester.within(&got, &want, |_| bound, width as usize)
}

async fn rms_norm(tester: Tester<'_>, width: u32, rows: Rows) -> Result<(), String> {
    const STEP_ROWS: usize = 5;
    let lab = tester.lab;
    let mut random = Random::new(u64::from(width));
    let x: Vec<f32> = random.floats(STEP_ROWS * width as usize).iter().map(|v| v * 3.0).collect();
    let gain = random.floats(width as usize);
    let mut step = plain_step(STEP_ROWS);
    if rows == Rows::Kept {
        step.kept = vec![1, 4];
    }
    let shapes = plain_shapes(width, 4, 4);
    let kept: Vec<u32> = if rows == Rows::Kept { vec![1, 4] } else { (0..5).collect() };
    let w = width as usize;
    let want: Vec<f32> = kept
        .iter()
        .flat_map(|&r| {
            let row = &x[r as usize * w..(r as usize + 1) * w];
            numerics::norm::rms_norm(row, &gain, shapes.rms_eps).expect("finite")
        })
        .collect();
    let kernels = lab.kernels(shapes);
    let scratch = lab.scratch(&shapes, STEP_ROWS as u32, 64);
    let op = kernels.rms_norm(&lab.vector(&gain), rows, &scratch);
    lab.write_rows(&scratch.hidden, w, &x);
    lab.run(&[&op], &step, &[0.0], &scratch);
    let got = tester.take_rows(&lab.words(&scratch.normed).await?, w, kept.len())?;
    // All terms of the sum are positive: relative error of n/16 + 16 roundings on either
    // side, halved by the root, and of a root and a division that need not be exact.
    let roundings = (width as f32 / 16.0 + 16.0) + 16.0;
    tester.within(&got, &want, |i| roundings * ULP * want[i].abs() + f32::MIN_POSITIVE, w)?;

    // A sum beyond f32 is told, not hidden.
    let mut loud = x.clone();
    loud[4 * w] = 3e38;
    let scratch = lab.scratch(&shapes, STEP_ROWS as u32, 64);
    let op = kernels.rms_norm(&lab.vector(&gain), rows, &scratch);
    lab.write_rows(&scratch.hidden, w, &loud);
    lab.run(&[&op], &step, &[0.0], &scratch);
    let got = lab.rows(&scratch.normed, w, kept.len()).await?;
    let last = &got[(kept.len() - 1) * w..];
    if last.iter().any(|v| v.is_finite()) {
        return Err("a row whose squares overflow has finite values".to_owned());
    }
    tester.within(&got[..w], &want[..w], |i| roundings * ULP * want[i].abs() + f32::MIN_POSITIVE, w)
}
