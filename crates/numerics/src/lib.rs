//! The scalar definition of every op of `canonical-1` and `exact-f32`.
//!
//! Plain code, one element at a time, no fused multiply-add and no libm: the page
//! NUMERICS.md as functions. The engine's SIMD kernels must equal these bit for bit;
//! nothing here is written for speed. Every function is pure.
//!
//! Letters: T tokens, D model width, H heads, K kv heads, hd head width, F feed-forward
//! width, V vocabulary, R rows and C columns of a matrix `[R, C]`.

pub mod attention;
pub mod choice;
pub mod environment;
pub mod exp;
pub mod f16;
pub mod finite;
pub mod norm;
pub mod product;
pub mod quantise;
pub mod rope;
pub mod sum;

pub use environment::check_float_environment;
pub use finite::Fault;

/// Keys of an attention page and positions of a KV page.
pub const PAGE_POSITIONS: usize = 64;
/// Columns of an activation block.
pub const BLOCK: usize = 32;
/// Positions stay below this (RoPE's angle reduction is checked up to here).
pub const POSITIONS_MAX: u32 = 131_072;
