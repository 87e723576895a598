// One 16-row tile of a matrix times up to 4 columns of activations: 64 invocations, 4 row
// quads by 16 lanes. Where an adapter computes on the CPU, an invocation walks all lanes of
// its quad instead (THREADS 8, two tiles a workgroup): a workgroup of many invocations that
// wait for each other is costly there.
//
// How the lanes' sums come together is in lanes_workgroup.wgsl, through workgroup memory, and
// in lanes_subgroups.wgsl: a kernel includes one of them, which says who is which lane.
//
// THE ORDER OF A PRODUCT, the same in every kernel and for any number of columns: column c
// belongs to lane (c / 8) mod 16; a lane starts at +0 and takes its columns ascending, each
// with one fma; the 16 lane sums are added to +0 from lane 0 to lane 15. Columns beyond the
// matrix (of the last 8) count as 0·0.
const LANES: u32 = 16u;
const COLUMNS_MAX: u32 = 4u;

// Invocations of a workgroup: 64, or fewer that walk the lanes.
override THREADS: u32 = 64u;

// How many columns share a weight: 1, 2 or 4.
override COLUMNS: u32 = 4u;

// Lane sums of 4 rows: one vec4 for each column.
struct Sums {
    c0: vec4<f32>,
    c1: vec4<f32>,
    c2: vec4<f32>,
    c3: vec4<f32>,
}

fn accumulate(sums: Sums, w: vec4<f32>, k: u32, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) -> Sums {
    var s = sums;
    s.c0 = fma(w, vec4<f32>(x0[k]), s.c0);
    if (COLUMNS > 1u) {
        s.c1 = fma(w, vec4<f32>(x1[k]), s.c1);
    }
    if (COLUMNS > 2u) {
        s.c2 = fma(w, vec4<f32>(x2[k]), s.c2);
        s.c3 = fma(w, vec4<f32>(x3[k]), s.c3);
    }
    return s;
}

// Columns `col .. col + 4` of activation row `row`; 0 beyond `cols`.
fn load_x(row: u32, stride: u32, cols: u32, col: u32) -> vec4<f32> {
    if (col >= cols) {
        return vec4<f32>(0.0);
    }
    let v = x[row * stride + col / 4u];
    if (col + 4u <= cols) {
        return v;
    }
    return select(vec4<f32>(0.0), v, vec4<u32>(col) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(cols));
}

// The lane's share of rows 4·quad .. 4·quad + 4 of a tile, for the activation rows
// first .. first + COLUMNS (`last` is the last there is). `stride` in vec4s.
fn lane_sums(
    matrix: u32,
    form: u32,
    base: u32,
    rows: u32,
    cols: u32,
    stride: u32,
    tile: u32,
    quad: u32,
    lane: u32,
    first: u32,
    last: u32,
) -> Sums {
    var sums = Sums();
    let r1 = min(first + 1u, last);
    let r2 = min(first + 2u, last);
    let r3 = min(first + 3u, last);
    if (form < F16) {
        let blocks = cols / BLOCK_COLS;
        let pair = lane % 4u;
        for (var block = lane / 4u; block < blocks; block += 4u) {
            let chunk = tiled_chunk(matrix, form, base, blocks, tile, quad, block, pair);
            let at = block * 8u + pair * 2u;
            var x0 = x[first * stride + at];
            var x1 = x0;
            var x2 = x0;
            var x3 = x0;
            if (COLUMNS > 1u) {
                x1 = x[r1 * stride + at];
            }
            if (COLUMNS > 2u) {
                x2 = x[r2 * stride + at];
                x3 = x[r3 * stride + at];
            }
            sums = accumulate(sums, weights(chunk, chunk.low, 0u), 0u, x0, x1, x2, x3);
            sums = accumulate(sums, weights(chunk, chunk.low, 1u), 1u, x0, x1, x2, x3);
            sums = accumulate(sums, weights(chunk, chunk.low, 2u), 2u, x0, x1, x2, x3);
            sums = accumulate(sums, weights(chunk, chunk.low, 3u), 3u, x0, x1, x2, x3);
            x0 = x[first * stride + at + 1u];
            if (COLUMNS > 1u) {
                x1 = x[r1 * stride + at + 1u];
            }
            if (COLUMNS > 2u) {
                x2 = x[r2 * stride + at + 1u];
                x3 = x[r3 * stride + at + 1u];
            }
            sums = accumulate(sums, weights(chunk, chunk.high, 0u), 0u, x0, x1, x2, x3);
            sums = accumulate(sums, weights(chunk, chunk.high, 1u), 1u, x0, x1, x2, x3);
            sums = accumulate(sums, weights(chunk, chunk.high, 2u), 2u, x0, x1, x2, x3);
            sums = accumulate(sums, weights(chunk, chunk.high, 3u), 3u, x0, x1, x2, x3);
        }
    } else {
        let row = tile * TILE_ROWS + quad * 4u;
        for (var start = lane * CHUNK_COLS; start < cols; start += LANES * CHUNK_COLS) {
            for (var half = 0u; half < 2u; half += 1u) {
                let col = start + 4u * half;
                let x0 = load_x(first, stride, cols, col);
                let x1 = load_x(r1, stride, cols, col);
                let x2 = load_x(r2, stride, cols, col);
                let x3 = load_x(r3, stride, cols, col);
                for (var k = 0u; k < 4u; k += 1u) {
                    let w = dense_weights(matrix, form, base, rows, cols, row, col + k);
                    sums = accumulate(sums, w, k, x0, x1, x2, x3);
                }
            }
        }
    }
    return sums;
}

// The tile, or pair of tiles, that an invocation works on.
fn unit_of(group: u32, thread: u32) -> u32 {
    if (THREADS == 64u) {
        return group;
    }
    return group * (THREADS / 4u) + thread / 4u;
}

// An invocation's part of a tile's sums: its lane's, or all of them, added up.
fn sum_lanes(
    matrix: u32,
    form: u32,
    base: u32,
    rows: u32,
    cols: u32,
    stride: u32,
    tile: u32,
    thread: u32,
    first: u32,
    last: u32,
) -> Sums {
    var totals = Sums();
    var lane = 0u;
    var end = LANES;
    if (THREADS == 64u) {
        lane = lane_of(thread);
        end = lane + 1u;
    }
    for (; lane < end; lane += 1u) {
        let sums = lane_sums(
            matrix, form, base, rows, cols, stride, tile, quad_of(thread), lane, first, last,
        );
        if (THREADS == 64u) {
            return sums;
        }
        totals.c0 += sums.c0;
        totals.c1 += sums.c1;
        totals.c2 += sums.c2;
        totals.c3 += sums.c3;
    }
    return totals;
}
