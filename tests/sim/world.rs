//! Virtual time, a network that loses things, and the scheduler in the middle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use protocol::{BlobRef, Frame, FromWorker, ToWorker, WorkerId, WorkerKind};
use scheduler::audit::Settings;
use scheduler::{
    Action, ClassSpec, Config, Event, Holds, ModelSpec, Note, PartSpec, Sabotage, Scheduler,
    Standing, Time, WorkerSpec,
};
use worker_core::Event as CoreEvent;

use crate::clients::Clients;
use crate::faults::{Fault, Rng, Tally};
use crate::liars::{Found, LIES, Lie};
use crate::machine::{Build, Machine, Wish};
use crate::model::{D_MODEL, VOCAB};

pub const LAYERS: u32 = 6;
const MIB: u64 = 1 << 20;
/// What the model is served in, the preferred one first.
const CLASSES: [&str; 2] = ["canonical-1", "wgsl-f32"];
/// Faults strike until then, virtual µs.
const FAULTS_UNTIL_US: u64 = 60_000_000;
/// By then everything must have finished.
const END_US: u64 = 900_000_000;
/// A run that handles more events than this spins.
const EVENTS_MAX: u64 = 2_000_000;

/// Something that happens at a time.
pub enum Happening {
    ToWorker(WorkerId, Parcel),
    ToCoordinator(WorkerId, Answer),
    Core(WorkerId, CoreEvent),
    Gone(WorkerId, String),
    Connect(Box<Machine>),
    Strike,
    Client(crate::clients::Doing),
    Tick,
}

#[derive(Clone, Debug)]
pub enum Parcel {
    Control(ToWorker),
    Frame(Frame),
}

#[derive(Clone, Debug)]
pub enum Answer {
    Control(FromWorker),
    Frame(Frame),
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub tally: Tally,
    scheduler: Scheduler,
    machines: BTreeMap<WorkerId, Machine>,
    /// Arrival of the last message to and from each connection: messages keep their order
    /// unless a fault lets one overtake.
    last_arrival: BTreeMap<(WorkerId, bool), u64>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    pending: BTreeMap<u64, Happening>,
    sequence: u64,
    next_worker: u64,
    next_key: u64,
    clients: Clients,
    tick_at: Option<u64>,
    /// The session whose messages are printed, from `WEFT_SIM_TRACE`.
    traced: Option<String>,
    setup: Setup,
    /// By their keys.
    liars: BTreeMap<String, Liar>,
    found: Found,
}

/// A key whose machine has lied.
struct Liar {
    lie: Lie,
    /// When it did first.
    at: u64,
    /// Rows given since.
    rows: u64,
    banned: bool,
    tried_again: bool,
}

/// What is special about a run.
#[derive(Clone, Copy, Default)]
pub struct Setup {
    pub sabotage: Sabotage,
    /// Some machines lie.
    pub liars: bool,
    /// Nothing is given to a client that was not verified.
    pub full: bool,
}

/// What a run showed.
pub struct Shown {
    pub tally: Tally,
    pub found: Found,
}

/// Runs one seed to its end.
///
/// # Panics
/// Whenever an invariant is broken, saying which.
pub fn run(seed: u64, setup: Setup) -> Shown {
    let mut world = World::new(seed, setup);
    world.start();
    let mut events = 0u64;
    while let Some(Reverse((at, key))) = world.queue.pop() {
        world.now = at;
        assert!(at < END_US, "seed {seed}: not finished: {}", world.describe());
        let happening = world.pending.remove(&key).expect("it was put there");
        world.happen(happening);
        world.check(seed);
        events += 1;
        assert!(events < EVENTS_MAX, "seed {seed}: it spins at {at} µs");
        if world.now > FAULTS_UNTIL_US && world.clients.all_done() {
            break;
        }
    }
    assert!(world.clients.all_done(), "seed {seed}: stuck: {}", world.describe());
    for liar in world.liars.values() {
        world.found.fates.entry(liar.lie).or_default().lied += 1;
    }
    (world.found.logits, world.found.wrong_logits) = world.clients.judged;
    Shown { tally: world.tally, found: world.found }
}

fn model() -> ModelSpec {
    let blob = |name: &str, bytes: u64| BlobRef { hash: format!("{name:0>64}"), bytes };
    let tied = blob("e", 2 * MIB);
    let mut parts = vec![PartSpec { blobs: vec![tied.clone()], work_bytes: 0 }];
    for layer in 0..LAYERS {
        let blobs = vec![blob(&format!("{layer}"), MIB)];
        parts.push(PartSpec { blobs, work_bytes: MIB });
    }
    parts.push(PartSpec { blobs: vec![blob("f", 100), tied], work_bytes: 2 * MIB });
    ModelSpec {
        name: "fake".into(),
        manifest: blob("a", 1000),
        classes: CLASSES
            .map(|name| ClassSpec { name: name.into(), kv_bytes_per_position: 16 })
            .to_vec(),
        parts,
        d_model: D_MODEL,
        vocab: VOCAB,
        context: 2000,
    }
}

impl World {
    fn new(seed: u64, setup: Setup) -> World {
        let config = Config {
            sessions_max: 12,
            queue_max: 40,
            cached_sessions_max: 6,
            log_bytes_max: 60_000,
            kv_positions_max: 1280,
            kv_positions_min: 640,
            scratch_bytes: MIB / 4,
            chunk_rows_max: 48,
            load_patience: Duration::from_secs(10),
            sabotage: setup.sabotage,
            audits: Settings { full: setup.full, secret: [seed, 7], ..Settings::default() },
            ..Config::default()
        };
        World {
            now: 0,
            rng: Rng::new(seed),
            tally: Tally::default(),
            scheduler: Scheduler::new(config),
            machines: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            queue: BinaryHeap::new(),
            pending: BTreeMap::new(),
            sequence: 0,
            next_worker: 1,
            next_key: 0,
            clients: Clients::new(setup.liars && !setup.full),
            tick_at: None,
            traced: std::env::var("WEFT_SIM_TRACE").ok().map(|id| format!("SessionId({id})")),
            setup,
            liars: BTreeMap::new(),
            found: Found::default(),
        }
    }

    fn start(&mut self) {
        self.tell(Event::AddModel(model()));
        // Now and then the first one could hold everything, as the embedded worker does.
        let holds_all = self.setup.liars || self.rng.chance(2_500);
        let kind = LIES[self.rng.below(4) as usize];
        let liars = if kind == Lie::Together { 3..5 } else { 3..4 };
        for i in 0..7 {
            let mut build = self.new_build(i < 2);
            if self.setup.liars && liars.contains(&i) {
                build = Build { lie: Some(kind), ..self.new_native() };
            }
            build.ends_only = i == 0 && !holds_all;
            if i == 0 && holds_all {
                (build.kind, build.memory_bytes) = (WorkerKind::Embedded, 64 * MIB);
                if self.setup.liars {
                    // Slow enough that the others are worth their hops.
                    (build.row_us, build.bytes_per_s) = (2_000, 2e8);
                }
            }
            let at = self.rng.below(2_000_000);
            self.at(at, Happening::Connect(Box::new(Machine::new(build))));
        }
        for doing in self.clients.plan(&mut self.rng, FAULTS_UNTIL_US) {
            self.at(doing.0, Happening::Client(doing.1));
        }
        self.at(3_000_000, Happening::Strike);
    }

    fn new_key(&mut self) -> String {
        self.next_key += 1;
        format!("{:0>64x}", self.next_key)
    }

    fn new_build(&mut self, trusted: bool) -> Build {
        let browser = !trusted && self.rng.chance(5_000);
        let memory_bytes = match trusted {
            true => self.rng.between(4 * MIB, 6 * MIB),
            // A phone's tab may lend less than anything needs.
            false if browser && self.rng.chance(1_000) => MIB,
            false => self.rng.between(2 * MIB, 5 * MIB),
        };
        let row_us = match browser && self.rng.chance(2_500) {
            // A tab on a GPU made of software.
            true => {
                self.tally.count(Fault::SlowTab);
                self.rng.between(20_000, 80_000)
            }
            false => self.rng.between(50, 2_000),
        };
        // Tabs compute on a GPU, on the CPU, or on either; all others on the CPU.
        let classes: &[&str] = match (browser, self.rng.below(3)) {
            (false, _) | (true, 0) => &["canonical-1"],
            (true, 1) => &["wgsl-f32"],
            (true, _) => &["wgsl-f32", "canonical-1"],
        };
        Build {
            key: self.new_key(),
            kind: if browser { WorkerKind::Browser } else { WorkerKind::Native },
            classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            trusted,
            memory_bytes,
            row_us,
            // Tabs have measured themselves; the others claim what they like.
            bytes_per_s: if browser { 4e6 * MIB as f64 / row_us as f64 } else { 1e9 },
            layers: LAYERS,
            ends_only: false,
            lie: None,
        }
    }

    /// A fast machine that nobody trusts and that computes on its CPU.
    fn new_native(&mut self) -> Build {
        let (row_us, memory_bytes) = (self.rng.between(50, 500), self.rng.between(3, 6) * MIB);
        Build {
            kind: WorkerKind::Native,
            classes: vec![CLASSES[0].to_owned()],
            row_us,
            memory_bytes,
            ..self.new_build(false)
        }
    }

    pub fn at(&mut self, time: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((time.max(self.now), self.sequence)));
        self.pending.insert(self.sequence, happening);
    }

    /// Prints what concerns the traced session.
    fn trace(&self, what: &str, worker: WorkerId, message: &dyn std::fmt::Debug) {
        if let Some(traced) = &self.traced {
            let text = format!("{message:?}");
            if text.contains(traced.as_str()) {
                println!("{} {what} worker {worker}: {text}", self.now);
            }
        }
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_UNTIL_US
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ToWorker(id, parcel) => {
                let event = match parcel {
                    Parcel::Control(message) => CoreEvent::Control(message),
                    Parcel::Frame(frame) => CoreEvent::Frame(frame),
                };
                self.core(id, event);
            }
            Happening::ToCoordinator(id, answer) => self.answered(id, answer),
            Happening::Core(id, event) => self.core(id, event),
            Happening::Gone(id, reason) => self.tell(Event::Leave { worker: id, reason }),
            Happening::Connect(machine) => self.connect(*machine),
            Happening::Strike => self.strike(),
            Happening::Client(doing) => {
                let (events, later) = self.clients.act(doing, self.now, &mut self.tally);
                for (at, doing) in later {
                    self.at(at, Happening::Client(doing));
                }
                for event in events {
                    self.tell(event);
                }
            }
            Happening::Tick => {
                if self.tick_at.is_some_and(|t| t <= self.now) {
                    self.tick_at = None;
                    self.tell(Event::Tick);
                    let next = self.scheduler.next_deadline();
                    assert!(next.is_none_or(|(t, _)| t.0 > self.now), "{next:?} is not ahead");
                }
            }
        }
        self.set_tick();
    }

    fn set_tick(&mut self) {
        if let Some((at, _)) = self.scheduler.next_deadline()
            && self.tick_at.is_none_or(|t| at.0 < t)
        {
            self.tick_at = Some(at.0);
            self.at(at.0, Happening::Tick);
        }
    }

    /// Gives the scheduler an event and carries out what it wants.
    fn tell(&mut self, event: Event) {
        self.scheduler.handle(Time(self.now), event);
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Control { worker, message } => {
                    self.send(worker, Parcel::Control(message));
                }
                Action::Step { worker, frame } => self.send(worker, Parcel::Frame(frame)),
                Action::Dismiss { worker, retry, .. } => self.dismissed(worker, retry),
                Action::Note(note) => self.noted(&note),
                Action::Standing { .. } => {}
                Action::Verified { layers, rows, .. } => {
                    self.found.verified += u64::from(layers * rows);
                }
                action => {
                    for (at, doing) in
                        self.clients.hear(action, self.now, &mut self.rng, &mut self.tally)
                    {
                        self.at(at, Happening::Client(doing));
                    }
                }
            }
        }
    }

    fn noted(&mut self, note: &Note) {
        self.trace("note", WorkerId(0), note);
        match note {
            Note::Recovered { .. } => self.tally.count(Fault::Replaced),
            Note::Banned { key, reason } => self.banned(key, reason),
            Note::Preempted { .. } => self.tally.count(Fault::Preempted),
            Note::Waiting { .. } => self.tally.count(Fault::Uncovered),
            Note::Ignored { reason, .. } if reason.contains("moved on") => {
                self.tally.count(Fault::Stale);
            }
            _ => {}
        }
    }

    fn connect(&mut self, mut machine: Machine) {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        machine.core.handle(self.now, CoreEvent::Disconnected);
        while machine.core.poll_action().is_some() {}
        let build = machine.build.clone();
        let spec = WorkerSpec {
            id,
            key: build.key.clone(),
            name: build.key,
            kind: build.kind,
            backend: "fake".into(),
            device: String::new(),
            notes: Vec::new(),
            trusted: build.trusted,
            holds: if build.ends_only { Holds::Ends } else { Holds::Anything },
            memory_bytes: build.memory_bytes,
            bytes_per_s: [build.bytes_per_s; 2],
            step_credits: 2,
            classes: build.classes,
            cached: Vec::new(),
            standing: Standing::default(),
        };
        self.machines.insert(id, machine);
        let nonce = "0".repeat(64);
        let challenge = ToWorker::Challenge { protocol: protocol::PROTOCOL_VERSION, nonce };
        self.core(id, CoreEvent::Control(challenge));
        // The greeting is the shell's business and goes without faults.
        let signed = CoreEvent::Signed {
            public_key: "0".repeat(64),
            signature: "0".repeat(128),
            cached: Vec::new(),
        };
        self.core(id, signed);
        let welcome = ToWorker::Welcome { worker: id, blob_token: "t".into(), trusted: false };
        self.core(id, CoreEvent::Control(welcome));
        self.tell(Event::Join(spec));
    }

    /// Gives a machine's core an event, and the machine's wishes to the world.
    fn core(&mut self, id: WorkerId, event: CoreEvent) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if machine.frozen_until > self.now {
            let until = machine.frozen_until;
            self.at(until, Happening::Core(id, event));
            return;
        }
        let before = id;
        let wishes = machine.handle(self.now, event);
        let deadline = machine.core.next_deadline().map(|(at, _)| at);
        if deadline != machine.tick_at {
            machine.tick_at = deadline;
            if let Some(at) = deadline {
                self.at(at, Happening::Core(id, CoreEvent::Tick));
            }
        }
        self.watch(id);
        for wish in wishes {
            match wish {
                Wish::Send(FromWorker::Hello(_)) => {}
                Wish::Send(message) => self.reply(before, Answer::Control(message)),
                Wish::SendFrame(frame) => self.reply(before, Answer::Frame(frame)),
                // The world answers it itself, in `connect`.
                Wish::Later(_, CoreEvent::Signed { .. }) => {}
                Wish::Later(after, event) => {
                    self.at(self.now + after, Happening::Core(id, event));
                }
                Wish::Idle => self.tally.count(Fault::Idle),
                Wish::Close(reason) => self.lose(id, reason, true),
            }
        }
    }

    fn send(&mut self, to: WorkerId, parcel: Parcel) {
        self.trace("to", to, &parcel);
        if let Parcel::Control(ToWorker::Assign(assignment)) = &parcel {
            assert!(!assignment.blobs.is_empty());
            if let Some(machine) = self.machines.get(&to) {
                let has = |class: &&&str| machine.build.classes.iter().any(|c| c == **class);
                let first = CLASSES.iter().find(has);
                assert_eq!(Some(&&*assignment.class), first, "worker {to}");
            }
        }
        for at in self.arrivals(to, true) {
            self.at(at, Happening::ToWorker(to, parcel.clone()));
        }
    }

    fn reply(&mut self, from: WorkerId, mut answer: Answer) {
        if let Answer::Frame(frame) = &mut answer
            && self.faulty()
            && !frame.payload.is_empty()
        {
            if self.rng.chance(4) {
                self.tally.count(Fault::Nan);
                let mut bytes = frame.payload.to_vec();
                bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                frame.payload = bytes.into();
            } else if self.rng.chance(4) {
                self.tally.count(Fault::Short);
                frame.payload = frame.payload.slice(4..);
            }
        }
        for at in self.arrivals(from, false) {
            self.at(at, Happening::ToCoordinator(from, answer.clone()));
        }
    }

    /// When a message arrives: once, or as the faults will have it.
    fn arrivals(&mut self, worker: WorkerId, down: bool) -> Vec<u64> {
        let latency = self.rng.between(100, 3_000);
        let faulty = self.faulty();
        let last = self.last_arrival.entry((worker, down)).or_default();
        let at = (self.now + latency).max(*last + 1);
        if !faulty {
            *last = at;
            return vec![at];
        }
        if self.rng.chance(8) {
            self.tally.count(Fault::Lost);
            return Vec::new();
        }
        if self.rng.chance(60) {
            self.tally.count(Fault::Reordered);
            return vec![at + self.rng.between(1_000, 50_000)];
        }
        if self.rng.chance(4) {
            self.tally.count(Fault::Late);
            return vec![at + self.rng.between(9_000_000, 20_000_000)];
        }
        *last = at;
        if self.rng.chance(60) {
            self.tally.count(Fault::Duplicated);
            return vec![at, at + self.rng.between(1, 30_000)];
        }
        vec![at]
    }

    fn answered(&mut self, worker: WorkerId, answer: Answer) {
        self.trace("from", worker, &answer);
        let event = match answer {
            Answer::Frame(frame) => Event::Result { worker, frame },
            Answer::Control(FromWorker::Ready { assignment }) => {
                Event::Ready { worker, assignment }
            }
            Answer::Control(FromWorker::Failed { assignment, reason }) => {
                Event::Failed { worker, assignment, reason }
            }
            Answer::Control(FromWorker::Progress { assignment, bytes_done, .. }) => {
                Event::Progress { worker, assignment, bytes_done }
            }
            Answer::Control(FromWorker::Drain { reason }) => Event::Drain { worker, reason },
            Answer::Control(FromWorker::Visibility { hidden }) => {
                Event::Visibility { worker, hidden }
            }
            Answer::Control(FromWorker::Hello(_) | FromWorker::Pong { .. }) => return,
        };
        self.tell(event);
    }

    /// A key is out: it must be a liar's.
    fn banned(&mut self, key: &str, reason: &str) {
        let Some(liar) = self.liars.get_mut(key) else {
            panic!("{key} was banned and never lied: {reason}");
        };
        assert!(!std::mem::replace(&mut liar.banned, true), "{key} was banned twice");
        let fate = self.found.fates.entry(liar.lie).or_default();
        fate.banned += 1;
        fate.us.push(self.now - liar.at);
        fate.rows.push(liar.rows);
    }

    /// Keeps the books about who lies.
    fn watch(&mut self, id: WorkerId) {
        let Some(machine) = self.machines.get(&id) else { return };
        let Some((lie, (at, before))) = machine.build.lie.zip(machine.lied) else { return };
        let first = Liar { lie, at, rows: 0, banned: false, tried_again: false };
        let liar = self.liars.entry(machine.build.key.clone()).or_insert(first);
        liar.rows = machine.rows - before;
    }

    /// The scheduler closed a connection.
    fn dismissed(&mut self, id: WorkerId, retry: bool) {
        let Some(old) = self.machines.remove(&id) else { return };
        let back = self.rng.between(500_000, 5_000_000);
        let mut machine = old.restarted();
        let banned = self.liars.get_mut(&machine.build.key).filter(|liar| liar.banned);
        match banned {
            Some(liar) if !liar.tried_again => {
                // It does not take no for an answer, once.
                assert!(!retry);
                liar.tried_again = true;
            }
            Some(_) => {
                assert!(!retry);
                self.found.refused += 1;
                machine.build.key = self.new_key();
                (machine.build.lie, machine.lied) = (None, None);
            }
            // Its owner repairs it and it comes as another.
            None if !retry => {
                machine.build.key = self.new_key();
                machine.lied = None;
            }
            None => {}
        }
        self.at(self.now + back, Happening::Connect(Box::new(machine)));
    }

    /// A machine's connection breaks; the coordinator notices a little later.
    fn lose(&mut self, id: WorkerId, reason: String, comes_back: bool) {
        let Some(old) = self.machines.remove(&id) else { return };
        let noticed = self.now + self.rng.between(1_000, 2_000_000);
        self.at(noticed, Happening::Gone(id, reason));
        if comes_back {
            let ghost = self.rng.chance(2_000);
            let back = match ghost {
                true => self.now + 500,
                false => self.now + self.rng.between(1_000_000, 12_000_000),
            };
            if ghost {
                self.tally.count(Fault::Ghost);
            }
            self.at(back, Happening::Connect(Box::new(old.restarted())));
        }
    }

    /// Now and then something happens to a machine.
    fn strike(&mut self) {
        if !self.faulty() {
            return;
        }
        let again = self.now + self.rng.between(200_000, 3_000_000);
        self.at(again, Happening::Strike);
        let ids: Vec<WorkerId> = self.machines.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.rng.below(ids.len() as u64) as usize];
        match self.rng.below(18) {
            14..=17 => self.strike_tab(id),
            10..=11 => {
                self.tally.count(Fault::LoadFailed);
                self.machines.get_mut(&id).expect("it is there").load_fails = true;
            }
            12..=13 => {
                let machine = self.machines.get_mut(&id).expect("it is there");
                if !machine.build.trusted {
                    machine.run_overflows = true;
                    self.tally.count(Fault::Overflow);
                }
            }
            0..=5 => {
                self.tally.count(Fault::Killed);
                self.lose(id, "killed".into(), true);
            }
            6..=7 => {
                self.tally.count(Fault::Frozen);
                let until = self.now + self.rng.between(1_000_000, 30_000_000);
                self.machines.get_mut(&id).expect("it is there").frozen_until = until;
            }
            _ => {
                self.tally.count(Fault::Drained);
                self.core(id, CoreEvent::Drain { reason: "its owner wants it back".into() });
            }
        }
    }

    /// A tab is hidden or shown again, or closed for good while another one is opened.
    fn strike_tab(&mut self, id: WorkerId) {
        let machine = self.machines.get_mut(&id).expect("it is there");
        if machine.build.kind != WorkerKind::Browser {
            return;
        }
        if self.rng.chance(3_000) {
            self.tally.count(Fault::Closed);
            self.lose(id, "its tab was closed".into(), false);
            let (build, later) = (self.new_build(false), self.rng.between(100_000, 5_000_000));
            let other = Machine::new(build);
            self.at(self.now + later, Happening::Connect(Box::new(other)));
            return;
        }
        self.tally.count(Fault::Hidden);
        machine.hidden = !machine.hidden;
        let hidden = machine.hidden;
        self.core(id, CoreEvent::Visibility { hidden });
    }

    /// What is left to do, and with whom.
    fn describe(&self) -> String {
        let view = self.scheduler.view();
        let workers = view.workers.iter().map(|w| {
            let holds: Vec<_> = w.shards.iter().map(|s| (s.layers, s.ready)).collect();
            let memory = w.memory_bytes as f64 / MIB as f64;
            format!("\n{:?} {} {memory:.1} MiB {holds:?} {:?}", w.kind, w.state, w.idle_because)
        });
        let missing = view.models.iter().filter_map(|m| m.missing.clone());
        let workers = workers.collect::<String>();
        let missing = missing.collect::<String>();
        format!("{}; missing: {missing}; {workers}", self.clients.describe())
    }

    /// What must hold at every moment.
    fn check(&self, seed: u64) {
        self.scheduler.check_invariants();
        let view = self.scheduler.view();
        assert!(view.sessions.len() <= 12, "seed {seed}: too many sessions");
        assert!(view.queued <= 40, "seed {seed}: too many wait");
        assert!(view.cached_sessions <= 6, "seed {seed}: too many cached");
    }
}
