//! What the donate page and its worker (a dedicated Web Worker) say to each other, as JSON
//! through `postMessage`.
//!
//! The page draws and holds the owner's choices; the worker does everything else. The worker
//! does nothing at all, no request, no benchmark, before it was told to [`ToTab::Start`].

use serde::{Deserialize, Serialize};

/// From the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToTab {
    /// The owner clicked: benchmark, join, serve. Again after [`ToTab::Pause`]: go on.
    Start(TabSettings),
    /// The owner changed something.
    Set(TabSettings),
    /// Begin no further step and leave; the answer is [`TabPhase::Paused`]. A page that has
    /// none within a second ends the worker.
    Pause {
        /// In words, for the coordinator: `paused by its owner`, `on battery`, `frozen`.
        reason: String,
    },
    /// Answer what is at hand, leave in good order, then [`TabPhase::Paused`].
    Finish {
        /// In words, for the coordinator.
        reason: String,
    },
    /// The tab was hidden or shown again.
    Visibility {
        /// Whether nobody sees it.
        hidden: bool,
    },
    /// Delete all that this origin keeps here: weights, key, figures. Only while paused.
    Forget,
}

/// What the owner allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TabSettings {
    /// What computes, if the owner (or `?backend=`) says so.
    #[serde(default)]
    pub backend: Option<TabBackend>,
    /// Memory for weights, KV cache and scratch, bytes.
    pub memory_bytes_max: u64,
    /// Weights kept on disk, bytes; 0 keeps none.
    pub disk_bytes_max: u64,
    /// Bytes down and up together in this session, after which it leaves; `None`: no cap.
    #[serde(default)]
    pub data_bytes_max: Option<u64>,
    /// Share of the time spent computing, 1 to 100.
    pub intensity_percent: u8,
    /// A name for people; empty: anonymous.
    #[serde(default)]
    pub name: String,
    /// Web Workers that share the rows where the CPU computes, at least 1.
    #[serde(default = "one")]
    pub threads: u32,
}

fn one() -> u32 {
    1
}

/// What computes in a tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TabBackend {
    /// WebGPU, also on a software adapter.
    Webgpu,
    /// WASM on the CPU.
    Wasm,
}

/// From the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromTab {
    /// The worker's code is loaded and waits for [`ToTab::Start`].
    Loaded,
    /// How things are; sent at every change, and twice a second while steps run.
    Status(Box<TabStatus>),
    /// All data is deleted.
    Forgotten {
        /// Bytes of weights that were on disk.
        disk_bytes: u64,
    },
    /// It cannot go on; starting again may help.
    Failed {
        /// What went wrong and what to do, in words.
        reason: String,
    },
}

/// How things are with a tab's worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TabStatus {
    /// What it is doing.
    pub phase: TabPhase,
    /// More about it in words: why it idles, what it waits for, what went wrong.
    #[serde(default)]
    pub detail: String,
    /// What computes, and why not something faster, in words.
    #[serde(default)]
    pub device: Option<TabDevice>,
    /// What the benchmark gave.
    #[serde(default)]
    pub benchmark: Option<TabBenchmark>,
    /// The shards it holds.
    #[serde(default)]
    pub shards: Vec<TabShard>,
    /// Weights: bytes verified and bytes in all, while they are fetched.
    #[serde(default)]
    pub fetching: Option<(u64, u64)>,
    /// Steps answered.
    pub steps: u64,
    /// Rows (tokens of some session) put through its layers.
    pub tokens: u64,
    /// Rows × layers: what it gave. Not verified, so a measure and not a currency.
    pub credit_layer_tokens: u64,
    /// Rows per second over the last ten seconds.
    pub tokens_per_s: f64,
    /// Of the last second, the share spent computing, 0 to 1.
    pub busy: f64,
    /// Bytes received: weights over HTTP, and the socket.
    pub bytes_down: u64,
    /// Bytes sent.
    pub bytes_up: u64,
    /// Weights on disk (OPFS), bytes; 0 where nothing can be kept.
    pub disk_bytes: u64,
    /// Weights taken from disk instead of the network, bytes.
    pub bytes_from_disk: u64,
    /// Whether weights are kept only in memory, and why, in words.
    #[serde(default)]
    pub disk_problem: Option<String>,
}

/// What a tab's worker is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TabPhase {
    /// Nothing, until told to start.
    #[default]
    Waiting,
    /// Looking for a GPU, testing kernels, measuring.
    Benchmarking,
    /// Connecting, or waiting to connect again.
    Connecting,
    /// Joined; has nothing to hold, `detail` says why.
    Idle,
    /// Fetching or loading weights.
    Loading,
    /// Holds layers and takes steps.
    Serving,
    /// Answering what is at hand, then leaving.
    Finishing,
    /// Has left; computes nothing.
    Paused,
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TabDevice {
    /// `webgpu` or `wasm`.
    pub backend: TabBackend,
    /// Its name, for people.
    pub name: String,
    /// Why not something faster, and which kernel variants failed their self-test, in words.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What the benchmark measured. Figures that do not apply are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TabBenchmark {
    /// Weight bytes per second at one row, by slope.
    pub bytes_per_s_1: f64,
    /// The same at 8 rows, each byte counted once.
    pub bytes_per_s_8: f64,
    /// Multiply-adds of the prefill matmul at 64 rows, 10⁹ per second.
    pub gmacs_per_s: f64,
    /// One dispatch, µs, by slope.
    pub dispatch_us: f64,
    /// A small buffer from submit to mapped, ms: median.
    pub readback_ms_p50: f64,
    /// The same, 95th percentile.
    pub readback_ms_p95: f64,
    /// To the coordinator and back, ms: median.
    pub rtt_ms_p50: f64,
    /// From the coordinator, bytes per second.
    pub down_bytes_per_s: f64,
    /// Memory that was really allocated and read back, bytes.
    pub memory_bytes: u64,
    /// How long all of it took, ms.
    pub took_ms: f64,
}

/// A shard that a tab holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TabShard {
    /// The model's name.
    pub model: String,
    /// First and last layer, counted from 0; `None` if it holds an end only.
    pub layers: Option<(u32, u32)>,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Takes steps.
    pub ready: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_json() {
        let settings = TabSettings {
            backend: Some(TabBackend::Webgpu),
            memory_bytes_max: 1 << 30,
            disk_bytes_max: 0,
            data_bytes_max: None,
            intensity_percent: 50,
            name: String::new(),
            threads: 2,
        };
        let start = ToTab::Start(settings);
        let text = serde_json::to_string(&start).unwrap();
        assert!(text.contains(r#""type":"start""#) && text.contains(r#""backend":"webgpu""#));
        assert_eq!(serde_json::from_str::<ToTab>(&text).unwrap(), start);
        let status = FromTab::Status(Box::default());
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<FromTab>(&text).unwrap(), status);
    }
}
