//! A span of parts as a list of commands, which a backend executes in order.

use std::fmt;

use model::manifest::Role;
use model::tensor::TensorForm;

use crate::types::Class;
use crate::weights::{Layer, Matrix, Weights};

/// Intermediate values of a pass, each `[T, width]` f32, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffer {
    /// The residual stream, `[T, D]`.
    Hidden,
    /// A normed copy of it, `[T, D]`.
    Normed,
    /// `[T, H·hd]`.
    Query,
    /// `[T, K·hd]`.
    Key,
    /// `[T, K·hd]`.
    Value,
    /// Attention's output, `[T, H·hd]`.
    Mixed,
    /// What is added to the residual stream, `[T, D]`.
    Branch,
    /// `[T, F]`.
    Gate,
    /// `[T, F]`.
    Up,
    /// `[T', V]`, T' the rows that want logits.
    Logits,
}

impl Buffer {
    /// How many there are.
    pub(crate) const COUNT: usize = Buffer::Logits as usize + 1;
}

/// A tensor of the shard: of a layer (counted from the shard's first) or of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorRef {
    pub(crate) layer: Option<usize>,
    pub(crate) role: Role,
}

/// One matrix of a product: `output = matrix · input (+ bias)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factor {
    pub(crate) matrix: TensorRef,
    pub(crate) bias: Option<TensorRef>,
    pub(crate) output: Buffer,
}

/// One command; all rows of the pass, unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `hidden = table[token]`, dequantised.
    Embed { table: TensorRef },
    /// `normed = rms_norm(hidden)·gain`; a fault where the sum overflows.
    Norm { gain: TensorRef },
    /// `blocks = quantise(input)`: the activations of the products that follow.
    Quantise { input: Buffer },
    /// Several products of one input; quantised ones take the blocks.
    Product { input: Buffer, factors: Vec<Factor> },
    /// Rotates every head to its row's position.
    Rope { buffer: Buffer },
    /// Appends key and value to the cache.
    Append { layer: usize },
    /// `mixed = attention(query, cache)`.
    Attention { layer: usize },
    /// `gate = silu(gate)·up`.
    SwiGlu,
    /// `hidden = hidden + branch`.
    Add,
    /// Puts the ranks' columns of a buffer together.
    Gather { buffer: Buffer },
    /// Puts the ranks' blocks together, which are those of this buffer's columns.
    GatherBlocks { buffer: Buffer },
    /// Adds up the ranks' partial sums.
    Reduce { buffer: Buffer },
    /// A fault where the buffer is not finite.
    Check { buffer: Buffer },
    /// Keeps only the rows of hidden that want logits.
    Select,
}

impl Command {
    /// True if the ranks of a tensor group exchange something.
    pub(crate) fn exchanges(&self) -> bool {
        use Command::{Gather, GatherBlocks, Reduce};
        matches!(self, Gather { .. } | GatherBlocks { .. } | Reduce { .. })
    }
}

/// Compiles the weights that a shard holds: all of its parts', or in a tensor group its rank's.
pub(crate) fn compile(weights: &Weights, class: Class, form: Option<TensorForm>) -> Vec<Command> {
    let mut plan = Vec::new();
    if weights.embedding.is_some() {
        plan.push(Command::Embed { table: TensorRef { layer: None, role: Role::TokenEmbedding } });
    }
    for (index, layer) in weights.layers.iter().enumerate() {
        compile_layer(&mut plan, index, layer, class, form);
    }
    plan.push(Command::Check { buffer: Buffer::Hidden });
    if let Some(head) = &weights.head {
        let end = |role| TensorRef { layer: None, role };
        plan.push(Command::Select);
        plan.push(Command::Norm { gain: end(Role::OutputNorm) });
        let factor = Factor { matrix: end(Role::Output), bias: None, output: Buffer::Logits };
        product(&mut plan, Buffer::Normed, &[(&head.output, factor)], class);
        plan.push(Command::Check { buffer: Buffer::Logits });
    }
    plan
}

fn compile_layer(
    plan: &mut Vec<Command>,
    index: usize,
    layer: &Layer,
    class: Class,
    form: Option<TensorForm>,
) {
    let tensor = |role| TensorRef { layer: Some(index), role };
    let factor = |role, bias: Option<Role>, output| Factor {
        matrix: tensor(role),
        bias: bias.map(tensor),
        output,
    };
    let bias = |values: &[f32], role| (!values.is_empty()).then_some(role);
    let q = factor(Role::AttnQ, bias(&layer.q_bias, Role::AttnQBias), Buffer::Query);
    let k = factor(Role::AttnK, bias(&layer.k_bias, Role::AttnKBias), Buffer::Key);
    let v = factor(Role::AttnV, bias(&layer.v_bias, Role::AttnVBias), Buffer::Value);
    let o = factor(Role::AttnOutput, None, Buffer::Branch);
    let gate = factor(Role::FfnGate, None, Buffer::Gate);
    let up = factor(Role::FfnUp, None, Buffer::Up);
    let down = factor(Role::FfnDown, None, Buffer::Branch);

    plan.push(Command::Norm { gain: tensor(Role::AttnNorm) });
    product(plan, Buffer::Normed, &[(&layer.q, q), (&layer.k, k), (&layer.v, v)], class);
    plan.push(Command::Rope { buffer: Buffer::Query });
    plan.push(Command::Rope { buffer: Buffer::Key });
    plan.push(Command::Append { layer: index });
    plan.push(Command::Attention { layer: index });
    joined_product(plan, Buffer::Mixed, (&layer.output, o), class, form);
    plan.push(Command::Add);
    plan.push(Command::Norm { gain: tensor(Role::FfnNorm) });
    product(plan, Buffer::Normed, &[(&layer.gate, gate), (&layer.up, up)], class);
    plan.push(Command::SwiGlu);
    joined_product(plan, Buffer::Gate, (&layer.down, down), class, form);
    plan.push(Command::Add);
}

/// A product whose input's columns are of all ranks.
fn joined_product(
    plan: &mut Vec<Command>,
    input: Buffer,
    (matrix, factor): (&Matrix, Factor),
    class: Class,
    form: Option<TensorForm>,
) {
    let output = factor.output;
    let first = plan.len();
    product(plan, input, &[(matrix, factor)], class);
    match form {
        None => {}
        Some(TensorForm::Rows) => {
            let quantised = plan.len() - first == 2;
            let gather = match quantised {
                true => Command::GatherBlocks { buffer: input },
                false => Command::Gather { buffer: input },
            };
            plan.insert(plan.len() - 1, gather);
            plan.push(Command::Gather { buffer: output });
        }
        Some(TensorForm::Sums) => plan.push(Command::Reduce { buffer: output }),
    }
}

fn product(plan: &mut Vec<Command>, input: Buffer, factors: &[(&Matrix, Factor)], class: Class) {
    if class == Class::Canonical1 && factors.iter().any(|(m, _)| m.layout.is_tiled()) {
        plan.push(Command::Quantise { input });
    }
    plan.push(Command::Product { input, factors: factors.iter().map(|&(_, f)| f).collect() });
}

impl fmt::Display for TensorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{layer}.{:?}", self.role),
            None => write!(f, "{:?}", self.role),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Embed { table } => write!(f, "Hidden = embed {table}"),
            Command::Norm { gain } => write!(f, "Normed = norm Hidden, {gain}"),
            Command::Quantise { input } => write!(f, "blocks = quantise {input:?}"),
            Command::Product { input, factors } => {
                write!(f, "product {input:?}:")?;
                for (i, factor) in factors.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma} {:?} = {}", factor.output, factor.matrix)?;
                    if let Some(bias) = factor.bias {
                        write!(f, " + {bias}")?;
                    }
                }
                Ok(())
            }
            Command::Rope { buffer } => write!(f, "rope {buffer:?}"),
            Command::Append { layer } => write!(f, "kv[{layer}] append Key, Value"),
            Command::Attention { layer } => write!(f, "Mixed = attention Query, kv[{layer}]"),
            Command::SwiGlu => write!(f, "Gate = silu(Gate) * Up"),
            Command::Add => write!(f, "Hidden += Branch"),
            Command::Gather { buffer } => write!(f, "gather {buffer:?}"),
            Command::GatherBlocks { buffer } => write!(f, "gather blocks of {buffer:?}"),
            Command::Reduce { buffer } => write!(f, "reduce {buffer:?}"),
            Command::Check { buffer } => write!(f, "check {buffer:?}"),
            Command::Select => write!(f, "select rows that want logits"),
        }
    }
}
