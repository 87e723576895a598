// The MLP's inner product of few rows: y = silu(gate·x)·(up·x).
//
// One workgroup per 16-row tile (or two) of both matrices and COLUMNS rows of activations. gate and up
// are pieces [rows, D] of two matrices, x [T, D] and y [T, F] f32, rows at a stride of whole
// vec4s; the pieces' rows are y's from `first_row` on. Numerics: common/lanes.wgsl and
// common/exp.wgsl.

#include "gate_up.wgsl"
#include "lanes_workgroup.wgsl"

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    inner_of_tile(group.x, group.y, thread);
}
