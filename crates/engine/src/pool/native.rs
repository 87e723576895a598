//! The pool where there are threads.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::rests::{Ns, Rests};
use crate::LoadError;

/// Looks at the word before an idle thread parks: about 50 µs.
const IDLE_SPINS_MAX: u32 = 5_000;
/// Of these, an idle thread gives its core away once in so many: the caller may need it.
const IDLE_SPINS_PER_YIELD: u32 = 500;
/// Looks at the word before a caller that waits for the last tasks yields its core.
const WAIT_SPINS_MAX: u32 = 2_000;
/// Threads of a pool.
const THREADS_MAX: usize = 1 << 12;

/// Low bits of the word: how many helpers have a task.
const ACTIVE_MASK: u64 = 0xffff;
/// From here up, how many tasks nobody has claimed yet.
const UNCLAIMED_ONE: u64 = 1 << 16;

const _: () = assert!(THREADS_MAX as u64 <= ACTIVE_MASK);

type Task = dyn Fn(usize) + Sync;

/// What a helper and the caller know of each other.
#[derive(Default)]
struct Helper {
    /// It waits to be unparked, or is about to.
    parked: AtomicBool,
    /// It is to claim nothing.
    rests: AtomicBool,
    /// Tasks that it did of this job.
    tasks: AtomicU64,
    /// When it had done them.
    finished: AtomicU64,
}

struct Shared {
    start: Instant,
    /// Unclaimed tasks and active helpers; the one word everybody agrees through. A claim
    /// is a change of this word: whoever has not made one holds nothing up.
    word: AtomicU64,
    /// The job. Written only while the word is 0.
    job: UnsafeCell<Option<(*const Task, usize)>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the one caller while the word is 0, and read only by
// helpers that claimed a task through the word (acquire after the caller's release) and are
// counted in it; the pointer is to a Sync closure that outlives the job.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is used only by who has claimed a task.
unsafe impl Send for Shared {}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<(JoinHandle<()>, Arc<Helper>)>,
    /// Held while a job runs.
    rests: Mutex<Rests>,
}

impl Pool {
    /// `threads` in all, the caller included; each checks its floating-point mode.
    pub(crate) fn new(threads: usize) -> Result<Pool, LoadError> {
        numerics::check_float_environment().map_err(LoadError::FloatEnvironment)?;
        let shared = Arc::new(Shared {
            start: Instant::now(),
            word: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, helpers: Vec::new(), rests: Mutex::new(Rests::new(0)) };
        let (report, reports) = mpsc::channel();
        for i in 1..threads.clamp(1, THREADS_MAX) {
            let (shared, report) = (pool.shared.clone(), report.clone());
            let helper = Arc::new(Helper::default());
            let own = helper.clone();
            let spawned = thread::Builder::new().name(format!("compute-{i}")).spawn(move || {
                let sound = numerics::check_float_environment();
                let usable = sound.is_ok();
                let _ = report.send(sound);
                if usable {
                    shared.help(&own);
                }
            });
            // A machine that gives no more threads computes on those it gave.
            let Ok(handle) = spawned else { break };
            pool.helpers.push((handle, helper));
            if let Ok(Err(what)) = reports.recv() {
                return Err(LoadError::FloatEnvironment(what));
            }
        }
        pool.rests = Mutex::new(Rests::new(pool.helpers.len()));
        Ok(pool)
    }

    /// Threads that compute, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task(0) .. task(tasks - 1)`, each once, on any threads; returns when all
    /// are done. Must not be called from a task.
    ///
    /// # Panics
    /// If a task panicked.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.helpers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        let began = self.shared.now();
        rests.end(began, |helper| self.helpers[helper].1.rests.store(false, Ordering::SeqCst));
        if rests.working() == 0 {
            return (0..tasks).for_each(task);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; no thread touches the pointer once the word
        // is 0, which this function waits for.
        let erased: *const Task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        // SAFETY: the word is 0, since one caller at a time holds the lock and leaves it so.
        unsafe { *shared.job.get() = Some((erased, tasks)) };
        // A job whose caller panicked was not taken note of.
        shared.panicked.store(false, Ordering::Relaxed);
        self.helpers.iter().for_each(|(_, helper)| helper.tasks.store(0, Ordering::Relaxed));
        shared.word.store(tasks as u64 * UNCLAIMED_ONE, Ordering::SeqCst);
        self.wake(&rests, tasks - 1);

        let close = CloseOnDrop { shared };
        let mut done = 0;
        while let Some(unclaimed) = shared.claim(0) {
            task(tasks - unclaimed as usize);
            done += 1;
        }
        self.wait(&mut rests, began, done);
        drop(close);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a compute task panicked");
        }
    }

    /// Unparks up to `most` of the helpers that do not rest.
    fn wake(&self, rests: &Rests, most: usize) {
        let helpers = self.helpers.iter().enumerate();
        let awake = helpers.filter(|(i, _)| !rests.rests(*i)).take(most);
        for (_, (handle, helper)) in awake {
            if helper.parked.swap(false, Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
    }

    /// Waits for the helpers' last tasks, and settles with them: what each did is worth what the
    /// caller's own `tasks` took on average. One that did none has nothing to judge others by.
    fn wait(&self, rests: &mut Rests, began: Ns, tasks: u64) {
        let waiting = self.shared.now();
        while !self.shared.done_soon() {
            thread::yield_now();
        }
        let task_ns = (waiting - began).checked_div(tasks);
        for (i, (_, helper)) in self.helpers.iter().enumerate() {
            let done = helper.tasks.swap(0, Ordering::Relaxed);
            let Some(task_ns) = task_ns.filter(|_| done > 0) else { continue };
            let finished = helper.finished.load(Ordering::Relaxed);
            if rests.settle(i, done * task_ns, finished.saturating_sub(waiting), finished) {
                helper.rests.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (handle, _) in &self.helpers {
            handle.thread().unpark();
        }
        for (handle, _) in self.helpers.drain(..) {
            let _ = handle.join();
        }
    }
}

/// Takes what is unclaimed back and waits for the helpers, also when the caller's task
/// panics: they use what the caller's frame owns.
struct CloseOnDrop<'a> {
    shared: &'a Shared,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.word.fetch_and(ACTIVE_MASK, Ordering::AcqRel);
        while !self.shared.done_soon() {
            thread::yield_now();
        }
    }
}

impl Shared {
    fn now(&self) -> Ns {
        self.start.elapsed().as_nanos() as Ns
    }

    /// Claims a task and counts `helpers` more; how many were unclaimed with it.
    fn claim(&self, helpers: u64) -> Option<u64> {
        let mut word = self.word.load(Ordering::SeqCst);
        while word >= UNCLAIMED_ONE {
            let claimed = word - UNCLAIMED_ONE + helpers;
            let claim =
                self.word.compare_exchange_weak(word, claimed, Ordering::AcqRel, Ordering::Relaxed);
            match claim {
                Ok(_) => return Some(word / UNCLAIMED_ONE),
                Err(now) => word = now,
            }
        }
        None
    }

    fn active(&self) -> bool {
        self.word.load(Ordering::Acquire) & ACTIVE_MASK != 0
    }

    /// Whether all helpers are done, at the latest after a bounded while.
    fn done_soon(&self) -> bool {
        let mut spins = 0;
        while self.active() {
            if spins == WAIT_SPINS_MAX {
                return false;
            }
            spins += 1;
            std::hint::spin_loop();
        }
        true
    }

    /// A helper's life: claim tasks while there are any, otherwise spin, then park.
    fn help(&self, own: &Helper) {
        let mut spins = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let rests = own.rests.load(Ordering::SeqCst);
            if !rests && let Some(unclaimed) = self.claim(1) {
                self.work(own, unclaimed);
                own.finished.store(self.now(), Ordering::Relaxed);
                self.word.fetch_sub(1, Ordering::AcqRel);
                spins = 0;
                continue;
            }
            if !rests && spins < IDLE_SPINS_MAX {
                spins += 1;
                if spins.is_multiple_of(IDLE_SPINS_PER_YIELD) {
                    thread::yield_now();
                }
                std::hint::spin_loop();
                continue;
            }
            // Say so first, then look once more: `run` publishes first, then looks here.
            own.parked.store(true, Ordering::SeqCst);
            let news = self.word.load(Ordering::SeqCst) >= UNCLAIMED_ONE
                && !own.rests.load(Ordering::SeqCst);
            if !news && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            own.parked.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }

    /// Does the task that was claimed, and more while there are any.
    fn work(&self, own: &Helper, mut unclaimed: u64) {
        // SAFETY: this thread is counted as active, so the job stays and is not written.
        let Some((task, tasks)) = (unsafe { *self.job.get() }) else { return };
        // SAFETY: as above; the caller's frame waits for us.
        let task = unsafe { &*task };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            loop {
                task(tasks - unclaimed as usize);
                own.tasks.fetch_add(1, Ordering::Relaxed);
                let Some(next) = self.claim(0) else { return };
                unclaimed = next;
            }
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn parked(pool: &Pool) -> bool {
        pool.helpers.iter().all(|(_, helper)| helper.parked.load(Ordering::SeqCst))
    }

    /// Runs a job and asserts that each task ran once.
    fn each_once(pool: &Pool, tasks: usize) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for round in 0..300 {
                each_once(&pool, round % 17);
            }
        }
    }

    #[test]
    fn every_task_runs_once_beside_busy_threads() {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let pool = Pool::new(3).unwrap();
            for round in 0..500 {
                each_once(&pool, 2 + round % 40);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_caller_without_a_task_of_its_own_judges_nobody() {
        let pool = Pool::new(2).unwrap();
        let mut rests = pool.rests.lock().unwrap();
        for own_tasks in [0, 1] {
            // A helper that finished its one task an hour after the caller began to wait.
            let (began, helper) = (pool.shared.now(), &pool.helpers[0].1);
            helper.finished.store(began + 3_600_000_000_000, Ordering::Relaxed);
            helper.tasks.store(1, Ordering::Relaxed);
            pool.wait(&mut rests, began, own_tasks);
            assert_eq!(rests.rests(0), own_tasks > 0);
        }
    }

    #[test]
    fn a_helper_that_keeps_the_caller_waiting_rests_and_comes_back() {
        let pool = Pool::new(2).unwrap();
        let caller = thread::current().id();
        let rests = || pool.rests.lock().unwrap().rests(0);
        // The helper takes part, and is 20 ms later than the caller.
        let slow = || {
            let (met, end) = (AtomicBool::new(false), AtomicU64::new(u64::MAX));
            pool.run(2, &|_| {
                if thread::current().id() == caller {
                    while !met.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    end.store(pool.shared.now() + 20_000_000, Ordering::SeqCst);
                } else {
                    met.store(true, Ordering::SeqCst);
                    while pool.shared.now() < end.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                }
            });
        };
        slow();
        assert!(rests(), "20 ms are not forgiven");
        while !parked(&pool) {
            thread::yield_now();
        }
        while rests() {
            each_once(&pool, 5);
        }
        slow();
        assert!(rests());
        each_once(&pool, 5);
    }

    #[test]
    fn parked_threads_wake_and_a_panic_is_passed_on() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            while !parked(&pool) {
                thread::yield_now();
            }
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4950);
        }
        for round in 0..20 {
            // One task of them, or all: the caller's and the helpers'.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(50, &|i| assert!(i != 30 && round % 2 == 0, "it is meant to"));
            }));
            assert!(result.is_err());
            each_once(&pool, 10);
        }
    }
}
