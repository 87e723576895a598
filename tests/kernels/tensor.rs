//! Tensor groups beside one shard, and what goes wrong in them.

use std::ops::Range;
use std::sync::Arc;

use engine::tensor::{Exchange, FollowError, TensorShare, kv_page_bytes};
use engine::{Class, Input, Isa, Limits, LoadError, Segment, Shard, StepError};
use model::gguf::GgmlType;
use model::manifest::{Architecture, Dims, Role};
use model::tensor::{Division, DivisionError, TensorForm};
use model::testing::{Random, TinyModel};

use crate::ranks::{Link, Ranks, Sent, group, links};
use crate::tiny::{PAGES, Tiny, same_bits, segment, values};

const CLASSES: [Class; 2] = [Class::Canonical1, Class::ExactF32];

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

/// The second of [`divisible`], whose heads divide evenly in two.
fn biased() -> Tiny {
    divisible().swap_remove(1).1
}

fn step(shard: &mut Shard, position: u32, rows: usize) -> Result<Vec<f32>, StepError> {
    let width = rows * 128;
    let input: Vec<f32> = (0..width).map(|i| (i as f32 * 0.37).sin()).collect();
    let segments = [Segment { logits_rows: 0, ..segment(1, position, rows) }];
    values(shard, &segments, Input::Hidden(&input))
}

/// A group of two, whose second rank's messages are changed.
fn damaged(
    tiny: &Tiny,
    form: TensorForm,
    damage: impl FnMut(usize, Vec<u8>) -> Vec<u8> + Send + Clone + 'static,
) -> Ranks {
    let load = |share: &TensorShare, link: Box<dyn Exchange>| {
        load(tiny, 1..3, Class::Canonical1, Limits::new(PAGES, 1), share, link)
    };
    group(form, &[1, 1], load, |rank, link: &mut Link| {
        if rank == 1 {
            link.damage = Box::new(damage.clone());
        }
    })
}

type Damage = fn(Vec<u8>) -> Vec<u8>;

#[test]
fn messages_that_do_not_fit_break_the_group_and_nothing_else() {
    let tiny = biased();
    let cases: [(&str, Damage); 7] = [
        ("short", |m| m[..m.len() - 1].to_vec()),
        ("long", |m| [m, vec![0; 4]].concat()),
        ("empty", |_| Vec::new()),
        ("half a header", |m| m[..9].to_vec()),
        ("of another exchange", |m| [&[m[0] + 1], &m[1..]].concat()),
        ("a fault in row 9 of 3", |m| [&m[..8], &[9, 0, 0, 0, 0, 0, 0, 0]].concat()),
        ("a fault with values", |m| [&m[..8], &[0; 8], &m[16..]].concat()),
    ];
    for (what, damage) in cases {
        for form in [TensorForm::Rows, TensorForm::Sums] {
            // The first step is sound in all its exchanges.
            let sound = 2 * form.exchanges() as usize;
            let change = move |n: usize, m| if n == sound + 1 { damage(m) } else { m };
            let mut ranks = damaged(&tiny, form, change);
            let first = step(ranks.leader(), 0, 5);
            assert!(first.is_ok(), "{what}, {form:?}: {first:?}");
            let broken = step(ranks.leader(), 5, 3);
            assert!(matches!(broken, Err(StepError::Exchange(_))), "{what}, {form:?}: {broken:?}");
            assert_eq!(ranks.leader().positions(1), 5, "the step is taken back");
            assert_eq!(step(ranks.leader(), 5, 3), broken, "{what}, {form:?}: it stays broken");
            assert!(ranks.leader().fork(1, 2, 3).is_err());
            ranks.leader().release(1);
            for (mut follower, followed) in ranks.end() {
                assert!(matches!(followed, Err(FollowError::Exchange(_))), "{what}: {followed:?}");
                assert!(matches!(follower.follow(&[]), Err(FollowError::Exchange(_))), "{what}");
            }
        }
    }
}

#[test]
fn values_that_are_no_numbers_are_a_fault_of_the_step() {
    let tiny = biased();
    for form in [TensorForm::Rows, TensorForm::Sums] {
        let nan = |n: usize, mut m: Vec<u8>| {
            if n == 1 {
                m[16..20].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            m
        };
        let mut ranks = damaged(&tiny, form, nan);
        let fault = step(ranks.leader(), 0, 3);
        assert!(matches!(fault, Err(StepError::NumericFault { session: 1, .. })), "{fault:?}");
        // The other rank, whose message was changed on its way, was told of the fault.
        assert!(step(ranks.leader(), 0, 3).is_ok(), "{form:?}");
        assert!(ranks.end().iter().all(|(_, followed)| followed.is_ok()), "{form:?}");
    }
}

#[test]
fn a_fault_of_one_rank_is_everybody_s_and_the_group_goes_on() {
    let mut tiny = biased();
    // The last K/V head's keys leave the range of f16: only the last rank has it.
    let part = &tiny.manifest.parts[2].blobs[0];
    let bias = part.tensors.iter().find(|t| t.role == Role::AttnKBias).expect("biases");
    let last = bias.offset as usize + 4 * (bias.cols as usize - 1);
    let mut bytes = (*tiny.blobs[&part.hash]).as_ref().to_vec();
    bytes[last..last + 4].copy_from_slice(&1e6f32.to_le_bytes());
    tiny.blobs.insert(part.hash.clone(), Arc::new(bytes));
    for form in [TensorForm::Rows, TensorForm::Sums] {
        let mut alone = tiny.shard(1..3, Class::Canonical1, Isa::best(), 1);
        let mut ranks = sound_group(&tiny, 1..3, Class::Canonical1, form, &[1, 1]);
        for rows in [1, 4] {
            let fault = StepError::NumericFault { session: 1, position: 0 };
            assert_eq!(step(&mut alone, 0, rows), Err(fault.clone()));
            assert_eq!(step(ranks.leader(), 0, rows), Err(fault), "{form:?}");
            assert_eq!(ranks.leader().kv_pages_free(), PAGES);
        }
        for (follower, followed) in ranks.end() {
            assert_eq!((followed, follower.kv_pages_free()), (Ok(()), PAGES), "{form:?}");
        }
    }
}

/// The bytes of an order that a leader gives for a step.
fn an_order(tiny: &Tiny) -> Vec<u8> {
    let (mut ends, orders) = links(2);
    ends.truncate(1); // nobody answers
    let share = TensorShare { form: TensorForm::Rows, weights: vec![1, 1], rank: 0 };
    let link = Box::new(ends.remove(0));
    let limits = Limits::new(PAGES, 1);
    let mut leader = load(tiny, 1..3, Class::Canonical1, limits, &share, link).expect("loads");
    assert!(matches!(step(&mut leader, 0, 2), Err(StepError::Exchange(_))));
    let Ok(Sent::Order(order)) = orders[0].recv() else { panic!("an order") };
    assert!(order.len() <= engine::tensor::order_bytes_max(&tiny.manifest.dims));
    order
}

#[test]
fn orders_that_are_none_are_refused() {
    let tiny = biased();
    let order = an_order(&tiny);
    let follow = |order: &[u8]| {
        let (mut ends, _orders) = links(2);
        let link = Box::new(ends.remove(1));
        drop(ends);
        let share = TensorShare { form: TensorForm::Rows, weights: vec![1, 1], rank: 1 };
        let limits = Limits::new(PAGES, 1);
        let mut shard = load(&tiny, 1..3, Class::Canonical1, limits, &share, link).expect("loads");
        let followed = shard.follow(order);
        assert_eq!(shard.kv_pages_free(), PAGES, "{followed:?}");
        assert!(shard.follow(order).is_err(), "it has failed before");
        followed.expect_err("nobody leads")
    };
    assert!(matches!(follow(&order), FollowError::Exchange(_)), "the order itself is sound");
    for length in (0..80).chain([order.len() - 4, order.len() - 1]) {
        let short = follow(&order[..length]);
        assert!(matches!(short, FollowError::Order(_)), "{length} bytes: {short}");
    }
    let changed = |at: usize, byte: u8| {
        let mut order = order.clone();
        order[at] = byte;
        follow(&order)
    };
    assert!(matches!(changed(0, 1), FollowError::OutOfStep { expected: 1, got: 0, .. }));
    assert!(matches!(changed(8, 7), FollowError::OutOfStep { expected: 7, .. }));
    for kind in 1..=4 {
        assert!(matches!(changed(12, kind), FollowError::Order(_)), "kind {kind}");
    }
    assert!(matches!(changed(23, 0x7f), FollowError::Order(_)), "more segments than there may be");
    assert!(matches!(changed(36, 3), FollowError::Order(_)), "rows without a hidden state");
    assert!(matches!(changed(40, 1), FollowError::OutOfStep { expected: 1, got: 0, .. }));
    assert!(matches!(changed(47, 0x7f), FollowError::Order(_) | FollowError::Exchange(_)));
    let mut random = Random::new(3);
    for _ in 0..60 {
        let at = random.below(44) as usize;
        changed(at, random.below(256) as u8); // gives an error, whatever it is
    }
}

#[test]
fn the_sequence_in_which_messages_come_does_not_matter() {
    let tiny = divisible().swap_remove(0).1;
    let outputs = [false, true].map(|reversed| {
        let load = |share: &TensorShare, link: Box<dyn Exchange>| {
            load(&tiny, 1..3, Class::Canonical1, Limits::new(PAGES, 1), share, link)
        };
        let mut ranks = group(TensorForm::Sums, &[1, 2, 1], load, |_, link: &mut Link| {
            if reversed {
                link.from.reverse();
            }
        });
        let input: Vec<f32> = (0..7 * 96).map(|i| (i as f32 * 0.37).cos()).collect();
        values(ranks.leader(), &[segment(1, 0, 7)], Input::Hidden(&input)).expect("a sound step")
    });
    same_bits(&outputs[0], &[outputs[1].clone()], "reversed");
}

#[test]
fn only_layers_are_divided_and_only_leaders_stepped() {
    let tiny = biased();
    let try_load = |span: Range<u32>, weights: &[u32], rank| {
        let link = Box::new(links(2).0.remove(1));
        let share = TensorShare { form: TensorForm::Rows, weights: weights.to_vec(), rank };
        load(&tiny, span, Class::Canonical1, Limits::new(PAGES, 1), &share, link)
    };
    assert_eq!(try_load(0..3, &[1, 1], 0).err(), Some(LoadError::Ends { start: 0, end: 3 }));
    assert_eq!(try_load(1..4, &[1, 1], 0).err(), Some(LoadError::Ends { start: 1, end: 4 }));
    assert_eq!(try_load(1..3, &[1, 1], 2).err(), Some(LoadError::Rank { rank: 2, ranks: 2 }));
    let alone = DivisionError::Ranks { got: 1 };
    assert_eq!(try_load(1..3, &[1], 0).err(), Some(LoadError::Division(alone)));

    let mut follower = try_load(1..3, &[1, 1], 1).expect("it loads");
    assert_eq!(follower.rank(), Some(1));
    assert!(matches!(step(&mut follower, 0, 1), Err(StepError::Shape(_))));
    assert!(matches!(follower.fork(1, 2, 0), Err(StepError::Shape(_))));
    let mut whole = tiny.shard(1..3, Class::Canonical1, Isa::best(), 1);
    assert_eq!(whole.follow(&[]), Err(FollowError::NoFollower));
    let division = Division::of(&tiny.manifest, TensorForm::Rows, &[1, 1]).expect("it divides");
    let page = kv_page_bytes(&tiny.manifest, 1..3, Class::Canonical1, &division, 1);
    assert_eq!(page, 2 * 64 * 2 * 32 * 2, "2 layers, 64 positions, K and V of one head, f16");
}
