//! Products with the weights, alone and fused with what follows them.

use model::manifest::RopePairs;
use shaders::{Kernel, gate_up, matmul, matmul_serial, matvec, qkv, rope_append, swiglu};

use super::op::{Dispatch, Groups, Op, Way};
use super::types::{Epilogue, GpuMatrix, GpuVector, Rows, Scratch, Variant, row_stride};
use super::{Kernels, MATVEC_ROWS_MAX, any_shape, few_rows, layout_number};

/// Invocations of a workgroup of the elementwise kernels.
const THREADS: u32 = 64;
/// Row quads of a tile.
const QUADS: u32 = matvec::TILE_ROWS / 4;
/// Rows up to which columns go one by one, then four share the weights.
const COLUMNS: [(u32, u32); 2] = [(1, 1), (MATVEC_ROWS_MAX, matvec::COLUMNS_MAX)];

/// A kernel of few rows, whose lanes are added up.
#[derive(Clone, Copy)]
enum Lanes {
    Matvec,
    Qkv,
    GateUp,
}

fn epilogue_number(epilogue: &Epilogue) -> u32 {
    match epilogue {
        Epilogue::Store => matvec::STORE,
        Epilogue::Bias { .. } => matvec::BIAS,
        Epilogue::Add => matvec::ADD,
    }
}

impl Kernels {
    /// `y = matrix·x` with an epilogue: `x` is `[T, C]`, `y` `[T, R]` f32, rows at
    /// [`row_stride`]; they are different buffers. One dispatch per piece.
    pub fn product(
        &self,
        matrix: &GpuMatrix,
        x: &wgpu::Buffer,
        y: &wgpu::Buffer,
        epilogue: &Epilogue,
        rows: Rows,
        scratch: &Scratch,
    ) -> Op {
        let mut ways: Vec<Way> = COLUMNS
            .iter()
            .map(|&(rows_max, columns)| {
                let dispatches = self.matvec(matrix, x, y, epilogue, rows, columns, scratch);
                few_rows(rows_max, dispatches)
            })
            .collect();
        ways.push(any_shape(self.matmul(matrix, x, y, epilogue, rows, scratch)));
        Op { rows, ways }
    }

    #[expect(clippy::too_many_arguments, reason = "private, and they are all different")]
    fn matvec(
        &self,
        matrix: &GpuMatrix,
        x: &wgpu::Buffer,
        y: &wgpu::Buffer,
        epilogue: &Epilogue,
        rows: Rows,
        columns: u32,
        scratch: &Scratch,
    ) -> Vec<Dispatch> {
        let dispatches = matrix.pieces.iter().map(|piece| {
            let (words, base) = self.bind_piece(matrix, piece);
            let (bias, bias_at) = match epilogue {
                Epilogue::Bias { vector, first } => {
                    let (bias, start) = self.bind_vector(vector);
                    (bias, start + first)
                }
                // Bound and not read.
                _ => (x.as_entire_binding(), 0),
            };
            let params = matvec::Params {
                rows: piece.rows,
                first_row: piece.first_row,
                cols: matrix.cols,
                base,
                x_stride: row_stride(matrix.cols) / 4,
                y_stride: row_stride(matrix.rows),
                bias_at,
            };
            self.dispatch(
                self.lane_kernel(Lanes::Matvec),
                &self.lane_choice(
                    columns,
                    &[
                        (matvec::overrides::LAYOUT, layout_number(matrix.layout)),
                        (matvec::overrides::EPILOGUE, epilogue_number(epilogue)),
                        (matvec::overrides::ROWS_AT, u32::from(rows == Rows::Kept)),
                    ],
                ),
                &params.bytes(),
                &[
                    (matvec::bindings::STEP, scratch.step.as_entire_binding()),
                    (matvec::bindings::MATRIX_WORDS, words),
                    (matvec::bindings::X, x.as_entire_binding()),
                    (matvec::bindings::BIAS, bias),
                    (matvec::bindings::Y, y.as_entire_binding()),
                ],
                [
                    Groups::Fixed(self.lane_groups(piece.rows.div_ceil(matvec::TILE_ROWS))),
                    Groups::PerRows(rows, columns),
                    Groups::Fixed(1),
                ],
            )
        });
        dispatches.collect()
    }

    fn matmul(
        &self,
        matrix: &GpuMatrix,
        x: &wgpu::Buffer,
        y: &wgpu::Buffer,
        epilogue: &Epilogue,
        rows: Rows,
        scratch: &Scratch,
    ) -> Vec<Dispatch> {
        // Both texts have the same bindings and parameters. A workgroup's rows of the matrix, and
        // of `x`:
        let (kernel, group_rows, group_x_rows) = match self.variant {
            Variant::Base | Variant::Subgroups => {
                (&matmul::KERNEL, matmul::GROUP_ROWS, matmul::GROUP_ROWS)
            }
            Variant::Serial => {
                let rows = matmul_serial::GROUP_TILES * matmul_serial::TILE_ROWS;
                (&matmul_serial::KERNEL, rows, matmul_serial::GROUP_ROWS)
            }
        };
        let dispatches = matrix.pieces.iter().map(|piece| {
            let (words, base) = self.bind_piece(matrix, piece);
            let (bias, bias_at) = match epilogue {
                Epilogue::Bias { vector, first } => {
                    let (bias, start) = self.bind_vector(vector);
                    (bias, start + first)
                }
                // Bound and not read.
                _ => (x.as_entire_binding(), 0),
            };
            let params = matmul::Params {
                rows: piece.rows,
                first_row: piece.first_row,
                cols: matrix.cols,
                base,
                x_stride: row_stride(matrix.cols) / 4,
                y_stride: row_stride(matrix.rows),
                bias_at,
            };
            self.dispatch(
                kernel,
                &[
                    (matmul::overrides::LAYOUT, layout_number(matrix.layout)),
                    (matmul::overrides::EPILOGUE, epilogue_number(epilogue)),
                    (matmul::overrides::ROWS_AT, u32::from(rows == Rows::Kept)),
                ],
                &params.bytes(),
                &[
                    (matmul::bindings::STEP, scratch.step.as_entire_binding()),
                    (matmul::bindings::MATRIX_WORDS, words),
                    (matmul::bindings::X, x.as_entire_binding()),
                    (matmul::bindings::BIAS, bias),
                    (matmul::bindings::Y, y.as_entire_binding()),
                ],
                [
                    Groups::Fixed(piece.rows.div_ceil(group_rows)),
                    Groups::PerRows(rows, group_x_rows),
                    Groups::Fixed(1),
                ],
            )
        });
        dispatches.collect()
    }

    /// Workgroups for so many tiles (or pairs of them): an invocation per lane and row quad,
    /// or one per row quad.
    fn lane_groups(&self, units: u32) -> u32 {
        match self.variant {
            Variant::Base | Variant::Subgroups => units,
            Variant::Serial => units.div_ceil(self.variant.lane_threads() / QUADS),
        }
    }

    /// The text of a kernel whose lanes come together as the variant has it. All texts of one
    /// have the same bindings and parameters.
    fn lane_kernel(&self, kernel: Lanes) -> &'static Kernel {
        #[cfg(not(target_arch = "wasm32"))]
        if self.variant == Variant::Subgroups {
            return match kernel {
                Lanes::Matvec => &shaders::matvec_subgroups::KERNEL,
                Lanes::Qkv => &shaders::qkv_subgroups::KERNEL,
                Lanes::GateUp => &shaders::gate_up_subgroups::KERNEL,
            };
        }
        match kernel {
            Lanes::Matvec => &matvec::KERNEL,
            Lanes::Qkv => &qkv::KERNEL,
            Lanes::GateUp => &gate_up::KERNEL,
        }
    }

    /// Its overrides: those of its own, and those of its lanes.
    fn lane_choice(&self, columns: u32, own: &[(&'static str, u32)]) -> Vec<(&'static str, u32)> {
        let mut choice = own.to_vec();
        choice.push((matvec::overrides::COLUMNS, columns));
        choice.push((matvec::overrides::THREADS, self.variant.lane_threads()));
        #[cfg(not(target_arch = "wasm32"))]
        if self.variant == Variant::Subgroups {
            let smallest = self.pipelines.device().adapter_info().subgroup_min_size;
            let is_enough = u32::from(smallest >= matvec::LANES);
            choice.push((shaders::matvec_subgroups::overrides::IN_SUBGROUP, is_enough));
        }
        choice
    }

    /// q, k and v of `normed`, plus biases, rotated; the query into `query`, key and value
    /// appended to the layer's cache `kv`, see [`super::kv_page_words`]. `biases` are the
    /// three vectors joined, `[(H + 2K)·hd]`.
    ///
    /// One dispatch for few rows, where the three matrices are of one piece each and a head
    /// cuts into tiles as its RoPE pairs need it (`hd` a multiple of 32 for half-split pairs);
    /// else three products and the rotation.
    pub fn qkv(
        &self,
        [q, k, v]: [&GpuMatrix; 3],
        biases: Option<&GpuVector>,
        kv: &wgpu::Buffer,
        scratch: &Scratch,
    ) -> Op {
        let hd = self.shapes.head_dim;
        let fits = match self.shapes.pairs {
            RopePairs::Adjacent => true,
            RopePairs::HalfSplit => hd.is_multiple_of(2 * qkv::TILE_ROWS),
        };
        let is_fused = fits && [q, k, v].iter().all(|m| m.pieces.len() == 1);
        let mut ways = Vec::new();
        for (rows_max, columns) in COLUMNS {
            ways.push(few_rows(
                rows_max,
                match is_fused {
                    true => vec![self.fused_qkv([q, k, v], biases, kv, columns, scratch)],
                    false => self.separate_qkv([q, k, v], biases, kv, Some(columns), scratch),
                },
            ));
        }
        ways.push(any_shape(self.separate_qkv([q, k, v], biases, kv, None, scratch)));
        Op { rows: Rows::All, ways }
    }

    /// Three products, of so many columns at a time or for many rows, then the rotation.
    fn separate_qkv(
        &self,
        [q, k, v]: [&GpuMatrix; 3],
        biases: Option<&GpuVector>,
        kv: &wgpu::Buffer,
        columns: Option<u32>,
        scratch: &Scratch,
    ) -> Vec<Dispatch> {
        let mut dispatches = Vec::new();
        let outputs = [
            (q, &scratch.query, 0),
            (k, &scratch.key, q.rows),
            (v, &scratch.value, q.rows + k.rows),
        ];
        for (matrix, output, first) in outputs {
            let epilogue = match biases {
                Some(vector) => Epilogue::Bias { vector: vector.clone(), first },
                None => Epilogue::Store,
            };
            let x = &scratch.normed;
            dispatches.extend(match columns {
                Some(n) => self.matvec(matrix, x, output, &epilogue, Rows::All, n, scratch),
                None => self.matmul(matrix, x, output, &epilogue, Rows::All, scratch),
            });
        }
        dispatches.push(self.rope_append(kv, scratch));
        dispatches
    }

    fn fused_qkv(
        &self,
        [q, k, v]: [&GpuMatrix; 3],
        biases: Option<&GpuVector>,
        kv: &wgpu::Buffer,
        columns: u32,
        scratch: &Scratch,
    ) -> Dispatch {
        let s = &self.shapes;
        let (query_words, query_base) = self.bind_piece(q, &q.pieces[0]);
        let (key_words, key_base) = self.bind_piece(k, &k.pieces[0]);
        let (value_words, value_base) = self.bind_piece(v, &v.pieces[0]);
        // Bound and not read where there are none.
        let (bias, bias_at) =
            biases.map_or_else(|| (scratch.normed.as_entire_binding(), 0), |b| self.bind_vector(b));
        let params = qkv::Params {
            query_rows: q.rows,
            kv_rows: k.rows,
            cols: q.cols,
            query_base,
            key_base,
            value_base,
            bias_at,
            x_stride: row_stride(q.cols) / 4,
            query_stride: row_stride(q.rows),
            head_dim: s.head_dim,
            kv_heads: s.kv_heads,
        };
        let tiles = q.rows.div_ceil(qkv::TILE_ROWS) + 2 * k.rows.div_ceil(qkv::TILE_ROWS);
        let (pairs, tiles_each) = match s.pairs {
            RopePairs::Adjacent => (qkv::ADJACENT, 1),
            RopePairs::HalfSplit => (qkv::HALF_SPLIT, 2),
        };
        self.dispatch(
            self.lane_kernel(Lanes::Qkv),
            &self.lane_choice(
                columns,
                &[
                    (qkv::overrides::LAYOUT, layout_number(q.layout)),
                    (qkv::overrides::LAYOUT_K, layout_number(k.layout)),
                    (qkv::overrides::LAYOUT_V, layout_number(v.layout)),
                    (qkv::overrides::PAIRS, pairs),
                    (qkv::overrides::BIASED, u32::from(biases.is_some())),
                ],
            ),
            &params.bytes(),
            &[
                (qkv::bindings::STEP, scratch.step.as_entire_binding()),
                (qkv::bindings::QUERY_WORDS, query_words),
                (qkv::bindings::KEY_WORDS, key_words),
                (qkv::bindings::VALUE_WORDS, value_words),
                (qkv::bindings::X, scratch.normed.as_entire_binding()),
                (qkv::bindings::BIAS, bias),
                (qkv::bindings::QUERY, scratch.query.as_entire_binding()),
                (qkv::bindings::KV, kv.as_entire_binding()),
            ],
            [
                Groups::Fixed(self.lane_groups(tiles / tiles_each)),
                Groups::PerRows(Rows::All, columns),
                Groups::Fixed(1),
            ],
        )
    }

    fn rope_append(&self, kv: &wgpu::Buffer, scratch: &Scratch) -> Dispatch {
        let s = &self.shapes;
        let params = rope_append::Params {
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            query_stride: row_stride(s.heads * s.head_dim),
            kv_stride: row_stride(s.kv_heads * s.head_dim),
        };
        let pairs = match s.pairs {
            RopePairs::Adjacent => rope_append::ADJACENT,
            RopePairs::HalfSplit => rope_append::HALF_SPLIT,
        };
        let items = (s.heads + 2 * s.kv_heads) * (s.head_dim / 2);
        self.dispatch(
            &rope_append::KERNEL,
            &[(rope_append::overrides::PAIRS, pairs)],
            &params.bytes(),
            &[
                (rope_append::bindings::STEP, scratch.step.as_entire_binding()),
                (rope_append::bindings::KEY, scratch.key.as_entire_binding()),
                (rope_append::bindings::VALUE, scratch.value.as_entire_binding()),
                (rope_append::bindings::QUERY, scratch.query.as_entire_binding()),
                (rope_append::bindings::KV, kv.as_entire_binding()),
            ],
            [
                Groups::Fixed(items.div_ceil(THREADS)),
                Groups::PerRows(Rows::All, 1),
                Groups::Fixed(1),
            ],
        )
    }

    /// `gate = silu(gate_matrix·normed)·(up_matrix·normed)`; both matrices `[F, D]`, cut into
    /// the same pieces. One dispatch per piece for few rows, else two products and one more.
    pub fn gate_up(&self, gate: &GpuMatrix, up: &GpuMatrix, scratch: &Scratch) -> Op {
        let mut ways: Vec<Way> = COLUMNS
            .iter()
            .map(|&(rows_max, columns)| {
                few_rows(rows_max, self.fused_gate_up(gate, up, columns, scratch))
            })
            .collect();
        ways.push(any_shape(self.separate_gate_up(gate, up, scratch)));
        Op { rows: Rows::All, ways }
    }

    fn separate_gate_up(
        &self,
        gate: &GpuMatrix,
        up: &GpuMatrix,
        scratch: &Scratch,
    ) -> Vec<Dispatch> {
        let mut many = Vec::new();
        for (matrix, output) in [(gate, &scratch.gate), (up, &scratch.up)] {
            let x = &scratch.normed;
            many.extend(self.matmul(matrix, x, output, &Epilogue::Store, Rows::All, scratch));
        }
        let stride = row_stride(gate.rows) / 4;
        many.push(self.dispatch(
            &swiglu::KERNEL,
            &[],
            &swiglu::Params { stride }.bytes(),
            &[
                (swiglu::bindings::UP, scratch.up.as_entire_binding()),
                (swiglu::bindings::GATE, scratch.gate.as_entire_binding()),
            ],
            [
                Groups::Fixed(stride.div_ceil(THREADS)),
                Groups::PerRows(Rows::All, 1),
                Groups::Fixed(1),
            ],
        ));
        many
    }

    fn fused_gate_up(
        &self,
        gate: &GpuMatrix,
        up: &GpuMatrix,
        columns: u32,
        scratch: &Scratch,
    ) -> Vec<Dispatch> {
        let pieces = gate.pieces.iter().zip(&up.pieces);
        let dispatches = pieces.map(|(gate_piece, up_piece)| {
            assert_eq!(
                (gate_piece.first_row, gate_piece.rows),
                (up_piece.first_row, up_piece.rows),
                "gate and up are cut into the same pieces"
            );
            let (gate_words, gate_base) = self.bind_piece(gate, gate_piece);
            let (up_words, up_base) = self.bind_piece(up, up_piece);
            let params = gate_up::Params {
                rows: gate_piece.rows,
                first_row: gate_piece.first_row,
                cols: gate.cols,
                gate_base,
                up_base,
                x_stride: row_stride(gate.cols) / 4,
                y_stride: row_stride(gate.rows),
            };
            self.dispatch(
                self.lane_kernel(Lanes::GateUp),
                &self.lane_choice(
                    columns,
                    &[
                        (gate_up::overrides::LAYOUT, layout_number(gate.layout)),
                        (gate_up::overrides::LAYOUT_UP, layout_number(up.layout)),
                    ],
                ),
                &params.bytes(),
                &[
                    (gate_up::bindings::STEP, scratch.step.as_entire_binding()),
                    (gate_up::bindings::GATE_WORDS, gate_words),
                    (gate_up::bindings::UP_WORDS, up_words),
                    (gate_up::bindings::X, scratch.normed.as_entire_binding()),
                    (gate_up::bindings::Y, scratch.gate.as_entire_binding()),
                ],
                [
                    Groups::Fixed(self.lane_groups(gate_piece.rows.div_ceil(gate_up::TILE_ROWS))),
                    Groups::PerRows(Rows::All, columns),
                    Groups::Fixed(1),
                ],
            )
        });
        dispatches.collect()
    }
}
