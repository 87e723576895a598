// Embedding: the hidden state of a row is its token's row of the table.
//
// One invocation per 8 columns of a row. The table is a piece [rows, D] of a matrix in
// canonical layout, from token `first_row` on: rows whose token lies elsewhere are left
// alone. hidden is [T, D] f32, rows at a stride of whole vec4s.

struct Params {
    rows: u32,
    first_row: u32,
    cols: u32,
    base: u32,
    stride: u32,
}

override LAYOUT: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> matrix_words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> hidden: array<f32>;

fn words(matrix: u32, i: u32) -> vec4<u32> {
    return matrix_words[i];
}

#include "step.wgsl"
#include "weights.wgsl"

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let start = id.x * CHUNK_COLS;
    let token = row_token(id.y);
    if (start >= params.cols || token < params.first_row || token - params.first_row >= params.rows) {
        return;
    }
    let row = token - params.first_row;
    let at = id.y * params.stride + start;
    if (LAYOUT < F16) {
        let quad = (row % TILE_ROWS) / 4u;
        let chunk = tiled_chunk(
            0u, LAYOUT, params.base, params.cols / BLOCK_COLS, row / TILE_ROWS, quad,
            start / BLOCK_COLS, id.x % 4u,
        );
        for (var k = 0u; k < 4u; k += 1u) {
            hidden[at + k] = weights(chunk, chunk.low, k)[row % 4u];
            hidden[at + 4u + k] = weights(chunk, chunk.high, k)[row % 4u];
        }
        return;
    }
    for (var k = 0u; k < CHUNK_COLS && start + k < params.cols; k += 1u) {
        hidden[at + k] = dense_weight(
            0u, LAYOUT, params.base, params.rows, params.cols, row, start + k,
        );
    }
}
