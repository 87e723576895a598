//! A whole model in the plainest loops: the oracle of the tests.
//!
//! [`Model`] holds every weight unpacked, as quants and as f32, so it is for small models.
//! [`forward`] is NUMERICS.md composed of the scalar functions of `numerics` and nothing
//! else; [`plain`] is the textbook transformer in f32 with libm, which knows nothing of
//! blocks, stripes or pages. The engine must equal the first to the bit and the second
//! within rounding.
//!
//! Pure: no sockets, clock, threads or randomness; no cache, every position computed anew.

pub mod forward;
pub mod plain;
pub mod weights;

pub use forward::{Class, Forward};
pub use weights::Model;
