// RoPE of query and key, and key and value into the KV cache: what qkv does for few rows,
// for many.
//
// One invocation per pair of elements of q, of k or of v, of one row. query [T, H·hd] is
// turned in place; key and value [T, K·hd] f32, rows at a stride of whole vec4s; kv as
// common/rope.wgsl. Numerics: those of qkv, to the bit.

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    query_stride: u32,
    kv_stride: u32,
}

override PAIRS: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step: array<u32>;
@group(0) @binding(2) var<storage, read> key: array<f32>;
@group(0) @binding(3) var<storage, read> value: array<f32>;
@group(0) @binding(4) var<storage, read_write> query: array<f32>;
@group(0) @binding(5) var<storage, read_write> kv: array<u32>;

#include "step.wgsl"
#include "rope.wgsl"

// Element `element` of a head of k, turned.
fn turned_key(t: u32, head_at: u32, element: u32) -> f32 {
    let hd = params.head_dim;
    var pair = element / 2u;
    var a = element - element % 2u;
    var b = a + 1u;
    if (PAIRS == HALF_SPLIT) {
        pair = element % (hd / 2u);
        a = pair;
        b = pair + hd / 2u;
    }
    let turned = rotate(vec2<f32>(key[head_at + a], key[head_at + b]), turn(t, pair, hd));
    return select(turned.y, turned.x, element == a);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.y;
    let pairs = params.head_dim / 2u;
    var head = id.x / pairs;
    let pair = id.x % pairs;
    if (head < params.heads) {
        var a = 2u * pair;
        var b = a + 1u;
        if (PAIRS == HALF_SPLIT) {
            a = pair;
            b = pair + pairs;
        }
        let at = t * params.query_stride + head * params.head_dim;
        let v = vec2<f32>(query[at + a], query[at + b]);
        let turned = rotate(v, turn(t, pair, params.head_dim));
        query[at + a] = turned.x;
        query[at + b] = turned.y;
        return;
    }
    head -= params.heads;
    let is_value = head >= params.kv_heads;
    if (is_value) {
        head -= params.kv_heads;
    }
    if (head >= params.kv_heads) {
        return;
    }
    let at = t * params.kv_stride + head * params.head_dim;
    if (is_value) {
        let v = vec2<f32>(value[at + 2u * pair], value[at + 2u * pair + 1u]);
        append_value(t, params.kv_heads, head, params.head_dim, pair, v);
    } else {
        let k = vec2<f32>(turned_key(t, at, 2u * pair), turned_key(t, at, 2u * pair + 1u));
        append_key(t, params.kv_heads, head, params.head_dim, pair, k);
    }
}
