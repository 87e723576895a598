//! A rank's own copy of its part of a layer.

use std::sync::Arc;

use model::layout::TENSOR_ALIGN;
use model::manifest::{Dims, Role};
use model::tensor::{Division, copy_part};

use crate::memory::WeightMemory;
use crate::types::{BlobBytes, LoadError};
use crate::weights::{Layer, Matrix};

/// Copies what `rank` keeps of a layer, all matrices into one piece of memory.
///
/// # Errors
/// [`LoadError::Memory`].
pub(super) fn cut(
    layer: Layer,
    dims: &Dims,
    division: &Division,
    rank: usize,
) -> Result<Layer, LoadError> {
    let part = |role| {
        let (rows, cols) = division.part(dims, rank, role);
        (rows.start as usize..rows.end as usize, cols.start as usize..cols.end as usize)
    };
    let matrices = [
        (Role::AttnQ, &layer.q),
        (Role::AttnK, &layer.k),
        (Role::AttnV, &layer.v),
        (Role::AttnOutput, &layer.output),
        (Role::FfnGate, &layer.gate),
        (Role::FfnUp, &layer.up),
        (Role::FfnDown, &layer.down),
    ];
    let mut end = 0;
    let places = matrices.map(|(role, matrix)| {
        let (rows, cols) = part(role);
        let bytes = matrix.layout.matrix_bytes(rows.len(), cols.len()).expect("whole cells");
        let start = end;
        end = (start + bytes).next_multiple_of(TENSOR_ALIGN);
        start..start + bytes
    });
    let mut memory = WeightMemory::new(end)
        .map_err(|error| LoadError::Memory { bytes: end as u64, reason: error.to_string() })?;
    for ((role, matrix), place) in matrices.into_iter().zip(&places) {
        let (shape, out) = ((matrix.rows, matrix.cols), &mut memory.as_mut()[place.clone()]);
        copy_part(matrix.layout, shape, matrix.bytes(), part(role), out);
    }
    let blob: BlobBytes = Arc::new(memory);
    let mut kept = matrices.into_iter().zip(places).map(|((role, matrix), place)| {
        let (rows, cols) = part(role);
        Matrix::within(matrix.layout, (rows.len(), cols.len()), blob.clone(), place)
    });
    let mut next = || kept.next().expect("as many as there were");
    let (q, k, v, output) = (next(), next(), next(), next());
    let (gate, up, down) = (next(), next(), next());
    let bias = |role, values: &[f32]| match values {
        [] => Vec::new(),
        values => values[part(role).1].to_vec(),
    };
    Ok(Layer {
        q,
        k,
        v,
        q_bias: bias(Role::AttnQBias, &layer.q_bias),
        k_bias: bias(Role::AttnKBias, &layer.k_bias),
        v_bias: bias(Role::AttnVBias, &layer.v_bias),
        output,
        gate,
        up,
        down,
        attn_norm: layer.attn_norm,
        ffn_norm: layer.ffn_norm,
    })
}
