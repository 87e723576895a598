//! A shard with helpers: the same bits, also when they fail.

use engine::Class;
use engine::crew::{Crew, OrderError, Share};

use crate::tiny::{Tiny, expected, feed, models, same_bits};

/// Helpers on the same thread; after `answers_left` answers they are silent.
struct Inline {
    shares: Vec<Share>,
    answers: Vec<Vec<u8>>,
    answers_left: u32,
}

impl Crew for Inline {
    fn helpers(&self) -> usize {
        self.shares.len()
    }

    fn begin(&mut self, order: &[u8]) {
        for (share, answer) in self.shares.iter_mut().zip(&mut self.answers) {
            assert!(order.len() <= share.order_bytes_max(), "an order of {} bytes", order.len());
            share.run(order, answer).expect("an order of our own chief");
            assert!(answer.len() <= share.answer_bytes_max(), "an answer of {}", answer.len());
        }
    }

    fn collect(&mut self, helper: usize, answer: &mut [u8]) -> bool {
        if self.answers_left == 0 {
            return false;
        }
        self.answers_left -= 1;
        answer.copy_from_slice(&self.answers[helper]);
        true
    }
}

fn crew(tiny: &Tiny, helpers: usize, answers_left: u32) -> Box<Inline> {
    let share = |helper| {
        let blobs = |hash: &str| tiny.blobs.get(hash).cloned();
        Share::load(&tiny.manifest, 0..tiny.parts(), blobs, helper, helpers).expect("it loads")
    };
    let shares: Vec<Share> = (0..helpers).map(share).collect();
    Box::new(Inline { answers: vec![Vec::new(); helpers], shares, answers_left })
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn helpers_do_not_show() {
    for (name, tiny) in models() {
        let tokens = tiny.tokens(1, 70);
        for class in [Class::Canonical1, Class::ExactF32] {
            let want = expected(&tiny.reference(), class, &tokens).logits;
            for helpers in [1, 2, 5] {
                let mut shard = tiny.whole(class);
                shard.take_on(crew(&tiny, helpers, u32::MAX));
                let mut got = feed(&mut shard, 1, 0, &tokens[..69]);
                got.extend(feed(&mut shard, 1, 69, &tokens[69..]));
                same_bits(&got, &want, &format!("{name}, {class:?}, {helpers} helpers"));
                assert_eq!(shard.helpers(), helpers);
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn a_helper_that_falls_silent_is_made_up_for() {
    let (name, tiny) = models().swap_remove(0);
    let tokens = tiny.tokens(1, 40);
    let want = expected(&tiny.reference(), Class::Canonical1, &tokens).logits;
    for answers_left in [0, 1, 7] {
        let mut shard = tiny.whole(Class::Canonical1);
        shard.take_on(crew(&tiny, 2, answers_left));
        let got = feed(&mut shard, 1, 0, &tokens);
        same_bits(&got, &want, &format!("{name}, {answers_left} answers"));
        assert_eq!(shard.helpers(), 0);
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn shares_add_up_and_refuse_what_is_not_theirs() {
    let (_, tiny) = models().swap_remove(0);
    let whole: u64 = tiny.manifest.span_bytes(0..tiny.parts());
    let mut crew = crew(&tiny, 3, 0);
    let held: u64 = crew.shares.iter().map(Share::weights_bytes).sum();
    assert!(held > whole / 3 && held < whole, "{held} bytes of {whole}");
    let mut answer = Vec::new();
    let mut refused = |order: &[u8]| crew.shares[0].run(order, &mut answer);
    for bytes in [0, 7, 8, 100] {
        let order = vec![0xff; bytes];
        assert_eq!(refused(&order), Err(OrderError { bytes }));
    }
    // One row of product 0, but no activations.
    assert_eq!(refused(&[0, 0, 0, 0, 1, 0, 0, 0]), Err(OrderError { bytes: 8 }));
}
