// Product of a matrix with many columns: y = W·x, then + bias, or added to y.
//
// One workgroup per 64 rows of W and 64 rows of activations, 256 invocations with 4 by 4
// results each. Shapes and numerics are matvec's, to the bit: the lanes of common/lanes.wgsl
// are walked one after the other, 4 of a lane's chunks (32 columns) at a time through
// workgroup memory; a lane's sum is complete before it is added to the total.

struct Params {
    rows: u32,
    first_row: u32,
    cols: u32,
    base: u32,
    x_stride: u32,
    y_stride: u32,
    bias_at: u32,
}

const STORE: u32 = 0u;
const BIAS: u32 = 1u;
const ADD: u32 = 2u;

override LAYOUT: u32 = 0u;
override EPILOGUE: u32 = 0u;
override ROWS_AT: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> matrix_words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

fn words(matrix: u32, i: u32) -> vec4<u32> {
    return matrix_words[i];
}

#include "weights.wgsl"

const LANES: u32 = 16u;
// Rows of W and of x in a workgroup, in quads.
const QUADS: u32 = 16u;
const GROUP_ROWS: u32 = 64u;
// Chunks of a lane that lie in workgroup memory at once, and their columns.
const STAGE_CHUNKS: u32 = 4u;
const STAGE_COLS: u32 = 32u;

// [column][quad]
var<workgroup> staged_w: array<vec4<f32>, 512>;
var<workgroup> staged_x: array<vec4<f32>, 512>;

fn load_x(row: u32, col: u32) -> vec4<f32> {
    if (col >= params.cols) {
        return vec4<f32>(0.0);
    }
    let v = x[row * params.x_stride + col / 4u];
    if (col + 4u <= params.cols) {
        return v;
    }
    return select(
        vec4<f32>(0.0), v, vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.cols),
    );
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let last = step[ROWS_AT] - 1u;
    let first = group.y * GROUP_ROWS;
    let chunks = (params.cols + CHUNK_COLS - 1u) / CHUNK_COLS;
    let blocks = params.cols / BLOCK_COLS;
    let tiles = (params.rows + TILE_ROWS - 1u) / TILE_ROWS;

    // Who stages what: two columns of one chunk of a quad of W, and 4 by 4 of x.
    let w_quad = thread % QUADS;
    let w_chunk = (thread / QUADS) % STAGE_CHUNKS;
    let w_part = thread / 64u;
    let w_tile = min(group.x * 4u + w_quad / 4u, tiles - 1u);
    let x_quad = thread % QUADS;
    let x_cols = (thread / QUADS) * 4u;

    let row_quad = thread % QUADS;
    let x_row_quad = thread / QUADS;
    var t0 = vec4<f32>(0.0);
    var t1 = vec4<f32>(0.0);
    var t2 = vec4<f32>(0.0);
    var t3 = vec4<f32>(0.0);
    for (var lane = 0u; lane < LANES; lane += 1u) {
        var a0 = vec4<f32>(0.0);
        var a1 = vec4<f32>(0.0);
        var a2 = vec4<f32>(0.0);
        var a3 = vec4<f32>(0.0);
        for (var start = lane; start < chunks; start += LANES * STAGE_CHUNKS) {
            // Chunks of this lane from `start` on, at most STAGE_CHUNKS.
            let staged = min(STAGE_CHUNKS, (chunks - start + LANES - 1u) / LANES);
            workgroupBarrier();
            if (w_chunk < staged) {
                let c = start + w_chunk * LANES;
                let at = (w_chunk * CHUNK_COLS + w_part * 2u) * QUADS + w_quad;
                if (LAYOUT < F16) {
                    let chunk = tiled_chunk(
                        0u, LAYOUT, params.base, blocks, w_tile, w_quad % 4u, c / 4u, c % 4u,
                    );
                    let quants = select(chunk.low, chunk.high, w_part >= 2u);
                    let k = (w_part % 2u) * 2u;
                    staged_w[at] = weights(chunk, quants, k);
                    staged_w[at + QUADS] = weights(chunk, quants, k + 1u);
                } else {
                    let row = w_tile * TILE_ROWS + (w_quad % 4u) * 4u;
                    let col = c * CHUNK_COLS + w_part * 2u;
                    staged_w[at] = dense_weights(
                        0u, LAYOUT, params.base, params.rows, params.cols, row, col,
                    );
                    staged_w[at + QUADS] = dense_weights(
                        0u, LAYOUT, params.base, params.rows, params.cols, row, col + 1u,
                    );
                }
            }
            if (x_cols < staged * CHUNK_COLS) {
                let c = start + (x_cols / CHUNK_COLS) * LANES;
                let col = c * CHUNK_COLS + x_cols % CHUNK_COLS;
                let row = first + x_quad * 4u;
                let r0 = load_x(min(row, last), col);
                let r1 = load_x(min(row + 1u, last), col);
                let r2 = load_x(min(row + 2u, last), col);
                let r3 = load_x(min(row + 3u, last), col);
                let at = x_cols * QUADS + x_quad;
                staged_x[at] = vec4<f32>(r0.x, r1.x, r2.x, r3.x);
                staged_x[at + QUADS] = vec4<f32>(r0.y, r1.y, r2.y, r3.y);
                staged_x[at + 2u * QUADS] = vec4<f32>(r0.z, r1.z, r2.z, r3.z);
                staged_x[at + 3u * QUADS] = vec4<f32>(r0.w, r1.w, r2.w, r3.w);
            }
            workgroupBarrier();
            let cols = staged * CHUNK_COLS;
            for (var k = 0u; k < cols; k += 1u) {
                let w = staged_w[k * QUADS + row_quad];
                let v = staged_x[k * QUADS + x_row_quad];
                a0 = fma(w, vec4<f32>(v.x), a0);
                a1 = fma(w, vec4<f32>(v.y), a1);
                a2 = fma(w, vec4<f32>(v.z), a2);
                a3 = fma(w, vec4<f32>(v.w), a3);
            }
        }
        if (lane == 0u) {
            t0 = a0;
            t1 = a1;
            t2 = a2;
            t3 = a3;
        } else {
            t0 += a0;
            t1 += a1;
            t2 += a2;
            t3 += a3;
        }
    }
    for (var c = 0u; c < 4u; c += 1u) {
        let t = first + x_row_quad * 4u + c;
        var product = t0;
        if (c == 1u) {
            product = t1;
        } else if (c == 2u) {
            product = t2;
        } else if (c == 3u) {
            product = t3;
        }
        for (var i = 0u; i < 4u; i += 1u) {
            let row = group.x * GROUP_ROWS + row_quad * 4u + i;
            if (row < params.rows && t <= last) {
                let r = params.first_row + row;
                let at = t * params.y_stride + r;
                var value = product[i];
                if (EPILOGUE == BIAS) {
                    value += bias[params.bias_at + r];
                } else if (EPILOGUE == ADD) {
                    value += y[at];
                }
                y[at] = value;
            }
        }
    }
}
