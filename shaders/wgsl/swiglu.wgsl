// The MLP's gate for many rows: gate = silu(gate)·up, in place.
//
// One invocation per 4 elements. gate and up are [T, F] f32, rows at a stride of whole vec4s.
// Numerics: those of gate_up, to the bit.

struct Params {
    // Of a row, in vec4s.
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> gate: array<vec4<f32>>;

#include "exp.wgsl"

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < params.stride) {
        let at = id.y * params.stride + id.x;
        gate[at] = silu(gate[at]) * up[at];
    }
}
