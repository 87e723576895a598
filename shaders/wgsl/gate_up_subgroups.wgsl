// The MLP's inner product of few rows, with subgroups: the kernel of gate_up.wgsl, to the bit.
//
// What it needs more is in common/lanes_subgroups.wgsl; the size of a subgroup is the
// builtin's, never assumed.

#include "gate_up.wgsl"
#include "lanes_subgroups.wgsl"

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) id: u32,
) {
    invocation = id;
    inner_of_tile(group.x, group.y, subgroup * size + id);
}
