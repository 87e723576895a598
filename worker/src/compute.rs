//! The compute thread: owns the shards and executes, in order, what touches them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::BlobBytes;
use protocol::{Assignment, BlobHash, SessionId};
use shards::{Blobs, Computer, Shards};
use worker_core::{Event, Run, RunFault, ShardKey};

use crate::blobs::Kept;
use crate::exchange::{Ranks, Seat, Waited};
use crate::shell::Shared;

/// Longest rest after a step.
const REST_MAX: Duration = Duration::from_secs(20);
/// Longest rest after an order: the other ranks may wait for the next one already, and
/// [`crate::exchange`] does not wait for ever.
const FOLLOWING_REST_MAX: Duration = Duration::from_secs(3);
/// A rest ends so soon after the worker is told to leave.
const REST_SLICE: Duration = Duration::from_millis(20);

/// Something to do with a shard; see the [`worker_core::Action`] of that name.
pub(crate) enum Command {
    Load {
        shard: ShardKey,
        assignment: Assignment,
        blobs: BTreeMap<BlobHash, Arc<Kept>>,
        /// Its place in a tensor group.
        seat: Option<Arc<Seat>>,
    },
    /// An order of a tensor group's leader.
    Follow {
        shard: ShardKey,
        seat: Arc<Seat>,
        order: Bytes,
    },
    Run(Run),
    Fork {
        shard: ShardKey,
        from: SessionId,
        to: SessionId,
        positions: u32,
    },
    Truncate {
        shard: ShardKey,
        session: SessionId,
        positions: u32,
    },
    Release {
        shard: ShardKey,
        session: SessionId,
    },
    Unload {
        shard: ShardKey,
    },
}

/// What the compute thread works with.
pub(crate) struct Compute {
    pub(crate) computer: Computer,
    /// Of the time, computing and resting together.
    pub(crate) intensity_percent: u8,
    pub(crate) memory_bytes: u64,
}

impl Compute {
    /// Executes commands until their sender is gone. Outcomes go straight into the worker's
    /// state machine, on this thread, so that the next step starts without a wake-up.
    ///
    /// # Errors
    /// Why it can compute no more: what computes is lost.
    pub(crate) fn run(
        self,
        commands: &mpsc::Receiver<Command>,
        shared: &Weak<Shared>,
    ) -> Result<(), String> {
        let mut shards = Shards::new(self.computer, self.memory_bytes);
        // Time in exchanges, waiting for other ranks: none of it was spent computing.
        let waited = Waited::default();
        let percent = self.intensity_percent;
        let rest_of = |computed| rest_time(computed, percent);
        while let Ok(command) = commands.recv() {
            let began = Instant::now();
            let mut rests = Duration::ZERO;
            let event = match command {
                Command::Load { shard, assignment, blobs, seat } => {
                    let mut blobs: Blobs =
                        blobs.into_iter().map(|(hash, kept)| (hash, kept as BlobBytes)).collect();
                    let loaded = catch(|| match seat {
                        None => block_on(shards.load(shard, &assignment, &mut blobs)),
                        Some(seat) => {
                            let ranks = Box::new(Ranks::new(seat, shared.clone(), waited.clone()));
                            block_on(shards.load_rank(shard, &assignment, &mut blobs, ranks))
                        }
                    });
                    Some(match loaded {
                        Ok(Ok(shape)) => Event::Loaded { shard, shape },
                        Ok(Err(error)) => Event::LoadFailed { shard, reason: error.to_string() },
                        Err(reason) => Event::LoadFailed { shard, reason },
                    })
                }
                Command::Run(run) => {
                    let ran = guarded(&mut shards, run.shard, |s| block_on(s.run(&run)));
                    let result = ran.unwrap_or_else(|reason| Err(RunFault::Broken(reason)));
                    if let Err(RunFault::BadStep(reason)) = &result {
                        tracing::error!("the engine refused a step that was checked: {reason}");
                    }
                    let due = rest_of(began.elapsed().saturating_sub(waited.take()));
                    match &result {
                        // Others wait for it, and nothing is learned from how long it took.
                        Err(RunFault::Broken(_)) => rests = due,
                        // Before the answer: whoever waits for it sees how fast this worker is.
                        _ => rest(due, || is_leaving(shared)),
                    }
                    let compute_us = u32::try_from(began.elapsed().as_micros());
                    let compute_us = compute_us.unwrap_or(u32::MAX);
                    Some(Event::RunDone { run: run.id, compute_us, result })
                }
                Command::Follow { shard, seat, order } => {
                    let followed = guarded(&mut shards, shard, |s| s.follow(shard, &order));
                    seat.obeyed(order.len());
                    let computed = began.elapsed().saturating_sub(waited.take());
                    rests = rest_of(computed).min(FOLLOWING_REST_MAX);
                    let broke = followed.unwrap_or_else(Err);
                    broke.err().map(|reason| Event::Broke { shard, reason })
                }
                Command::Fork { shard, from, to, positions } => {
                    let _ = guarded(&mut shards, shard, |s| s.fork(shard, from, to, positions));
                    None
                }
                Command::Truncate { shard, session, positions } => {
                    let _ = guarded(&mut shards, shard, |s| s.truncate(shard, session, positions));
                    None
                }
                Command::Release { shard, session } => {
                    let _ = guarded(&mut shards, shard, |s| s.release(shard, session));
                    None
                }
                Command::Unload { shard } => {
                    shards.unload(shard);
                    None
                }
            };
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            if let Some(event) = event {
                shared.handle(event);
            }
            if let Some(reason) = lost(shards.computer()) {
                return Err(reason);
            }
            rest(rests, || shared.is_leaving());
        }
        Ok(())
    }
}

/// Why what computes takes no more work, if it does not.
fn lost(computer: &Computer) -> Option<String> {
    #[cfg(feature = "gpu")]
    if let Computer::Gpu(gpu) = computer {
        return gpu.lost();
    }
    let _ = computer;
    None
}

/// Does something with a shard; a panic breaks that shard, not the worker, and is the error.
fn guarded<T>(
    shards: &mut Shards,
    shard: ShardKey,
    work: impl FnOnce(&mut Shards) -> T,
) -> Result<T, String> {
    let done = catch(|| work(shards));
    if let Err(reason) = &done {
        shards.condemn(shard, reason);
    }
    done
}

fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| format!("the engine panicked: {}", panic_text(&*panic)))
}

/// Waits on this thread. The engine's futures wait for a device at most, which the engine
/// itself polls: nothing wakes this thread from outside.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// How long to rest after computing for that long.
fn rest_time(computed: Duration, intensity_percent: u8) -> Duration {
    let percent = u32::from(intensity_percent.clamp(1, 100));
    (computed * (100 - percent) / percent).min(REST_MAX)
}

/// Rests for so long; `is_leaving` ends it within [`REST_SLICE`].
fn rest(due: Duration, is_leaving: impl Fn() -> bool) {
    let began = Instant::now();
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
    fn a_panic_breaks_the_shard_only() {
        let mut shards = Shards::new(Computer::Cpu { threads: 1 }, 0);
        let done = guarded(&mut shards, ShardKey(1), |_| panic!("at {}", "sea"));
        assert_eq!(done, Err::<(), _>("the engine panicked: at sea".to_string()));
        assert_eq!(guarded(&mut shards, ShardKey(1), |_| 2), Ok(2));
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
        rest(Duration::from_millis(10), || false);
        assert!(began.elapsed() >= Duration::from_millis(10));
        let looks = std::cell::Cell::new(0);
        rest(Duration::from_secs(100), || looks.replace(looks.get() + 1) == 2);
        assert_eq!(looks.get(), 3, "it looks between slices");
    }
}
