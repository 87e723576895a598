// Product of a matrix with many columns: y = W·x, then + bias, or added to y.
//
// One workgroup per 64 rows of W and 64 rows of activations, 128 invocations with 8 by 4
// results each. Shapes and numerics are matvec's, to the bit: the lanes of common/lanes.wgsl
// are walked one after the other, 4 of a lane's chunks (32 columns) at a time through
// workgroup memory; a lane's sum is complete before it is added to the total.

#include "product.wgsl"

fn words(matrix: u32, i: u32) -> vec4<u32> {
    return matrix_words[i];
}

#include "weights.wgsl"
#include "tile_rows.wgsl"

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

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let last = step[ROWS_AT] - 1u;
    let first = group.y * GROUP_ROWS;
    let chunks = (params.cols + CHUNK_COLS - 1u) / CHUNK_COLS;
    let blocks = params.cols / BLOCK_COLS;
    let tiles = (params.rows + TILE_ROWS - 1u) / TILE_ROWS;

    // Who stages what: 4 columns of one chunk of a quad of W, and 4 by 4 of x.
    let w_quad = thread % QUADS;
    let w_chunk = (thread / QUADS) % STAGE_CHUNKS;
    let w_half = thread / 64u;
    let w_tile = min(group.x * 4u + w_quad / 4u, tiles - 1u);
    let x_quad = thread % QUADS;
    let x_cols = (thread / QUADS) * 4u;

    // Whose results: two quads of rows of W, 8 quads apart, and one quad of rows of x.
    let row_quad = thread % 8u;
    let x_row_quad = thread / 8u;
    var t0 = vec4<f32>(0.0);
    var t1 = vec4<f32>(0.0);
    var t2 = vec4<f32>(0.0);
    var t3 = vec4<f32>(0.0);
    var t4 = vec4<f32>(0.0);
    var t5 = vec4<f32>(0.0);
    var t6 = vec4<f32>(0.0);
    var t7 = vec4<f32>(0.0);
    for (var lane = 0u; lane < LANES; lane += 1u) {
        var a0 = vec4<f32>(0.0);
        var a1 = vec4<f32>(0.0);
        var a2 = vec4<f32>(0.0);
        var a3 = vec4<f32>(0.0);
        var a4 = vec4<f32>(0.0);
        var a5 = vec4<f32>(0.0);
        var a6 = vec4<f32>(0.0);
        var a7 = vec4<f32>(0.0);
        for (var start = lane; start < chunks; start += LANES * STAGE_CHUNKS) {
            // Chunks of this lane from `start` on, at most STAGE_CHUNKS.
            let staged = min(STAGE_CHUNKS, (chunks - start + LANES - 1u) / LANES);
            workgroupBarrier();
            if (w_chunk < staged) {
                let c = start + w_chunk * LANES;
                let at = (w_chunk * CHUNK_COLS + w_half * 4u) * QUADS + w_quad;
                if (LAYOUT < F16) {
                    let chunk = tiled_chunk(
                        0u, LAYOUT, params.base, blocks, w_tile, w_quad % 4u, c / 4u, c % 4u,
                    );
                    let quants = select(chunk.low, chunk.high, w_half == 1u);
                    staged_w[at] = weights(chunk, quants, 0u);
                    staged_w[at + QUADS] = weights(chunk, quants, 1u);
                    staged_w[at + 2u * QUADS] = weights(chunk, quants, 2u);
                    staged_w[at + 3u * QUADS] = weights(chunk, quants, 3u);
                } else {
                    let row = w_tile * TILE_ROWS + (w_quad % 4u) * 4u;
                    let col = c * CHUNK_COLS + w_half * 4u;
                    for (var k = 0u; k < 4u; k += 1u) {
                        staged_w[at + k * QUADS] = dense_weights(
                            0u, LAYOUT, params.base, params.rows, params.cols, row, col + k,
                        );
                    }
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
                let u = staged_w[k * QUADS + row_quad + 8u];
                let v = staged_x[k * QUADS + x_row_quad];
                a0 = fma(w, vec4<f32>(v.x), a0);
                a1 = fma(w, vec4<f32>(v.y), a1);
                a2 = fma(w, vec4<f32>(v.z), a2);
                a3 = fma(w, vec4<f32>(v.w), a3);
                a4 = fma(u, vec4<f32>(v.x), a4);
                a5 = fma(u, vec4<f32>(v.y), a5);
                a6 = fma(u, vec4<f32>(v.z), a6);
                a7 = fma(u, vec4<f32>(v.w), a7);
            }
        }
        // From 0: a sum that is -0 becomes +0, in matvec as well.
        t0 += a0;
        t1 += a1;
        t2 += a2;
        t3 += a3;
        t4 += a4;
        t5 += a5;
        t6 += a6;
        t7 += a7;
    }
    let t = first + x_row_quad * 4u;
    let row = group.x * GROUP_ROWS + row_quad * 4u;
    put(row, t, last, t0);
    put(row, t + 1u, last, t1);
    put(row, t + 2u, last, t2);
    put(row, t + 3u, last, t3);
    put(row + 32u, t, last, t4);
    put(row + 32u, t + 1u, last, t5);
    put(row + 32u, t + 2u, last, t6);
    put(row + 32u, t + 3u, last, t7);
}
