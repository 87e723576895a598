//! Virtual time, a network that loses things, and the scheduler in the middle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Instant;

use protocol::{AssignmentId, Frame, FromWorker, ToWorker, WorkerId, WorkerKind};
use scheduler::{Action, Event, Holds, Note, Scheduler, Standing, Time, WorkerSpec};
use worker_core::{Event as CoreEvent, RunFault};

use crate::clients::Clients;
use crate::faults::{Fault, Rng, Tally};
use crate::fleet::{CLASSES, MIB, Setting};
use crate::liars::{Found, LIES, Lie};
use crate::machine::{Build, Machine, Wish};

/// By then everything must have finished.
const END_US: u64 = 900_000_000;
/// Nobody is kept out of tensor groups for longer, virtual µs.
const GROUPED_US: u64 = 1_200_000_000;
/// How long a rank waits for another one.
const EXCHANGE_WAIT_US: u64 = 6_000_000;
/// A run that handles more events than this, and a thousand a machine, spins.
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
    pub setting: Setting,
    pub scheduler: Scheduler,
    pub machines: BTreeMap<WorkerId, Machine>,
    /// Arrival of the last message to and from each connection: messages keep their order
    /// unless a fault lets one overtake.
    pub last_arrival: BTreeMap<(WorkerId, bool), u64>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    pending: BTreeMap<u64, Happening>,
    sequence: u64,
    next_worker: u64,
    next_key: u64,
    pub clients: Clients,
    /// What the scheduler took for each kind of event, µs of real time.
    pub took_us: BTreeMap<&'static str, Vec<f64>>,
    /// Nothing passes to or from workers with this remainder by [`PARTITIONS`] until then.
    pub cut: (u64, u64),
    tick_at: Option<u64>,
    /// The session whose messages are printed, from `WEFT_SIM_TRACE`.
    traced: Option<String>,
    /// By their keys.
    pub liars: BTreeMap<String, Liar>,
    pub found: Found,
    /// Tensor groups, and their members.
    groups: BTreeMap<AssignmentId, Vec<WorkerId>>,
}

/// A key whose machine has lied.
pub struct Liar {
    pub lie: Lie,
    /// When it did first.
    pub at: u64,
    /// Rows given since.
    pub rows: u64,
    pub banned: bool,
    pub tried_again: bool,
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
pub fn run(seed: u64, setting: Setting) -> World {
    let mut world = World::new(seed, setting);
    world.start();
    let events_max = EVENTS_MAX + 1000 * world.setting.machines;
    let mut events = 0u64;
    while let Some(Reverse((at, key))) = world.queue.pop() {
        world.now = at;
        assert!(at < END_US, "seed {seed}: not finished: {}", world.describe());
        let happening = world.pending.remove(&key).expect("it was put there");
        world.happen(happening);
        if events.is_multiple_of(world.setting.check_every) {
            world.check(seed);
        }
        events += 1;
        assert!(events < events_max, "seed {seed}: it spins at {at} µs");
        if !world.faulty() && world.clients.all_done() {
            break;
        }
    }
    world.check(seed);
    assert!(world.clients.all_done(), "seed {seed}: stuck: {}", world.describe());
    if world.setting.setup.groups {
        world.groups_come_back(seed);
    }
    world
}

impl World {
    fn new(seed: u64, setting: Setting) -> World {
        let mut config = setting.config.clone();
        config.audits.secret = [seed, 7];
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
            clients: Clients::new(setting.layers, setting.setup.liars && !setting.setup.full),
            took_us: BTreeMap::new(),
            cut: (0, 0),
            tick_at: None,
            traced: std::env::var("WEFT_SIM_TRACE").ok().map(|id| format!("SessionId({id})")),
            liars: BTreeMap::new(),
            found: Found::default(),
            groups: BTreeMap::new(),
            setting,
        }
    }

    /// What the run showed.
    pub fn shown(mut self) -> Shown {
        for liar in self.liars.values() {
            self.found.fates.entry(liar.lie).or_default().lied += 1;
        }
        (self.found.logits, self.found.wrong_logits) = self.clients.judged;
        Shown { tally: self.tally, found: self.found }
    }

    fn start(&mut self) {
        self.tell(Event::AddModel(self.setting.model()));
        // Now and then the first one could hold everything, as the embedded worker does.
        let with_liars = self.setting.setup.liars;
        let holds_all = with_liars || self.rng.chance(2_500);
        let kind = LIES[self.rng.below(4) as usize];
        let liars = if kind == Lie::Together { 3..5 } else { 3..4 };
        for i in 0..self.setting.machines {
            // All but two could be in a group.
            let trusted = if self.setting.setup.groups { 5 } else { 2 };
            let mut build = self.new_build(i < trusted);
            if with_liars && liars.contains(&i) {
                build = Build { lie: Some(kind), ..self.new_native() };
            }
            build.ends_only = i == 0 && !holds_all;
            if i == 0 && holds_all {
                (build.kind, build.memory_bytes) = (WorkerKind::Embedded, 64 * MIB);
                if with_liars {
                    // Slow enough that the others are worth their hops.
                    (build.row_us, build.bytes_per_s) = (2_000, 2e8);
                }
            }
            let at = self.rng.below(2_000_000);
            self.at(at, Happening::Connect(Box::new(Machine::new(build))));
        }
        for doing in self.clients.plan(&mut self.rng, &self.setting) {
            self.at(doing.0, Happening::Client(doing.1));
        }
        self.at(3_000_000, Happening::Strike);
    }

    pub fn new_key(&mut self) -> String {
        self.next_key += 1;
        format!("{:0>64x}", self.next_key)
    }

    pub fn new_build(&mut self, trusted: bool) -> Build {
        let key = self.new_key();
        self.setting.build(key, trusted, &mut self.rng, &mut self.tally)
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
    pub fn trace(&self, what: &str, worker: WorkerId, message: &dyn std::fmt::Debug) {
        if let Some(traced) = &self.traced {
            let text = format!("{message:?}");
            if text.contains(traced.as_str()) {
                println!("{} {what} worker {worker}: {text}", self.now);
            }
        }
    }

    pub fn faulty(&self) -> bool {
        self.now < self.setting.faults_until_us
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
        let kind = kind_of(&event);
        let began = Instant::now();
        self.scheduler.handle(Time(self.now), event);
        self.took_us.entry(kind).or_default().push(began.elapsed().as_secs_f64() * 1e6);
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Control { worker, message } => {
                    self.send(worker, Parcel::Control(message));
                }
                Action::Step { worker, frame } => self.send(worker, Parcel::Frame(frame)),
                Action::Dismiss { worker, retry, .. } => self.dismissed(worker, retry),
                Action::Note(note) => self.noted(&note),
                Action::Standing { .. } => {}
                Action::Group { group, members } => {
                    self.tally.count(Fault::Grouped);
                    self.groups.insert(group, members);
                }
                Action::Ungroup { group } => {
                    self.tally.count(Fault::Ungrouped);
                    self.groups.remove(&group).expect("a group ends once");
                }
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
            boundaries: Vec::new(),
            bytes_per_s: [build.bytes_per_s; 2],
            step_credits: 2,
            classes: build.classes,
            cached: Vec::new(),
            standing: Standing::default(),
            machine: String::new(),
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
    pub fn core(&mut self, id: WorkerId, event: CoreEvent) {
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
                Wish::Together(group, after, event) => self.exchange(id, group, after, event),
                Wish::Idle => self.tally.count(Fault::Idle),
                Wish::Close(reason) => self.lose(id, reason, true),
            }
        }
    }

    /// A leader's step: it waits in vain for a rank that is gone or stuck.
    fn exchange(&mut self, id: WorkerId, group: AssignmentId, after: u64, event: CoreEvent) {
        let members = self.groups.get(&group).cloned().unwrap_or_default();
        let here = |id: &WorkerId| {
            self.machines.get(id).is_some_and(|machine| machine.frozen_until <= self.now)
        };
        let slip = self.faulty() && self.rng.chance(50);
        if !members.is_empty() && members.iter().all(here) && !slip {
            return self.at(self.now + after, Happening::Core(id, event));
        }
        self.tally.count(Fault::Unexchanged);
        let reason = "a rank sent nothing".to_owned();
        let CoreEvent::RunDone { run, compute_us, .. } = event else {
            panic!("no step: {event:?}")
        };
        // Whoever's wait ends first says so.
        let follower = members.get(1).filter(|_| self.rng.chance(5_000)).copied();
        if let Some(follower) = follower
            && let Some(machine) = self.machines.get(&follower)
            && let Some((&shard, _)) = machine.groups.iter().find(|(_, of)| **of == group)
        {
            let (at, reason) = (self.now + EXCHANGE_WAIT_US / 2, reason.clone());
            self.at(at, Happening::Core(follower, CoreEvent::Broke { shard, reason }));
        }
        let result = Err(RunFault::Broken(reason));
        let event = CoreEvent::RunDone { run, compute_us, result };
        self.at(self.now + EXCHANGE_WAIT_US, Happening::Core(id, event));
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
        let sessions = view.sessions.iter().map(|s| format!("\n{s:?}")).collect::<String>();
        format!("{}; missing: {missing}; {workers}{sessions}", self.clients.describe())
    }

    /// While nobody asks for anything, those who can be a group become one: once no pause is left.
    fn groups_come_back(&mut self, seed: u64) {
        let until = self.now + GROUPED_US;
        while let Some(Reverse((at, key))) = self.queue.peek().copied().filter(|q| q.0.0 <= until) {
            self.queue.pop();
            self.now = at;
            let happening = self.pending.remove(&key).expect("it was put there");
            self.happen(happening);
        }
        self.check(seed);
        let view = self.scheduler.view();
        // Each has room for its half of all layers and their KV, with 1 MiB to spare; the ends
        // find room elsewhere.
        let layers = u64::from(self.setting.layers);
        let kv = u64::from(self.setting.config.kv_positions_min) * 16 * 6 / 10;
        let half = layers * (MIB * 55 / 100 + kv) + self.setting.config.scratch_bytes + MIB;
        let is_able = |w: &&scheduler::WorkerView| {
            let machine = &self.machines[&w.id].build;
            w.trusted
                && w.kind == WorkerKind::Native
                && w.state != "draining"
                && !machine.ends_only
                && w.memory_bytes >= half
                && w.classes == [CLASSES[0]]
        };
        let able = view.workers.iter().filter(is_able).count();
        let ends =
            view.workers.iter().any(|w| w.trusted && !is_able(&w) && w.memory_bytes > 3 * MIB);
        if able >= 2 && ends {
            self.tally.count(Fault::Regrouped);
            assert!(
                !self.groups.is_empty(),
                "seed {seed}: {able} are in no group: {}",
                self.describe()
            );
        }
    }

    /// What must hold at every moment.
    fn check(&self, seed: u64) {
        self.scheduler.check_invariants();
        let view = self.scheduler.view();
        let config = &self.setting.config;
        assert!(view.sessions.len() <= config.sessions_max, "seed {seed}: too many sessions");
        assert!(view.queued <= config.queue_max, "seed {seed}: too many wait");
        let cached_max = config.cached_sessions_max;
        assert!(view.cached_sessions <= cached_max, "seed {seed}: too many cached");
    }
}

/// What an event is called in the report.
fn kind_of(event: &Event) -> &'static str {
    match event {
        Event::Join(_) => "join",
        Event::Leave { .. } | Event::Drain { .. } => "leave",
        Event::Ready { .. } | Event::Progress { .. } | Event::Failed { .. } => "loading",
        Event::Result { .. } => "step",
        Event::Sampled { .. } => "sampled",
        Event::Submit(_) => "route",
        Event::Tick => "tick",
        _ => "other",
    }
}
