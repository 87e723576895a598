// RMS norm: y = (x·r)·g, r = 1/sqrt(Σx²/D + eps).
//
// One workgroup per row. x and y are [T, D] f32, rows at a stride of whole vec4s. With GATHER
// the rows are those that want logits, y is [T', D].
// Numerics: thread j of 64 takes the elements i ≡ j mod 64 in ascending order with fma; the
// 64 sums are folded by halves (a[j] += a[j + h], h = 32 .. 1). A sum that is not finite
// makes the row NaN or 0·x, never a wrong number: an infinite sum is turned into NaN.

struct Params {
    width: u32,
    stride: u32,
    gain_at: u32,
    eps: f32,
}

override GATHER: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> gain: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

#include "step.wgsl"

const THREADS: u32 = 64u;
var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x;
    var source = row;
    if (GATHER == 1u) {
        source = kept_row(row);
    }
    let source_at = source * params.stride;
    let target_at = row * params.stride;
    var sum = 0.0;
    for (var i = thread; i < params.width; i += THREADS) {
        let v = x[source_at + i];
        sum = fma(v, v, sum);
    }
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            sums[thread] += sums[thread + half];
        }
    }
    workgroupBarrier();
    var total = sums[0];
    let bits = bitcast<u32>(total);
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        total = bitcast<f32>(bits | 0x00400000u);
    }
    let r = 1.0 / sqrt(total / f32(params.width) + params.eps);
    for (var i = thread; i < params.width; i += THREADS) {
        y[target_at + i] = (x[source_at + i] * r) * gain[params.gain_at + i];
    }
}
