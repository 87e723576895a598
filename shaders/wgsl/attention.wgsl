// Attention over the paged KV cache, with an online softmax per page of 64 keys.
//
// One workgroup per K/V head and ROWS rows (SPLIT: and one split of 128 keys); it computes all
// query heads of that K/V head, ROWS·group of them, four to a vec4. query [T, H·hd] f32 is
// rotated; kv as common/rope.wgsl; row t of the step sees keys 0 ..= its position. Rows of a
// workgroup that belong to another session than its first are done by its own pass over their
// pages. With SPLIT partials is [T][H][splits_max][hd + 2] f32: m, l, o; otherwise mixed is
// [T, H·hd], all splits joined.
//
// Numerics, of each row and head alone, whatever else the workgroup does: score = (Σ q·k,
// elements ascending, one fma each)·factor; per page m' = max(m, scores), c = e^(m - m'),
// p = e^(s - m'); l = l·c + Σp (16 sums of 4 keys, then those, ascending); o = o·c, then + p·v
// by fma, keys ascending; splits joined as in common/softmax.wgsl; the result is o·(1/l).
// Keys beyond the row's own count as p = 0. A score that is not finite makes the row NaN.

// Variables of a loop's body are given their zeros: Chromium on SwiftShader leaves in those
// that are declared without a value what the round before had put there.

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    query_stride: u32,
    mixed_stride: u32,
    splits_max: u32,
    factor: f32,
}

override SPLIT: u32 = 0u;
// Rows of the step in a workgroup.
override ROWS: u32 = 1u;
// Vec4s of query heads: ROWS·group / 4, rounded up, at most 4.
override QUADS: u32 = 1u;
// hd, for the size of workgroup memory.
override HEAD_DIM: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> query: array<f32>;
@group(0) @binding(3) var<storage, read> kv: array<u32>;
@group(0) @binding(4) var<storage, read_write> mixed: array<f32>;

#include "step.wgsl"
#include "exp.wgsl"
#include "softmax.wgsl"

const PAGE_KEYS: u32 = 64u;
const THREADS: u32 = 64u;
const QUADS_MAX: u32 = 4u;
// Pairs of elements times quads that one invocation may have.
const ITEMS_MAX: u32 = 4u;
// Below every score, and still finite.
const LOWEST: f32 = -3.0e38;

var<workgroup> queries: array<vec4<f32>, QUADS * HEAD_DIM>;
// Scores, then weights, of a page: [quad][key].
var<workgroup> page: array<vec4<f32>, QUADS * 64u>;
// Partial maxima, then sums: [quad][16].
var<workgroup> parts: array<vec4<f32>, QUADS * 16u>;

// The position of the row of each of a quad's four (row, head), in keys seen; 0 for none.
fn keys_seen(first: u32, rows: u32, group_heads: u32, quad: u32) -> vec4<u32> {
    var seen = vec4<u32>(0u);
    for (var i = 0u; i < 4u; i += 1u) {
        let row = (quad * 4u + i) / group_heads;
        if (row < rows) {
            seen[i] = row_position(first + row) + 1u;
        }
    }
    return seen;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let head_dim = HEAD_DIM;
    let pairs = head_dim / 2u;
    let kv_head = group.x;
    let group_heads = params.heads / params.kv_heads;
    let total_rows = step[0];
    var first = group.z * ROWS;
    let end = min(first + ROWS, total_rows);
    let items = pairs * QUADS;

    // Runs of rows of one session.
    while (first < end) {
        let table = row_pages(first);
        var rows = 1u;
        while (first + rows < end && row_pages(first + rows) == table) {
            rows += 1u;
        }
        let keys_max = row_position(first + rows - 1u) + 1u;

        workgroupBarrier();
        for (var i = thread; i < QUADS * head_dim; i += THREADS) {
            let quad = i / head_dim;
            let element = i % head_dim;
            var q = vec4<f32>(0.0);
            for (var c = 0u; c < 4u; c += 1u) {
                let index = quad * 4u + c;
                let row = index / group_heads;
                if (row < rows) {
                    let head = kv_head * group_heads + index % group_heads;
                    q[c] = query[(first + row) * params.query_stride + head * head_dim + element];
                }
            }
            queries[i] = q;
        }
        var seen = array<vec4<u32>, QUADS_MAX>();
        var m_all = array<vec4<f32>, QUADS_MAX>();
        var l_all = array<vec4<f32>, QUADS_MAX>();
        var o_all = array<vec4<f32>, 2u * ITEMS_MAX>();
        for (var n = 0u; n < QUADS; n += 1u) {
            seen[n] = keys_seen(first, rows, group_heads, n);
        }
        workgroupBarrier();

        var split = 0u;
        var split_end = (keys_max + SPLIT_KEYS - 1u) / SPLIT_KEYS;
        if (SPLIT == 1u) {
            split = group.y;
            split_end = min(split_end, split + 1u);
        }
        for (; split < split_end; split += 1u) {
            var m = array<vec4<f32>, QUADS_MAX>();
            var l = array<vec4<f32>, QUADS_MAX>();
            var o = array<vec4<f32>, 2u * ITEMS_MAX>();
            for (var n = 0u; n < QUADS; n += 1u) {
                m[n] = vec4<f32>(LOWEST);
            }
            let pages_end = min((split + 1u) * SPLIT_PAGES, (keys_max + PAGE_KEYS - 1u) / PAGE_KEYS);
            for (var p = split * SPLIT_PAGES; p < pages_end; p += 1u) {
                let start = (step[table + p] * params.kv_heads + kv_head) * PAGE_KEYS * head_dim;
                let key = p * PAGE_KEYS + thread;
                var s = array<vec4<f32>, QUADS_MAX>();
                if (key < keys_max) {
                    for (var i = 0u; i < pairs; i += 1u) {
                        let k = unpack2x16float(kv[start + i * PAGE_KEYS + thread]);
                        for (var n = 0u; n < QUADS; n += 1u) {
                            let at = n * head_dim + 2u * i;
                            s[n] = fma(queries[at], vec4<f32>(k.x), s[n]);
                            s[n] = fma(queries[at + 1u], vec4<f32>(k.y), s[n]);
                        }
                    }
                }
                for (var n = 0u; n < QUADS; n += 1u) {
                    let own = vec4<u32>(key) < seen[n];
                    s[n] = select(vec4<f32>(LOWEST), s[n] * params.factor, own);
                    page[n * PAGE_KEYS + thread] = s[n];
                }
                workgroupBarrier();
                if (thread < 16u * QUADS) {
                    let at = (thread / 16u) * PAGE_KEYS + (thread % 16u) * 4u;
                    parts[thread] = max(
                        max(page[at], page[at + 1u]), max(page[at + 2u], page[at + 3u]),
                    );
                }
                workgroupBarrier();
                var c = array<vec4<f32>, QUADS_MAX>();
                for (var n = 0u; n < QUADS; n += 1u) {
                    var largest = m[n];
                    for (var i = 0u; i < 16u; i += 1u) {
                        largest = max(largest, parts[n * 16u + i]);
                    }
                    c[n] = exp_exact(m[n] - largest);
                    m[n] = largest;
                    let own = vec4<u32>(key) < seen[n];
                    var w = select(vec4<f32>(0.0), exp_exact(s[n] - largest), own);
                    // Infinite or NaN: a NaN that nothing rounds away.
                    let bits = bitcast<vec4<u32>>(s[n]);
                    let bad = own & ((bits & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
                    w = select(w, bitcast<vec4<f32>>(bits | vec4<u32>(0x00400000u)), bad);
                    page[n * PAGE_KEYS + thread] = w;
                }
                workgroupBarrier();
                if (thread < 16u * QUADS) {
                    let at = (thread / 16u) * PAGE_KEYS + (thread % 16u) * 4u;
                    parts[thread] = ((page[at] + page[at + 1u]) + page[at + 2u]) + page[at + 3u];
                }
                workgroupBarrier();
                for (var n = 0u; n < QUADS; n += 1u) {
                    var sum = parts[n * 16u];
                    for (var i = 1u; i < 16u; i += 1u) {
                        sum += parts[n * 16u + i];
                    }
                    l[n] = fma(l[n], c[n], sum);
                }
                let values = start + PAGE_KEYS * pairs;
                let keys = min(PAGE_KEYS, keys_max - p * PAGE_KEYS);
                var slot = 0u;
                for (var item = thread; item < items; item += THREADS) {
                    let n = item / pairs;
                    let pair = item % pairs;
                    var x = o[slot] * c[n];
                    var y = o[slot + 1u] * c[n];
                    for (var i = 0u; i < keys; i += 1u) {
                        let v = unpack2x16float(kv[values + i * pairs + pair]);
                        let w = page[n * PAGE_KEYS + i];
                        x = fma(w, vec4<f32>(v.x), x);
                        y = fma(w, vec4<f32>(v.y), y);
                    }
                    o[slot] = x;
                    o[slot + 1u] = y;
                    slot += 2u;
                }
                workgroupBarrier();
            }

            if (SPLIT == 1u) {
                let width = head_dim + 2u;
                var slot = 0u;
                for (var item = thread; item < items; item += THREADS) {
                    let n = item / pairs;
                    let pair = item % pairs;
                    for (var i = 0u; i < 4u; i += 1u) {
                        let index = n * 4u + i;
                        let row = index / group_heads;
                        // A row that ends before this split has nothing in it.
                        if (row < rows && seen[n][i] > split * SPLIT_KEYS) {
                            let head = kv_head * group_heads + index % group_heads;
                            let at = (((first + row) * params.heads + head) * params.splits_max
                                + split) * width;
                            if (pair == 0u) {
                                mixed[at] = m[n][i];
                                mixed[at + 1u] = l[n][i];
                            }
                            mixed[at + 2u + 2u * pair] = o[slot][i];
                            mixed[at + 3u + 2u * pair] = o[slot + 1u][i];
                        }
                    }
                    slot += 2u;
                }
            } else if (split == 0u) {
                m_all = m;
                l_all = l;
                o_all = o;
            } else {
                var a = array<vec4<f32>, QUADS_MAX>();
                var b = array<vec4<f32>, QUADS_MAX>();
                for (var n = 0u; n < QUADS; n += 1u) {
                    let own = seen[n] > vec4<u32>(split * SPLIT_KEYS);
                    let j = join(m_all[n], m[n]);
                    a[n] = j.earlier;
                    b[n] = j.later;
                    m_all[n] = select(m_all[n], j.m, own);
                    l_all[n] = select(l_all[n], joined(l_all[n], a[n], l[n], b[n]), own);
                }
                var slot = 0u;
                for (var item = thread; item < items; item += THREADS) {
                    let n = item / pairs;
                    let own = seen[n] > vec4<u32>(split * SPLIT_KEYS);
                    for (var i = slot; i < slot + 2u; i += 1u) {
                        o_all[i] = select(o_all[i], joined(o_all[i], a[n], o[i], b[n]), own);
                    }
                    slot += 2u;
                }
            }
        }

        if (SPLIT == 0u) {
            var slot = 0u;
            for (var item = thread; item < items; item += THREADS) {
                let n = item / pairs;
                let pair = item % pairs;
                let r = vec4<f32>(1.0) / l_all[n];
                for (var i = 0u; i < 4u; i += 1u) {
                    let index = n * 4u + i;
                    let row = index / group_heads;
                    if (row < rows) {
                        let head = kv_head * group_heads + index % group_heads;
                        let at = (first + row) * params.mixed_stride + head * head_dim + 2u * pair;
                        mixed[at] = o_all[slot][i] * r[i];
                        mixed[at + 1u] = o_all[slot + 1u][i] * r[i];
                    }
                }
                slot += 2u;
            }
        }
        first += rows;
    }
}
