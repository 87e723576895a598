//! The floor: a decode step reads every weight once, so it cannot be faster than memory.

use std::time::Instant;

use anyhow::Result;

use super::cluster::Cluster;

/// Bytes that each thread reads in one go; far more than any cache.
const BLOCK: usize = 256 << 20;
/// Times that it is tried; the fastest counts.
const TRIES: usize = 5;

/// What one token needs, and what the machine gives.
pub struct Floor {
    /// Weights that a token's way leads through.
    pub bytes_per_token: u64,
    /// Measured, all cores together.
    pub bytes_per_s: f64,
    /// How many cores that were.
    pub cores: usize,
}

impl Floor {
    /// Measures this machine for what a cluster runs.
    pub fn of(cluster: &Cluster) -> Result<Floor> {
        let cores = std::thread::available_parallelism()?.get();
        let bytes_per_token = cluster.weight_bytes()?;
        Ok(Floor { bytes_per_token, bytes_per_s: bandwidth(cores), cores })
    }

    /// Tokens per second that one session cannot exceed.
    pub fn decode_max(&self) -> f64 {
        self.bytes_per_s / self.bytes_per_token as f64
    }
}

/// Bytes per second that the cores read from memory, by comparing equal halves: that runs in
/// the C library's vector code however this program is built.
fn bandwidth(cores: usize) -> f64 {
    let blocks: Vec<Vec<u8>> = (0..cores).map(|_| vec![1; BLOCK]).collect();
    let mut best: f64 = 0.0;
    for _ in 0..TRIES {
        let started = Instant::now();
        let equal = std::thread::scope(|scope| {
            let threads: Vec<_> = blocks
                .iter()
                .map(|block| {
                    scope.spawn(move || {
                        let (left, right) = std::hint::black_box(block).split_at(BLOCK / 2);
                        left == right
                    })
                })
                .collect();
            threads.into_iter().all(|thread| thread.join().expect("it does not panic"))
        });
        assert!(equal, "memory holds what was written");
        best = best.max((cores * BLOCK) as f64 / started.elapsed().as_secs_f64());
    }
    best
}
