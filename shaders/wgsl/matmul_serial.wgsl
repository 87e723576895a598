// Product of a matrix with many columns, for adapters that compute on the CPU: y = W·x, then
// + bias, or added to y.
//
// One workgroup per 4 tiles of W and 8 rows of activations, 8 invocations with 8 by 8 results
// each: an invocation walks all lanes by itself, so nothing is waited for and no workgroup memory
// is read, which costs such an adapter as much as any other memory. Each of its loads serves 8
// rows. Shapes and numerics are matvec's, to the bit: common/lanes.wgsl has the order.

#include "product.wgsl"

fn words(matrix: u32, i: u32) -> vec4<u32> {
    return matrix_words[i];
}

#include "weights.wgsl"
#include "tile_rows.wgsl"

const LANES: u32 = 16u;
// Tiles of W and rows of x in a workgroup.
const GROUP_TILES: u32 = 4u;
const GROUP_ROWS: u32 = 8u;

// Sums of a quad of rows of W: one vec4 for each row of x.
struct Sums {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    a4: vec4<f32>,
    a5: vec4<f32>,
    a6: vec4<f32>,
    a7: vec4<f32>,
}

// Four columns of 8 rows of x: one vec4 for each row.
struct Piece {
    r0: vec4<f32>,
    r1: vec4<f32>,
    r2: vec4<f32>,
    r3: vec4<f32>,
    r4: vec4<f32>,
    r5: vec4<f32>,
    r6: vec4<f32>,
    r7: vec4<f32>,
}

// Adds column k of a piece.
fn accumulate(sums: Sums, w: vec4<f32>, p: Piece, k: u32) -> Sums {
    var s = sums;
    s.a0 = fma(w, vec4<f32>(p.r0[k]), s.a0);
    s.a1 = fma(w, vec4<f32>(p.r1[k]), s.a1);
    s.a2 = fma(w, vec4<f32>(p.r2[k]), s.a2);
    s.a3 = fma(w, vec4<f32>(p.r3[k]), s.a3);
    s.a4 = fma(w, vec4<f32>(p.r4[k]), s.a4);
    s.a5 = fma(w, vec4<f32>(p.r5[k]), s.a5);
    s.a6 = fma(w, vec4<f32>(p.r6[k]), s.a6);
    s.a7 = fma(w, vec4<f32>(p.r7[k]), s.a7);
    return s;
}

fn add(a: Sums, b: Sums) -> Sums {
    return Sums(
        a.a0 + b.a0, a.a1 + b.a1, a.a2 + b.a2, a.a3 + b.a3,
        a.a4 + b.a4, a.a5 + b.a5, a.a6 + b.a6, a.a7 + b.a7,
    );
}

// Columns `col .. col + 4` of the rows from `first` on; 0 beyond the matrix.
fn piece(first: u32, last: u32, col: u32) -> Piece {
    return Piece(
        load_x(min(first + 0u, last), col),
        load_x(min(first + 1u, last), col),
        load_x(min(first + 2u, last), col),
        load_x(min(first + 3u, last), col),
        load_x(min(first + 4u, last), col),
        load_x(min(first + 5u, last), col),
        load_x(min(first + 6u, last), col),
        load_x(min(first + 7u, last), col),
    );
}

// The same from vec4 `at` of a row on, all of which is within the matrix.
fn whole_piece(first: u32, last: u32, at: u32) -> Piece {
    let stride = params.x_stride;
    return Piece(
        x[min(first + 0u, last) * stride + at],
        x[min(first + 1u, last) * stride + at],
        x[min(first + 2u, last) * stride + at],
        x[min(first + 3u, last) * stride + at],
        x[min(first + 4u, last) * stride + at],
        x[min(first + 5u, last) * stride + at],
        x[min(first + 6u, last) * stride + at],
        x[min(first + 7u, last) * stride + at],
    );
}

fn dense(row: u32, col: u32) -> vec4<f32> {
    return dense_weights(0u, LAYOUT, params.base, params.rows, params.cols, row, col);
}

fn put_all(row: u32, t: u32, last: u32, sums: Sums) {
    put(row, t + 0u, last, sums.a0);
    put(row, t + 1u, last, sums.a1);
    put(row, t + 2u, last, sums.a2);
    put(row, t + 3u, last, sums.a3);
    put(row, t + 4u, last, sums.a4);
    put(row, t + 5u, last, sums.a5);
    put(row, t + 6u, last, sums.a6);
    put(row, t + 7u, last, sums.a7);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let last = step[ROWS_AT] - 1u;
    let first = group.y * GROUP_ROWS;
    let tiles = (params.rows + TILE_ROWS - 1u) / TILE_ROWS;
    // The upper or the lower half of a tile. Beyond the last tile that one is read and nothing
    // written.
    let unit = group.x * 2u * GROUP_TILES + thread;
    let quad = (unit % 2u) * 2u;
    let row = (unit / 2u) * TILE_ROWS + quad * 4u;
    let tile = min(unit / 2u, tiles - 1u);

    var t = Sums();
    var u = Sums();
    for (var lane = 0u; lane < LANES; lane += 1u) {
        var a = Sums();
        var b = Sums();
        if (LAYOUT < F16) {
            let pair = lane % 4u;
            let blocks = params.cols / BLOCK_COLS;
            for (var block = lane / 4u; block < blocks; block += 4u) {
                let c = tiled_chunk(0u, LAYOUT, params.base, blocks, tile, quad, block, pair);
                let d = tiled_chunk(0u, LAYOUT, params.base, blocks, tile, quad + 1u, block, pair);
                let at = block * 8u + pair * 2u;
                var p = whole_piece(first, last, at);
                a = accumulate(a, weights(c, c.low, 0u), p, 0u);
                b = accumulate(b, weights(d, d.low, 0u), p, 0u);
                a = accumulate(a, weights(c, c.low, 1u), p, 1u);
                b = accumulate(b, weights(d, d.low, 1u), p, 1u);
                a = accumulate(a, weights(c, c.low, 2u), p, 2u);
                b = accumulate(b, weights(d, d.low, 2u), p, 2u);
                a = accumulate(a, weights(c, c.low, 3u), p, 3u);
                b = accumulate(b, weights(d, d.low, 3u), p, 3u);
                p = whole_piece(first, last, at + 1u);
                a = accumulate(a, weights(c, c.high, 0u), p, 0u);
                b = accumulate(b, weights(d, d.high, 0u), p, 0u);
                a = accumulate(a, weights(c, c.high, 1u), p, 1u);
                b = accumulate(b, weights(d, d.high, 1u), p, 1u);
                a = accumulate(a, weights(c, c.high, 2u), p, 2u);
                b = accumulate(b, weights(d, d.high, 2u), p, 2u);
                a = accumulate(a, weights(c, c.high, 3u), p, 3u);
                b = accumulate(b, weights(d, d.high, 3u), p, 3u);
            }
        } else {
            let top = tile * TILE_ROWS + quad * 4u;
            for (var start = lane * CHUNK_COLS; start < params.cols; start += LANES * CHUNK_COLS) {
                for (var half = 0u; half < 2u; half += 1u) {
                    let col = start + 4u * half;
                    let p = piece(first, last, col);
                    for (var k = 0u; k < 4u; k += 1u) {
                        a = accumulate(a, dense(top, col + k), p, k);
                        b = accumulate(b, dense(top + 4u, col + k), p, k);
                    }
                }
            }
        }
        // From 0: a sum that is -0 becomes +0, in matvec as well.
        t = add(t, a);
        u = add(u, b);
    }
    put_all(row, first, last, t);
    put_all(row + 4u, first, last, u);
}
