//! Tensor groups: ranks as threads, their messages over channels in memory, beside one shard.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, spawn};

use engine::tensor::{Exchange, ExchangeError, FollowError, Take, TensorShare};
use engine::{Class, Input, Isa, Limits, LoadError, Segment, Shard, StepError};
use model::gguf::GgmlType;
use model::manifest::{Architecture, Dims, Role};
use model::tensor::{Division, DivisionError, TensorForm};
use model::testing::{Random, TinyModel};

use crate::tiny::{PAGES, Tiny, same_bits, segment, values};

const CLASSES: [Class; 2] = [Class::Canonical1, Class::ExactF32];

/// What one rank gives another.
#[derive(Clone)]
pub enum Sent {
    Order(Vec<u8>),
    Message(Vec<u8>),
}

/// A rank's ends of the channels from and to each other rank.
pub struct Link {
    to: Vec<(usize, Sender<Sent>)>,
    from: Vec<(usize, Receiver<Sent>)>,
    /// Changes what the others are sent, by how many messages were sent before.
    damage: Box<dyn FnMut(usize, Vec<u8>) -> Vec<u8> + Send>,
    sent: usize,
}

/// Links of a group of so many ranks. Orders go through channels of their own.
pub fn links(ranks: usize) -> (Vec<Link>, Vec<Receiver<Sent>>) {
    let (mut links, mut orders) = (Vec::new(), Vec::new());
    for _ in 0..ranks {
        let damage = Box::new(|_, message| message);
        links.push(Link { to: Vec::new(), from: Vec::new(), damage, sent: 0 });
    }
    for from in 0..ranks {
        for to in 0..ranks {
            if from != to {
                let (sender, receiver) = channel();
                links[from].to.push((to, sender));
                links[to].from.push((from, receiver));
            }
        }
    }
    for follower in 1..ranks {
        let (sender, receiver) = channel();
        links[0].to.push((ranks + follower, sender)); // an order's
        orders.push(receiver);
    }
    (links, orders)
}

impl Link {
    fn give(&self, is_order: bool, what: Sent) -> Result<(), ExchangeError> {
        let ranks = self.from.len() + 1;
        for (rank, sender) in self.to.iter().filter(|(rank, _)| (*rank > ranks) == is_order) {
            let lost = |_| ExchangeError::Lost { rank: rank % ranks, reason: "it ended".into() };
            sender.send(what.clone()).map_err(lost)?;
        }
        Ok(())
    }
}

impl Exchange for Link {
    fn order(&mut self, order: &[u8]) -> Result<(), ExchangeError> {
        self.give(true, Sent::Order(order.to_vec()))
    }

    fn send(&mut self, message: &[u8]) -> Result<(), ExchangeError> {
        let message = (self.damage)(self.sent, message.to_vec());
        self.sent += 1;
        self.give(false, Sent::Message(message))
    }

    fn receive(&mut self, take: &mut Take<'_>) -> Result<(), ExchangeError> {
        for (rank, receiver) in &self.from {
            match receiver.recv() {
                Ok(Sent::Message(message)) => take(*rank, &message)?,
                _ => return Err(ExchangeError::Lost { rank: *rank, reason: "it ended".into() }),
            }
        }
        Ok(())
    }
}

/// A leader, and its followers on threads of their own.
pub struct Ranks {
    pub leader: Option<Shard>,
    followers: Vec<JoinHandle<(Shard, Result<(), FollowError>)>>,
}

/// Loads the ranks of a group: `load` makes one of its share and link.
pub fn group(
    form: TensorForm,
    weights: &[u32],
    load: impl Fn(&TensorShare, Box<dyn Exchange>) -> Result<Shard, LoadError>,
    mut damage: impl FnMut(usize, &mut Link),
) -> Ranks {
    let (links, orders) = links(weights.len());
    let mut shards = links.into_iter().enumerate().map(|(rank, mut link)| {
        damage(rank, &mut link);
        load(&TensorShare { form, weights: weights.to_vec(), rank }, Box::new(link)).expect("loads")
    });
    let leader = shards.next();
    let follow = |(mut shard, orders): (Shard, Receiver<Sent>)| {
        spawn(move || {
            let mut followed = Ok(());
            while let (Ok(()), Ok(Sent::Order(order))) = (&followed, orders.recv()) {
                followed = shard.follow(&order);
            }
            (shard, followed)
        })
    };
    let followers = shards.zip(orders).map(follow).collect();
    Ranks { leader, followers }
}

impl Ranks {
    pub fn leader(&mut self) -> &mut Shard {
        self.leader.as_mut().expect("not ended")
    }

    /// What the followers came to, once the leader is gone.
    pub fn end(mut self) -> Vec<(Shard, Result<(), FollowError>)> {
        self.leader = None;
        self.followers.into_iter().map(|f| f.join().expect("no panic")).collect()
    }
}

fn load(
    tiny: &Tiny,
    span: Range<u32>,
    class: Class,
    limits: Limits,
    share: &TensorShare,
    link: Box<dyn Exchange>,
) -> Result<Shard, LoadError> {
    let blobs = |hash: &str| tiny.blobs.get(hash).cloned();
    Shard::load_rank(&tiny.manifest, span, class, blobs, limits, share, link)
}

fn sound_group(
    tiny: &Tiny,
    span: Range<u32>,
    class: Class,
    form: TensorForm,
    weights: &[u32],
) -> Ranks {
    let limits = |rank| Limits::new(PAGES, 1 + rank as u32 % 2);
    let load = |share: &TensorShare, link: Box<dyn Exchange>| {
        load(tiny, span.clone(), class, limits(share.rank), share, link)
    };
    group(form, weights, load, |_, _| {})
}

/// Models whose heads and widths divide in all ways.
fn divisible() -> Vec<(&'static str, Tiny)> {
    let dims = |d_model, heads, kv_heads, head_dim, d_ff| {
        let base = TinyModel::llama(1).dims;
        Dims { layers: 2, d_model, heads, kv_heads, head_dim, d_ff, vocab: 40, ..base }
    };
    let floats = |role, _| match role {
        Role::FfnGate | Role::AttnV | Role::FfnDown => GgmlType::F16,
        _ => GgmlType::F32,
    };
    let mixed = |role, layer| match (role, layer) {
        (Role::AttnV | Role::FfnDown, 0) => GgmlType::Q6K,
        (Role::AttnQ | Role::AttnK, _) => GgmlType::Q5_0,
        (Role::AttnOutput, 1) => GgmlType::F16,
        (Role::FfnUp, 1) => GgmlType::Q4_0,
        _ => GgmlType::Q4K,
    };
    let llama = TinyModel { tokenizer: false, ..TinyModel::llama(21) };
    let qwen2 = TinyModel { tokenizer: false, ..TinyModel::qwen2(22) };
    let model = |tiny: TinyModel| Tiny::new(&tiny);
    vec![
        (
            "llama, Q4_1, 9 heads on 3",
            model(TinyModel {
                matrix_type: |_, _| GgmlType::Q4_1,
                dims: dims(96, 9, 3, 32, 224),
                ..llama.clone()
            }),
        ),
        (
            "qwen2, Q8_0, biases, 8 heads on 2",
            model(TinyModel { dims: dims(128, 8, 2, 32, 160), ..qwen2.clone() }),
        ),
        (
            "qwen2, all kinds, super-blocks",
            model(TinyModel { matrix_type: mixed, dims: dims(256, 16, 4, 64, 1024), ..qwen2 }),
        ),
        (
            "llama, floats of odd widths",
            model(TinyModel {
                matrix_type: floats,
                dims: dims(42, 6, 2, 14, 50),
                architecture: Architecture::Llama,
                ..llama
            }),
        ),
    ]
}

const WEIGHTS: [&[u32]; 4] = [&[1, 1], &[3, 1], &[1, 2, 1], &[1, 1, 1, 1]];

/// The hidden state of some rows: as large as a layer's input is.
fn hidden(random: &mut Random, tiny: &Tiny, rows: usize) -> Vec<f32> {
    (0..rows * tiny.manifest.dims.d_model as usize).map(|_| random.unit()).collect()
}

/// Steps that have it all: prefill, decode, several sessions, forks, rewinds, long ones.
fn script(
    random: &mut Random,
    tiny: &Tiny,
    mut on: impl FnMut(&mut dyn FnMut(&mut Shard) -> Result<Vec<f32>, StepError>),
) {
    let one =
        |session, position, rows| Segment { logits_rows: 0, ..segment(session, position, rows) };
    for segments in [
        vec![one(1, 0, 70)],
        vec![one(1, 70, 1)],
        vec![one(1, 71, 1), one(2, 0, 5), one(3, 0, 1)],
        vec![one(2, 5, 300)],
    ] {
        let rows = segments.iter().map(|s| s.rows as usize).sum();
        let input = hidden(random, tiny, rows);
        on(&mut |shard| values(shard, &segments, Input::Hidden(&input)));
    }
    on(&mut |shard| shard.fork(2, 4, 130).map(|()| Vec::new()));
    on(&mut |shard| {
        shard.truncate(1, 66);
        shard.release(3);
        shard.release(9);
        Ok(Vec::new())
    });
    on(&mut |shard| shard.fork(1, 5, 67).map(|()| Vec::new())); // a gap
    let segments = [one(4, 130, 3), one(2, 129, 1), one(1, 66, 2)];
    let input = hidden(random, tiny, 6);
    on(&mut |shard| values(shard, &segments, Input::Hidden(&input)));
    let input = hidden(random, tiny, 1);
    on(&mut |shard| values(shard, &[one(1, 99, 1)], Input::Hidden(&input))); // a gap
    let input = hidden(random, tiny, 3000);
    on(&mut |shard| values(shard, &[one(7, 0, 3000)], Input::Hidden(&input))); // full
    let input = hidden(random, tiny, 1);
    on(&mut |shard| values(shard, &[one(2, 100, 1)], Input::Hidden(&input)));
}

#[test]
fn gathered_rows_give_one_process_s_bits() {
    for (name, tiny) in divisible() {
        for class in CLASSES {
            for weights in WEIGHTS {
                let what = format!("{name}, {class:?}, {weights:?}");
                let rows = TensorForm::Rows;
                if let Err(error) = Division::of(&tiny.manifest, rows, weights) {
                    assert!(matches!(error, DivisionError::TooFew { .. }), "{what}: {error}");
                    assert!(weights.len() > 2, "{what}: {error}");
                    continue;
                }
                let mut ranks = sound_group(&tiny, 1..3, class, rows, weights);
                let mut alone = tiny.shard(1..3, class, Isa::best(), 1);
                script(&mut Random::new(7), &tiny, |act| {
                    let (got, want) = (act(ranks.leader()), act(&mut alone));
                    match (got, want) {
                        (Ok(got), Ok(want)) => same_bits(&got, &[want], &what),
                        (got, want) => assert_eq!(got, want, "{what}"),
                    }
                });
                let free = alone.kv_pages_free();
                assert_eq!(ranks.leader().kv_pages_free(), free, "{what}");
                for (follower, followed) in ranks.end() {
                    assert_eq!(followed, Ok(()), "{what}");
                    assert_eq!(follower.kv_pages_free(), free, "{what}");
                    assert_eq!(
                        (1..8).map(|s| follower.positions(s)).collect::<Vec<_>>(),
                        (1..8).map(|s| alone.positions(s)).collect::<Vec<_>>()
                    );
                }
            }
        }
    }
}

/// Largest ‖a − b‖ / ‖b‖ of a row.
fn apart(got: &[f32], want: &[f32], width: usize) -> f64 {
    let row = |(a, b): (&[f32], &[f32])| {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (apart / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
    };
    assert_eq!(got.len(), want.len());
    got.chunks(width).zip(want.chunks(width)).map(row).fold(0.0, f64::max)
}

#[test]
fn summed_parts_stay_near_one_process() {
    for (name, tiny) in divisible() {
        for (class, band) in
            [(Class::Canonical1, engine::tensor::SUMS_BAND), (Class::ExactF32, 1e-5)]
        {
            for weights in WEIGHTS {
                let what = format!("{name}, {class:?}, {weights:?}");
                if Division::of(&tiny.manifest, TensorForm::Sums, weights).is_err() {
                    continue;
                }
                let mut ranks = sound_group(&tiny, 1..3, class, TensorForm::Sums, weights);
                let mut alone = tiny.shard(1..3, class, Isa::best(), 1);
                let mut largest = 0.0f64;
                script(&mut Random::new(8), &tiny, |act| {
                    match (act(ranks.leader()), act(&mut alone)) {
                        (Ok(got), Ok(want)) => {
                            largest = largest.max(apart(
                                &got,
                                &want,
                                tiny.manifest.dims.d_model as usize,
                            ));
                        }
                        (got, want) => assert_eq!(got, want, "{what}"),
                    }
                });
                println!("{what}: {largest:.2e} apart");
                assert!(largest <= band, "{what}: {largest} apart");
                for (_, followed) in ranks.end() {
                    assert_eq!(followed, Ok(()), "{what}");
                }
            }
        }
    }
}
