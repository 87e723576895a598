//! The loop that everything reports to: the owner's wishes, and what became of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use api::{FromTab, TabBenchmark, TabPhase, TabSettings, TabStatus, ToTab};
use shards::{Computer, SourceError};
use wasm_bindgen::JsValue;
use worker_core::Event;

use super::credit::Credit;
use super::http::Cancel;
use super::inbox::{Happened, Inbox};
use super::lock::Lock;
use super::prepare::{Preparation, Ready, Seen};
use super::stay::{Over, Shared, Stay};
use super::storage::Store;
use super::{js, lock};
use crate::figures::Figures;
use crate::meter::Meter;
use crate::settings::{Change, Room, change};
use crate::wake::Watch;

/// Between two looks at everything, ms.
const TICK_MS: f64 = 250.0;
/// Figures alone are told no more often, ms.
const STATUS_EVERY_MS: f64 = 500.0;
/// What was given is written down so often while it grows, ms.
const SAVE_EVERY_MS: f64 = 5000.0;
/// Between looks whether that has ended before all is deleted, ms, and how many there are: more
/// than a write may take that waits for another.
const SAVED_LOOK_EVERY_MS: f64 = 50.0;
const SAVED_LOOKS_MAX: u32 = 100;

/// What the tab is at.
enum Mode {
    /// Nothing; `true` if it has worked before.
    Resting { paused: bool },
    /// Preparing; then, if so wished, resting again.
    Preparing { cancel: Cancel, phase: TabPhase, then: Option<Then> },
    /// With the coordinator; why it is to leave, once it is.
    Staying { stay: Box<Stay>, then: Option<Then> },
    /// Waiting for the compute task's end.
    Ending { stay: Box<Stay>, then: Then },
    /// Deleting everything; then, if so wished, starting.
    Forgetting { start: bool },
}

/// What comes after leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Then {
    /// Join again with other settings.
    Rejoin,
    /// The same with a new benchmark.
    Reopen,
    /// Nothing, until told to start.
    Rest,
}

/// See the module's documentation.
pub struct Tab {
    shared: Shared,
    mode: Mode,
    /// More about the mode in words.
    detail: String,
    /// What an earlier start left.
    ready: Option<Box<Ready>>,
    start: u64,
    connection: u64,
    seen: Rc<Seen>,
    ticking: Rc<Cell<bool>>,
    watch: Watch,
    figures: Figures,
    /// What this browser gave, in this visit and before.
    credit: Rc<Credit>,
    /// Of the figures, what is in it already, rows × layers.
    credited: u64,
    saved_ms: f64,
    /// One for this, and one for each write that has not ended: it holds the lock.
    saving: Rc<()>,
    /// Why it is to stop for good once the compute task has ended, in words.
    failure: Option<String>,
    /// What turned out not to fit.
    room: Room,
    told: TabStatus,
    told_ms: f64,
    /// Why the GPU was lost, each time it was.
    gpu_losses: Vec<String>,
}

impl Tab {
    /// One that waits for its start.
    pub fn new(inbox: Inbox) -> Tab {
        let nothing = TabSettings {
            backend: None,
            memory_bytes_max: 0,
            disk_bytes_max: 0,
            data_bytes_max: None,
            intensity_percent: 100,
            name: String::new(),
            threads: 1,
        };
        let settings = Rc::new(RefCell::new(nothing));
        Tab {
            shared: Shared { inbox, meter: Rc::new(Meter::default()), settings },
            mode: Mode::Resting { paused: false },
            detail: String::new(),
            ready: None,
            start: 0,
            connection: 0,
            seen: Rc::default(),
            ticking: Rc::default(),
            watch: Watch::default(),
            figures: Figures::default(),
            credit: Rc::default(),
            credited: 0,
            saved_ms: 0.0,
            saving: Rc::default(),
            failure: None,
            room: Room::default(),
            told: TabStatus::default(),
            told_ms: 0.0,
            gpu_losses: Vec::new(),
        }
    }

    /// Works until the browser ends the worker.
    pub async fn run(mut self) {
        post(&FromTab::Loaded);
        let inbox = self.shared.inbox.clone();
        loop {
            let happened = inbox.next().await;
            self.handle(happened);
            self.keep_to_cap();
            self.settle();
            self.report(false);
        }
    }

    fn handle(&mut self, happened: Happened) {
        let staying = match &mut self.mode {
            Mode::Staying { stay, .. } => Some(stay),
            Mode::Resting { .. }
            | Mode::Preparing { .. }
            | Mode::Ending { .. }
            | Mode::Forgetting { .. } => None,
        };
        match happened {
            Happened::Page(message) => self.page(message),
            Happened::Preparing { start, phase: now, detail } => {
                if let Mode::Preparing { phase, .. } = &mut self.mode
                    && start == self.start
                {
                    (*phase, self.detail) = (now, detail);
                }
            }
            Happened::Prepared { start, result } if start == self.start => self.prepared(result),
            Happened::Socket { connection, event } => {
                if let Some(stay) = staying {
                    stay.socket(connection, event, &mut self.figures);
                }
            }
            Happened::Fetched { connection, hash, result } => {
                if let Some(stay) = staying
                    && stay.connection() == connection
                {
                    let words = result.clone().map_err(|error| error.to_string());
                    stay.fetched(connection, hash, words, &mut self.figures);
                    if let Err(SourceError::NoRoom(reason)) = result {
                        self.no_room(reason);
                    }
                }
            }
            Happened::Progress { connection, hash, bytes } => {
                if let Some(stay) = staying {
                    stay.progress(connection, hash, bytes, &mut self.figures);
                }
            }
            Happened::Computed { start, event, worked_ms } => {
                if let Some((began, ended)) = worked_ms {
                    self.figures.computed(began, ended);
                }
                // A long computation is no sleep.
                self.watch.excuse(js::wall_ms());
                if start == self.start && !self.gpu_lost() {
                    self.core(event);
                }
            }
            Happened::NoRoom { start, reason } if start == self.start => self.no_room(reason),
            Happened::ComputeEnded { start } if start == self.start => self.ended(),
            Happened::Deadline { start } => {
                if let Some(stay) = staying
                    && start == self.start
                {
                    stay.handle(Event::Tick, &mut self.figures);
                }
            }
            Happened::Tick => self.tick(),
            Happened::Forgotten(result) => self.forgotten(result),
            Happened::Saved { start, failure } if start == self.start => {
                if matches!(self.mode, Mode::Resting { .. }) {
                    self.fail(failure);
                }
            }
            Happened::Prepared { .. }
            | Happened::NoRoom { .. }
            | Happened::ComputeEnded { .. }
            | Happened::Saved { .. } => {}
        }
    }

    fn core(&mut self, event: Event) {
        if let Mode::Staying { stay, .. } = &mut self.mode {
            stay.handle(event, &mut self.figures);
        }
    }

    /// Whether the GPU is gone, with every shard on it: then it leaves at once, and looks for
    /// what computes anew.
    fn gpu_lost(&mut self) -> bool {
        let Mode::Staying { stay, then } = &mut self.mode else { return false };
        let Some(reason) = lost(&stay.ready.computer) else { return false };
        js::warn(&format!("the GPU was lost: {reason}"));
        *then = Some(then.map_or(Then::Reopen, |then| then.max(Then::Reopen)));
        stay.halt(&format!("its GPU was lost: {reason}"), &mut self.figures);
        self.gpu_losses.push(reason);
        self.end();
        true
    }

    /// There is no room for what the coordinator gave it, although that is within
    /// what is lent: it leaves, and joins again with less.
    fn no_room(&mut self, reason: String) {
        let Mode::Staying { stay, then } = &mut self.mode else { return };
        js::warn(&reason);
        let less = self.room.less(&self.shared.settings.borrow(), stay.ready.device.backend);
        *then = Some(then.map_or(Then::Rejoin, |then| then.max(Then::Rejoin)));
        stay.halt("it lends less memory from now on", &mut self.figures);
        if !less {
            let why = format!("there is no room even for the least of a model: {reason}");
            self.failure = Some(why);
        }
        self.end();
    }

    fn page(&mut self, message: ToTab) {
        match message {
            ToTab::Start(settings) => {
                self.set(settings);
                match &mut self.mode {
                    Mode::Resting { .. } => self.begin(),
                    Mode::Forgetting { start } => *start = true,
                    // It leaves because of a pause that is over.
                    Mode::Ending { then, .. } if *then == Then::Rest => *then = Then::Rejoin,
                    Mode::Staying { then: then @ Some(Then::Rest), .. } => {
                        *then = Some(Then::Rejoin);
                    }
                    Mode::Preparing { then: then @ Some(Then::Rest), .. } => {
                        *then = Some(Then::Rejoin);
                    }
                    Mode::Ending { .. } | Mode::Staying { .. } | Mode::Preparing { .. } => {}
                }
            }
            ToTab::Set(settings) => self.set(settings),
            ToTab::Pause { reason } => self.leave(&reason, true),
            ToTab::Finish { reason } => self.leave(&reason, false),
            ToTab::Visibility { hidden } => {
                self.seen.hidden.set(hidden);
                self.seen.was_hidden.set(self.seen.was_hidden.get() || hidden);
                if let Mode::Staying { stay, .. } = &mut self.mode {
                    stay.handle(Event::Visibility { hidden }, &mut self.figures);
                }
            }
            ToTab::Forget => self.forget(),
        }
    }

    fn set(&mut self, settings: TabSettings) {
        let old = self.shared.settings.replace(settings.clone());
        self.shared.meter.set_max(settings.data_bytes_max);
        let after = match change(&old, &settings) {
            Change::Live => None,
            Change::Rejoin => Some(Then::Rejoin),
            Change::Reopen => Some(Then::Reopen),
        };
        match &mut self.mode {
            Mode::Staying { stay, then } => {
                stay.ready.weights.set_disk_bytes_max(settings.disk_bytes_max);
                if let Some(after) = after {
                    *then = Some(then.map_or(after, |then| then.max(after)));
                    stay.drain("its owner changed its settings", &mut self.figures);
                }
            }
            // What is being prepared may already be for the old ones.
            Mode::Preparing { cancel, then, .. } if after.is_some() => {
                *then = Some(then.map_or(Then::Reopen, |then| then.max(Then::Reopen)));
                cancel.cancel();
            }
            Mode::Ending { then, .. } => *then = after.map_or(*then, |after| after.max(*then)),
            Mode::Preparing { .. } | Mode::Resting { .. } | Mode::Forgetting { .. } => {}
        }
    }

    /// Starts to prepare, then to stay.
    fn begin(&mut self) {
        if let Some(reason) = self.shared.meter.exhausted() {
            self.detail = format!("{reason}: raise it to go on");
            return self.rest();
        }
        let cancel = match Cancel::new() {
            Ok(cancel) => cancel,
            Err(reason) => return self.fail(reason),
        };
        self.start += 1;
        self.detail.clear();
        self.watch = Watch::default();
        self.tick_on();
        let Shared { inbox, meter, settings } = self.shared.clone();
        let start = self.start;
        let preparation = Preparation {
            start,
            inbox: inbox.clone(),
            settings,
            cancel: cancel.clone(),
            seen: self.seen.clone(),
            meter,
            credit: self.credit.clone(),
            gpu_losses: self.gpu_losses.clone(),
        };
        self.mode = Mode::Preparing { cancel, phase: TabPhase::Benchmarking, then: None };
        let before = self.ready.take();
        wasm_bindgen_futures::spawn_local(async move {
            let result = preparation.run(before).await;
            inbox.push(Happened::Prepared { start, result });
        });
    }

    fn prepared(&mut self, result: Result<Box<Ready>, String>) {
        let then = match &self.mode {
            Mode::Preparing { then, .. } => *then,
            Mode::Resting { .. }
            | Mode::Staying { .. }
            | Mode::Ending { .. }
            | Mode::Forgetting { .. } => return,
        };
        self.mode = Mode::Resting { paused: true };
        match (result, then) {
            (Ok(mut ready), Some(Then::Rest)) => {
                self.save(ready.store.clone(), ready.lock.take(), None);
                self.ready = Some(ready);
                self.rest();
            }
            (Err(_), Some(Then::Rest)) => self.rest(),
            (result, Some(Then::Rejoin | Then::Reopen)) => {
                self.ready = result.ok();
                self.begin();
            }
            (Ok(ready), None) => {
                let shared = self.shared.clone();
                self.detail.clear();
                let hidden = self.seen.hidden.get();
                let lent = self.room.lent(&shared.settings.borrow(), ready.device.backend);
                let stay = Stay::begin(self.start, self.connection, shared, ready, lent, hidden);
                self.mode = Mode::Staying { stay: Box::new(stay), then: None };
            }
            (Err(reason), None) => self.fail(reason),
        }
    }

    /// Leaves, at once or after the work in hand.
    fn leave(&mut self, reason: &str, at_once: bool) {
        self.detail = reason.to_owned();
        match &mut self.mode {
            // Whoever asked waits for the answer.
            Mode::Resting { paused } => {
                *paused = true;
                self.report(true);
            }
            Mode::Forgetting { start } => *start = false,
            Mode::Preparing { cancel, then, .. } => {
                *then = Some(Then::Rest);
                cancel.cancel();
            }
            Mode::Staying { stay, then } => {
                *then = Some(Then::Rest);
                match at_once {
                    true => {
                        stay.halt(reason, &mut self.figures);
                        self.end();
                    }
                    false => stay.drain(reason, &mut self.figures),
                }
            }
            Mode::Ending { then, .. } => *then = Then::Rest,
        }
    }

    /// Leaves at once where the owner's cap is reached.
    fn keep_to_cap(&mut self) {
        if let Mode::Staying { .. } = &self.mode
            && let Some(reason) = self.shared.meter.exhausted()
        {
            self.leave(&reason, true);
        }
    }

    /// Draws the consequences of what was handled.
    fn settle(&mut self) {
        let Mode::Staying { stay, then } = &mut self.mode else { return };
        let Some(over) = stay.settle(&mut self.figures) else { return };
        match over {
            Over::Drained => {}
            Over::Dismissed(reason) => {
                *then = Some(Then::Rest);
                self.failure = Some(format!("the coordinator says: {reason}"));
            }
        }
        stay.close();
        self.end();
    }

    /// From here on only the compute task's end is waited for.
    fn end(&mut self) {
        let mode = std::mem::replace(&mut self.mode, Mode::Resting { paused: true });
        self.mode = match mode {
            Mode::Staying { stay, then } => {
                self.connection = stay.connection();
                Mode::Ending { stay, then: then.unwrap_or(Then::Rest) }
            }
            other => other,
        };
    }

    /// The compute task has ended.
    fn ended(&mut self) {
        // It ends only when told to, and then this is what it was told in.
        let mode = std::mem::replace(&mut self.mode, Mode::Resting { paused: true });
        let Mode::Ending { stay, then } = mode else {
            self.mode = mode;
            return;
        };
        let mut ready = stay.into_ready();
        if let Some(failure) = self.failure.take() {
            self.detail.clone_from(&failure);
            self.save(ready.store.clone(), ready.lock.take(), Some(failure));
            self.ready = Some(ready);
            return self.rest();
        }
        match then {
            Then::Rest => {
                self.save(ready.store.clone(), ready.lock.take(), None);
                self.ready = Some(ready);
                self.rest();
            }
            Then::Rejoin => {
                self.ready = Some(ready);
                self.begin();
            }
            Then::Reopen => {
                // Nothing is known of what will compute.
                ready.benchmark = TabBenchmark::default();
                self.ready = Some(ready);
                self.begin();
            }
        }
    }

    fn rest(&mut self) {
        self.mode = Mode::Resting { paused: true };
        // Another tab may work now.
        if let Some(ready) = &mut self.ready {
            ready.lock = None;
        }
        self.ticking.set(false);
        self.report(true);
    }

    fn fail(&mut self, reason: String) {
        post(&FromTab::Failed { reason: reason.clone() });
        self.detail = reason;
        self.rest();
    }

    fn forget(&mut self) {
        if !matches!(self.mode, Mode::Resting { .. }) {
            return js::warn("data is deleted only while the worker is paused");
        }
        self.mode = Mode::Forgetting { start: false };
        self.ready = None;
        self.credit = Rc::default();
        self.credited = 0;
        self.figures = Figures::default();
        let inbox = self.shared.inbox.clone();
        let saving = Rc::downgrade(&self.saving);
        wasm_bindgen_futures::spawn_local(async move {
            // What is being written would come back, and holds the lock.
            let mut looks = 0;
            while saving.strong_count() > 1 && looks < SAVED_LOOKS_MAX {
                js::sleep(SAVED_LOOK_EVERY_MS).await;
                looks += 1;
            }
            inbox.push(Happened::Forgotten(erase().await));
        });
    }

    fn forgotten(&mut self, result: Result<u64, String>) {
        let Mode::Forgetting { start } = self.mode else { return };
        self.mode = Mode::Resting { paused: true };
        match result {
            Ok(disk_bytes) => {
                self.detail = "everything that was kept here is deleted".into();
                post(&FromTab::Forgotten { disk_bytes });
            }
            Err(reason) => {
                self.detail = format!("not everything could be deleted: {reason}");
                post(&FromTab::Failed { reason: self.detail.clone() });
            }
        }
        match start {
            true => self.begin(),
            false => self.report(true),
        }
    }

    /// Has [`Tab::tick`] called until it rests.
    fn tick_on(&mut self) {
        self.ticking.set(false);
        self.ticking = Rc::new(Cell::new(true));
        let (inbox, ticking) = (self.shared.inbox.clone(), self.ticking.clone());
        wasm_bindgen_futures::spawn_local(async move {
            while ticking.get() {
                inbox.push(Happened::Tick);
                js::sleep(TICK_MS).await;
            }
        });
    }

    fn tick(&mut self) {
        let slept = self.watch.look(js::wall_ms());
        if self.gpu_lost() {
            return;
        }
        let Mode::Staying { stay, .. } = &mut self.mode else { return };
        stay.tick(slept, &mut self.figures);
        let now = js::now_ms();
        if now - self.saved_ms >= SAVE_EVERY_MS {
            self.saved_ms = now;
            let store = stay.ready.store.clone();
            self.save(store, None, None);
        }
    }

    /// Credits what was given since the last time.
    fn credit(&mut self) {
        self.credit.give(self.figures.layer_tokens - self.credited);
        self.credited = self.figures.layer_tokens;
    }

    /// Writes down what was given; then lets the lock go, if it was given one, and has said why
    /// it failed, if it did.
    fn save(&mut self, store: Option<Rc<Store>>, lock: Option<Lock>, failure: Option<String>) {
        self.credit();
        let (credit, saving) = (self.credit.clone(), self.saving.clone());
        let (inbox, start) = (self.shared.inbox.clone(), self.start);
        wasm_bindgen_futures::spawn_local(async move {
            if let Some(store) = store {
                credit.keep(&store).await;
            }
            drop((lock, saving));
            if let Some(failure) = failure {
                inbox.push(Happened::Saved { start, failure });
            }
        });
    }

    /// Tells the page, if something changed; figures alone only now and then, unless `now`.
    fn report(&mut self, now: bool) {
        let status = self.status();
        let now_ms = js::now_ms();
        let plain = |s: &TabStatus| {
            let at = (s.phase, s.detail.clone(), s.device.clone(), s.benchmark);
            (at, s.shards.clone(), s.fetching.is_some(), s.disk_problem.clone())
        };
        let due = now
            || plain(&status) != plain(&self.told)
            || status != self.told && now_ms - self.told_ms >= STATUS_EVERY_MS;
        if due {
            post(&FromTab::Status(Box::new(status.clone())));
            (self.told, self.told_ms) = (status, now_ms);
        }
    }

    fn status(&mut self) -> TabStatus {
        let now = js::now_ms();
        self.credit();
        let mut status = TabStatus {
            steps: self.figures.steps,
            tokens: self.figures.tokens,
            credit_layer_tokens: self.credit.total(),
            tokens_per_s: self.figures.tokens_per_s(now),
            busy: self.figures.busy(now),
            bytes_down: self.shared.meter.down(),
            bytes_up: self.shared.meter.up(),
            bytes_from_disk: self.shared.meter.from_disk(),
            detail: self.detail.clone(),
            ..TabStatus::default()
        };
        let ready = match &self.mode {
            Mode::Resting { paused } => {
                status.phase = if *paused { TabPhase::Paused } else { TabPhase::Waiting };
                // Nothing comes after this that would let them fall.
                (status.tokens_per_s, status.busy) = (0.0, 0.0);
                self.ready.as_deref()
            }
            Mode::Forgetting { .. } => {
                status.phase = TabPhase::Paused;
                None
            }
            Mode::Preparing { phase, .. } => {
                status.phase = *phase;
                // As it was, until it is known anew.
                let told = &self.told;
                (status.device, status.benchmark) = (told.device.clone(), told.benchmark);
                (status.disk_bytes, status.disk_problem) =
                    (told.disk_bytes, told.disk_problem.clone());
                None
            }
            Mode::Staying { stay, .. } => {
                (status.phase, status.detail) = stay.phase();
                status.shards = stay.holdings().shards();
                status.fetching = stay.holdings().fetching();
                Some(&*stay.ready)
            }
            Mode::Ending { stay, .. } => {
                status.phase = TabPhase::Finishing;
                Some(&*stay.ready)
            }
        };
        if let Some(ready) = ready {
            status.device = Some(match &self.mode {
                Mode::Staying { stay, .. } => stay.device(),
                Mode::Resting { .. }
                | Mode::Preparing { .. }
                | Mode::Ending { .. }
                | Mode::Forgetting { .. } => ready.device.clone(),
            });
            status.benchmark = Some(ready.benchmark).filter(|b| b.took_ms > 0.0);
            status.disk_bytes = ready.weights.disk_bytes();
            status.disk_problem = ready.weights.problem();
        }
        status
    }
}

/// Why a computer takes no more work, if it does not.
fn lost(computer: &Computer) -> Option<String> {
    match computer {
        Computer::Cpu { .. } => None,
        #[cfg(feature = "gpu")]
        Computer::Gpu(gpu) => gpu.lost(),
    }
}

/// Deletes everything of ours; gives the bytes of weights that there were.
async fn erase() -> Result<u64, String> {
    let Some(_lock) = lock::try_take().await else {
        return Err("another tab of this browser works with it: pause that one first".into());
    };
    // Where no file can be kept, none is to be deleted.
    let Ok(store) = Store::open().await else { return Ok(0) };
    let words = |error: super::storage::StorageError| error.to_string();
    let bytes = store.blobs().await.map_err(words)?.iter().map(|(_, bytes)| bytes).sum();
    store.clear().await.map_err(words)?;
    Ok(bytes)
}

/// Tells the page.
pub fn post(message: &FromTab) {
    let json = serde_json::to_string(message).unwrap_or_default();
    // Only a worker that is being ended has no page.
    let _ = js::scope().post_message(&JsValue::from_str(&json));
}
