//! What the page does with its worker: a state machine without a browser.
//!
//! The owner wishes (start, pause, finish), the machine may hold back (on battery, hidden,
//! frozen), the worker answers. [`Donor::handle`] takes each of these as an [`Event`] and
//! returns what to do about it.

use api::{FromTab, TabPhase, TabSettings, TabStatus, ToTab};

use crate::settings::Settings;

/// What a paused worker may take to say so before it is ended, ms.
pub const PAUSE_MS_MAX: u32 = 800;

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The owner wants it to run.
    Start,
    /// The owner wants it to stop at once.
    Pause,
    /// The owner wants it to answer what is at hand and stop.
    Finish,
    /// The owner wants all data here deleted.
    Forget,
    /// The owner changed a setting.
    Settings(Settings),
    /// The tab was hidden or shown.
    Visibility {
        /// Nobody sees it.
        hidden: bool,
    },
    /// The machine's power changed; `None` where the browser does not say.
    Charging(Option<bool>),
    /// The page is left, by another address or for good, or shown again.
    Left(bool),
    /// The browser freezes the page, and its workers in the midst of what they do, or thaws it.
    Frozen(bool),
    /// The worker said something.
    Said(Box<FromTab>),
    /// The worker could not be loaded, or threw.
    Broke(String),
    /// [`PAUSE_MS_MAX`] are over since [`Effect::Deadline`] with this number.
    Overdue(u32),
}

/// To be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Load the worker.
    Spawn,
    /// Tell it something.
    Post(ToTab),
    /// End it, whatever it is doing.
    Terminate,
    /// Come back with [`Event::Overdue`] after [`PAUSE_MS_MAX`].
    Deadline(u32),
    /// Delete what the page itself keeps.
    ForgetSettings,
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing runs.
    Stopped,
    /// It runs whenever it may.
    Running,
    /// It answers what is at hand, then stops.
    Finishing,
}

/// Where the worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    Absent,
    /// Its code is fetched.
    Loading,
    /// Loaded, computes nothing.
    Resting,
    Started,
    Finishing,
    /// Told to pause; the number of the deadline.
    Pausing(u32),
    /// Deletes its data.
    Forgetting,
}

/// What workers did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    steps: u64,
    tokens: u64,
    bytes_down: u64,
    bytes_up: u64,
    bytes_from_disk: u64,
    /// All that this origin's workers ever gave, not only what one of them did.
    credit: u64,
}

impl Totals {
    fn of(status: &TabStatus) -> Totals {
        Totals {
            steps: status.steps,
            tokens: status.tokens,
            bytes_down: status.bytes_down,
            bytes_up: status.bytes_up,
            bytes_from_disk: status.bytes_from_disk,
            credit: status.credit_layer_tokens,
        }
    }

    /// With what a later worker did.
    fn and(self, later: Totals) -> Totals {
        Totals {
            steps: self.steps.saturating_add(later.steps),
            tokens: self.tokens.saturating_add(later.tokens),
            bytes_down: self.bytes_down.saturating_add(later.bytes_down),
            bytes_up: self.bytes_up.saturating_add(later.bytes_up),
            bytes_from_disk: self.bytes_from_disk.saturating_add(later.bytes_from_disk),
            // A later one says 0 until it has looked at what is written down, which may be less:
            // the last seconds of one that was ended, or all, if another tab deleted it.
            credit: if later.credit == 0 { self.credit } else { later.credit },
        }
    }

    fn show(self, status: &mut TabStatus) {
        status.steps = self.steps;
        status.tokens = self.tokens;
        status.bytes_down = self.bytes_down;
        status.bytes_up = self.bytes_up;
        status.bytes_from_disk = self.bytes_from_disk;
        status.credit_layer_tokens = self.credit;
    }

    /// Across the network.
    fn bytes(self) -> u64 {
        self.bytes_down.saturating_add(self.bytes_up)
    }
}

/// The page's side of a lent tab.
#[derive(Clone, Debug)]
pub struct Donor {
    wish: Wish,
    worker: Worker,
    settings: Settings,
    backend: Option<api::TabBackend>,
    hidden: bool,
    frozen: bool,
    gone: bool,
    charging: Option<bool>,
    forget: bool,
    deadlines: u32,
    /// Of the worker that lives, and of those of this visit that have ended.
    current: Totals,
    ended: Totals,
    /// What the worker said last, with the totals of those before it.
    pub status: TabStatus,
    /// Why it stopped by itself, or what came of deleting.
    pub notice: Option<String>,
}

impl Donor {
    /// Nothing is loaded, nothing runs.
    pub fn new(settings: Settings, backend: Option<api::TabBackend>) -> Donor {
        Donor {
            wish: Wish::Stopped,
            worker: Worker::Absent,
            settings,
            backend,
            hidden: false,
            frozen: false,
            gone: false,
            charging: None,
            forget: false,
            deadlines: 0,
            current: Totals::default(),
            ended: Totals::default(),
            status: TabStatus::default(),
            notice: None,
        }
    }

    /// What the owner wants now.
    pub fn wish(&self) -> Wish {
        self.wish
    }

    /// Whether the worker has been told to compute, and has not left.
    pub fn works(&self) -> bool {
        matches!(self.worker, Worker::Started | Worker::Finishing)
    }

    /// Whether its code is on its way.
    pub fn loads(&self) -> bool {
        self.worker == Worker::Loading
    }

    /// Whether it was told to pause and has not said that it did.
    pub fn pauses(&self) -> bool {
        matches!(self.worker, Worker::Pausing(_))
    }

    /// Whether data is being deleted.
    pub fn forgets(&self) -> bool {
        self.forget
    }

    /// Why it does not run although its owner wants it to, in words.
    pub fn held(&self) -> Option<&'static str> {
        let stop_hidden = self.settings.stop_when_hidden;
        if self.frozen {
            Some("frozen by the browser")
        } else if self.gone {
            Some("its page was left")
        } else if self.settings.only_charging && self.charging == Some(false) {
            Some("on battery")
        } else if stop_hidden && self.hidden {
            Some("hidden")
        } else {
            None
        }
    }

    /// Takes an event; returns what to do, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Start => {
                self.notice = None;
                self.wish = Wish::Running;
            }
            Event::Pause => self.wish = Wish::Stopped,
            Event::Finish => self.finish(&mut effects),
            Event::Forget if self.wish == Wish::Stopped => self.forget = true,
            Event::Forget => {}
            Event::Settings(settings) => {
                let before = self.for_worker();
                self.settings = settings;
                let now = self.for_worker();
                if before != now && self.works() {
                    effects.push(Effect::Post(ToTab::Set(now)));
                }
            }
            Event::Visibility { hidden } => {
                if self.hidden != hidden && self.works() {
                    effects.push(Effect::Post(ToTab::Visibility { hidden }));
                }
                self.hidden = hidden;
            }
            Event::Charging(charging) => self.charging = charging,
            Event::Left(left) => self.gone = left,
            Event::Frozen(frozen) => self.freeze(frozen, &mut effects),
            Event::Said(said) => self.said(*said, &mut effects),
            Event::Broke(why) => self.broke(why, &mut effects),
            Event::Overdue(number) => {
                if self.worker == Worker::Pausing(number) {
                    effects.push(Effect::Terminate);
                    self.left();
                    self.worker = Worker::Absent;
                }
            }
        }
        self.settle(&mut effects);
        effects
    }

    /// A frozen worker answers nobody and keeps its connection: it is ended, which the
    /// coordinator sees at once.
    fn freeze(&mut self, frozen: bool, effects: &mut Vec<Effect>) {
        self.frozen = frozen;
        if frozen && !matches!(self.worker, Worker::Absent | Worker::Forgetting) {
            effects.push(Effect::Terminate);
            self.left();
            self.worker = Worker::Absent;
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if self.worker == Worker::Started {
            self.wish = Wish::Finishing;
            self.worker = Worker::Finishing;
            let reason = "its owner lets it finish".to_owned();
            effects.push(Effect::Post(ToTab::Finish { reason }));
        } else if self.worker != Worker::Finishing {
            self.wish = Wish::Stopped;
        }
    }

    fn said(&mut self, said: FromTab, effects: &mut Vec<Effect>) {
        match said {
            FromTab::Loaded => {
                if self.worker == Worker::Loading {
                    self.worker = Worker::Resting;
                }
            }
            FromTab::Status(status) => {
                let paused = status.phase == TabPhase::Paused;
                let working = !paused && status.phase != TabPhase::Waiting;
                self.status = *status;
                self.current = Totals::of(&self.status);
                self.ended.and(self.current).show(&mut self.status);
                match self.worker {
                    Worker::Pausing(_) if paused => self.worker = Worker::Resting,
                    Worker::Finishing if paused => {
                        self.worker = Worker::Resting;
                        self.wish = Wish::Stopped;
                    }
                    // What made it seem to rest was said before it was started.
                    Worker::Resting if working => self.worker = Worker::Started,
                    // It left by itself: its data cap is reached, say.
                    Worker::Started if paused => {
                        self.worker = Worker::Resting;
                        self.wish = Wish::Stopped;
                        self.notice = Some(self.status.detail.clone()).filter(|d| !d.is_empty());
                    }
                    _ => {}
                }
            }
            FromTab::Forgotten { disk_bytes } => {
                if self.worker == Worker::Forgetting {
                    self.worker = Worker::Resting;
                    self.forget = false;
                    self.status = TabStatus::default();
                    // What crossed the network still counts against the cap.
                    let Totals { bytes_down, bytes_up, .. } = self.ended;
                    self.ended = Totals { bytes_down, bytes_up, ..Totals::default() };
                    let bytes = crate::words::bytes(disk_bytes);
                    self.notice = Some(format!("All data is deleted ({bytes} of weights)."));
                    effects.push(Effect::ForgetSettings);
                }
            }
            FromTab::Failed { reason } => self.broke(reason, effects),
        }
    }

    fn broke(&mut self, why: String, effects: &mut Vec<Effect>) {
        if self.worker != Worker::Absent {
            effects.push(Effect::Terminate);
        }
        self.worker = Worker::Absent;
        self.wish = Wish::Stopped;
        self.forget = false;
        self.left();
        self.notice = Some(why);
    }

    /// What the worker is told: of the data cap, what ended workers left of it.
    fn for_worker(&self) -> TabSettings {
        let mut settings = self.settings.for_worker(self.backend);
        if let Some(max) = &mut settings.data_bytes_max {
            *max = max.saturating_sub(self.ended.bytes());
        }
        settings
    }

    /// Why no further worker is started, once the ended ones have used up the data cap.
    fn exhausted(&self) -> Option<String> {
        (self.for_worker().data_bytes_max == Some(0)).then(|| {
            let used = crate::words::bytes(self.ended.bytes());
            format!("The data cap of this visit is reached ({used} used): raise it to go on.")
        })
    }

    /// The worker is gone: what it gave stays in view, what it was doing does not.
    fn left(&mut self) {
        self.ended = self.ended.and(std::mem::take(&mut self.current));
        self.status.phase = TabPhase::Paused;
        self.status.detail = String::new();
        self.status.shards.clear();
        self.status.fetching = None;
        self.status.tokens_per_s = 0.0;
        self.status.busy = 0.0;
    }

    /// Brings the worker to where it is wanted.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        if self.wish == Wish::Running
            && matches!(self.worker, Worker::Absent | Worker::Resting)
            && let Some(reason) = self.exhausted()
        {
            self.wish = Wish::Stopped;
            self.notice = Some(reason);
        }
        let run = self.wish == Wish::Running && self.held().is_none();
        match self.worker {
            Worker::Absent if run || self.forget => {
                self.worker = Worker::Loading;
                effects.push(Effect::Spawn);
            }
            Worker::Resting if self.forget => {
                self.worker = Worker::Forgetting;
                effects.push(Effect::Post(ToTab::Forget));
            }
            Worker::Resting if run => {
                self.worker = Worker::Started;
                effects.push(Effect::Post(ToTab::Start(self.for_worker())));
                // It may have been told otherwise before it rested.
                effects.push(Effect::Post(ToTab::Visibility { hidden: self.hidden }));
            }
            Worker::Started if !run => self.pause(effects),
            Worker::Finishing if self.wish != Wish::Finishing || self.held().is_some() => {
                // Wanted again or unwanted at all: either begins with leaving.
                if self.wish == Wish::Finishing {
                    self.wish = Wish::Stopped;
                }
                self.pause(effects);
            }
            Worker::Loading if !run && !self.forget => {
                self.worker = Worker::Absent;
                effects.push(Effect::Terminate);
            }
            Worker::Absent
            | Worker::Loading
            | Worker::Resting
            | Worker::Started
            | Worker::Finishing
            | Worker::Pausing(_)
            | Worker::Forgetting => {}
        }
    }

    fn pause(&mut self, effects: &mut Vec<Effect>) {
        self.deadlines += 1;
        self.worker = Worker::Pausing(self.deadlines);
        let reason = self.held().unwrap_or("paused by its owner").to_owned();
        effects.push(Effect::Post(ToTab::Pause { reason }));
        effects.push(Effect::Deadline(self.deadlines));
    }
}

#[cfg(test)]
mod tests;
