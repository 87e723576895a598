// Query, key and value of few rows, whoever adds up the lanes: qkv.wgsl and
// qkv_subgroups.wgsl are this, each with a way to do that.

struct Params {
    query_rows: u32,
    kv_rows: u32,
    cols: u32,
    query_base: u32,
    key_base: u32,
    value_base: u32,
    bias_at: u32,
    x_stride: u32,
    query_stride: u32,
    head_dim: u32,
    kv_heads: u32,
}

override LAYOUT: u32 = 0u;
override LAYOUT_K: u32 = 0u;
override LAYOUT_V: u32 = 0u;
override PAIRS: u32 = 0u;
override BIASED: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> query_words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> key_words: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> value_words: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> bias: array<f32>;
@group(0) @binding(7) var<storage, read_write> query: array<f32>;
@group(0) @binding(8) var<storage, read_write> kv: array<u32>;

const LANE_TOTALS: u32 = 512u;
const QUERY: u32 = 0u;
const KEY: u32 = 1u;
const VALUE: u32 = 2u;

fn words(matrix: u32, i: u32) -> vec4<u32> {
    if (matrix == QUERY) {
        return query_words[i];
    }
    if (matrix == KEY) {
        return key_words[i];
    }
    return value_words[i];
}

#include "weights.wgsl"
#include "lanes.wgsl"
#include "step.wgsl"
#include "rope.wgsl"

fn sums_of(matrix: u32, tile: u32, thread: u32, first: u32, last: u32) -> Sums {
    if (matrix == QUERY) {
        return sum_lanes(
            QUERY, LAYOUT, params.query_base, params.query_rows, params.cols, params.x_stride,
            tile, thread, first, last,
        );
    }
    if (matrix == KEY) {
        return sum_lanes(
            KEY, LAYOUT_K, params.key_base, params.kv_rows, params.cols, params.x_stride,
            tile, thread, first, last,
        );
    }
    return sum_lanes(
        VALUE, LAYOUT_V, params.value_base, params.kv_rows, params.cols, params.x_stride,
        tile, thread, first, last,
    );
}

// Elements `element` and the next of a row's matrix output, both even pairs' or both halves'.
fn put(matrix: u32, t: u32, element: u32, v: vec2<f32>) {
    if (matrix == QUERY) {
        query[t * params.query_stride + element] = v.x;
        query[t * params.query_stride + element + 1u] = v.y;
        return;
    }
    let head = element / params.head_dim;
    let pair = (element % params.head_dim) / 2u;
    if (matrix == KEY) {
        append_key(t, params.kv_heads, head, params.head_dim, pair, v);
    } else {
        append_value(t, params.kv_heads, head, params.head_dim, pair, v);
    }
}

fn biases(matrix: u32, row: u32, rows: u32) -> vec4<f32> {
    var b = vec4<f32>(0.0);
    if (BIASED == 1u) {
        var start = params.bias_at;
        if (matrix != QUERY) {
            start += params.query_rows;
        }
        if (matrix == VALUE) {
            start += params.kv_rows;
        }
        for (var i = 0u; i < 4u; i += 1u) {
            if (row + i < rows) {
                b[i] = bias[start + row + i];
            }
        }
    }
    return b;
}

// Bias, rotation and store of four rows (of both tiles) of one column.
fn finish(
    matrix: u32,
    tile: u32,
    half_tiles: u32,
    rows: u32,
    thread: u32,
    t: u32,
    column: u32,
) {
    let row = tile * TILE_ROWS + quad_of(thread) * 4u;
    let hd = params.head_dim;
    var a = total(0u, thread, column);
    if (BIASED == 1u) {
        a += biases(matrix, row, rows);
    }
    if (PAIRS == ADJACENT) {
        for (var i = 0u; i < 4u; i += 2u) {
            if (row + i < rows) {
                var v = vec2<f32>(a[i], a[i + 1u]);
                if (matrix != VALUE) {
                    v = rotate(v, turn(t, ((row + i) % hd) / 2u, hd));
                }
                put(matrix, t, row + i, v);
            }
        }
        return;
    }
    let row_b = row + half_tiles * TILE_ROWS;
    // Rows are a multiple of 32: both halves' exist, or neither (a workgroup's second unit).
    if (row_b >= rows) {
        return;
    }
    var b = total(1u, thread, column);
    if (BIASED == 1u) {
        b += biases(matrix, row_b, rows);
    }
    if (matrix != VALUE) {
        for (var i = 0u; i < 4u; i += 1u) {
            let turned = rotate(vec2<f32>(a[i], b[i]), turn(t, (row + i) % hd, hd));
            a[i] = turned.x;
            b[i] = turned.y;
        }
    }
    put(matrix, t, row, a.xy);
    put(matrix, t, row + 2u, a.zw);
    put(matrix, t, row_b, b.xy);
    put(matrix, t, row_b + 2u, b.zw);
}

// What one invocation does.
fn qkv_of_unit(group_x: u32, group_y: u32, thread: u32) {
    let first = group_y * COLUMNS;
    let last = step[0] - 1u;
    let tiles_each = 1u + PAIRS;
    let query_units = (params.query_rows + TILE_ROWS - 1u) / TILE_ROWS / tiles_each;
    let kv_units = (params.kv_rows + TILE_ROWS - 1u) / TILE_ROWS / tiles_each;
    var matrix = QUERY;
    var unit = unit_of(group_x, thread);
    var rows = params.query_rows;
    if (unit >= query_units) {
        matrix = KEY;
        unit -= query_units;
        rows = params.kv_rows;
        if (unit >= kv_units) {
            matrix = VALUE;
            unit -= kv_units;
        }
    }
    var tile = unit;
    var half_tiles = 0u;
    if (PAIRS == HALF_SPLIT) {
        half_tiles = params.head_dim / 32u;
        tile = (unit / half_tiles) * 2u * half_tiles + unit % half_tiles;
    }
    put_sums(0u, thread, sums_of(matrix, tile, thread, first, last));
    if (PAIRS == HALF_SPLIT) {
        put_sums(1u, thread, sums_of(matrix, tile + half_tiles, thread, first, last));
    }
    wait_for_sums();
    take_totals(0u, thread);
    if (PAIRS == HALF_SPLIT) {
        take_totals(1u, thread);
    }
    for (var column = first_column(thread); column < COLUMNS; column += next_column()) {
        if (first + column > last) {
            return;
        }
        finish(matrix, tile, half_tiles, rows, thread, first + column, column);
    }
}
