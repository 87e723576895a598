// What a product of a matrix reads and writes, with few columns (matvec) or many (matmul).

struct Params {
    rows: u32,
    first_row: u32,
    cols: u32,
    base: u32,
    x_stride: u32,
    y_stride: u32,
    bias_at: u32,
}

const STORE: u32 = 0u;
const BIAS: u32 = 1u;
const ADD: u32 = 2u;

override LAYOUT: u32 = 0u;
override EPILOGUE: u32 = 0u;
// Which count of the step is T: 0 all rows, 1 those that want logits.
override ROWS_AT: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> matrix_words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
