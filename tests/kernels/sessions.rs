//! Sessions in one shard: batches, chunks, forks, rewinds.

use engine::{Class, Input, Isa, Segment};
use model::testing::{Random, TinyModel};

use crate::tiny::{PAGES, Tiny, expected, feed, models, same_bits, segment, values};

const CLASSES: [Class; 2] = [Class::Canonical1, Class::ExactF32];

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn batches_and_chunks_do_not_show() {
    for (name, tiny) in models() {
        let model = tiny.reference();
        for class in CLASSES {
            let prompts: Vec<Vec<u32>> =
                [90, 30, 67, 1].iter().zip(5..).map(|(&n, s)| tiny.tokens(s, n)).collect();
            let want: Vec<_> = prompts.iter().map(|p| expected(&model, class, p).logits).collect();
            for (seed, threads) in [(1, 1), (2, 3), (3, 2)] {
                let mut random = Random::new(seed);
                let mut shard = tiny.shard(0..tiny.parts(), class, Isa::best(), threads);
                let mut done = vec![0usize; prompts.len()];
                while done.iter().zip(&prompts).any(|(d, p)| *d < p.len()) {
                    // Some sessions, each with some rows, some of which want logits.
                    let mut segments = Vec::new();
                    let mut input = Vec::new();
                    let mut rows_wanted = Vec::new();
                    for (i, prompt) in prompts.iter().enumerate() {
                        let left = prompt.len() - done[i];
                        if left == 0 || (random.below(3) == 0 && !segments.is_empty()) {
                            continue;
                        }
                        let most = if random.below(2) == 0 { 1 } else { 40 };
                        let rows = 1 + random.below(left.min(most) as u64) as usize;
                        let wanted = random.below(rows as u64 + 1) as usize;
                        let end = done[i] + rows;
                        segments.push(Segment {
                            session: 100 + i as u64,
                            position: done[i] as u32,
                            rows: rows as u32,
                            logits_rows: wanted as u32,
                        });
                        input.extend_from_slice(&prompt[done[i]..end]);
                        rows_wanted.extend_from_slice(&want[i][end - wanted..end]);
                        done[i] = end;
                    }
                    if segments.is_empty() {
                        continue;
                    }
                    let got = values(&mut shard, &segments, Input::Tokens(&input)).expect("sound");
                    same_bits(&got, &rows_wanted, &format!("{name}, {class:?}, seed {seed}"));
                }
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn a_step_longer_than_a_pass_is_the_same() {
    let tiny = Tiny::new(&TinyModel::llama(21));
    let model = tiny.reference();
    let class = Class::Canonical1;
    let (first, second) = (tiny.tokens(1, 300), tiny.tokens(2, 310));
    let mut shard = tiny.shard(0..tiny.parts(), class, Isa::best(), 2);
    let segments = [segment(1, 0, 300), Segment { logits_rows: 2, ..segment(2, 0, 310) }];
    let tokens = [&first[..], &second[..]].concat();
    let got = values(&mut shard, &segments, Input::Tokens(&tokens)).expect("a sound step");
    let mut want = expected(&model, class, &first).logits;
    want.extend_from_slice(&expected(&model, class, &second).logits[308..]);
    same_bits(&got, &want, "610 rows");
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn forks_and_rewinds_continue_as_if_new() {
    let tiny = Tiny::new(&TinyModel::qwen2(22));
    let model = tiny.reference();
    for class in CLASSES {
        let prompt = tiny.tokens(1, 100);
        let (one, two) = (tiny.tokens(2, 40), tiny.tokens(3, 40));
        let mut shard = tiny.whole(class);
        feed(&mut shard, 1, 0, &prompt);
        shard.fork(1, 2, 90).expect("it holds 90");
        shard.fork(2, 3, 64).expect("it holds 64");
        assert_eq!(shard.kv_pages_free(), PAGES - 2, "forks share");
        let continued = |prefix: &[u32], rest: &[u32]| {
            let tokens = [prefix, rest].concat();
            expected(&model, class, &tokens).logits[prefix.len()..].to_vec()
        };
        // All three in one step: copies happen on the way.
        let segments = [segment(1, 100, 40), segment(2, 90, 40), segment(3, 64, 40)];
        let input = [&one[..], &two[..], &one[..]].concat();
        let got = values(&mut shard, &segments, Input::Tokens(&input)).expect("a sound step");
        let want = [
            continued(&prompt, &one),
            continued(&prompt[..90], &two),
            continued(&prompt[..64], &one),
        ]
        .concat();
        same_bits(&got, &want, "three continuations");
        // A rewind by the segment's own position, and one by truncate.
        let got = feed(&mut shard, 2, 70, &one);
        same_bits(&got, &continued(&prompt[..70], &one), "rewound to 70");
        shard.truncate(1, 3);
        assert_eq!(shard.positions(1), 3);
        same_bits(&feed(&mut shard, 1, 3, &two), &continued(&prompt[..3], &two), "truncated to 3");
        // Onto itself, and over another.
        shard.fork(3, 1, 64).expect("it holds 64");
        same_bits(&feed(&mut shard, 1, 64, &two), &continued(&prompt[..64], &two), "forked over");
        for session in [1, 2, 3] {
            shard.release(session);
        }
        assert_eq!(shard.kv_pages_free(), PAGES);
    }
}
