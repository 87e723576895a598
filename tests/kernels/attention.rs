//! Attention over pages.

use engine::{Class, Isa, testing};
use model::testing::Random;
use numerics::f16::{f16_to_f32, f32_to_f16};

use crate::guard::{Guarded, random_floats};

fn cached(class: Class, x: &[f32]) -> Vec<f32> {
    match class {
        Class::Canonical1 => {
            x.iter().map(|&v| f16_to_f32(f32_to_f16(v).expect("in range"))).collect()
        }
        Class::ExactF32 => x.to_vec(),
        Class::WgslF32 => panic!("a GPU's class"),
    }
}

fn check(class: Class, n: usize, rows: usize, heads: usize, head_dim: usize) {
    let mut random = Random::new((n * 1000 + rows * 100 + heads * 10 + head_dim) as u64);
    let queries = random_floats(&mut random, rows * heads * head_dim);
    let keys = random_floats(&mut random, n * head_dim);
    let values = random_floats(&mut random, n * head_dim);
    let (k, v) = (cached(class, &keys), cached(class, &values));
    let mut want = Vec::new();
    for row in 0..rows {
        let seen = (n - rows + row + 1) * head_dim;
        for head in 0..heads {
            let query = &queries[(row * heads + head) * head_dim..][..head_dim];
            want.extend(
                numerics::attention::attention(query, &k[..seen], &v[..seen]).expect("finite"),
            );
        }
    }
    for isa in Isa::available() {
        let mut output = Guarded::new(want.len());
        let shape = (rows, heads, head_dim);
        testing::attention(isa, class, shape, &queries, &keys, &values, output.buffer())
            .expect("finite");
        output.expect_all(&want, &format!("{class:?} {n} keys, {shape:?}, {isa:?}"));
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn pages_rows_and_heads() {
    for class in [Class::Canonical1, Class::ExactF32] {
        for n in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 300] {
            for rows in [1, 2, 16] {
                for (heads, head_dim) in [(1, 2), (3, 64), (2, 10), (1, 33 * 2), (7, 128)] {
                    check(class, n.max(rows), rows, heads, head_dim);
                }
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn an_infinite_score_names_its_first_row() {
    let (rows, head_dim) = (5, 16);
    for isa in Isa::available() {
        let mut queries = vec![0.5; rows * head_dim];
        let keys = vec![60_000.0; rows * head_dim];
        queries[3 * head_dim] = 3e38;
        queries[4 * head_dim] = f32::NAN;
        let shape = (rows, 1, head_dim);
        let class = Class::Canonical1;
        let result = testing::attention(isa, class, shape, &queries, &keys, &keys, &mut [0.0; 80]);
        assert_eq!(result, Err(3), "{isa:?}");
    }
}
