//! Dividing layers among the ranks of a tensor group.
//!
//! Every rank holds a part of every matrix of a layer, in one of two forms:
//!
//! | matrix | [`TensorForm::Rows`] | [`TensorForm::Sums`] |
//! |---|---|---|
//! | q, and its bias | rows of the rank's query heads | the same |
//! | k, v, and their biases | rows of the K/V heads that these read | the same |
//! | attn_output | rows of the rank's part of the model width | columns of its query heads |
//! | gate, up | the rank's feed-forward rows | the same |
//! | down | rows of its part of the model width | columns of its feed-forward rows |
//! | norms | all | all |
//!
//! A K/V head that query heads of two ranks read is on both. No 16-row tile and no block of 32
//! or 256 columns is cut: shares are whole *units* of them, the same in all layers. A division
//! is a function of manifest, form and weights, so all sides find the same one. Megatron-LM
//! (arXiv:1909.08053) cuts as `Sums` does.

use std::ops::Range;

use thiserror::Error;

use crate::layout::{BLOCK_COLS, Layout, TENSOR_ALIGN, TILE_ROWS};
use crate::manifest::{Dims, Manifest, Role};
use crate::validate::KvType;

/// Ranks of a group: each sends to each.
pub const RANKS_MAX: usize = 8;
/// Weight of a rank; they are relative.
pub const RANK_WEIGHT_MAX: u32 = 1 << 20;
/// Bytes of 32 gathered activations in `canonical-1`: an f32 scale and their quants.
pub const GATHERED_BLOCK_BYTES: usize = 4 + BLOCK_COLS;

/// How the ranks' parts become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorForm {
    /// Output rows with all-gathers, four a layer: the same bits as one process.
    Rows,
    /// Partial sums with all-reduces, two a layer: a sum over columns is cut, so the bits depend
    /// on the division.
    Sums,
}

impl TensorForm {
    /// Its name in messages and flags.
    pub const fn name(self) -> &'static str {
        match self {
            TensorForm::Rows => "rows",
            TensorForm::Sums => "sums",
        }
    }

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<TensorForm> {
        [TensorForm::Rows, TensorForm::Sums].into_iter().find(|form| form.name() == name)
    }

    /// Exchanges of one layer, in each of which every rank sends to every other.
    pub const fn exchanges(self) -> u32 {
        match self {
            TensorForm::Rows => 4,
            TensorForm::Sums => 2,
        }
    }
}

/// What one rank holds of every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankShare {
    /// Query heads.
    pub heads: Range<u32>,
    /// K/V heads that these read.
    pub kv_heads: Range<u32>,
    /// Feed-forward rows, of F.
    pub ffn: Range<u32>,
    /// Rows of attn_output and of down, of D; all of them in the form `Sums`.
    pub width: Range<u32>,
}

/// What each rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// How the parts become one.
    pub form: TensorForm,
    /// By rank.
    pub ranks: Vec<RankShare>,
}

/// Why a model cannot be divided so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DivisionError {
    /// One rank is no group, and more than [`RANKS_MAX`] are refused.
    #[error("{got} ranks, a tensor group has 2 to {RANKS_MAX}")]
    Ranks {
        /// Weights given.
        got: usize,
    },
    /// A weight of 0 or beyond [`RANK_WEIGHT_MAX`].
    #[error("rank {rank} has weight {got}, expected 1 to {RANK_WEIGHT_MAX}")]
    Weight {
        /// The rank.
        rank: usize,
        /// Its weight.
        got: u32,
    },
    /// A rank would have nothing of it.
    #[error("{what} divide into {units} units, too few for {ranks} ranks: take fewer")]
    TooFew {
        /// What is divided.
        what: &'static str,
        /// Units that cannot be cut.
        units: u32,
        /// Ranks asked for.
        ranks: usize,
    },
    /// Heads that would begin inside a tile.
    #[error("heads of {head_dim} rows are no whole number of {TILE_ROWS}-row tiles")]
    HeadWidth {
        /// The width of one head.
        head_dim: u32,
    },
}

impl Division {
    /// Divides the layers of a model in proportion to `weights`, one for each rank: its speed
    /// beside the others'.
    ///
    /// # Errors
    /// [`DivisionError`].
    pub fn of(
        manifest: &Manifest,
        form: TensorForm,
        weights: &[u32],
    ) -> Result<Division, DivisionError> {
        let ranks = weights.len();
        if !(2..=RANKS_MAX).contains(&ranks) {
            return Err(DivisionError::Ranks { got: ranks });
        }
        let wrong = |w: &u32| !(1..=RANK_WEIGHT_MAX).contains(w);
        if let Some(rank) = weights.iter().position(wrong) {
            return Err(DivisionError::Weight { rank, got: weights[rank] });
        }
        let d = &manifest.dims;
        let tiled = |roles: &[Role]| layouts(manifest, roles).any(Layout::is_tiled);
        let rows_unit = |roles: &[Role]| if tiled(roles) { TILE_ROWS as u32 } else { 1 };
        // Columns that stay together where the columns themselves are cut, or where what they
        // are multiplied with travels in blocks.
        let cols_unit = |role: Role| match form {
            TensorForm::Rows if tiled(&[role]) => BLOCK_COLS as u32,
            TensorForm::Rows => 1,
            TensorForm::Sums => {
                layouts(manifest, &[role]).map(|l| l.cell_cols() as u32).max().unwrap_or(1)
            }
        };
        let heads_rows = rows_unit(&[Role::AttnQ, Role::AttnK, Role::AttnV]);
        if !d.head_dim.is_multiple_of(heads_rows) {
            return Err(DivisionError::HeadWidth { head_dim: d.head_dim });
        }
        let heads_unit = (1..d.heads)
            .find(|n| (n * d.head_dim).is_multiple_of(cols_unit(Role::AttnOutput)))
            .unwrap_or(d.heads);
        let ffn_unit = rows_unit(&[Role::FfnGate, Role::FfnUp]).max(cols_unit(Role::FfnDown));
        let heads = apportion("query heads", d.heads, heads_unit, weights)?;
        let ffn = apportion("feed-forward rows", d.d_ff, ffn_unit, weights)?;
        let width = match form {
            TensorForm::Sums => vec![0..d.d_model; ranks],
            TensorForm::Rows => {
                let unit = rows_unit(&[Role::AttnOutput, Role::FfnDown]);
                apportion("rows of the model width", d.d_model, unit, weights)?
            }
        };
        let group = d.heads / d.kv_heads;
        let rank = |((heads, ffn), width): ((Range<u32>, Range<u32>), Range<u32>)| {
            let kv_heads = heads.start / group..heads.end.div_ceil(group);
            RankShare { heads, kv_heads, ffn, width }
        };
        let ranks = heads.into_iter().zip(ffn).zip(width).map(rank).collect();
        Ok(Division { form, ranks })
    }

    /// The rows and columns of a layer's tensor that a rank holds.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn part(&self, dims: &Dims, rank: usize, role: Role) -> (Range<u32>, Range<u32>) {
        let share = &self.ranks[rank];
        let (rows, cols) = role.shape(dims);
        let (rows, cols) = (0..rows, 0..cols);
        let wide = |heads: &Range<u32>| heads.start * dims.head_dim..heads.end * dims.head_dim;
        let summed = self.form == TensorForm::Sums;
        match role {
            Role::AttnQ => (wide(&share.heads), cols),
            Role::AttnK | Role::AttnV => (wide(&share.kv_heads), cols),
            Role::AttnQBias => (rows, wide(&share.heads)),
            Role::AttnKBias | Role::AttnVBias => (rows, wide(&share.kv_heads)),
            Role::AttnOutput if summed => (rows, wide(&share.heads)),
            Role::FfnDown if summed => (rows, share.ffn.clone()),
            Role::AttnOutput | Role::FfnDown => (share.width.clone(), cols),
            Role::FfnGate | Role::FfnUp => (share.ffn.clone(), cols),
            Role::AttnNorm
            | Role::FfnNorm
            | Role::TokenEmbedding
            | Role::OutputNorm
            | Role::Output => (rows, cols),
        }
    }

    /// Bytes of weights that a rank keeps of the layers among `parts`.
    ///
    /// # Panics
    /// If there is no such rank, or the parts go beyond the manifest's.
    pub fn weight_bytes(&self, manifest: &Manifest, parts: Range<u32>, rank: usize) -> u64 {
        let layers = parts.start.max(1)..parts.end.min(manifest.dims.layers + 1);
        let parts = layers.map(|part| &manifest.parts[part as usize]);
        let tensors = parts.flat_map(|part| &part.blobs).flat_map(|blob| &blob.tensors);
        let bytes = tensors.map(|t| {
            let (rows, cols) = self.part(&manifest.dims, rank, t.role);
            let bytes = t.layout.matrix_bytes_u64(rows.len() as u32, cols.len() as u32);
            bytes.expect("shares are whole cells").next_multiple_of(TENSOR_ALIGN as u64)
        });
        bytes.sum()
    }

    /// Bytes that one position takes in a rank's KV cache of one layer.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn kv_bytes_per_position(&self, manifest: &Manifest, kv: KvType, rank: usize) -> u64 {
        let all = manifest.kv_bytes_per_position(kv);
        let held = self.ranks[rank].kv_heads.len() as u64;
        all / u64::from(manifest.dims.kv_heads) * held
    }

    /// Bytes that a rank sends to each of the others for one row and layer, part `part`, without
    /// what frames them. The cache's type stands for the class: what `canonical-1` gathers for a
    /// quantised product travels in blocks of [`GATHERED_BLOCK_BYTES`], all else as f32.
    ///
    /// # Panics
    /// If there is no such rank, or the part is no layer.
    pub fn exchange_bytes(&self, manifest: &Manifest, part: u32, kv: KvType, rank: usize) -> u64 {
        let (d, share) = (&manifest.dims, &self.ranks[rank]);
        let gathered = |values: u64, consumer: Role| {
            let (_, tensor) = manifest.tensor(part, consumer).expect("a layer's part");
            if kv == KvType::F16 && tensor.layout.is_tiled() {
                values / BLOCK_COLS as u64 * GATHERED_BLOCK_BYTES as u64
            } else {
                4 * values
            }
        };
        match self.form {
            TensorForm::Sums => 2 * 4 * u64::from(d.d_model),
            TensorForm::Rows => {
                let mixed = share.heads.len() as u64 * u64::from(d.head_dim);
                let branches = 2 * 4 * share.width.len() as u64;
                gathered(mixed, Role::AttnOutput)
                    + gathered(share.ffn.len() as u64, Role::FfnDown)
                    + branches
            }
        }
    }
}

/// The layouts that these tensors have in any layer.
fn layouts(manifest: &Manifest, roles: &[Role]) -> impl Iterator<Item = Layout> {
    let layers = 1..=manifest.dims.layers;
    layers.flat_map(move |part| {
        roles.iter().filter_map(move |&role| manifest.tensor(part, role)).map(|(_, t)| t.layout)
    })
}

/// Cuts `0..total` into a range for each weight, in proportion to them, at multiples of `unit`;
/// each has one unit at least.
fn apportion(
    what: &'static str,
    total: u32,
    unit: u32,
    weights: &[u32],
) -> Result<Vec<Range<u32>>, DivisionError> {
    let (units, ranks) = (total.div_ceil(unit), weights.len());
    if (units as usize) < ranks {
        return Err(DivisionError::TooFew { what, units, ranks });
    }
    let sum: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    let (mut before, mut start) = (0, 0);
    let mut found = Vec::with_capacity(ranks);
    for (rank, &weight) in weights.iter().enumerate() {
        before += u64::from(weight);
        let nearest = ((2 * u64::from(units) * before + sum) / (2 * sum)) as u32;
        let end = nearest.max(start + 1).min(units - (ranks - 1 - rank) as u32);
        found.push(start * unit..(end * unit).min(total));
        start = end;
    }
    Ok(found)
}

/// Copies a part of a `[rows, cols]` matrix in `layout` to the front of `out`, in the same
/// layout. Its ends are whole tiles and cells, or the matrix's own.
///
/// # Panics
/// If they are not, or `bytes` or `out` are too short.
pub fn copy_part(
    layout: Layout,
    (rows, cols): (usize, usize),
    bytes: &[u8],
    (part_rows, part_cols): (Range<usize>, Range<usize>),
    out: &mut [u8],
) {
    let lanes = if layout.is_tiled() { TILE_ROWS } else { 1 };
    let whole = |at: usize, unit: usize, end: usize| at.is_multiple_of(unit) || at == end;
    assert!(
        [part_rows.start, part_rows.end].into_iter().all(|r| whole(r, lanes, rows))
            && [part_cols.start, part_cols.end].into_iter().all(|c| whole(
                c,
                layout.cell_cols(),
                cols
            )),
        "rows {part_rows:?} and columns {part_cols:?} of {layout:?} [{rows}, {cols}]"
    );
    let cell = |col: usize| col / layout.cell_cols() * layout.cell_bytes();
    let stride = cell(cols);
    let kept = cell(part_cols.start)..cell(part_cols.end);
    if kept.is_empty() {
        return;
    }
    let tiles = part_rows.start / lanes..part_rows.end.div_ceil(lanes);
    let tiles = bytes[tiles.start * stride..tiles.end * stride].chunks_exact(stride);
    for (to, from) in out.chunks_exact_mut(kept.len()).zip(tiles) {
        to.copy_from_slice(&from[kept.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;
    use crate::testing::TinyModel;
    use crate::{Gguf, blobs::NoBlobs};

    fn manifest(model: &TinyModel) -> Manifest {
        let file = model.to_bytes();
        crate::convert(&Gguf::parse(&[&file]).unwrap(), "tiny", &mut NoBlobs).unwrap()
    }

    /// SmolLM2's heads and widths.
    fn nine_heads() -> Manifest {
        let dims = Dims {
            d_model: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            d_ff: 1536,
            ..TinyModel::llama(1).dims
        };
        manifest(&TinyModel { dims, ..TinyModel::llama(1) })
    }

    #[test]
    fn nine_heads_go_to_two_and_four_ranks_with_kv_heads_on_both() {
        let model = nine_heads();
        let two = Division::of(&model, TensorForm::Rows, &[1, 1]).unwrap();
        let of = |heads, kv_heads, ffn, width| RankShare { heads, kv_heads, ffn, width };
        assert_eq!(two.ranks[0], of(0..5, 0..2, 0..768, 0..288));
        assert_eq!(two.ranks[1], of(5..9, 1..3, 768..1536, 288..576));
        let four = Division::of(&model, TensorForm::Sums, &[1; 4]).unwrap();
        let heads: Vec<_> =
            four.ranks.iter().map(|r| (r.heads.clone(), r.kv_heads.clone())).collect();
        assert_eq!(heads, [(0..2, 0..1), (2..5, 0..2), (5..7, 1..3), (7..9, 2..3)]);
        assert!(four.ranks.iter().all(|r| r.width == (0..576)));
        let uneven = Division::of(&model, TensorForm::Rows, &[1, 3]).unwrap();
        assert_eq!(uneven.ranks[0], of(0..2, 0..1, 0..384, 0..144));
    }

    #[test]
    fn shares_cover_everything_once_and_each_has_some() {
        let model = nine_heads();
        for form in [TensorForm::Rows, TensorForm::Sums] {
            for weights in [&[1, 1][..], &[1, 100], &[5, 1, 1], &[1, 1, 1, 1_000_000], &[3; 8]] {
                let division = Division::of(&model, form, weights).unwrap();
                let follow = |pick: fn(&RankShare) -> &Range<u32>, total: u32| {
                    let mut end = 0;
                    for share in &division.ranks {
                        assert!(
                            pick(share).start == end && !pick(share).is_empty(),
                            "{division:?}"
                        );
                        end = pick(share).end;
                    }
                    assert_eq!(end, total);
                };
                follow(|r| &r.heads, 9);
                follow(|r| &r.ffn, 1536);
                if form == TensorForm::Rows {
                    follow(|r| &r.width, 576);
                }
            }
        }
    }

    #[test]
    fn blocks_of_256_columns_stay_whole_where_columns_are_cut() {
        let q6k = |role, layer| match (role, layer) {
            (Role::FfnDown | Role::AttnOutput, 1) => GgmlType::Q6K,
            _ => GgmlType::Q8_0,
        };
        let dims = Dims {
            d_model: 256,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            d_ff: 768,
            ..TinyModel::llama(1).dims
        };
        let model = manifest(&TinyModel { dims, matrix_type: q6k, ..TinyModel::llama(1) });
        let sums = Division::of(&model, TensorForm::Sums, &[1, 1]).unwrap();
        assert_eq!((sums.ranks[0].heads.clone(), sums.ranks[0].ffn.clone()), (0..4, 0..512));
        let rows = Division::of(&model, TensorForm::Rows, &[1, 1]).unwrap();
        assert_eq!((rows.ranks[0].heads.clone(), rows.ranks[0].ffn.clone()), (0..4, 0..384));
        let three = Division::of(&model, TensorForm::Sums, &[1; 3]);
        let what = "query heads";
        assert_eq!(three, Err(DivisionError::TooFew { what, units: 2, ranks: 3 }));
    }

    #[test]
    fn what_cannot_be_divided_is_named() {
        let model = nine_heads();
        let of = |weights: &[u32]| Division::of(&model, TensorForm::Rows, weights);
        assert_eq!(of(&[1]), Err(DivisionError::Ranks { got: 1 }));
        assert_eq!(of(&[1; 9]), Err(DivisionError::Ranks { got: 9 }));
        assert_eq!(of(&[1, 0]), Err(DivisionError::Weight { rank: 1, got: 0 }));
        let dims = Dims { heads: 16, kv_heads: 4, head_dim: 8, ..TinyModel::llama(1).dims };
        let narrow = manifest(&TinyModel { dims, ..TinyModel::llama(1) });
        let refused = Division::of(&narrow, TensorForm::Rows, &[1, 1]);
        assert_eq!(refused, Err(DivisionError::HeadWidth { head_dim: 8 }));
    }

    #[test]
    fn a_rank_s_memory_and_messages_are_its_share() {
        let model = nine_heads();
        let rows = Division::of(&model, TensorForm::Rows, &[1, 1]).unwrap();
        let whole = model.span_bytes(1..4);
        let held: Vec<u64> = (0..2).map(|rank| rows.weight_bytes(&model, 0..5, rank)).collect();
        assert!(held.iter().all(|&bytes| bytes < whole * 11 / 20), "{held:?} of {whole}");
        // The norms, and one K/V head of k and v, are on both.
        assert!(held[0] + held[1] > whole && held[0] + held[1] < whole * 11 / 10);
        assert_eq!(rows.kv_bytes_per_position(&model, KvType::F16, 0), 2 * 2 * 2 * 64);
        let sent = |kv| rows.exchange_bytes(&model, 1, kv, 1);
        assert_eq!(sent(KvType::F32), 4 * (4 * 64 + 768 + 2 * 288));
        assert_eq!(sent(KvType::F16), (4 * 64 + 768) / 32 * 36 + 4 * 2 * 288);
        let sums = Division::of(&model, TensorForm::Sums, &[1, 1]).unwrap();
        assert_eq!(sums.exchange_bytes(&model, 1, KvType::F16, 0), 8 * 576);
    }

    #[test]
    fn parts_are_copied_tile_by_tile() {
        // 40 rows of 96 columns: 3 tiles of 3 cells, numbered.
        let cell = Layout::Q4S.cell_bytes();
        let bytes: Vec<u8> = (0..9u8).flat_map(|n| vec![n; cell]).collect();
        let copy = |rows, cols, cells: usize| {
            let mut out = vec![0; cells * cell];
            copy_part(Layout::Q4S, (40, 96), &bytes, (rows, cols), &mut out);
            out.chunks(cell).map(|c| c[0]).collect::<Vec<_>>()
        };
        assert_eq!(copy(16..40, 0..96, 6), [3, 4, 5, 6, 7, 8]);
        assert_eq!(copy(0..40, 32..64, 3), [1, 4, 7]);
        assert_eq!(copy(0..16, 64..96, 1), [2]);
    }
}
