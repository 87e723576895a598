//! A small thread pool: a job is a number of independent tasks, claimed one by one.
//!
//! The caller works too, and never waits for a thread that has not begun: on a busy
//! machine the caller ends up doing everything itself instead of standing still. Idle
//! threads spin for a bounded while (the next command of a step comes within
//! microseconds), then park and use no CPU.

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

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::cell::UnsafeCell;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread::{self, JoinHandle};

    use crate::LoadError;

    /// Looks at the state before an idle thread parks: about 50 µs.
    const IDLE_SPINS_MAX: u32 = 5_000;
    /// Looks at the state before a caller that waits for the last tasks yields its core.
    const WAIT_SPINS_MAX: u32 = 2_000;

    /// Low bits of the state: how many threads work on the open job.
    const ACTIVE_MASK: u64 = 0xffff;
    /// The job can be joined.
    const OPEN: u64 = 1 << 16;
    /// Jobs are counted from here up, so that a thread joins each at most once.
    const EPOCH_ONE: u64 = 1 << 17;

    type Task = dyn Fn(usize) + Sync;

    struct Shared {
        /// Epoch, open bit, active threads; the one word everybody agrees through.
        state: AtomicU64,
        /// The open job. Written only while no thread is active and the job is closed.
        job: UnsafeCell<Option<(*const Task, usize)>>,
        next: AtomicUsize,
        panicked: AtomicBool,
        stop: AtomicBool,
    }

    // SAFETY: `job` is written only by the pool's owner while the state is closed with no
    // active thread, and read only by threads that joined through the state (acquire after
    // the owner's release); the pointer is to a Sync closure that outlives the job.
    unsafe impl Sync for Shared {}
    // SAFETY: as above; the raw pointer is never used outside an open job.
    unsafe impl Send for Shared {}

    pub(crate) struct Pool {
        shared: Arc<Shared>,
        workers: Vec<(JoinHandle<()>, Arc<AtomicBool>)>,
    }

    impl Pool {
        /// `threads` in all, the caller included; each checks its floating-point mode.
        pub(crate) fn new(threads: usize) -> Result<Pool, LoadError> {
            numerics::check_float_environment().map_err(LoadError::FloatEnvironment)?;
            let shared = Arc::new(Shared {
                state: AtomicU64::new(0),
                job: UnsafeCell::new(None),
                next: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
                stop: AtomicBool::new(false),
            });
            let mut pool = Pool { shared, workers: Vec::new() };
            let (report, reports) = mpsc::channel();
            for i in 1..threads.clamp(1, ACTIVE_MASK as usize) {
                let (shared, report) = (pool.shared.clone(), report.clone());
                let parked = Arc::new(AtomicBool::new(false));
                let flag = parked.clone();
                let spawned =
                    thread::Builder::new().name(format!("compute-{i}")).spawn(move || {
                        let sound = numerics::check_float_environment();
                        let usable = sound.is_ok();
                        let _ = report.send(sound);
                        if usable {
                            shared.work(&flag);
                        }
                    });
                // A machine that gives no more threads computes on those it gave.
                let Ok(handle) = spawned else { break };
                pool.workers.push((handle, parked));
                if let Ok(Err(what)) = reports.recv() {
                    return Err(LoadError::FloatEnvironment(what));
                }
            }
            Ok(pool)
        }

        /// Threads that compute, the caller's included.
        pub(crate) fn threads(&self) -> usize {
            self.workers.len() + 1
        }

        /// Runs `task(0) .. task(tasks - 1)`, each once, on any threads; returns when all
        /// are done. Must not be called from a task.
        ///
        /// # Panics
        /// If a task panicked.
        pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            if self.workers.is_empty() || tasks <= 1 {
                (0..tasks).for_each(task);
                return;
            }
            let shared = &*self.shared;
            // SAFETY: only the lifetime is erased; no thread touches the pointer after the
            // loop below has seen the job closed with no active thread.
            let erased: *const Task =
                unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
            // SAFETY: the state is closed and nobody is active, so nobody reads `job`.
            unsafe { *shared.job.get() = Some((erased, tasks)) };
            shared.next.store(0, Ordering::Relaxed);
            let epoch = (shared.state.load(Ordering::Relaxed) & !(ACTIVE_MASK | OPEN)) + EPOCH_ONE;
            shared.state.store(epoch | OPEN, Ordering::SeqCst);
            for (handle, parked) in self.workers.iter().take(tasks - 1) {
                if parked.swap(false, Ordering::SeqCst) {
                    handle.thread().unpark();
                }
            }
            let close = CloseOnDrop { shared };
            shared.claim(task, tasks);
            drop(close);
            if shared.panicked.swap(false, Ordering::Relaxed) {
                panic!("a compute task panicked");
            }
        }
    }

    /// Closes the job and waits for the threads in it, also when the caller's task panics:
    /// they use what the caller's frame owns.
    struct CloseOnDrop<'a> {
        shared: &'a Shared,
    }

    impl Drop for CloseOnDrop<'_> {
        fn drop(&mut self) {
            self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
            let mut spins = 0;
            while self.shared.state.load(Ordering::Acquire) & ACTIVE_MASK != 0 {
                if spins < WAIT_SPINS_MAX {
                    spins += 1;
                    std::hint::spin_loop();
                } else {
                    thread::yield_now();
                }
            }
        }
    }

    impl Drop for Pool {
        fn drop(&mut self) {
            self.shared.stop.store(true, Ordering::SeqCst);
            for (handle, _) in &self.workers {
                handle.thread().unpark();
            }
            for (handle, _) in self.workers.drain(..) {
                let _ = handle.join();
            }
        }
    }

    impl Shared {
        fn claim(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= tasks {
                    return;
                }
                task(i);
            }
        }

        /// A thread's life: join each job that is open, otherwise spin, then park.
        fn work(&self, parked: &AtomicBool) {
            let mut seen = 0;
            let mut spins = 0;
            while !self.stop.load(Ordering::SeqCst) {
                let state = self.state.load(Ordering::SeqCst);
                let epoch = state & !(ACTIVE_MASK | OPEN);
                if state & OPEN != 0 && epoch != seen {
                    let joined = self.state.compare_exchange(
                        state,
                        state + 1,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    );
                    if joined.is_ok() {
                        seen = epoch;
                        self.join_job();
                        spins = 0;
                    }
                    continue;
                }
                if spins < IDLE_SPINS_MAX {
                    spins += 1;
                    std::hint::spin_loop();
                    continue;
                }
                // Say so first, then look once more: `run` publishes first, then looks here.
                parked.store(true, Ordering::SeqCst);
                let state = self.state.load(Ordering::SeqCst);
                let news = state & OPEN != 0 && state & !(ACTIVE_MASK | OPEN) != seen;
                if !news && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                parked.store(false, Ordering::SeqCst);
                spins = 0;
            }
        }

        fn join_job(&self) {
            // SAFETY: this thread is counted as active, so the job stays and is not written.
            let job = unsafe { *self.job.get() };
            if let Some((task, tasks)) = job {
                // SAFETY: as above; the caller's frame waits for us.
                let task = unsafe { &*task };
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    self.claim(task, tasks)
                }));
                if result.is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_task_runs_once_on_any_number_of_threads() {
            for threads in [1, 2, 3, 5] {
                let pool = Pool::new(threads).unwrap();
                assert_eq!(pool.threads(), threads);
                for round in 0..300 {
                    let tasks = round % 17;
                    let counts: Vec<AtomicUsize> =
                        (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                }
            }
        }

        #[test]
        fn parked_threads_wake_and_a_panic_is_passed_on() {
            let pool = Pool::new(3).unwrap();
            let all_parked = || pool.workers.iter().all(|(_, p)| p.load(Ordering::SeqCst));
            for _ in 0..3 {
                while !all_parked() {
                    thread::yield_now();
                }
                let sum = AtomicUsize::new(0);
                pool.run(100, &|i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
                assert_eq!(sum.load(Ordering::Relaxed), 4950);
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(50, &|i| assert_ne!(i, 30));
            }));
            assert!(result.is_err());
            let after = AtomicUsize::new(0);
            pool.run(10, &|_| {
                after.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(after.load(Ordering::Relaxed), 10);
        }
    }
}
