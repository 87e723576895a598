//! The CPU kernels and whole shards against their definition, bit for bit.
//!
//! One table of cases per op, run on every instruction set that this machine has. Outputs
//! are filled with NaN beforehand, and guard words lie behind them.

mod attention;
mod crew;
mod faults;
mod guard;
mod products;
mod ranks;
mod rows;
mod sessions;
mod shards;
mod slots;
mod tensor;
mod tiny;
