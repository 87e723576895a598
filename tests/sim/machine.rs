//! A worker of the simulation: the real `WorkerCore`, fake shards, virtual time.

use std::collections::BTreeMap;

use protocol::WorkerKind;
use worker_core::{Action, Config, Event, RunFault, Shape, ShardKey, WorkerCore};

use crate::model::{D_MODEL, FakeShard, VOCAB};

/// A machine that comes and goes.
pub struct Machine {
    pub key: String,
    pub trusted: bool,
    pub memory_bytes: u64,
    /// Virtual µs per row.
    pub row_us: u64,
    pub core: WorkerCore,
    pub shards: BTreeMap<ShardKey, FakeShard>,
    /// Answers nothing until then.
    pub frozen_until: u64,
    pub layers: u32,
    /// Holds embedding and head only.
    pub ends_only: bool,
    /// The next load fails.
    pub load_fails: bool,
    /// The next run says that a value overflowed.
    pub run_overflows: bool,
}

/// What a machine wants from the world.
pub enum Wish {
    Send(protocol::FromWorker),
    SendFrame(protocol::Frame),
    /// Give it this event after so many µs.
    Later(u64, Event),
    Close(String),
}

impl Machine {
    pub fn new(key: String, trusted: bool, memory_bytes: u64, row_us: u64, layers: u32) -> Machine {
        let config = Config {
            name: key.clone(),
            kind: WorkerKind::Native,
            backend: "fake".into(),
            device: String::new(),
            notes: Vec::new(),
            classes: vec!["canonical-1".into()],
            memory_bytes,
            bytes_per_s: [1e9, 2e8],
            step_credits: 2,
            token: None,
        };
        Machine {
            key,
            trusted,
            memory_bytes,
            row_us,
            core: WorkerCore::new(config),
            shards: BTreeMap::new(),
            frozen_until: 0,
            layers,
            ends_only: false,
            load_fails: false,
            run_overflows: false,
        }
    }

    /// The same machine, its program started anew.
    pub fn restarted(self) -> Machine {
        let ends_only = self.ends_only;
        let fresh =
            Machine::new(self.key, self.trusted, self.memory_bytes, self.row_us, self.layers);
        Machine { ends_only, ..fresh }
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
                Action::Joined { .. } | Action::Forget(_) | Action::Idle { .. } => {}
                Action::Send(message) => wishes.push(Wish::Send(message)),
                Action::SendFrame(frame) => wishes.push(Wish::SendFrame(frame)),
                Action::Fetch(blob) => {
                    wishes.push(Wish::Later(2_000, Event::BlobReady { hash: blob.hash }));
                }
                Action::Load { shard, .. } if std::mem::take(&mut self.load_fails) => {
                    let reason = "the disk is full".into();
                    wishes.push(Wish::Later(20_000, Event::LoadFailed { shard, reason }));
                }
                Action::Load { shard, assignment } => {
                    let fake = FakeShard::new(self.layers, assignment.kv_pages);
                    self.shards.insert(shard, fake);
                    let shape = Shape { layers: self.layers, d_model: D_MODEL, vocab: VOCAB };
                    wishes.push(Wish::Later(20_000, Event::Loaded { shard, shape }));
                }
                Action::Run(run) => {
                    let shard = self.shards.get_mut(&run.shard).expect("runs follow loads");
                    let rows: u64 = run.segments.iter().map(|s| u64::from(s.rows)).sum();
                    let result = shard.run(run.span, &run.segments, &run.payload);
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
                    let took = 200 + rows * self.row_us;
                    let done = Event::RunDone { run: run.id, compute_us: took as u32, result };
                    wishes.push(Wish::Later(took, done));
                }
                Action::Fork { shard, from, to, positions } => {
                    self.shard(shard).fork(from, to, positions);
                }
                Action::Truncate { shard, session, positions } => {
                    self.shard(shard).truncate(session, positions);
                }
                Action::Release { shard, session } => self.shard(shard).release(session),
                Action::Unload { shard } => drop(self.shards.remove(&shard)),
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
