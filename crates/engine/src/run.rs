//! Executes a plan on the CPU: one pass of at most [`PASS_ROWS_MAX`] rows at a time.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use model::manifest::Dims;
use numerics::PAGE_POSITIONS;
use numerics::attention::score_factor;
use numerics::rope::{Pairs, sin_cos};

use crate::cpu::attention::Attention;
use crate::cpu::product::{Activations, lookup, product, tiles};
use crate::cpu::quants::Quants;
use crate::cpu::rows::RowsMut;
use crate::cpu::{Element, Isa, append, elementwise};
use crate::crew::{self, Chief};
use crate::kv::Kv;
use crate::plan::{Buffer, Command, Factor};
use crate::pool::Pool;
use crate::steps::Run;
use crate::tensor::{ExchangeError, GROUPS, Group};
use crate::types::Class;
use crate::weights::{Matrix, Weights};

/// Rows that go through the commands together; scratch memory is bounded by it, and a
/// longer step is several passes.
pub(crate) const PASS_ROWS_MAX: usize = 256;
/// Query rows of one attention task: enough to share a page's widening.
const ATTENTION_ROWS: usize = 16;
/// Tasks per thread and command, so that a thread that lags does not hold up the others.
const TASKS_PER_THREAD: usize = 4;
/// Products of a weight and an activation in one task, at most (a task has a whole tile at
/// least): with AVX2 some tens of microseconds, by which a thread that lags holds up the others.
const TASK_PRODUCTS: usize = 1 << 21;
/// Rows from which an op on rows is worth more than one thread.
const PARALLEL_ROWS_MIN: usize = 8;

/// What enters a pass.
#[derive(Clone, Copy)]
pub(crate) enum PassInput<'a> {
    Tokens(&'a [u32]),
    Hidden(&'a [f32]),
}

/// A row of the pass whose numbers overflowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowFault(pub(crate) usize);

/// Why a pass ends early.
#[derive(Debug)]
pub(crate) enum PassError {
    /// A row of the pass overflowed.
    Fault(RowFault),
    /// The same, and every rank of the tensor group ends the pass for it.
    Agreed(RowFault),
    /// The ranks could not exchange.
    Exchange(ExchangeError),
}

impl From<RowFault> for PassError {
    fn from(fault: RowFault) -> PassError {
        PassError::Fault(fault)
    }
}

impl From<ExchangeError> for PassError {
    fn from(error: ExchangeError) -> PassError {
        PassError::Exchange(error)
    }
}

/// Which query heads read which K/V head, both counted from this shard's first ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupedHeads {
    /// Query heads here.
    pub(crate) heads: usize,
    /// Query heads that read one K/V head of the model.
    pub(crate) per_kv_head: usize,
    /// How many of the first K/V head's are on the rank before.
    pub(crate) skipped: usize,
}

impl GroupedHeads {
    fn of(self, kv_head: usize) -> Range<usize> {
        let end = (kv_head + 1) * self.per_kv_head - self.skipped;
        (kv_head * self.per_kv_head).saturating_sub(self.skipped)..end.min(self.heads)
    }
}

/// What stays the same from step to step.
pub(crate) struct Machine {
    pub(crate) class: Class,
    pub(crate) isa: Isa,
    /// Of this rank, in a tensor group: its heads, and its feed-forward rows.
    pub(crate) dims: Dims,
    pub(crate) heads: GroupedHeads,
    pub(crate) eps: f32,
    pub(crate) inv_freq: Vec<f64>,
    pub(crate) pairs: Pairs,
    pub(crate) weights: Weights,
    pub(crate) plan: Vec<Command>,
    pub(crate) pool: Pool,
    /// Helpers, where there are any.
    pub(crate) chief: Mutex<Option<Chief>>,
}

/// Buffers of a pass, grown to the widest one and reused.
#[derive(Default)]
pub(crate) struct Scratch {
    buffers: [Vec<f32>; Buffer::COUNT],
    quants: Quants,
    /// `[T, hd / 2]`.
    sin: Vec<f32>,
    cos: Vec<f32>,
}

/// The lowest faulty row that any task reported.
struct FirstFault(AtomicUsize);

impl FirstFault {
    fn new() -> FirstFault {
        FirstFault(AtomicUsize::new(usize::MAX))
    }

    fn report(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    fn result(self) -> Result<(), RowFault> {
        match self.0.into_inner() {
            usize::MAX => Ok(()),
            row => Err(RowFault(row)),
        }
    }
}

impl Machine {
    pub(crate) fn width(&self, buffer: Buffer) -> usize {
        let d = &self.dims;
        (match buffer {
            Buffer::Hidden | Buffer::Normed | Buffer::Branch => d.d_model,
            Buffer::Query | Buffer::Mixed => d.heads * d.head_dim,
            Buffer::Key | Buffer::Value => d.kv_heads * d.head_dim,
            Buffer::Gate | Buffer::Up => d.d_ff,
            Buffer::Logits => d.vocab,
        }) as usize
    }

    /// Runs the rows of `runs` through the plan and appends the pass's output, hidden
    /// rows or logits, to `output`. Their KV pages are reserved and their own.
    pub(crate) fn pass<E: Element>(
        &self,
        scratch: &mut Scratch,
        kv: Option<&mut Kv<E>>,
        mut group: Option<&mut Group>,
        runs: &[Run],
        input: PassInput<'_>,
        output: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        let mut at = 0;
        let through = (group.as_deref_mut(), &mut at);
        let result = self.commands(scratch, kv, through, runs, input, output);
        match (result, group) {
            (Err(PassError::Fault(fault)), Some(group)) if GROUPS => {
                let rows = runs.iter().map(|r| r.rows).sum();
                Err(group.announce(&self.plan, at, rows, fault))
            }
            (result, _) => result,
        }
    }

    /// [`Machine::pass`], with the command that is reached.
    fn commands<E: Element>(
        &self,
        scratch: &mut Scratch,
        mut kv: Option<&mut Kv<E>>,
        (mut group, at): (Option<&mut Group>, &mut usize),
        runs: &[Run],
        input: PassInput<'_>,
        output: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        let mut rows = runs.iter().map(|r| r.rows).sum::<usize>();
        if let PassInput::Hidden(hidden) = input {
            scratch.prepare(Buffer::Hidden, hidden.len()).copy_from_slice(hidden);
        }
        if kv.is_some() {
            self.turn(scratch, runs);
        }
        // Once only the rows that want logits are left: which rows of the pass they were.
        let mut kept: Option<Vec<usize>> = None;
        let blame = |kept: &Option<Vec<usize>>, RowFault(row): RowFault| {
            RowFault(kept.as_ref().map_or(row, |kept| kept[row]))
        };
        let mut products = 0; // so far
        for (index, command) in self.plan.iter().enumerate() {
            *at = index;
            match command {
                Command::Embed { table } => {
                    let PassInput::Tokens(tokens) = input else {
                        unreachable!("a shard with the embedding takes tokens")
                    };
                    self.embed(scratch, self.weights.matrix(*table), tokens);
                }
                Command::Norm { gain } => self
                    .norm(scratch, self.weights.vector(*gain), rows)
                    .map_err(|fault| blame(&kept, fault))?,
                Command::Quantise { input } => {
                    self.quantise(scratch, *input, rows).map_err(|fault| blame(&kept, fault))?
                }
                Command::Product { input, factors } => {
                    self.product(scratch, *input, factors, products, rows);
                    products += 1;
                }
                Command::Rope { buffer } => self.rope(scratch, *buffer, rows),
                Command::Append { layer } => {
                    let kv = kv.as_deref_mut().expect("a shard with layers has a cache");
                    self.append(scratch, kv, *layer, runs)?;
                }
                Command::Attention { layer } => {
                    let kv = kv.as_deref().expect("a shard with layers has a cache");
                    self.attention(scratch, kv, *layer, runs)?;
                }
                Command::SwiGlu => self.swiglu(scratch, rows),
                Command::Add => self.add(scratch, rows),
                Command::Gather { .. } | Command::GatherBlocks { .. } | Command::Reduce { .. } => {
                    let Some(group) = group.as_deref_mut().filter(|_| GROUPS) else {
                        unreachable!("only a tensor group's plan has {command}")
                    };
                    group.exchange(command, scratch, rows)?;
                }
                Command::Check { buffer } => {
                    self.check(scratch, *buffer, rows).map_err(|fault| blame(&kept, fault))?;
                }
                Command::Select => {
                    let ends =
                        runs.iter().map(|r| r.start + r.rows - r.logits_rows..r.start + r.rows);
                    kept = Some(ends.flatten().collect());
                    rows = self.select(scratch, runs);
                    if rows == 0 {
                        return Ok(());
                    }
                }
            }
        }
        let result = if self.weights.head.is_some() { Buffer::Logits } else { Buffer::Hidden };
        let len = rows * self.width(result);
        output.extend_from_slice(&scratch.buffers[result as usize][..len]);
        Ok(())
    }

    /// Runs `task` for each of `rows` rows, in chunks over the threads where it pays.
    fn for_rows(&self, rows: usize, task: &(dyn Fn(usize) + Sync)) {
        if rows < PARALLEL_ROWS_MIN || self.pool.threads() == 1 {
            return (0..rows).for_each(task);
        }
        let tasks = (self.pool.threads() * TASKS_PER_THREAD).min(rows);
        self.pool.run(tasks, &|i| chunk(rows, tasks, i).for_each(task));
    }

    fn embed(&self, scratch: &mut Scratch, table: &Matrix, tokens: &[u32]) {
        let width = self.width(Buffer::Hidden);
        let hidden = scratch.prepare(Buffer::Hidden, tokens.len() * width);
        for (row, &token) in hidden.chunks_exact_mut(width).zip(tokens) {
            lookup(self.isa, table, token as usize, row);
        }
    }

    /// Sines and cosines of every row's position.
    fn turn(&self, scratch: &mut Scratch, runs: &[Run]) {
        scratch.sin.clear();
        scratch.cos.clear();
        for run in runs {
            for position in run.position..run.position + run.rows as u32 {
                for &f in &self.inv_freq {
                    let (sin, cos) = sin_cos(position, f);
                    scratch.sin.push(sin);
                    scratch.cos.push(cos);
                }
            }
        }
    }

    fn norm(&self, scratch: &mut Scratch, gain: &[f32], rows: usize) -> Result<(), RowFault> {
        let width = self.width(Buffer::Hidden);
        let mut normed = scratch.take(Buffer::Normed, rows * width);
        let hidden = &scratch.buffers[Buffer::Hidden as usize];
        let out = RowsMut::new(&mut normed, rows, width);
        let fault = FirstFault::new();
        self.for_rows(rows, &|t| {
            let x = &hidden[t * width..(t + 1) * width];
            // SAFETY: each row is one task's.
            let y = unsafe { out.row(t) };
            if elementwise::rms_norm(self.isa, x, gain, self.eps, y).is_err() {
                fault.report(t);
            }
        });
        scratch.put(Buffer::Normed, normed);
        fault.result()
    }

    fn quantise(&self, scratch: &mut Scratch, from: Buffer, rows: usize) -> Result<(), RowFault> {
        let width = self.width(from);
        let Scratch { buffers, quants, .. } = scratch;
        quants.resize(rows, width);
        let (x, writer) = (&buffers[from as usize], quants.writer());
        let fault = FirstFault::new();
        self.for_rows(rows, &|t| {
            // SAFETY: each row is one task's.
            let done = unsafe { writer.write(self.isa, t, &x[t * width..(t + 1) * width]) };
            if done.is_err() {
                fault.report(t);
            }
        });
        fault.result()
    }

    /// The plan's products, by number.
    pub(crate) fn products(&self) -> impl Iterator<Item = &[Factor]> {
        self.plan.iter().filter_map(|command| match command {
            Command::Product { factors, .. } => Some(&factors[..]),
            _ => None,
        })
    }

    /// Product `number` of the plan.
    fn product(
        &self,
        scratch: &mut Scratch,
        input: Buffer,
        factors: &[Factor],
        number: usize,
        rows: usize,
    ) {
        let matrices = crew::matrices(&self.weights, factors);
        let mut results: Vec<Vec<f32>> = factors
            .iter()
            .zip(&matrices)
            .map(|(f, m)| scratch.take(f.output, rows * m.rows))
            .collect();
        let outputs: Vec<RowsMut<'_>> =
            results.iter_mut().zip(&matrices).map(|(r, m)| RowsMut::new(r, rows, m.rows)).collect();
        let biases: Vec<Option<&[f32]>> =
            factors.iter().map(|f| f.bias.map(|b| self.weights.vector(b))).collect();
        let exact = Activations::Exact(&scratch.buffers[input as usize]);
        let run = |(index, tiles): (usize, Range<usize>)| {
            let matrix = matrices[index];
            let quantised = self.class == Class::Canonical1 && matrix.layout.is_tiled();
            let x = if quantised { Activations::Quantised(&scratch.quants) } else { exact };
            // SAFETY: tasks take disjoint tiles, so they write disjoint rows.
            unsafe { product(self.isa, matrix, tiles, x, rows, biases[index], outputs[index]) };
        };
        let mut chief = self.chief.lock().expect("no step panicked");
        let helped = chief.as_mut().and_then(|c| {
            c.begin(self.class, number, &matrices, &scratch.quants, rows).then_some(c)
        });
        if let Some(chief) = helped {
            // SAFETY: nobody else writes.
            unsafe { chief.finish(&matrices, &biases, rows, &outputs, &run) };
        } else {
            let total: usize = matrices.iter().map(|m| tiles(m)).sum();
            let tasks = match self.pool.threads() {
                1 => 1,
                n => {
                    let products: usize = matrices.iter().map(|m| m.rows * m.cols * rows).sum();
                    (n * TASKS_PER_THREAD).max(products / TASK_PRODUCTS).min(total)
                }
            };
            self.pool.run(tasks, &|i| {
                // The matrices' tiles are numbered through; a task's share may touch several.
                crew::parts(&matrices, chunk(total, tasks, i)).into_iter().for_each(run);
            });
        }
        for (factor, result) in factors.iter().zip(results) {
            scratch.put(factor.output, result);
        }
    }

    fn rope(&self, scratch: &mut Scratch, buffer: Buffer, rows: usize) {
        let (width, half) = (self.width(buffer), self.inv_freq.len());
        let Scratch { buffers, sin, cos, .. } = scratch;
        let out = RowsMut::new(&mut buffers[buffer as usize], rows, width);
        self.for_rows(rows, &|t| {
            let at = t * half..(t + 1) * half;
            // SAFETY: each row is one task's.
            let x = unsafe { out.row(t) };
            elementwise::rope(self.isa, x, &sin[at.clone()], &cos[at], self.pairs);
        });
    }

    fn append<E: Element>(
        &self,
        scratch: &Scratch,
        kv: &mut Kv<E>,
        layer: usize,
        runs: &[Run],
    ) -> Result<(), RowFault> {
        let shape = kv.shape();
        let (hd, width) = (shape.head_dim, self.width(Buffer::Key));
        let keys = &scratch.buffers[Buffer::Key as usize];
        let values = &scratch.buffers[Buffer::Value as usize];
        for run in runs {
            for i in 0..run.rows {
                let row = run.start + i;
                let position = run.position as usize + i;
                let slot = position % PAGE_POSITIONS;
                let page = kv.page_mut(run.session, position / PAGE_POSITIONS);
                for head in 0..shape.kv_heads {
                    let start = shape.head_start(layer, head);
                    let (k, v) =
                        page[start..start + 2 * shape.head_len()].split_at_mut(shape.head_len());
                    let from = row * width + head * hd..row * width + (head + 1) * hd;
                    append(self.isa, &keys[from.clone()], &values[from], slot, k, v)
                        .map_err(|_| RowFault(row))?;
                }
            }
        }
        Ok(())
    }

    fn attention<E: Element>(
        &self,
        scratch: &mut Scratch,
        kv: &Kv<E>,
        layer: usize,
        runs: &[Run],
    ) -> Result<(), RowFault> {
        let shape = kv.shape();
        let width = self.width(Buffer::Mixed);
        let rows = runs.iter().map(|r| r.rows).sum::<usize>();
        let mut mixed = scratch.take(Buffer::Mixed, rows * width);
        let out = RowsMut::new(&mut mixed, rows, width);
        let queries = &scratch.buffers[Buffer::Query as usize];
        let mut tasks: Vec<(Run, Range<usize>)> = Vec::new();
        for run in runs {
            for first in (0..run.rows).step_by(ATTENTION_ROWS) {
                tasks.push((*run, first..(first + ATTENTION_ROWS).min(run.rows)));
            }
        }
        let fault = FirstFault::new();
        self.pool.run(tasks.len() * shape.kv_heads, &|i| {
            let ((run, part), kv_head) = (&tasks[i / shape.kv_heads], i % shape.kv_heads);
            let start = shape.head_start(layer, kv_head);
            let end = run.position as usize + part.end;
            let pages: Vec<&[E]> = (0..end.div_ceil(PAGE_POSITIONS))
                .map(|page| &kv.page(run.session, page)[start..start + 2 * shape.head_len()])
                .collect();
            let attention = Attention {
                pages: &pages,
                queries,
                rows: run.start + part.start..run.start + part.end,
                position: run.position as usize + part.start,
                heads: self.heads.of(kv_head),
                head_dim: shape.head_dim,
                factor: score_factor(shape.head_dim),
            };
            // SAFETY: each row and kv head is one task's.
            if let Err(row) = unsafe { attention.run(self.isa, out) } {
                fault.report(row);
            }
        });
        scratch.put(Buffer::Mixed, mixed);
        fault.result()
    }

    fn swiglu(&self, scratch: &mut Scratch, rows: usize) {
        let width = self.width(Buffer::Gate);
        let mut gate = scratch.take(Buffer::Gate, rows * width);
        let out = RowsMut::new(&mut gate, rows, width);
        let up = &scratch.buffers[Buffer::Up as usize];
        self.for_rows(rows, &|t| {
            // SAFETY: each row is one task's.
            let row = unsafe { out.row(t) };
            elementwise::swiglu(self.isa, row, &up[t * width..(t + 1) * width]);
        });
        scratch.put(Buffer::Gate, gate);
    }

    fn add(&self, scratch: &mut Scratch, rows: usize) {
        let len = rows * self.width(Buffer::Hidden);
        let mut hidden = scratch.take(Buffer::Hidden, len);
        let branch = &scratch.buffers[Buffer::Branch as usize];
        elementwise::add(self.isa, &mut hidden[..len], &branch[..len]);
        scratch.put(Buffer::Hidden, hidden);
    }

    fn check(&self, scratch: &Scratch, buffer: Buffer, rows: usize) -> Result<(), RowFault> {
        let width = self.width(buffer);
        let values = &scratch.buffers[buffer as usize][..rows * width];
        for (t, row) in values.chunks_exact(width).enumerate() {
            elementwise::check(self.isa, row).map_err(|_| RowFault(t))?;
        }
        Ok(())
    }

    /// Moves the rows that want logits to the front; returns how many.
    fn select(&self, scratch: &mut Scratch, runs: &[Run]) -> usize {
        let width = self.width(Buffer::Hidden);
        let hidden = &mut scratch.buffers[Buffer::Hidden as usize];
        let mut kept = 0;
        for run in runs {
            let end = run.start + run.rows;
            let wanted = (end - run.logits_rows) * width..end * width;
            hidden.copy_within(wanted, kept * width);
            kept += run.logits_rows;
        }
        kept
    }
}

/// Task `i`'s share of `items` items in `tasks` nearly equal shares.
fn chunk(items: usize, tasks: usize, i: usize) -> Range<usize> {
    items * i / tasks..items * (i + 1) / tasks
}

impl Scratch {
    /// The first `len` elements of a buffer, grown if need be.
    fn prepare(&mut self, buffer: Buffer, len: usize) -> &mut [f32] {
        let values = &mut self.buffers[buffer as usize];
        if values.len() < len {
            values.resize(len, 0.0);
        }
        &mut values[..len]
    }

    /// The first `len` elements of a buffer.
    pub(crate) fn values(&mut self, buffer: Buffer, len: usize) -> &mut [f32] {
        self.prepare(buffer, len)
    }

    pub(crate) fn swap_values(&mut self, buffer: Buffer, values: &mut Vec<f32>) {
        std::mem::swap(&mut self.buffers[buffer as usize], values);
    }

    pub(crate) fn quants(&mut self) -> &mut Quants {
        &mut self.quants
    }

    /// Takes a buffer out, to write it while others are read; see [`Scratch::put`].
    fn take(&mut self, buffer: Buffer, len: usize) -> Vec<f32> {
        self.prepare(buffer, len);
        std::mem::take(&mut self.buffers[buffer as usize])
    }

    fn put(&mut self, buffer: Buffer, values: Vec<f32>) {
        self.buffers[buffer as usize] = values;
    }
}
