//! From the owner's click to a worker that can join: the lock, the files, the key, what
//! computes, and how fast.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use api::{TabBackend, TabBenchmark, TabDevice, TabPhase, TabSettings};
use shards::Computer;

use super::credit::Credit;
use super::helpers::Helper;
use super::http::Cancel;
use super::identity::Identity;
use super::inbox::{Happened, Inbox};
use super::lock::{self, Lock};
use super::storage::Store;
use super::weights::Weights;
use super::{backend, benchmark, js};
use crate::meter::Meter;
use crate::settings::lent_bytes;

/// Measurements, if the tab was hidden during each but the last.
const MEASUREMENTS_MAX: u32 = 3;

/// A worker that can join.
pub struct Ready {
    /// Held while it works; let go when it pauses.
    pub lock: Option<Lock>,
    /// Its files, if there are any.
    pub store: Option<Rc<Store>>,
    /// Its weights.
    pub weights: Rc<Weights>,
    /// Who it is.
    pub identity: Rc<Identity>,
    /// What computes.
    pub computer: Computer,
    /// Web Workers that share a shard's rows where that is the CPU.
    pub helpers: usize,
    /// The same, for its owner.
    pub device: TabDevice,
    /// How fast.
    pub benchmark: TabBenchmark,
    /// What the owner had asked for, and how many threads.
    pub asked: (Option<TabBackend>, u32),
}

/// Whether anybody sees the tab.
#[derive(Debug, Default)]
pub struct Seen {
    /// It is hidden.
    pub hidden: Cell<bool>,
    /// It is, or was since this was last cleared.
    pub was_hidden: Cell<bool>,
}

/// What preparing goes with.
pub struct Preparation {
    /// Which start it is.
    pub start: u64,
    /// Where progress goes.
    pub inbox: Inbox,
    /// What the owner allows.
    pub settings: Rc<RefCell<TabSettings>>,
    /// Ends it.
    pub cancel: Cancel,
    /// Whether anybody sees the tab.
    pub seen: Rc<Seen>,
    /// Counts bytes.
    pub meter: Rc<Meter>,
    /// What this browser gave.
    pub credit: Rc<Credit>,
    /// Why the GPU was lost, each time it was.
    pub gpu_losses: Vec<String>,
}

impl Preparation {
    /// Prepares, using what an earlier start left. Cancelled, it gives an error in words,
    /// which nobody needs.
    ///
    /// # Errors
    /// In words.
    pub async fn run(self, before: Option<Box<Ready>>) -> Result<Box<Ready>, String> {
        let (held, before) = match before {
            Some(mut ready) => (ready.lock.take(), Some(ready)),
            None => (None, None),
        };
        let (lock, kept) = match held {
            Some(lock) => (lock, true),
            None => (self.lock().await.ok_or("cancelled")?, false),
        };
        let mut ready = match before {
            Some(ready) if kept => ready,
            // Another tab may have changed or deleted the files meanwhile.
            Some(before) => {
                let files = self.open().await?;
                let Ready { computer, helpers, device, benchmark, asked, .. } = *before;
                Box::new(Ready { computer, helpers, device, benchmark, asked, ..*files })
            }
            None => self.open().await?,
        };
        ready.lock = Some(lock);
        ready.weights.set_disk_bytes_max(self.settings.borrow().disk_bytes_max);
        let asked = self.asked();
        if ready.benchmark.took_ms == 0.0 || ready.asked != asked {
            ready.asked = asked;
            if let Err(reason) = self.choose_and_measure(&mut ready, asked).await {
                let gpu = ready.device.backend == TabBackend::Webgpu;
                if self.cancel.is_cancelled() || !gpu && ready.helpers == 0 {
                    return Err(reason);
                }
                // What can fail least, then.
                let (what, threads) = if gpu { ("WebGPU", asked.1) } else { ("a helper", 1) };
                let wasm = (Some(TabBackend::Wasm), threads);
                self.choose_and_measure(&mut ready, wasm).await?;
                ready.device.notes = vec![format!("{what} failed while it was measured: {reason}")];
            }
        }
        match self.cancel.is_cancelled() {
            true => Err("cancelled".into()),
            false => Ok(ready),
        }
    }

    fn say(&self, phase: TabPhase, detail: &str) {
        let (start, detail) = (self.start, detail.to_owned());
        self.inbox.push(Happened::Preparing { start, phase, detail });
    }

    async fn lock(&self) -> Option<Lock> {
        if let Some(lock) = lock::try_take().await {
            return Some(lock);
        }
        self.say(
            TabPhase::Connecting,
            "another tab of this browser works here already; this one goes on when that stops",
        );
        lock::take(&self.cancel.signal()).await
    }

    async fn open(&self) -> Result<Box<Ready>, String> {
        let (store, problem) = match Store::open().await {
            Ok(store) => (Some(Rc::new(store)), None),
            Err(error) => (None, Some(format!("weights are kept in memory only: {error}"))),
        };
        let identity = Identity::open(store.as_deref()).await?;
        if let Some(store) = &store {
            self.credit.look(store).await;
        }
        let weights = Weights::open(store.clone(), problem, self.meter.clone()).await;
        Ok(Box::new(Ready {
            lock: None,
            store,
            weights: Rc::new(weights),
            identity: Rc::new(identity),
            computer: Computer::Cpu { threads: 1 },
            helpers: 0,
            device: TabDevice { backend: TabBackend::Wasm, name: String::new(), notes: vec![] },
            benchmark: TabBenchmark::default(),
            asked: (None, 1),
        }))
    }

    fn asked(&self) -> (Option<TabBackend>, u32) {
        let settings = self.settings.borrow();
        (settings.backend, settings.threads)
    }

    async fn choose_and_measure(
        &self,
        ready: &mut Ready,
        (asked, threads): (Option<TabBackend>, u32),
    ) -> Result<(), String> {
        self.say(TabPhase::Benchmarking, "looking for what computes");
        let cancelled = || self.cancel.is_cancelled();
        let choice = backend::choose(asked, threads, &self.gpu_losses, &cancelled).await;
        (ready.computer, ready.device) = (choice.computer, choice.device);
        ready.helpers = choice.helpers.len();
        // These end with it: each shard has its own.
        self.measure(ready, &choice.helpers).await
    }

    /// Measures; again if nobody saw the tab meanwhile, since browsers slow it down then.
    async fn measure(&self, ready: &mut Ready, helpers: &[Helper]) -> Result<(), String> {
        self.say(TabPhase::Benchmarking, "measuring");
        let lent = lent_bytes(&self.settings.borrow(), ready.device.backend);
        for last in (0..MEASUREMENTS_MAX).rev() {
            // The message is to be seen before a computation that blocks.
            js::yield_now().await;
            self.seen.was_hidden.set(self.seen.hidden.get());
            let computer = &ready.computer;
            let figures =
                benchmark::run(computer, helpers, lent, &self.meter, &self.cancel).await?;
            js::yield_now().await;
            let hidden = self.seen.was_hidden.get();
            if !hidden || last == 0 || self.cancel.is_cancelled() {
                ready.benchmark = figures;
                if hidden {
                    ready.device.notes.push("measured while the tab was hidden".into());
                }
                break;
            }
        }
        Ok(())
    }
}
