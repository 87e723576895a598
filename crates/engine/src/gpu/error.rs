//! Why a GPU cannot be used.

/// Why no GPU was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no adapter at all, or none that may be used.
    #[error("no GPU adapter can be used: {0}")]
    NoAdapter(String),
    /// An adapter was asked for by a number that none has.
    #[error("there is no GPU adapter {index}, only {found} of them, counted from 0")]
    AdapterIndex {
        /// The number asked for.
        index: u32,
        /// How many there are.
        found: u32,
    },
    /// The adapter computes on the CPU, which our CPU engine does much faster.
    #[error("{name} is a software adapter, which is used only if asked for")]
    Software {
        /// The adapter's name.
        name: String,
    },
    /// The adapter gave no device, or the device failed at once.
    #[error("{name} gave no device: {reason}")]
    Device {
        /// The adapter's name.
        name: String,
        /// What it said.
        reason: String,
    },
    /// No variant of the kernels computes correctly on it.
    #[error("{name} computes wrongly: {reasons}")]
    SelfTest {
        /// The adapter's name.
        name: String,
        /// Each variant, and what was wrong with it.
        reasons: String,
    },
}
