//! A shard with helpers: the same bits, also when they fail.

use engine::Class;
use engine::crew::{Crew, Cut, CutError, OrderError, PIECES_MAX, Share, Tiles};
use model::Layout;

use crate::tiny::{Tiny, expected, feed, models, same_bits};

/// Helpers on the same thread, each as diligent as `diligence` says.
struct Inline {
    shares: Vec<Share>,
    diligence: Diligence,
    /// Of the last order: pieces not taken back, pieces begun, and the answers.
    orders: Vec<(usize, usize, Vec<u8>)>,
}

/// What a helper does of the next order's pieces.
#[derive(Clone, Copy)]
struct Diligence {
    /// Begins so many and one more at each order, modulo this.
    begins: usize,
    /// Leaves so many of them without an answer.
    drops: usize,
    orders: usize,
}

impl Crew for Inline {
    fn helpers(&self) -> usize {
        self.shares.len()
    }

    fn begin(&mut self, order: &[u8], pieces: &[usize]) {
        let d = &mut self.diligence;
        d.orders += 1;
        for (helper, (share, &pieces)) in self.shares.iter_mut().zip(pieces).enumerate() {
            assert!(order.len() <= share.order_bytes_max(), "an order of {} bytes", order.len());
            assert!(pieces <= PIECES_MAX, "{pieces} pieces");
            let begun = ((d.orders + helper) % d.begins).min(pieces);
            let mut answers = Vec::new();
            assert_eq!(share.begin(order), Ok(pieces), "an order of our own chief");
            let mut piece = Vec::new();
            for number in 0..begun.saturating_sub(d.drops) {
                let at = share.run(number, &mut piece);
                assert_eq!(at, answers.len(), "pieces follow each other");
                answers.extend_from_slice(&piece);
                assert!(answers.len() <= share.answer_bytes_max(), "{} bytes", answers.len());
            }
            self.orders[helper] = (pieces, begun, answers);
        }
    }

    fn take(&mut self, helper: usize) -> bool {
        let (left, begun, _) = &mut self.orders[helper];
        let free = *left > *begun;
        *left -= usize::from(free);
        free
    }

    fn answered(&mut self, helper: usize, begun: usize) -> usize {
        assert_eq!(begun, self.orders[helper].1, "what was begun and not taken back");
        begun.saturating_sub(self.diligence.drops)
    }

    fn copy(&mut self, helper: usize, answers: &mut [u8]) {
        let (_, _, there) = &self.orders[helper];
        assert_eq!(answers.len(), there.len(), "all that was answered");
        answers.copy_from_slice(there);
    }
}

pub fn share(tiny: &Tiny, helper: usize, helpers: usize) -> Share {
    let (shard, mut share) = (tiny.whole(Class::Canonical1), Share::default());
    for product in 0..shard.products() {
        let Cut { columns_max, matrices } = shard.cut(product, helper, helpers);
        let copy = |t: Tiles<&[u8]>| Tiles {
            layout: t.layout,
            rows: t.rows,
            cols: t.cols,
            bytes: t.bytes.to_vec(),
        };
        let matrices = matrices.into_iter().map(copy).collect();
        share.add(Cut { columns_max, matrices }).expect("a cut");
    }
    share
}

fn crew(tiny: &Tiny, helpers: usize, begins: usize, drops: usize) -> Box<Inline> {
    let shares: Vec<Share> = (0..helpers).map(|helper| share(tiny, helper, helpers)).collect();
    let diligence = Diligence { begins, drops, orders: 0 };
    Box::new(Inline { orders: vec![(0, 0, Vec::new()); helpers], shares, diligence })
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn helpers_do_not_show() {
    for (name, tiny) in models() {
        let tokens = tiny.tokens(1, 70);
        for class in [Class::Canonical1, Class::ExactF32] {
            let want = expected(&tiny.reference(), class, &tokens).logits;
            for helpers in [1, 2, 5] {
                let mut shard = tiny.whole(class);
                shard.take_on(crew(&tiny, helpers, PIECES_MAX + 1, 0));
                let mut got = feed(&mut shard, 1, 0, &tokens[..69]);
                got.extend(feed(&mut shard, 1, 69, &tokens[69..]));
                same_bits(&got, &want, &format!("{name}, {class:?}, {helpers} helpers"));
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn a_helper_that_falls_silent_is_made_up_for() {
    let (name, tiny) = models().swap_remove(0);
    let tokens = tiny.tokens(1, 40);
    let want = expected(&tiny.reference(), Class::Canonical1, &tokens).logits;
    // It begins nothing, or one piece that it never answers, or all and answers few.
    for (begins, drops) in [(1, 0), (2, 1), (PIECES_MAX + 1, 1), (PIECES_MAX + 1, 3)] {
        let mut shard = tiny.whole(Class::Canonical1);
        shard.take_on(crew(&tiny, 2, begins, drops));
        let got = feed(&mut shard, 1, 0, &tokens);
        same_bits(&got, &want, &format!("{name}, begins {begins}, drops {drops}"));
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn shares_add_up_and_refuse_what_is_not_theirs() {
    let (_, tiny) = models().swap_remove(0);
    let whole: u64 = tiny.manifest.span_bytes(0..tiny.parts());
    let mut crew = crew(&tiny, 3, 1, 0);
    let held: u64 = crew.shares.iter().map(Share::weights_bytes).sum();
    assert!(held > whole / 3 && held < whole, "{held} bytes of {whole}");
    let mut refused = |order: &[u8]| crew.shares[0].begin(order);
    for bytes in [0, 7, 8, 100] {
        let order = vec![0xff; bytes];
        assert_eq!(refused(&order), Err(OrderError { bytes }));
    }
    // One row of product 0, but no activations.
    assert_eq!(refused(&[0, 0, 0, 0, 1, 0, 0, 0]), Err(OrderError { bytes: 8 }));
    for (layout, bytes) in [(Layout::Q8, 543), (Layout::F32, 4 * 16 * 32)] {
        let tiles = Tiles { layout, rows: 16, cols: 32, bytes: vec![0; bytes] };
        let cut = Cut { columns_max: 1, matrices: vec![tiles] };
        let refused = CutError { layout, rows: 16, cols: 32, bytes };
        assert_eq!(crew.shares[0].add(cut), Err(refused));
    }
}
