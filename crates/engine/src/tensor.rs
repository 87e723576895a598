//! Tensor parallelism: several shards, one on each machine of a group, compute one span.
//!
//! Each *rank* [loads](Shard::load_rank) only its part of every matrix (`model::tensor` says
//! which) and a KV cache of its own K/V heads. Rank 0 is the *leader*: it alone is stepped,
//! forked, truncated and released, and before it does any of that it gives the others, the
//! *followers*, an *order*, which they [carry out](Shard::follow). So all of them make the same
//! calls in the same sequence, and hold the same sessions, positions and pages. Inside a step
//! they *exchange*: each sends to each, then waits for all.
//!
//! | per layer | `Rows` | `Sums` |
//! |---|---|---|
//! | after attention | gather `[T, H·hd]`, 8-bit blocks in `canonical-1` | |
//! | after attn_output | gather `[T, D]` f32 | sum `[T, D]` f32 |
//! | after SwiGLU | gather `[T, F]`, 8-bit blocks in `canonical-1` | |
//! | after down | gather `[T, D]` f32 | sum `[T, D]` f32 |
//!
//! Norms and residuals are computed by all, alike. `Rows` gives the bits of one process, since
//! no sum is cut. In `Sums` rank r computes `p_r`, a product of the rank's columns as
//! [`numerics::product`] has it, from +0 on; every rank then computes `((p_0 + p_1) + p_2) + ..`,
//! each add rounded, so that all have the same bits. They depend on the division, so that form is
//! a class of its own ([`class_name`]), and [`SUMS_BAND`] says how far from one process it is.
//!
//! A numeric fault that one rank meets travels with its next message, and all ranks take back
//! the step together. Whatever else goes wrong *breaks* the group: this shard refuses every
//! later step, and whoever holds it drops it, and with it the [`Exchange`], so that the others
//! wait for nobody.
//!
//! [`model::tensor::Division::exchange_bytes`] says what an exchange weighs.

mod cut;
mod group;
mod order;
mod shard;

use std::ops::Range;

use model::Manifest;
use model::manifest::Dims;
use model::tensor::{Division, RANKS_MAX, TensorForm};

use crate::run::PASS_ROWS_MAX;
use crate::steps::STEP_ROWS_MAX;
use crate::types::{Class, StepError};

#[cfg(doc)]
use crate::Shard;
pub(crate) use group::Group;

/// Tabs are of no tensor group: their module is smaller without.
pub(crate) const GROUPS: bool = cfg!(not(target_arch = "wasm32"));

/// How far a `Sums` group in `canonical-1` may be from one process: the largest ‖a − b‖ / ‖b‖ of
/// a row of hidden states or logits.
///
/// Through SmolLM2's 30 layers rows of logits were 0.18 apart at most on 2 ranks and 0.24 on 4,
/// and the greedy token was another one in 2 and 1 of 29: a sum's last bit moves an 8-bit
/// activation to its neighbour now and then, and that is what adds up. Without such activations,
/// in `exact-f32`, it is 2.3e-6. Perplexity on 1024 positions of the GNU GPL is 17.82 on 2 ranks
/// and 17.78 on 4, where llama.cpp has 17.89 with 8-bit activations and 17.69 in f32.
/// `tests/golden/tensor.rs` and `tests/golden/perplexity.rs` measure these.
pub const SUMS_BAND: f64 = 0.33;

/// Which part of a span a shard is, among those of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShare {
    /// How the parts become one.
    pub form: TensorForm,
    /// How fast each rank is beside the others; as many as there are ranks, the same on all.
    pub weights: Vec<u32>,
    /// This one; 0 leads.
    pub rank: usize,
}

/// A rank's way to the others.
///
/// What one rank gives another arrives in the sequence in which it was given, orders and
/// messages alike; where a call cannot keep that promise it returns an error. A message may come
/// before the order that its step belongs to, from another rank, and is kept until it is asked
/// for. No rank is more than one exchange ahead of any other, so no more than two messages of
/// one rank, [`message_bytes_max`] each, ever wait.
pub trait Exchange: Send {
    /// Gives every follower `order`, at most [`order_bytes_max`] bytes, for [`Shard::follow`];
    /// does not wait until it is carried out. Called on the leader only.
    ///
    /// # Errors
    /// [`ExchangeError::Lost`].
    fn order(&mut self, order: &[u8]) -> Result<(), ExchangeError>;

    /// Gives every other rank `message`; does not wait until any has read it, since they are all
    /// sending.
    ///
    /// # Errors
    /// [`ExchangeError::Lost`].
    fn send(&mut self, message: &[u8]) -> Result<(), ExchangeError>;

    /// Waits for the next message of every other rank, and gives each to `take`, once, with the
    /// rank that sent it, as they come. How long to wait is the transport's business. Stops at
    /// the first error, of its own or of `take`.
    ///
    /// # Errors
    /// [`ExchangeError::Lost`] where a rank is gone or too slow; what `take` returns.
    fn receive(&mut self, take: &mut Take<'_>) -> Result<(), ExchangeError>;
}

/// What [`Exchange::receive`] gives each message to, with the rank that sent it.
pub type Take<'a> = dyn FnMut(usize, &[u8]) -> Result<(), ExchangeError> + 'a;

/// Why ranks could not exchange. The group is broken then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// No way to a rank, or no word from it in time.
    #[error("tensor rank {rank} is lost: {reason}")]
    Lost {
        /// The rank.
        rank: usize,
        /// What happened.
        reason: String,
    },
    /// A rank's message is not what this exchange needs.
    #[error("tensor rank {rank} sent what does not fit: {reason}")]
    Message {
        /// The rank.
        rank: usize,
        /// What was expected, and what came.
        reason: String,
    },
}

/// Why a follower could not carry out an order. It carries out no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// The shard is of no group, or leads it.
    #[error("this shard follows nobody: orders go to the ranks of a tensor group but the first")]
    NoFollower,
    /// The bytes are no order, or not one for this shard.
    #[error("not an order for this tensor group: {0}")]
    Order(String),
    /// Leader and follower do not hold the same.
    #[error("out of step with the leader: {what} {got} here, {expected} there")]
    OutOfStep {
        /// What they differ in.
        what: &'static str,
        /// The leader's.
        expected: u64,
        /// This rank's.
        got: u64,
    },
    /// The ranks could not exchange.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// Bytes of an order, at most.
pub const fn order_bytes_max(dims: &Dims) -> usize {
    order::HEADER_BYTES + STEP_ROWS_MAX * (order::SEGMENT_BYTES + 4 * dims.d_model as usize)
}

/// Bytes of a message, at most.
pub const fn message_bytes_max(dims: &Dims) -> usize {
    let widths = [dims.d_model, dims.heads * dims.head_dim, dims.d_ff];
    let (mut widest, mut i) = (0, 0);
    while i < widths.len() {
        if widths[i] > widest {
            widest = widths[i];
        }
        i += 1;
    }
    group::HEADER_BYTES + PASS_ROWS_MAX * 4 * widest as usize
}

/// The name of the numerics in which a group of so many ranks computes. Hashes are compared
/// within one class; in the form `Sums` only where the weights are equal, too.
pub fn class_name(class: Class, form: TensorForm, ranks: usize) -> String {
    match form {
        TensorForm::Rows => class.name().to_owned(),
        TensorForm::Sums => format!("{}-sums-{ranks}", class.name()),
    }
}

/// What [`class_name`] named: the class of each rank, and the ranks of a `Sums` group.
pub fn class_from_name(name: &str) -> Option<(Class, Option<usize>)> {
    if let Some(class) = Class::from_name(name) {
        return Some((class, None));
    }
    let (class, ranks) = name.rsplit_once("-sums-")?;
    let ranks = ranks.parse().ok().filter(|ranks| (2..=RANKS_MAX).contains(ranks))?;
    Some((Class::from_name(class)?, Some(ranks)))
}

/// [`crate::kv_page_bytes`] of a rank.
///
/// # Panics
/// If the division has no such rank.
pub fn kv_page_bytes(
    manifest: &Manifest,
    span: Range<u32>,
    class: Class,
    division: &Division,
    rank: usize,
) -> u64 {
    let held = division.ranks[rank].kv_heads.len() as u64;
    crate::kv_page_bytes(manifest, span, class) / u64::from(manifest.dims.kv_heads) * held
}

impl From<ExchangeError> for StepError {
    fn from(error: ExchangeError) -> StepError {
        StepError::Exchange(error)
    }
}
