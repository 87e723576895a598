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
use worker_core::{Event, Run, RunFault, Shape, ShardKey};

use crate::shell::Shared;
use crate::spans::SpanShards;

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
            let (event, rests) = match command {
                Command::Load { shard, assignment, blobs } => {
                    let event = match self.load(&assignment, blobs) {
                        Ok((loaded, shape)) => {
                            shards.insert(shard, Ok(loaded));
                            Event::Loaded { shard, shape }
                        }
                        Err(reason) => Event::LoadFailed { shard, reason },
                    };
                    (Some(event), false)
                }
                Command::Run(run) => (Some(execute(&mut shards, run)), true),
                Command::Fork { shard, from, to, positions } => {
                    if let Some(slot) = shards.get_mut(&shard)
                        && let Ok(loaded) = slot
                        && let Err(error) = loaded.fork(from.0, to.0, positions)
                    {
                        *slot = Err(format!("fork: {error}"));
                    }
                    (None, false)
                }
                Command::Truncate { shard, session, positions } => {
                    if let Some(Ok(loaded)) = shards.get_mut(&shard) {
                        loaded.truncate(session.0, positions);
                    }
                    (None, false)
                }
                Command::Release { shard, session } => {
                    if let Some(Ok(loaded)) = shards.get_mut(&shard) {
                        loaded.release(session.0);
                    }
                    (None, false)
                }
                Command::Unload { shard } => {
                    shards.remove(&shard);
                    (None, false)
                }
            };
            let Some(shared) = shared.upgrade() else { return };
            if let Some(event) = event {
                shared.handle(event);
            }
            drop(shared);
            if rests {
                std::thread::sleep(rest(began.elapsed(), self.intensity_percent));
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
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            SpanShards::load(manifest, assignment.span, class, blobs, limits)
        }));
        match loaded {
            Ok(loaded) => Ok((loaded.map_err(|e| e.to_string())?, shape)),
            Err(panic) => Err(format!("loading panicked: {}", panic_text(&*panic))),
        }
    }
}

/// Runs a step and gives its outcome. A panic breaks that shard, not the worker.
fn execute(shards: &mut BTreeMap<ShardKey, Slot>, run: Run) -> Event {
    let began = Instant::now();
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
    let compute_us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
    Event::RunDone { run: run.id, compute_us, result }
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
fn rest(computed: Duration, intensity_percent: u8) -> Duration {
    let percent = u32::from(intensity_percent.clamp(1, 100));
    computed * (100 - percent) / percent
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_are_in_proportion() {
        let rest_ms = |percent| rest(Duration::from_millis(100), percent).as_millis();
        assert_eq!((rest_ms(100), rest_ms(50), rest_ms(25)), (0, 100, 300));
        assert_eq!(rest_ms(0), rest_ms(1), "never for ever");
    }
}
