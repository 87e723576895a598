//! Random histories of one shard, with an engine that knows what each session should hold:
//! whatever comes in whichever order, no run meets a gap, every step is answered once, and
//! each answer is what the coordinator's own record of the session gives.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use protocol::payload::{elements, to_payload};
use protocol::*;
use worker_core::*;

const LAYERS: Span = Span { first: 1, end: 4 };
const CREDITS: u32 = 3;
const SESSIONS: u64 = 4;

/// What the coordinator does next.
#[derive(Clone, Debug)]
enum Move {
    /// Rows for some sessions: (session, raise the epoch, position relative to what is
    /// thought to be held, rows).
    Step(Vec<(u64, bool, i32, u32)>),
    Fork {
        from: u64,
        to: u64,
        positions: u32,
    },
    Truncate {
        session: u64,
        positions: u32,
    },
    /// The run in progress ends, in a fault if it says so.
    Finish(Option<u8>),
    Reconnect,
}

fn any_move() -> impl Strategy<Value = Move> {
    let session = 0..SESSIONS;
    let rows = (session.clone(), prop::bool::weighted(0.2), -3..2i32, 1..4u32);
    prop_oneof![
        6 => prop::collection::vec(rows, 1..4).prop_map(Move::Step),
        1 => (session.clone(), session.clone(), 0..12u32)
            .prop_map(|(from, to, positions)| Move::Fork { from, to, positions }),
        1 => (session, 0..12u32)
            .prop_map(|(session, positions)| Move::Truncate { session, positions }),
        8 => prop::option::weighted(0.2, any::<u8>()).prop_map(Move::Finish),
        1 => Just(Move::Reconnect),
    ]
}

/// A worker, its engine, and what the coordinator thinks.
struct World {
    core: WorkerCore,
    assignment: u64,
    /// What the engine holds: each session's row tags. One map per shard.
    engine: BTreeMap<ShardKey, BTreeMap<SessionId, Vec<u32>>>,
    /// Commands to the engine are executed in order, runs when they finish.
    run: Option<Run>,
    epochs: BTreeMap<u64, u32>,
    /// Positions that the coordinator thinks are held.
    thought: BTreeMap<u64, u32>,
    /// Steps not answered yet, in order.
    open: Vec<Frame>,
    last_step: u64,
    last_tag: u32,
    answered_ok: u64,
}

impl World {
    fn new() -> World {
        let core = WorkerCore::new(Config {
            name: "w".into(),
            kind: WorkerKind::Native,
            backend: "cpu".into(),
            device: String::new(),
            notes: Vec::new(),
            classes: vec!["c".into()],
            memory_bytes: 1000,
            bytes_per_s: [1.0; 2],
            step_credits: CREDITS,
            token: None,
        });
        let mut world = World {
            core,
            assignment: 0,
            engine: BTreeMap::new(),
            run: None,
            epochs: BTreeMap::new(),
            thought: BTreeMap::new(),
            open: Vec::new(),
            last_step: 0,
            last_tag: 0,
            answered_ok: 0,
        };
        world.join();
        world
    }

    fn join(&mut self) {
        let protocol = PROTOCOL_VERSION;
        self.control(ToWorker::Challenge { protocol, nonce: "0".repeat(64) });
        let (worker, blob_token) = (WorkerId(1), String::new());
        self.control(ToWorker::Welcome { worker, blob_token, trusted: false });
        self.assignment += 1;
        self.control(ToWorker::Assign(Assignment {
            id: AssignmentId(self.assignment),
            model: "m".into(),
            manifest: BlobRef { hash: "a".repeat(64), bytes: 1 },
            span: LAYERS,
            class: "c".into(),
            blobs: vec![],
            kv_pages: 1,
            tensor: None,
        }));
    }

    fn control(&mut self, message: ToWorker) {
        self.event(Event::Control(message));
    }

    fn event(&mut self, event: Event) {
        self.core.handle(0, event);
        while let Some(action) = self.core.poll_action() {
            self.act(action);
        }
    }

    fn sessions(&mut self, shard: ShardKey) -> &mut BTreeMap<SessionId, Vec<u32>> {
        self.engine.get_mut(&shard).expect("a loaded shard")
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Sign { .. } => {
                let (public_key, signature) = (String::new(), String::new());
                self.event(Event::Signed { public_key, signature, cached: vec![] });
            }
            Action::Fetch { blob, .. } => self.event(Event::BlobReady { hash: blob.hash }),
            Action::Load { shard, .. } => {
                self.engine.insert(shard, BTreeMap::new());
                self.event(Event::Loaded {
                    shard,
                    shape: Shape { layers: 8, d_model: 1, vocab: 9 },
                });
            }
            Action::Unload { shard } => drop(self.engine.remove(&shard)),
            Action::Run(run) => {
                assert!(self.run.is_none(), "one run at a time");
                for s in &run.segments {
                    let held = self.sessions(run.shard).get(&s.session).map_or(0, Vec::len);
                    assert!(s.position as usize <= held, "a gap: {s:?}, held {held}");
                    assert_eq!(s.epoch, self.epochs[&s.session.0], "an older epoch ran");
                }
                self.run = Some(run);
            }
            Action::Fork { shard, from, to, positions } => {
                let sessions = self.sessions(shard);
                assert!(!sessions.contains_key(&to), "fork onto a session that holds something");
                let prefix = sessions[&from][..positions as usize].to_vec();
                sessions.insert(to, prefix);
            }
            Action::Truncate { shard, session, positions } => {
                let kv = self.sessions(shard).get_mut(&session).expect("a session");
                assert!(positions > 0 && kv.len() >= positions as usize);
                kv.truncate(positions as usize);
            }
            Action::Release { shard, session } => {
                self.sessions(shard).remove(&session);
            }
            Action::SendFrame(answer) => self.answered(&answer),
            Action::Close { reason, .. } => panic!("closed: {reason}"),
            Action::Joined { .. }
            | Action::Send(_)
            | Action::Forget(_)
            | Action::Idle { .. }
            | Action::Drained => {}
        }
    }

    /// The steps' answers come in order and repeat their segments.
    fn answered(&mut self, answer: &Frame) {
        assert_eq!(answer.validate(), Ok(()));
        let step = self.open.remove(0);
        assert_eq!((answer.step, answer.assignment), (step.step, step.assignment));
        assert_eq!(answer.segments.len(), step.segments.len());
        let tags = elements::<f32>(&step.payload);
        let results = elements::<f32>(&answer.payload);
        let (mut row, mut result) = (0, 0);
        for (got, sent) in answer.segments.iter().zip(&step.segments) {
            assert_eq!((got.session, got.epoch, got.rows), (sent.session, sent.epoch, sent.rows));
            let rows = sent.rows as usize;
            if got.status == Status::Ok {
                self.answered_ok += 1;
                // The fake engine repeats its input, so that mixed-up rows would show.
                assert_eq!(results[result..result + rows], tags[row..row + rows]);
                result += rows;
            }
            if sent.epoch == self.epochs[&sent.session.0] {
                let thought = self.thought.get_mut(&sent.session.0).expect("a session");
                match got.status {
                    Status::Ok => *thought = sent.position + sent.rows,
                    Status::Gap => *thought = got.position,
                    _ => *thought = (*thought).min(sent.position),
                }
            }
            row += rows;
        }
        assert_eq!(result, results.len());
    }

    /// The engine ends its run, well or with a fault in one segment.
    fn finish(&mut self, fault: Option<u8>) {
        let Some(run) = self.run.take() else { return };
        let event = |result| Event::RunDone { run: run.id, compute_us: 1, result };
        let Some(kv) = self.engine.get_mut(&run.shard) else {
            return self.event(event(Err(RunFault::Broken("unloaded".into()))));
        };
        for s in &run.segments {
            kv.entry(s.session).or_default().truncate(s.position as usize);
        }
        if let Some(fault) = fault {
            let segment = run.segments[fault as usize % run.segments.len()];
            let session = segment.session;
            let result = match fault % 3 {
                0 => RunFault::KvFull { session },
                1 => RunFault::Numeric { session },
                _ => RunFault::BadInput { session },
            };
            return self.event(event(Err(result)));
        }
        let tags = elements::<f32>(&run.payload);
        let mut row = 0;
        for s in &run.segments {
            let rows = s.rows as usize;
            let kv = kv.entry(s.session).or_default();
            kv.extend(tags[row..row + rows].iter().map(|t| *t as u32));
            row += rows;
        }
        self.event(event(Ok(run.payload.clone())));
    }

    fn step(&mut self, rows: Vec<(u64, bool, i32, u32)>) {
        if self.open.len() >= CREDITS as usize {
            return;
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut tags = Vec::new();
        for (session, raise, relative, rows) in rows {
            if segments.iter().any(|s| s.session.0 == session) {
                continue;
            }
            let epoch = self.epochs.entry(session).or_insert(1);
            *epoch += u32::from(raise);
            let epoch = *epoch;
            let thought = *self.thought.entry(session).or_insert(0);
            let position = thought.saturating_add_signed(relative);
            let (session, status) = (SessionId(session), Status::Ok);
            segments.push(Segment { session, epoch, position, rows, logits_rows: 0, status });
            for _ in 0..rows {
                self.last_tag += 1;
                tags.push(self.last_tag as f32);
            }
        }
        self.last_step += 1;
        let frame = Frame {
            kind: FrameKind::Step,
            assignment: AssignmentId(self.assignment),
            span: LAYERS,
            step: self.last_step,
            compute_us: 0,
            dtype: Dtype::F32,
            answer: Dtype::F32,
            segments,
            payload: to_payload(tags),
        };
        self.open.push(frame.clone());
        self.event(Event::Frame(frame));
    }

    fn play(&mut self, next: Move) {
        let assignment = AssignmentId(self.assignment);
        match next {
            Move::Step(rows) => self.step(rows),
            Move::Fork { from, to, positions } => {
                let epoch = self.epochs.entry(to).or_insert(1);
                *epoch += 1;
                let epoch = *epoch;
                self.thought.insert(to, positions);
                let (from, to) = (SessionId(from), SessionId(to));
                self.control(ToWorker::Fork { assignment, from, to, epoch, positions });
            }
            Move::Truncate { session, positions } => {
                let epoch = self.epochs.entry(session).or_insert(1);
                *epoch += 1;
                let epoch = *epoch;
                let thought = self.thought.entry(session).or_insert(0);
                *thought = (*thought).min(positions);
                let session = SessionId(session);
                self.control(ToWorker::Truncate { assignment, session, epoch, positions });
            }
            Move::Finish(fault) => self.finish(fault),
            Move::Reconnect => {
                self.event(Event::Disconnected);
                assert!(self.engine.is_empty(), "a shard outlived its connection");
                self.open.clear();
                self.thought.values_mut().for_each(|t| *t = 0);
                // The engine is still at the old connection's run; its end changes nothing.
                let old = self.run.take();
                self.join();
                if let Some(run) = old {
                    let result = Ok(Bytes::new());
                    self.event(Event::RunDone { run: run.id, compute_us: 1, result });
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_keeps_the_record_exact(moves in prop::collection::vec(any_move(), 1..120)) {
        let mut world = World::new();
        for next in moves {
            world.play(next);
        }
        while world.run.is_some() {
            world.finish(None);
        }
        prop_assert!(world.open.is_empty(), "a step was not answered");
        prop_assert_eq!(world.core.outstanding(), 0);
        // What the engine holds is what the coordinator may rely on: each session's next
        // step at that position runs.
        let held: Vec<(u64, u32)> = world.engine.values().flatten()
            .map(|(session, kv)| (session.0, kv.len() as u32)).collect();
        for (session, positions) in held {
            let before = world.answered_ok;
            world.thought.insert(session, positions);
            world.epochs.entry(session).or_insert(1);
            world.step(vec![(session, false, 0, 1)]);
            world.finish(None);
            prop_assert_eq!(world.answered_ok, before + 1, "session {} at {}", session, positions);
        }
    }
}
