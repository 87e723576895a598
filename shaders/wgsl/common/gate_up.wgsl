// The MLP's inner product of few rows, whoever adds up the lanes: gate_up.wgsl and
// gate_up_subgroups.wgsl are this, each with a way to do that.

struct Params {
    rows: u32,
    first_row: u32,
    cols: u32,
    gate_base: u32,
    up_base: u32,
    x_stride: u32,
    y_stride: u32,
}

override LAYOUT: u32 = 0u;
override LAYOUT_UP: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> gate_words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> up_words: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

const LANE_TOTALS: u32 = 512u;

fn words(matrix: u32, i: u32) -> vec4<u32> {
    if (matrix == 0u) {
        return gate_words[i];
    }
    return up_words[i];
}

#include "weights.wgsl"
#include "lanes.wgsl"
#include "exp.wgsl"

// What one invocation does.
fn inner_of_tile(group_x: u32, group_y: u32, thread: u32) {
    let tile = unit_of(group_x, thread);
    let first = group_y * COLUMNS;
    let last = step[0] - 1u;
    put_sums(0u, thread, sum_lanes(
        0u, LAYOUT, params.gate_base, params.rows, params.cols, params.x_stride,
        tile, thread, first, last,
    ));
    put_sums(1u, thread, sum_lanes(
        1u, LAYOUT_UP, params.up_base, params.rows, params.cols, params.x_stride,
        tile, thread, first, last,
    ));
    wait_for_sums();
    take_totals(0u, thread);
    take_totals(1u, thread);
    for (var column = first_column(thread); column < COLUMNS; column += next_column()) {
        if (first + column > last) {
            return;
        }
        let inner = silu(total(0u, thread, column)) * total(1u, thread, column);
        for (var i = 0u; i < 4u; i += 1u) {
            let row = tile * TILE_ROWS + quad_of(thread) * 4u + i;
            if (row < params.rows) {
                y[(first + column) * params.y_stride + params.first_row + row] = inner[i];
            }
        }
    }
}
