// e^x by the polynomial of crates/numerics/src/exp.rs with fused steps: 0 below -87, e^88
// from 88 on. The builtin's accuracy is the driver's choice, and may differ between kernels.
fn exp_exact(value: vec4<f32>) -> vec4<f32> {
    let v = clamp(value, vec4<f32>(-88.0), vec4<f32>(88.0));
    let n = round(v * 1.44269502162933349609375);
    let r = fma(n, vec4<f32>(-0.000001428606765330187), fma(n, vec4<f32>(-0.693145751953125), v));
    var p = vec4<f32>(0.0001984127);
    p = fma(p, r, vec4<f32>(0.0013888889));
    p = fma(p, r, vec4<f32>(0.008333334));
    p = fma(p, r, vec4<f32>(0.041666668));
    p = fma(p, r, vec4<f32>(0.16666667));
    p = fma(p, r, vec4<f32>(0.5));
    p = fma(p, r, vec4<f32>(1.0));
    p = fma(p, r, vec4<f32>(1.0));
    let scaled = bitcast<vec4<f32>>(bitcast<vec4<u32>>(p) + (vec4<u32>(vec4<i32>(n)) << vec4<u32>(23u)));
    return select(scaled, vec4<f32>(0.0), value < vec4<f32>(-87.0));
}

// x/(1 + e^-x)
fn silu(v: vec4<f32>) -> vec4<f32> {
    return v / (vec4<f32>(1.0) + exp_exact(-v));
}
