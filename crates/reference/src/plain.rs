//! The textbook transformer in f32: sums from left to right, libm's functions, one softmax.

use numerics::rope::Pairs;

use crate::weights::{Layer, Matrix, Model};

/// Logits `[T][V]` of `tokens` from position 0 on.
///
/// # Panics
/// If a token is not in the vocabulary.
pub fn logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut hidden: Vec<Vec<f32>> =
        tokens.iter().map(|&t| model.embedding.weights[t as usize].clone()).collect();
    for layer in &model.layers {
        attention_block(model, layer, &mut hidden);
        for x in &mut hidden {
            let normed = rms_norm(x, &layer.ffn_norm, model.eps);
            let gate = product(&layer.gate, &normed);
            let up = product(&layer.up, &normed);
            let silu = |x: f32| x / (1.0 + (-x).exp());
            let inner: Vec<f32> = gate.iter().zip(&up).map(|(&g, &u)| silu(g) * u).collect();
            add(x, &product(&layer.down, &inner));
        }
    }
    let head = |x: &Vec<f32>| product(&model.head, &rms_norm(x, &model.output_norm, model.eps));
    hidden.iter().map(head).collect()
}

fn attention_block(model: &Model, layer: &Layer, hidden: &mut [Vec<f32>]) {
    let hd = model.dims.head_dim as usize;
    let group = (model.dims.heads / model.dims.kv_heads) as usize;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (position, x) in hidden.iter_mut().enumerate() {
        let normed = rms_norm(x, &layer.attn_norm, model.eps);
        let mut q = product(&layer.q, &normed);
        let mut k = product(&layer.k, &normed);
        let mut v = product(&layer.v, &normed);
        if let Some([q_bias, k_bias, v_bias]) = &layer.biases {
            add(&mut q, q_bias);
            add(&mut k, k_bias);
            add(&mut v, v_bias);
        }
        rope(model, &mut q, position);
        rope(model, &mut k, position);
        keys.push(k);
        values.push(v);
        let mut mixed = vec![0.0f32; q.len()];
        for head in 0..q.len() / hd {
            let own = head * hd..(head + 1) * hd;
            let shared = head / group * hd..(head / group + 1) * hd;
            let scores: Vec<f32> = keys
                .iter()
                .map(|key| dot(&q[own.clone()], &key[shared.clone()]) / (hd as f32).sqrt())
                .collect();
            let max = scores.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f32 = weights.iter().sum();
            for (weight, value) in weights.iter().zip(&values) {
                for (m, v) in mixed[own.clone()].iter_mut().zip(&value[shared.clone()]) {
                    *m += weight / total * v;
                }
            }
        }
        add(x, &product(&layer.output, &mixed));
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    matrix.weights.iter().map(|row| dot(row, x)).collect()
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn rms_norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let mean = dot(x, x) / x.len() as f32;
    let scale = (mean + eps).sqrt();
    x.iter().zip(gain).map(|(x, g)| x / scale * g).collect()
}

fn rope(model: &Model, x: &mut [f32], position: usize) {
    let hd = model.dims.head_dim as usize;
    for head in x.chunks_exact_mut(hd) {
        for (i, inv_freq) in model.inv_freq.iter().enumerate() {
            let (sin, cos) = (position as f64 * inv_freq).sin_cos();
            let (a, b) = match model.pairs {
                Pairs::Adjacent => (2 * i, 2 * i + 1),
                Pairs::HalfSplit => (i, i + hd / 2),
            };
            let (x, y) = (f64::from(head[a]), f64::from(head[b]));
            head[a] = (x * cos - y * sin) as f32;
            head[b] = (x * sin + y * cos) as f32;
        }
    }
}
