// Product of a matrix with few columns, whoever adds up the lanes: matvec.wgsl and
// matvec_subgroups.wgsl are this, each with a way to do that.

#include "product.wgsl"

const LANE_TOTALS: u32 = 256u;

fn words(matrix: u32, i: u32) -> vec4<u32> {
    return matrix_words[i];
}

#include "weights.wgsl"
#include "lanes.wgsl"

// What one invocation does.
fn product_of_tile(group_x: u32, group_y: u32, thread: u32) {
    let tile = unit_of(group_x, thread);
    let first = group_y * COLUMNS;
    let last = step[ROWS_AT] - 1u;
    let sums = sum_lanes(
        0u, LAYOUT, params.base, params.rows, params.cols, params.x_stride,
        tile, thread, first, last,
    );
    put_sums(0u, thread, sums);
    wait_for_sums();
    take_totals(0u, thread);
    for (var column = first_column(thread); column < COLUMNS; column += next_column()) {
        if (first + column > last) {
            return;
        }
        let product = total(0u, thread, column);
        for (var i = 0u; i < 4u; i += 1u) {
            let row = tile * TILE_ROWS + quad_of(thread) * 4u + i;
            if (row < params.rows) {
                let r = params.first_row + row;
                let at = (first + column) * params.y_stride + r;
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
