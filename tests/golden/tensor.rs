//! SmolLM2, 9 query heads on 3 K/V heads, its layers divided over 2 and 4 ranks.

use engine::tensor::SUMS_BAND;
use engine::{Class, Input, Output, Segment, Shard};
use model::tensor::TensorForm;

use crate::ranks::{Ranks, group};
use crate::real::Model;
use crate::{CLASSES, apart, greedy, hash, ids};

/// Equal ranks, and one that is twice as fast as the other.
const WEIGHTS: [&[u32]; 3] = [&[1, 1], &[2, 1], &[1, 1, 1, 1]];

/// The model as three stages, the layers being a group's.
struct Stages {
    embedding: Shard,
    layers: Ranks,
    head: Shard,
}

impl Stages {
    fn new(model: &Model, class: Class, form: TensorForm, weights: &[u32]) -> Stages {
        let last = model.parts() - 1;
        let load = |share: &_, link| model.rank(class, share, link);
        Stages {
            embedding: model.shard(0..1, class, 1),
            layers: group(form, weights, load, |_, _| {}),
            head: model.shard(last..last + 1, class, 1),
        }
    }

    /// The last token's logits.
    fn feed(&mut self, position: u32, tokens: &[u32]) -> Vec<f32> {
        let rows = tokens.len() as u32;
        let segments = [Segment { session: 1, position, rows, logits_rows: 1 }];
        let mut row = None;
        for shard in [&mut self.embedding, self.layers.leader(), &mut self.head] {
            let input = row.as_deref().map_or(Input::Tokens(tokens), Input::Hidden);
            let output = shard.step(&segments, input).expect("a sound step");
            row = Some(match output {
                Output::Hidden(values) | Output::Logits(values) => values,
            });
        }
        row.expect("three stages")
    }
}

#[test]
fn gathered_ranks_meet_the_hashes() {
    let model = Model::open(&tests::required_model());
    let golden = tests::golden("canonical1_smollm2.json");
    let cases = golden["cases"].as_array().expect("cases");
    for (class, weights) in [
        (Class::Canonical1, WEIGHTS[0]),
        (Class::Canonical1, WEIGHTS[1]),
        (Class::Canonical1, WEIGHTS[2]),
        (Class::ExactF32, WEIGHTS[2]),
    ] {
        let mut stages = Stages::new(&model, class, TensorForm::Rows, weights);
        // exact-f32 is ten times slower.
        let cases = if class == Class::ExactF32 { &cases[..1] } else { &cases[..] };
        for case in cases {
            let (id, want) = (&case["id"], &case[class.name()]);
            let prompt = ids(&case["prompt_tokens"]);
            stages.layers.leader().release(1);
            let mut logits = stages.feed(0, &prompt);
            assert_eq!(hash(&logits), want["hash_prompt"], "{weights:?}, {} {id}", class.name());
            for n in 0..8 {
                logits = stages.feed((prompt.len() + n) as u32, &[greedy(&logits)]);
            }
            assert_eq!(hash(&logits), want["hash_after_8"], "{weights:?}, {} {id}", class.name());
        }
        for (_, followed) in stages.layers.end() {
            assert_eq!(followed, Ok(()));
        }
    }
}

/// Logits all along the prompts, beside one process's, in both classes. What a partial sum's
/// rounding changes in the last bit, the 8-bit activations of the next layer make larger.
#[test]
fn summed_ranks_stay_within_the_band() {
    let model = Model::open(&tests::required_model());
    let golden = tests::golden("canonical1_smollm2.json");
    let cases = golden["cases"].as_array().expect("cases");
    for (class, band) in CLASSES.into_iter().zip([SUMS_BAND, 1e-4]) {
        let mut alone = model.shard(0..model.parts(), class, 2);
        for weights in WEIGHTS {
            let mut stages = Stages::new(&model, class, TensorForm::Sums, weights);
            let (mut largest, mut agreed, mut count) = (0.0f64, 0, 0);
            let cases = if class == Class::ExactF32 { &cases[..1] } else { &cases[..] };
            for case in cases {
                let prompt = ids(&case["prompt_tokens"]);
                stages.layers.leader().release(1);
                alone.release(1);
                for (position, chunk) in prompt.chunks(9).enumerate() {
                    let position = 9 * position as u32;
                    let (got, want) =
                        (stages.feed(position, chunk), crate::feed(&mut alone, position, chunk));
                    largest = largest.max(apart(&got, &want, want.len()));
                    agreed += usize::from(greedy(&got) == greedy(&want));
                    count += 1;
                }
            }
            let name = engine::tensor::class_name(class, TensorForm::Sums, weights.len());
            println!("{name}, {weights:?}: {largest:.2e} apart, greedy {agreed} of {count}");
            assert!(largest <= band, "{name}, {weights:?}: {largest} apart, the band is {band}");
            for (_, followed) in stages.layers.end() {
                assert_eq!(followed, Ok(()));
            }
        }
    }
}
