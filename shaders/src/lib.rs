//! The GPU kernels, one WGSL file each in `wgsl/`, validated and described when this crate
//! is built: a module per kernel with its source, bindings, overrides, constants and
//! parameters, generated from the shader's own text.
//!
//! Knows nothing about wgpu: `engine::gpu` makes pipelines of it.

/// One kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its file's name.
    pub name: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// The complete WGSL, in the pieces of which it was put together: what kernels share
    /// stands in the program once.
    pub texts: &'static [&'static str],
    /// Names of the override constants that a pipeline may set.
    pub overrides: &'static [&'static str],
    /// The bindings of its only bind group, by number.
    pub bindings: &'static [Binding],
}

impl Kernel {
    /// The complete WGSL.
    pub fn source(&self) -> String {
        self.texts.concat()
    }
}

/// One binding of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub access: Access,
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A uniform.
    Uniform,
    /// A storage buffer that is only read.
    Read,
    /// A storage buffer that is written.
    ReadWrite,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
