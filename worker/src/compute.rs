//! The compute thread: owns the shards and executes, in order, what touches them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Class, Input, Limits, Output, StepError, kv_page_bytes};
use memmap2::Mmap;
use model::Manifest;
use protocol::payload::{elements, to_payload};
use protocol::{Assignment, BlobHash, Dtype, SessionId};
use worker_core::{Event, Run, RunFault, RunId, Shape, ShardKey};

use crate::shell::Shared;
use crate::spans::SpanShards;

/// Longest rest after a step.
const REST_MAX: Duration = Duration::from_secs(20);
/// A rest ends so soon after the worker is told to leave.
const REST_SLICE: Duration = Duration::from_millis(20);

/// Something to do with a shard; see the [`worker_core::Action`] of that name.
pub(crate) enum Command {
    Load { shard: ShardKey, assignment: Assignment, blobs: BTreeMap<BlobHash, Arc<Mmap>> },
    Run(Run),
    Fork { shard: ShardKey, from: SessionId, to: SessionId, positions: u32 },
    Truncate { shard: ShardKey, session: SessionId, positions: u32 },
    Release { shard: ShardKey, session: SessionId },
    Unload { shard: ShardKey },
}

/// A loaded shard, or why it takes no more steps.
type Slot = Result<SpanShards, String>;

/// What the compute thread works with.
pub(crate) struct Compute {
    pub(crate) threads: u32,
    /// Of the time, computing and resting together.
    pub(crate) intensity_percent: u8,
    pub(crate) memory_bytes: u64,
}

impl Compute {
    /// Executes commands until their sender is gone. Outcomes go straight into the worker's
    /// state machine, on this thread, so that the next step starts without a wake-up.
    pub(crate) fn run(self, commands: &mpsc::Receiver<Command>, shared: &Weak<Shared>) {
        let mut shards: BTreeMap<ShardKey, Slot> = BTreeMap::new();
        while let Ok(command) = commands.recv() {
            let began = Instant::now();
            let event = match command {
                Command::Load { shard, assignment, blobs } => {
                    let loaded = catch_unwind(AssertUnwindSafe(|| self.load(&assignment, blobs)));
                    let loaded = loaded.unwrap_or_else(|panic| {
                        Err(format!("loading panicked: {}", panic_text(&*panic)))
                    });
                    let event = match loaded {
                        Ok((loaded, shape)) => {
                            shards.insert(shard, Ok(loaded));
                            Event::Loaded { shard, shape }
                        }
                        Err(reason) => Event::LoadFailed { shard, reason },
                    };
                    Some(event)
                }
                Command::Run(run) => {
                    let (run, result) = execute(&mut shards, run);
                    // Before the answer: whoever waits for it sees how fast this worker is.
                    rest(began.elapsed(), self.intensity_percent, || is_leaving(shared));
                    let compute_us = u32::try_from(began.elapsed().as_micros());
                    Some(Event::RunDone { run, compute_us: compute_us.unwrap_or(u32::MAX), result })
                }
                Command::Fork { shard, from, to, positions } => {
                    guarded(shards.get_mut(&shard), |loaded| {
                        let forked = loaded.fork(from.0, to.0, positions);
                        forked.map_err(|error| format!("fork: {error}"))
                    });
                    None
                }
                Command::Truncate { shard, session, positions } => {
                    guarded(shards.get_mut(&shard), |loaded| {
                        loaded.truncate(session.0, positions);
                        Ok(())
                    });
                    None
                }
                Command::Release { shard, session } => {
                    guarded(shards.get_mut(&shard), |loaded| {
                        loaded.release(session.0);
                        Ok(())
                    });
                    None
                }
                Command::Unload { shard } => {
                    shards.remove(&shard);
                    None
                }
            };
            let Some(shared) = shared.upgrade() else { return };
            if let Some(event) = event {
                shared.handle(event);
            }
        }
    }

    /// Loads a shard from its mapped blobs, the manifest among them.
    fn load(
        &self,
        assignment: &Assignment,
        blobs: BTreeMap<BlobHash, Arc<Mmap>>,
    ) -> Result<(SpanShards, Shape), String> {
        let manifest = blobs.get(&assignment.manifest.hash).ok_or("the manifest is not here")?;
        let manifest = Manifest::from_bytes(manifest).map_err(|e| format!("manifest: {e}"))?;
        let class = Class::from_name(&assignment.class)
            .ok_or_else(|| format!("class {} is not known", assignment.class))?;
        let span = assignment.span.first..assignment.span.end;
        let page_bytes = kv_page_bytes(&manifest, span, class);
        let kv_bytes = u64::from(assignment.kv_pages).saturating_mul(page_bytes);
        let (weights, lent) = (assignment.weight_bytes(), self.memory_bytes);
        if weights.saturating_add(kv_bytes) > lent {
            return Err(format!(
                "weights of {weights} bytes and a KV cache of {kv_bytes} exceed the {lent} lent"
            ));
        }
        let dims = manifest.dims;
        let shape = Shape { layers: dims.layers, d_model: dims.d_model, vocab: dims.vocab };
        let limits = Limits::new(assignment.kv_pages, self.threads);
        let loaded = SpanShards::load(manifest, assignment.span, class, blobs, limits);
        Ok((loaded.map_err(|e| e.to_string())?, shape))
    }
}

/// Does something with a shard that works; a failure or a panic breaks the shard.
fn guarded<T>(
    slot: Option<&mut Result<T, String>>,
    work: impl FnOnce(&mut T) -> Result<(), String>,
) {
    let Some(slot @ Ok(_)) = slot else { return };
    let done = catch_unwind(AssertUnwindSafe(|| slot.as_mut().map_or(Ok(()), work)));
    match done {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => *slot = Err(reason),
        Err(panic) => {
            let reason = format!("the engine panicked: {}", panic_text(&*panic));
            // Its threads may be in any state: joining them could hang.
            std::mem::forget(std::mem::replace(slot, Err(reason)));
        }
    }
}

/// Runs a step and gives its outcome. A panic breaks that shard, not the worker.
fn execute(shards: &mut BTreeMap<ShardKey, Slot>, run: Run) -> (RunId, Result<Bytes, RunFault>) {
    let result = match shards.get_mut(&run.shard) {
        None => Err(RunFault::Broken("the shard is not loaded".into())),
        Some(Err(reason)) => Err(RunFault::Broken(reason.clone())),
        Some(slot @ Ok(_)) => {
            let stepped = catch_unwind(AssertUnwindSafe(|| match slot {
                Ok(shards) => step(shards, &run),
                Err(_) => unreachable!("matched above"),
            }));
            stepped.unwrap_or_else(|panic| {
                let reason = format!("the engine panicked: {}", panic_text(&*panic));
                // Its threads may be in any state: joining them could hang.
                std::mem::forget(std::mem::replace(slot, Err(reason.clone())));
                Err(RunFault::Broken(reason))
            })
        }
    };
    (run.id, result)
}

fn step(shards: &mut SpanShards, run: &Run) -> Result<Bytes, RunFault> {
    let segments: Vec<engine::Segment> = run
        .segments
        .iter()
        .map(|s| engine::Segment {
            session: s.session.0,
            position: s.position,
            rows: s.rows,
            logits_rows: s.logits_rows,
        })
        .collect();
    let output = match run.dtype {
        Dtype::U32 => {
            shards.step(run.span, &segments, Input::Tokens(&elements::<u32>(&run.payload)))
        }
        Dtype::F32 => {
            shards.step(run.span, &segments, Input::Hidden(&elements::<f32>(&run.payload)))
        }
    };
    match output {
        Ok(Output::Hidden(values) | Output::Logits(values)) => Ok(to_payload(values)),
        Err(error) => Err(fault(error)),
    }
}

fn fault(error: StepError) -> RunFault {
    match error {
        StepError::Shape(reason) => {
            tracing::error!("the engine refused a step that was checked: {reason}");
            RunFault::BadStep(reason)
        }
        StepError::Gap { session, held, .. } => RunFault::Gap { session: SessionId(session), held },
        StepError::KvFull { session, .. } => RunFault::KvFull { session: SessionId(session) },
        StepError::NumericFault { session, .. } => {
            RunFault::Numeric { session: SessionId(session) }
        }
        StepError::Token { session, .. } => RunFault::BadInput { session: SessionId(session) },
    }
}

/// How long to rest after computing for that long.
fn rest_time(computed: Duration, intensity_percent: u8) -> Duration {
    let percent = u32::from(intensity_percent.clamp(1, 100));
    (computed * (100 - percent) / percent).min(REST_MAX)
}

/// Rests after computing for that long; `is_leaving` ends it within [`REST_SLICE`].
fn rest(computed: Duration, intensity_percent: u8, is_leaving: impl Fn() -> bool) {
    let (began, due) = (Instant::now(), rest_time(computed, intensity_percent));
    loop {
        let left = due.saturating_sub(began.elapsed());
        if left.is_zero() || is_leaving() {
            return;
        }
        std::thread::sleep(left.min(REST_SLICE));
    }
}

/// Whether nobody wants this worker's thread to rest any more.
fn is_leaving(shared: &Weak<Shared>) -> bool {
    shared.upgrade().is_none_or(|shared| shared.is_leaving())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_or_a_panic_breaks_the_shard_only() {
        let mut slot = Ok(1);
        guarded(Some(&mut slot), |n| {
            *n += 1;
            Ok(())
        });
        assert_eq!(slot, Ok(2));
        guarded(Some(&mut slot), |_| panic!("at {}", "sea"));
        assert_eq!(slot, Err("the engine panicked: at sea".to_string()));
        guarded(Some(&mut slot), |_| panic!("a broken shard is left alone"));
        let mut slot = Ok(1);
        guarded(Some(&mut slot), |_| Err("full".into()));
        assert_eq!(slot, Err("full".to_string()));
    }

    #[test]
    fn rests_are_in_proportion() {
        let rest_ms = |percent| rest_time(Duration::from_millis(100), percent).as_millis();
        assert_eq!((rest_ms(100), rest_ms(50), rest_ms(25)), (0, 100, 300));
        assert_eq!(rest_ms(0), rest_ms(1), "never for ever");
        assert_eq!(rest_time(Duration::from_secs(9), 1), REST_MAX);
    }

    #[test]
    fn a_rest_takes_its_time_and_ends_when_the_worker_leaves() {
        let began = Instant::now();
        rest(Duration::from_millis(10), 50, || false);
        assert!(began.elapsed() >= Duration::from_millis(10));
        let looks = std::cell::Cell::new(0);
        rest(Duration::from_secs(100), 1, || looks.replace(looks.get() + 1) == 2);
        assert_eq!(looks.get(), 3, "it looks between slices");
    }
}
