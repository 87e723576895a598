// Weights out of the canonical layouts, 4 rows by 8 columns at a time (a *chunk*), exactly
// as they lie in a blob: crates/model/src/layout.rs has the table.
//
// A matrix is seen as vec4<u32>. In the tiled layouts a *quad* is 4 rows of a 16-row tile and
// a *pair* 8 columns of a 32-column block: one vec4 of a nibble plane is one chunk. A quant q
// becomes w = fma(scale, q, min), rounded once; min is the format's own, or -offset·scale,
// which is exact, so that w is then scale·(q - offset) rounded once.
//
// The kernel declares `fn words(matrix: u32, i: u32) -> vec4<u32>`: its matrices by number.
const Q4S: u32 = 0u;
const Q4M: u32 = 1u;
const Q4K: u32 = 2u;
const Q5S: u32 = 3u;
const Q6K: u32 = 4u;
const Q8: u32 = 5u;
const F16: u32 = 6u;
const F32: u32 = 7u;

const TILE_ROWS: u32 = 16u;
const BLOCK_COLS: u32 = 32u;
const CHUNK_COLS: u32 = 8u;

// Quants of 4 rows, one byte each: columns 0..4 in `low`, 4..8 in `high`.
struct Chunk {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: vec4<f32>,
    min: vec4<f32>,
}

// The four f16 of `quad` out of the 16 at vec4 `at`.
fn halves(matrix: u32, at: u32, quad: u32) -> vec4<f32> {
    let both = words(matrix, at + quad / 2u);
    let pair = select(both.xy, both.zw, quad % 2u == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

// One byte of each of four rows: `quad`'s word of the 16 bytes at vec4 `at`.
fn bytes(matrix: u32, at: u32, quad: u32) -> vec4<u32> {
    let word = words(matrix, at)[quad];
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
}

const NIBBLES: vec4<u32> = vec4<u32>(0x0f0f0f0fu);

// Bits 0..4 of each to bit 4 of the bytes 0..4: the multiplier's bits are 7 apart.
fn spread(bits: vec4<u32>) -> vec4<u32> {
    return (((bits & vec4<u32>(15u)) * 0x00204081u) & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
}

// Chunk `pair` of 32-column block `block` of a tile of a tiled layout. `base` is where the
// matrix starts, in vec4s, `blocks` its columns / 32.
fn tiled_chunk(
    matrix: u32,
    form: u32,
    base: u32,
    blocks: u32,
    tile: u32,
    quad: u32,
    block: u32,
    pair: u32,
) -> Chunk {
    var chunk = Chunk();
    let plane = pair * 4u + quad;
    if (form == Q8) {
        let cell = base + (tile * blocks + block) * 34u;
        chunk.low = words(matrix, cell + pair * 8u + quad) ^ vec4<u32>(0x80808080u);
        chunk.high = words(matrix, cell + pair * 8u + 4u + quad) ^ vec4<u32>(0x80808080u);
        chunk.scale = halves(matrix, cell + 32u, quad);
        chunk.min = chunk.scale * -128.0;
        return chunk;
    }
    if (form == Q4K) {
        let cell = base + (tile * (blocks / 8u) + block / 8u) * 148u;
        let sub = cell + 4u + (block % 8u) * 18u;
        let q = words(matrix, sub + 2u + plane);
        chunk.low = q & NIBBLES;
        chunk.high = (q >> vec4<u32>(4u)) & NIBBLES;
        chunk.scale = halves(matrix, cell, quad) * vec4<f32>(bytes(matrix, sub, quad));
        chunk.min = -(halves(matrix, cell + 2u, quad) * vec4<f32>(bytes(matrix, sub + 1u, quad)));
        return chunk;
    }
    if (form == Q6K) {
        let cell = base + (tile * (blocks / 8u) + block / 8u) * 210u;
        let sub = cell + 2u + (block % 8u) * 26u;
        let q = words(matrix, sub + 2u + plane);
        let h = words(matrix, sub + 18u + (pair / 2u) * 4u + quad) >> vec4<u32>((pair % 2u) * 4u);
        chunk.low = (q & NIBBLES) | ((h & vec4<u32>(0x03030303u)) << vec4<u32>(4u));
        chunk.high = ((q >> vec4<u32>(4u)) & NIBBLES)
            | (((h >> vec4<u32>(2u)) & vec4<u32>(0x03030303u)) << vec4<u32>(4u));
        // A signed byte as an unsigned one less 128.
        let scale = vec4<f32>(bytes(matrix, sub + pair / 2u, quad) ^ vec4<u32>(128u)) - 128.0;
        chunk.scale = halves(matrix, cell, quad) * scale;
        chunk.min = chunk.scale * -32.0;
        return chunk;
    }
    var cell_words = 18u;
    if (form == Q4M) {
        cell_words = 20u;
    } else if (form == Q5S) {
        cell_words = 22u;
    }
    let cell = base + (tile * blocks + block) * cell_words;
    let q = words(matrix, cell + plane);
    chunk.low = q & NIBBLES;
    chunk.high = (q >> vec4<u32>(4u)) & NIBBLES;
    if (form == Q5S) {
        let h = words(matrix, cell + 16u + quad) >> vec4<u32>(pair * 8u);
        chunk.low |= spread(h);
        chunk.high |= spread(h >> vec4<u32>(4u));
        chunk.scale = halves(matrix, cell + 20u, quad);
        chunk.min = chunk.scale * -16.0;
    } else {
        chunk.scale = halves(matrix, cell + 16u, quad);
        if (form == Q4M) {
            chunk.min = halves(matrix, cell + 18u, quad);
        } else {
            chunk.min = chunk.scale * -8.0;
        }
    }
    return chunk;
}

// Column `k` of the four in `quants`, of 4 rows, as weights.
fn weights(chunk: Chunk, quants: vec4<u32>, k: u32) -> vec4<f32> {
    let q = vec4<f32>((quants >> vec4<u32>(8u * k)) & vec4<u32>(255u));
    return fma(chunk.scale, q, chunk.min);
}

// One weight of a row-major matrix `[rows, cols]`, 0 outside of it.
fn dense_weight(
    matrix: u32,
    form: u32,
    base: u32,
    rows: u32,
    cols: u32,
    row: u32,
    col: u32,
) -> f32 {
    if (row >= rows || col >= cols) {
        return 0.0;
    }
    let i = row * cols + col;
    if (form == F16) {
        let word = words(matrix, base + i / 8u)[(i / 2u) % 4u];
        return unpack2x16float(word)[i % 2u];
    }
    return bitcast<f32>(words(matrix, base + i / 4u)[i % 4u]);
}

// Column `col` of rows `row .. row + 4` of a row-major matrix.
fn dense_weights(
    matrix: u32,
    form: u32,
    base: u32,
    rows: u32,
    cols: u32,
    row: u32,
    col: u32,
) -> vec4<f32> {
    return vec4<f32>(
        dense_weight(matrix, form, base, rows, cols, row, col),
        dense_weight(matrix, form, base, rows, cols, row + 1u, col),
        dense_weight(matrix, form, base, rows, cols, row + 2u, col),
        dense_weight(matrix, form, base, rows, cols, row + 3u, col),
    );
}
