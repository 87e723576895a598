//! A worker of the simulation: the real `WorkerCore`, fake shards, virtual time.

use std::collections::BTreeMap;

use protocol::{AssignmentId, WorkerKind};
use worker_core::{Action, Config, Event, RunFault, Shape, ShardKey, WorkerCore};

use crate::faults::Rng;
use crate::liars::{Lie, spoil};
use crate::model::{D_MODEL, FakeShard, VOCAB};

/// How many times slower a hidden tab is.
const HIDDEN_SLOWER: u64 = 3;

/// What stays the same when a machine's program is started anew.
#[derive(Clone)]
pub struct Build {
    pub key: String,
    pub kind: WorkerKind,
    pub classes: Vec<String>,
    pub trusted: bool,
    pub memory_bytes: u64,
    /// Virtual µs per row.
    pub row_us: u64,
    /// For each layer of the step.
    pub per_layer: bool,
    /// What it says of its rates, weight bytes a second.
    pub bytes_per_s: f64,
    pub layers: u32,
    /// Holds embedding and head only.
    pub ends_only: bool,
    /// Lies, and how.
    pub lie: Option<Lie>,
}

/// A machine that comes and goes.
pub struct Machine {
    pub build: Build,
    pub core: WorkerCore,
    pub shards: BTreeMap<ShardKey, FakeShard>,
    /// Those of them that are shares in a tensor group, and its name.
    pub groups: BTreeMap<ShardKey, AssignmentId>,
    /// Answers nothing until then.
    pub frozen_until: u64,
    /// When its core wants to be told the time.
    pub tick_at: Option<u64>,
    /// Nobody sees its tab, which its browser slows down.
    pub hidden: bool,
    /// So many times slower, and until when.
    pub straggles: (u64, u64),
    /// The next load fails.
    pub load_fails: bool,
    /// The next run says that a value overflowed.
    pub run_overflows: bool,
    /// Rows that it has given, and when it lied first: the time, and the rows until then.
    pub rows: u64,
    pub lied: Option<(u64, u64)>,
    rng: Rng,
}

/// What a machine wants from the world.
pub enum Wish {
    Send(protocol::FromWorker),
    SendFrame(protocol::Frame),
    /// Give it this event after so many µs.
    Later(u64, Event),
    /// The same, if the other ranks of this group are here to compute with it.
    Together(AssignmentId, u64, Event),
    /// It was told that there is nothing for it to hold.
    Idle,
    Close(String),
}

impl Machine {
    pub fn new(build: Build) -> Machine {
        let config = Config {
            name: build.key.clone(),
            kind: build.kind,
            backend: "fake".into(),
            device: String::new(),
            notes: Vec::new(),
            classes: build.classes.clone(),
            memory_bytes: build.memory_bytes,
            bytes_per_s: [build.bytes_per_s; 2],
            step_credits: 2,
            token: None,
        };
        let rng = Rng::new(u64::from_str_radix(&build.key[48..], 16).expect("a key in hex"));
        Machine {
            build,
            core: WorkerCore::new(config),
            shards: BTreeMap::new(),
            groups: BTreeMap::new(),
            frozen_until: 0,
            tick_at: None,
            hidden: false,
            straggles: (1, 0),
            load_fails: false,
            run_overflows: false,
            rows: 0,
            lied: None,
            rng,
        }
    }

    /// The same machine, its program started anew.
    pub fn restarted(self) -> Machine {
        let (rows, lied, rng) = (self.rows, self.lied, self.rng);
        Machine { rows, lied, rng, ..Machine::new(self.build) }
    }

    /// Hands the core an event and carries out what it wants.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Wish> {
        self.core.handle(now, event);
        let mut wishes = Vec::new();
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Sign { .. } => wishes.push(Wish::Later(
                    0,
                    Event::Signed {
                        public_key: "0".repeat(64),
                        signature: "0".repeat(128),
                        cached: Vec::new(),
                    },
                )),
                Action::Joined { .. } | Action::Forget(_) => {}
                Action::Idle { .. } => wishes.push(Wish::Idle),
                Action::Send(message) => wishes.push(Wish::Send(message)),
                Action::SendFrame(frame) => wishes.push(Wish::SendFrame(frame)),
                Action::Fetch { blob, .. } => {
                    wishes.push(Wish::Later(2_000, Event::BlobReady { hash: blob.hash }));
                }
                Action::Load { shard, .. } if std::mem::take(&mut self.load_fails) => {
                    let reason = "the disk is full".into();
                    wishes.push(Wish::Later(20_000, Event::LoadFailed { shard, reason }));
                }
                Action::Load { shard, assignment } => {
                    let fake = FakeShard::new(self.build.layers, assignment.kv_pages);
                    self.shards.insert(shard, fake);
                    self.groups.extend(assignment.tensor.map(|tensor| (shard, tensor.group)));
                    let shape = Shape { layers: self.build.layers, d_model: D_MODEL, vocab: VOCAB };
                    wishes.push(Wish::Later(20_000, Event::Loaded { shard, shape }));
                }
                Action::Run(run) => {
                    let key = run.shard;
                    let shard = self.shards.get_mut(&run.shard).expect("runs follow loads");
                    let rows: u64 = run.segments.iter().map(|s| u64::from(s.rows)).sum();
                    let mut result = shard.run(run.span, &run.segments, &run.payload);
                    if let Some(lie) = self.build.lie {
                        let mut payload = result.to_vec();
                        let (rng, given) = (&mut self.rng, self.rows);
                        if spoil(lie, rng, given, run.span, &run.segments, &mut payload) {
                            self.lied.get_or_insert((now, given));
                        }
                        result = payload.into();
                    }
                    self.rows += rows;
                    // A real cache is bounded; a session too many is told so.
                    let overflows = std::mem::take(&mut self.run_overflows);
                    let result = match shard.pages() > shard.pages_max && shard.pages_max > 0 {
                        _ if overflows => {
                            let segment = run.segments[0];
                            shard.truncate(segment.session, segment.position);
                            Err(RunFault::Numeric { session: segment.session })
                        }
                        true => {
                            let segment = run.segments[0];
                            let session = segment.session;
                            shard.truncate(session, segment.position);
                            Err(RunFault::KvFull { session })
                        }
                        false => Ok(result),
                    };
                    let hidden = if self.hidden { HIDDEN_SLOWER } else { 1 };
                    let (straggles, until) = self.straggles;
                    let slowed = if now < until { hidden * straggles } else { hidden };
                    let head = self.build.layers + 1;
                    let layers = run.span.end.min(head).saturating_sub(run.span.first.max(1));
                    let work = if self.build.per_layer { u64::from(layers.max(1)) } else { 1 };
                    let took = 200 + rows * self.build.row_us * work * slowed;
                    let done = Event::RunDone { run: run.id, compute_us: took as u32, result };
                    wishes.push(match self.groups.get(&key) {
                        Some(group) => Wish::Together(*group, took, done),
                        None => Wish::Later(took, done),
                    });
                }
                Action::Fork { shard, from, to, positions } => {
                    self.shard(shard).fork(from, to, positions);
                }
                Action::Truncate { shard, session, positions } => {
                    self.shard(shard).truncate(session, positions);
                }
                Action::Release { shard, session } => self.shard(shard).release(session),
                Action::Unload { shard } => {
                    self.groups.remove(&shard);
                    self.shards.remove(&shard);
                }
                Action::Close { reason, .. } => wishes.push(Wish::Close(reason)),
                Action::Drained => wishes.push(Wish::Close("drained".into())),
            }
        }
        wishes
    }

    fn shard(&mut self, key: ShardKey) -> &mut FakeShard {
        self.shards.get_mut(&key).expect("the core names loaded shards only")
    }
}
