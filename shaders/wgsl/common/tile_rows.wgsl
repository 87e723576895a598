// Rows of activations in, and rows of results out, as the matrix-matrix kernels have them.

// Columns `col .. col + 4` of activation row `row`; 0 beyond the matrix.
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

// Four rows' results of one row of activations.
fn put(first_row: u32, t: u32, last: u32, product: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 1u) {
        let row = first_row + i;
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
