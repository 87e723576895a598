// Query, key and value of few rows in one go: products of one input with three matrices,
// bias, RoPE, the query stored and key and value appended to the KV cache.
//
// One workgroup per unit (or two): a 16-row tile, or with HALF_SPLIT two tiles of a head,
// whose rows are turned together; and COLUMNS rows of activations; the tiles of q, k and v follow each other.
// x [T, D], query [T, H·hd] f32, rows at a stride of whole vec4s; biases [(H + 2K)·hd] where
// BIASED; kv as common/rope.wgsl. HALF_SPLIT needs hd % 32 = 0, ADJACENT an even hd.
// Numerics: common/lanes.wgsl, then one add of the bias, then the rotation.

#include "qkv.wgsl"
#include "lanes_workgroup.wgsl"

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    qkv_of_unit(group.x, group.y, thread);
}
