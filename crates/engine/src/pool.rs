//! A small thread pool: a job is a number of independent tasks, claimed one by one.
//!
//! The caller works too, and never waits for a thread that has no task: on a busy machine
//! the caller ends up doing everything itself instead of standing still. A helper that lost
//! its core with a task in hand holds up that one task, and is then left out for a while
//! (`rests`). Idle threads spin for a bounded while (the next command of a step comes within
//! microseconds), then park and use no CPU.

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(not(target_arch = "wasm32"))]
mod rests;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::Pool;
#[cfg(target_arch = "wasm32")]
pub(crate) use single::Pool;

/// Where there are no threads, the caller does everything.
#[cfg(target_arch = "wasm32")]
mod single {
    use crate::LoadError;

    pub(crate) struct Pool;

    impl Pool {
        pub(crate) fn new(_threads: usize) -> Result<Pool, LoadError> {
            Ok(Pool)
        }

        pub(crate) fn threads(&self) -> usize {
            1
        }

        pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            (0..tasks).for_each(task);
        }
    }
}
