// Product of a matrix with few columns: y = W·x, then + bias, or added to y.
//
// One workgroup per 16-row tile (or two) and COLUMNS rows of activations. W is a piece [rows, C] of a
// matrix in canonical layout, x [T, C] and y [T, R] f32, rows at a stride of whole vec4s; the
// piece's rows are y's from `first_row` on. Numerics: common/lanes.wgsl.

#include "matvec.wgsl"
#include "lanes_workgroup.wgsl"

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    product_of_tile(group.x, group.y, thread);
}
