// Rotation and the KV cache of one layer.
//
// `kv` is [page][kv head]( K: [hd/2][64] words, V: [64][hd/2] words ): a word is elements
// 2i (low) and 2i + 1 of one position as f16, keys rotated. A page has 64 positions.
const PAGE_KEYS: u32 = 64u;

const ADJACENT: u32 = 0u;
const HALF_SPLIT: u32 = 1u;

// (cos, sin) of pair `i` of a row's position.
fn turn(row: u32, pair: u32, head_dim: u32) -> vec2<f32> {
    let at = step[2] + row * head_dim + 2u * pair;
    return vec2<f32>(bitcast<f32>(step[at]), bitcast<f32>(step[at + 1u]));
}

// The pair (a, b) turned: (a·cos - b·sin, a·sin + b·cos).
fn rotate(v: vec2<f32>, t: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(fma(v.x, t.x, -(v.y * t.y)), fma(v.x, t.y, v.y * t.x));
}

// Where the head of a page starts, in words.
fn head_start(page: u32, kv_heads: u32, head: u32, head_dim: u32) -> u32 {
    return (page * kv_heads + head) * PAGE_KEYS * head_dim;
}

// The bits of 65520, the least that is no f16 any more when rounded, and the largest f16.
const HALF_END_BITS: u32 = 0x477ff000u;
const HALF_MAX: f32 = 65504.0;
const NANS: u32 = 0x7e007e00u;

// Two elements as f16. Where one is beyond f16, pack2x16float may give anything: both become
// NaN then, which the row's output shows.
fn pack_halves(v: vec2<f32>) -> u32 {
    let sizes = bitcast<vec2<u32>>(v) & vec2<u32>(0x7fffffffu);
    if (any(sizes >= vec2<u32>(HALF_END_BITS))) {
        return NANS;
    }
    return pack2x16float(clamp(v, vec2<f32>(-HALF_MAX), vec2<f32>(HALF_MAX)));
}

// Elements 2·pair and 2·pair + 1 of a row's key, rotated, into its page.
fn append_key(row: u32, kv_heads: u32, head: u32, head_dim: u32, pair: u32, v: vec2<f32>) {
    let position = row_position(row);
    let page = step[row_pages(row) + position / PAGE_KEYS];
    let start = head_start(page, kv_heads, head, head_dim);
    kv[start + pair * PAGE_KEYS + position % PAGE_KEYS] = pack_halves(v);
}

// The same of its value.
fn append_value(row: u32, kv_heads: u32, head: u32, head_dim: u32, pair: u32, v: vec2<f32>) {
    let position = row_position(row);
    let page = step[row_pages(row) + position / PAGE_KEYS];
    let start = head_start(page, kv_heads, head, head_dim) + PAGE_KEYS * (head_dim / 2u);
    kv[start + (position % PAGE_KEYS) * (head_dim / 2u) + pair] = pack_halves(v);
}
