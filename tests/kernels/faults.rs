//! Steps that cannot run: the error names the cause and hurts nobody else.

use engine::{Class, Input, Isa, Limits, STEP_ROWS_MAX, Segment, StepError};
use model::gguf::GgmlType;
use model::manifest::Role;
use model::testing::TinyModel;

use crate::tiny::{Tiny, expected, feed, same_bits, segment, values};

const CLASSES: [Class; 2] = [Class::Canonical1, Class::ExactF32];

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn steps_that_do_not_fit_are_refused() {
    let tiny = Tiny::new(&TinyModel::llama(31));
    let vocab = tiny.manifest.dims.vocab;
    let mut shard = tiny.whole(Class::Canonical1);
    let tokens = tiny.tokens(1, 4);
    let hidden = vec![0.0; 4 * 64];
    let mut refused = |segments: &[Segment], input: Input<'_>| match shard.step(segments, input) {
        Err(StepError::Shape(what)) => what,
        other => panic!("{segments:?} gave {other:?}"),
    };
    refused(&[], Input::Tokens(&[]));
    refused(&[segment(1, 0, 0)], Input::Tokens(&[]));
    refused(&[segment(1, 0, 3)], Input::Tokens(&tokens));
    refused(&[segment(1, 0, 5)], Input::Tokens(&tokens));
    refused(&[segment(1, 0, 4)], Input::Hidden(&hidden));
    refused(&[segment(1, 0, 2), segment(1, 2, 2)], Input::Tokens(&tokens));
    refused(&[Segment { logits_rows: 5, ..segment(1, 0, 4) }], Input::Tokens(&tokens));
    refused(&[segment(1, u32::MAX - 1, 4)], Input::Tokens(&tokens));
    refused(&[segment(1, 131_070, 4)], Input::Tokens(&tokens));
    refused(&[segment(1, 0, usize::MAX)], Input::Tokens(&tokens));
    let many = vec![0; STEP_ROWS_MAX + 1];
    refused(&[segment(1, 0, many.len())], Input::Tokens(&many));
    refused(&[segment(1, 0, 513)], Input::Tokens(&many[..513])); // all want logits
    let bad = [1, 2, vocab, 3];
    assert_eq!(
        shard.step(&[segment(8, 0, 2), segment(9, 0, 2)], Input::Tokens(&bad)),
        Err(StepError::Token { session: 9, token: vocab, vocab })
    );
    let mut middle = tiny.shard(1..3, Class::Canonical1, Isa::best(), 1);
    for input in [Input::Tokens(&tokens), Input::Hidden(&hidden[1..]), Input::Hidden(&[])] {
        let result = middle.step(&[segment(1, 0, 4)], input);
        assert!(matches!(result, Err(StepError::Shape(_))), "{result:?}");
    }
    assert_eq!(
        middle.step(&[segment(1, 1, 4)], Input::Hidden(&hidden)),
        Err(StepError::Gap { session: 1, position: 1, held: 0 })
    );
    assert_eq!((shard.positions(1), middle.positions(1)), (0, 0));
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn a_hidden_state_that_is_not_finite_faults_its_row() {
    let tiny = Tiny::new(&TinyModel::llama(32));
    for span in [1..3, tiny.parts() - 1..tiny.parts()] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut shard = tiny.shard(span.clone(), Class::Canonical1, Isa::best(), 1);
            let mut hidden = vec![0.25; 5 * 64];
            hidden[4 * 64 + 63] = bad;
            assert_eq!(
                shard.step(&[segment(1, 0, 2), segment(2, 0, 3)], Input::Hidden(&hidden)),
                Err(StepError::NumericFault { session: 2, position: 2 })
            );
            hidden[4 * 64 + 63] = 0.0;
            shard
                .step(&[segment(1, 0, 2), segment(2, 0, 3)], Input::Hidden(&hidden))
                .expect("the shard is still usable");
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn an_overflow_in_the_head_faults_its_own_session() {
    let tiny = Tiny::new(&TinyModel::llama(35));
    let head = tiny.parts() - 1..tiny.parts();
    for class in CLASSES {
        let mut shard = tiny.shard(head.clone(), class, Isa::best(), 1);
        let mut hidden = vec![0.25; 6 * 64];
        hidden[5 * 64] = 1e30; // finite, but not its square
        let prompt = Segment { logits_rows: 1, ..segment(1, 0, 5) };
        assert_eq!(
            shard.step(&[prompt, segment(2, 7, 1)], Input::Hidden(&hidden)),
            Err(StepError::NumericFault { session: 2, position: 7 }),
            "{class:?}"
        );
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn a_full_cache_is_noticed_before_any_work() {
    let tiny = Tiny::new(&TinyModel::llama(33));
    let model = tiny.reference();
    let class = Class::Canonical1;
    let mut shard = tiny.load(0..tiny.parts(), class, Limits::new(3, 1)).expect("it loads");
    let tokens = tiny.tokens(1, 200);
    feed(&mut shard, 1, 0, &tokens[..100]);
    assert_eq!(
        shard.step(&[segment(1, 100, 1), segment(2, 0, 65)], Input::Tokens(&tokens[..66])),
        Err(StepError::KvFull { session: 2, pages_needed: 2, pages_free: 1 })
    );
    assert_eq!((shard.positions(1), shard.positions(2), shard.kv_pages_free()), (100, 0, 1));
    let want = expected(&model, class, &tokens[..192]).logits;
    same_bits(&feed(&mut shard, 1, 100, &tokens[100..192]), &want[100..], "after the refusal");
    assert_eq!(
        shard.step(&[segment(1, 192, 1)], Input::Tokens(&tokens[..1])),
        Err(StepError::KvFull { session: 1, pages_needed: 1, pages_free: 0 })
    );
    // A fork that must copy needs a page, too.
    shard.fork(1, 2, 10).expect("it holds 10");
    assert_eq!(
        shard.step(&[segment(2, 10, 1)], Input::Tokens(&tokens[..1])),
        Err(StepError::KvFull { session: 2, pages_needed: 1, pages_free: 0 })
    );
    shard.release(1);
    let forked = [&tokens[..10], &tokens[50..60]].concat();
    let want = expected(&model, class, &forked).logits;
    same_bits(&feed(&mut shard, 2, 10, &tokens[50..60]), &want[10..], "the fork's own page");
}

/// A model whose embedding of token 5 is so large that the sum of its squares overflows.
fn explosive() -> Tiny {
    let tiny = TinyModel {
        matrix_type: |role, _| match role {
            Role::TokenEmbedding => GgmlType::F32,
            _ => GgmlType::Q8_0,
        },
        ..TinyModel::qwen2(34)
    };
    let mut tiny = Tiny::new(&tiny);
    let blob = &tiny.manifest.parts[0].blobs[0];
    let mut bytes = (*tiny.blobs[&blob.hash]).as_ref().to_vec();
    let row = blob.tensors[0].offset as usize + 5 * 64 * 4;
    for (i, value) in bytes[row..row + 64 * 4].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *value = (if i % 2 == 0 { 1e19f32 } else { -3e18 }).to_le_bytes();
    }
    tiny.blobs.insert(blob.hash.clone(), std::sync::Arc::new(bytes));
    tiny
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn an_overflow_ends_its_session_and_no_other() {
    let tiny = explosive();
    for class in CLASSES {
        for isa in Isa::available() {
            let mut shard = tiny.shard(0..tiny.parts(), class, isa, 2);
            let calm: Vec<u32> =
                tiny.tokens(1, 80).into_iter().map(|t| if t == 5 { 7 } else { t }).collect();
            let alone = feed(&mut tiny.shard(0..tiny.parts(), class, isa, 1), 1, 0, &calm);
            feed(&mut shard, 1, 0, &calm[..40]);
            feed(&mut shard, 2, 0, &calm[..66]);
            let mut tokens = calm[40..60].to_vec();
            tokens.extend([1, 2, 3, 5, 4, 5]);
            let pages_free = shard.kv_pages_free();
            assert_eq!(
                shard.step(&[segment(1, 40, 20), segment(2, 66, 6)], Input::Tokens(&tokens)),
                Err(StepError::NumericFault { session: 2, position: 69 }),
                "{class:?}, {isa:?}"
            );
            assert_eq!((shard.positions(1), shard.positions(2)), (40, 66));
            assert_eq!(shard.kv_pages_free(), pages_free);
            // Sent again without the one that overflowed: as if nothing had happened.
            let vocab = tiny.manifest.dims.vocab as usize;
            let rest = feed(&mut shard, 1, 40, &calm[40..]);
            let want: Vec<Vec<f32>> =
                alone[40 * vocab..].chunks(vocab).map(<[f32]>::to_vec).collect();
            same_bits(&rest, &want, "session 1 goes on");
            let again = feed(&mut shard, 2, 66, &calm[66..]);
            same_bits(&again, &want[26..], "so does session 2");
            assert_eq!(
                values(&mut shard, &[segment(3, 0, 1)], Input::Tokens(&[5])),
                Err(StepError::NumericFault { session: 3, position: 0 })
            );
            assert_eq!(shard.positions(3), 0);
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn keys_beyond_f16_are_a_fault_in_canonical_1_only() {
    // A gain of 1e6 before attention: keys of that size fit f32, not f16.
    let tiny = Tiny::new(&TinyModel::llama(35));
    let part = &tiny.manifest.parts[1].blobs[0];
    let norm = part.tensors.iter().find(|t| t.role == Role::AttnNorm).expect("a norm");
    let mut bytes = (*tiny.blobs[&part.hash]).as_ref().to_vec();
    let start = norm.offset as usize;
    for gain in bytes[start..start + 64 * 4].as_chunks_mut::<4>().0 {
        *gain = 1e6f32.to_le_bytes();
    }
    let mut loud = Tiny::new(&TinyModel::llama(35));
    loud.blobs.insert(part.hash.clone(), std::sync::Arc::new(bytes));
    for isa in Isa::available() {
        let mut canonical = loud.shard(0..loud.parts(), Class::Canonical1, isa, 1);
        assert_eq!(
            values(&mut canonical, &[segment(1, 0, 1)], Input::Tokens(&[3])),
            Err(StepError::NumericFault { session: 1, position: 0 })
        );
        let mut exact = loud.shard(0..loud.parts(), Class::ExactF32, isa, 1);
        feed(&mut exact, 1, 0, &[3, 4]);
    }
}
