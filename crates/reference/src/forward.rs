//! `canonical-1` and `exact-f32` of a whole model, composed of `numerics` alone.

use numerics::attention::attention;
use numerics::exp::swiglu;
use numerics::f16::{f16_to_f32, f32_to_f16};
use numerics::finite::{Fault, check};
use numerics::norm::rms_norm;
use numerics::product::{f32_dot, quantised_dot};
use numerics::quantise::quantise;
use numerics::rope::rope;

use crate::weights::{Layer, Matrix, Model};

/// The numerics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 8-bit activations, f16 keys and values.
    Canonical1,
    /// Everything in f32.
    ExactF32,
}

/// What a forward pass went through.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `[L + 1][T][D]`: the embedding's output, then each layer's.
    pub boundaries: Vec<Vec<Vec<f32>>>,
    /// `[T][V]`.
    pub logits: Vec<Vec<f32>>,
}

/// Runs `tokens` from position 0 on through the whole model. A fault where any number that
/// is checked overflows.
///
/// # Panics
/// If a token is not in the vocabulary.
pub fn forward(model: &Model, class: Class, tokens: &[u32]) -> Result<Forward, Fault> {
    let mut hidden: Vec<Vec<f32>> =
        tokens.iter().map(|&t| model.embedding.weights[t as usize].clone()).collect();
    let mut boundaries = vec![hidden.clone()];
    for layer in &model.layers {
        run_layer(model, class, layer, &mut hidden)?;
        hidden.iter().try_for_each(|row| check(row))?;
        boundaries.push(hidden.clone());
    }
    let logits = hidden
        .iter()
        .map(|x| {
            let normed = rms_norm(x, &model.output_norm, model.eps)?;
            let logits = product(&model.head, class, &normed)?;
            check(&logits).map(|()| logits)
        })
        .collect::<Result<_, _>>()?;
    Ok(Forward { boundaries, logits })
}

/// `matrix·x`, `[R]`.
fn product(matrix: &Matrix, class: Class, x: &[f32]) -> Result<Vec<f32>, Fault> {
    match &matrix.quants {
        Some(rows) if class == Class::Canonical1 => {
            let x = quantise(x)?;
            Ok(rows.iter().map(|row| quantised_dot(row, &x)).collect())
        }
        _ => Ok(matrix.weights.iter().map(|row| f32_dot(row, x)).collect()),
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// What a key or value is when it is read back from the cache.
fn cached(class: Class, x: Vec<f32>) -> Result<Vec<f32>, Fault> {
    match class {
        Class::Canonical1 => x.into_iter().map(|v| Ok(f16_to_f32(f32_to_f16(v)?))).collect(),
        Class::ExactF32 => Ok(x),
    }
}

fn run_layer(
    model: &Model,
    class: Class,
    layer: &Layer,
    hidden: &mut [Vec<f32>],
) -> Result<(), Fault> {
    let head_dim = model.dims.head_dim as usize;
    let heads = model.dims.heads as usize;
    let group = heads / model.dims.kv_heads as usize;
    // Keys and values of all positions so far, `[kv head]` of `[n, hd]`.
    let mut keys = vec![Vec::new(); heads / group];
    let mut values = keys.clone();
    for (position, x) in hidden.iter_mut().enumerate() {
        let normed = rms_norm(x, &layer.attn_norm, model.eps)?;
        let mut q = product(&layer.q, class, &normed)?;
        let mut k = product(&layer.k, class, &normed)?;
        let mut v = product(&layer.v, class, &normed)?;
        if let Some([q_bias, k_bias, v_bias]) = &layer.biases {
            add(&mut q, q_bias);
            add(&mut k, k_bias);
            add(&mut v, v_bias);
        }
        rope(&mut q, position as u32, &model.inv_freq, model.pairs);
        rope(&mut k, position as u32, &model.inv_freq, model.pairs);
        let (k, v) = (cached(class, k)?, cached(class, v)?);
        for (head, (keys, values)) in keys.iter_mut().zip(&mut values).enumerate() {
            keys.extend_from_slice(&k[head * head_dim..(head + 1) * head_dim]);
            values.extend_from_slice(&v[head * head_dim..(head + 1) * head_dim]);
        }
        let mut mixed = Vec::with_capacity(q.len());
        for (head, query) in q.chunks_exact(head_dim).enumerate() {
            mixed.extend(attention(query, &keys[head / group], &values[head / group])?);
        }
        add(x, &product(&layer.output, class, &mixed)?);
        let normed = rms_norm(x, &layer.ffn_norm, model.eps)?;
        let gate = product(&layer.gate, class, &normed)?;
        let up = product(&layer.up, class, &normed)?;
        add(x, &product(&layer.down, class, &swiglu(&gate, &up))?);
    }
    Ok(())
}
