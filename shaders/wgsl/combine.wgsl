// Joins the splits of attention: mixed = o/l over all splits of a row.
//
// One workgroup per query head and row. partials is [T][H][splits_max][hd + 2] f32, as
// attention writes them; mixed [T, H·hd] f32, rows at a stride of whole vec4s. Numerics:
// common/softmax.wgsl, the same as where attention joins its splits itself.

struct Params {
    heads: u32,
    head_dim: u32,
    mixed_stride: u32,
    splits_max: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> partials: array<f32>;
@group(0) @binding(3) var<storage, read_write> mixed: array<f32>;

#include "step.wgsl"
#include "exp.wgsl"
#include "softmax.wgsl"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let head = group.x;
    let row = group.y;
    let width = params.head_dim + 2u;
    let splits = row_position(row) / SPLIT_KEYS + 1u;
    let start = (row * params.heads + head) * params.splits_max * width;
    for (var element = thread; element < params.head_dim; element += 64u) {
        var m = vec4<f32>(partials[start]);
        var l = vec4<f32>(partials[start + 1u]);
        var o = vec4<f32>(partials[start + 2u + element]);
        for (var split = 1u; split < splits; split += 1u) {
            let at = start + split * width;
            let j = join(m, vec4<f32>(partials[at]));
            m = j.m;
            l = joined(l, j.earlier, vec4<f32>(partials[at + 1u]), j.later);
            o = joined(o, j.earlier, vec4<f32>(partials[at + 2u + element]), j.later);
        }
        let r = vec4<f32>(1.0) / l;
        mixed[row * params.mixed_stride + head * params.head_dim + element] = o.x * r.x;
    }
}
