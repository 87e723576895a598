// Joining the attention of two runs of keys: each is (m, l, o), m the largest score, l and o
// the sums of e^(s - m) and e^(s - m)·v. One order everywhere: splits ascending, first the
// earlier one's sums are scaled, then the later one's scaled and added with one fma.
//
// A split is SPLIT_PAGES pages of 64 keys: fixed in keys, so that a row's bits depend neither
// on how many splits the step has nor on who joins them.
const SPLIT_PAGES: u32 = 2u;
const SPLIT_KEYS: u32 = 128u;

// The factors of the earlier and the later run.
struct Join {
    m: vec4<f32>,
    earlier: vec4<f32>,
    later: vec4<f32>,
}

fn join(earlier: vec4<f32>, later: vec4<f32>) -> Join {
    var j = Join();
    j.m = max(earlier, later);
    j.earlier = exp_exact(earlier - j.m);
    j.later = exp_exact(later - j.m);
    return j;
}

fn joined(earlier: vec4<f32>, a: vec4<f32>, later: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return fma(later, b, earlier * a);
}
