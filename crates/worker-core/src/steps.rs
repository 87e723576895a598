//! Steps, forks and truncates: executed in the order they came, answered segment by segment.

use bytes::{Bytes, BytesMut};
use protocol::{AssignmentId, Dtype, Frame, FrameKind, Segment, SessionId, Span, Status};

use crate::assignments::{Phase, Ready};
use crate::core::WorkerCore;
use crate::event::{Action, Run, RunFault, RunId, ShardKey};
use crate::limits::WAITING_MAX;
use crate::sessions::Verdict;

/// Something that touches a shard and came while another step was running.
#[derive(Debug)]
pub(crate) enum Waiting {
    Step(Frame),
    Fork { assignment: AssignmentId, from: SessionId, to: SessionId, epoch: u32, positions: u32 },
    Truncate { assignment: AssignmentId, session: SessionId, epoch: u32, positions: u32 },
    Unassign(AssignmentId),
}

/// The step whose rows are being computed.
#[derive(Debug)]
pub(crate) struct Running {
    run: RunId,
    shard: ShardKey,
    /// The step; its segments' statuses become the answer's.
    step: Frame,
    /// Whether it ends with the head, and so gives logits.
    gives_logits: bool,
    /// Bytes of one output row.
    row_bytes: usize,
    /// The layers it goes through.
    layers: Option<Span>,
    compute_us: u32,
}

impl WorkerCore {
    pub(crate) fn step_came(&mut self, frame: Frame) {
        if !self.is_joined() {
            return self.violation("a step came before the welcome");
        }
        if let Err(error) = frame.validate() {
            return self.violation(&error.to_string());
        }
        if frame.kind != FrameKind::Step {
            return self.violation("an answer came from the coordinator");
        }
        if self.is_outstanding(frame.assignment, frame.step) {
            return; // a duplicate: it will be answered once
        }
        let credits = self.config.step_credits;
        if self.outstanding() >= credits as usize {
            let step = frame.step;
            return self.violation(&format!("step {step} came beyond the {credits} credits"));
        }
        if let Some(ready) = self.ready(frame.assignment) {
            for s in &frame.segments {
                ready.sessions.see(s.session, s.epoch);
            }
        }
        self.waiting.push_back(Waiting::Step(frame));
    }

    fn is_outstanding(&self, assignment: AssignmentId, step: u64) -> bool {
        let same = |f: &Frame| (f.assignment, f.step) == (assignment, step);
        let waits = |w: &Waiting| matches!(w, Waiting::Step(frame) if same(frame));
        self.waiting.iter().any(waits) || self.running.as_ref().is_some_and(|r| same(&r.step))
    }

    pub(crate) fn fork_came(
        &mut self,
        assignment: AssignmentId,
        from: SessionId,
        to: SessionId,
        epoch: u32,
        positions: u32,
    ) {
        if let Some(ready) = self.ready(assignment) {
            ready.sessions.see(to, epoch);
            self.wait(Waiting::Fork { assignment, from, to, epoch, positions });
        }
    }

    pub(crate) fn truncate_came(
        &mut self,
        assignment: AssignmentId,
        session: SessionId,
        epoch: u32,
        positions: u32,
    ) {
        if let Some(ready) = self.ready(assignment) {
            ready.sessions.see(session, epoch);
            self.wait(Waiting::Truncate { assignment, session, epoch, positions });
        }
    }

    pub(crate) fn unassign(&mut self, id: AssignmentId) {
        let Some(held) = self.assignments.get_mut(&id) else { return };
        held.leaving = true;
        match held.phase {
            Phase::Fetching | Phase::Loading(_) => self.drop_assignment(id),
            Phase::Ready(_) => self.wait(Waiting::Unassign(id)),
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        if self.waiting.len() >= WAITING_MAX {
            return self.violation(&format!("over {WAITING_MAX} messages wait behind one step"));
        }
        self.waiting.push_back(waiting);
    }

    fn ready(&mut self, id: AssignmentId) -> Option<&mut Ready> {
        self.assignments.get_mut(&id)?.ready()
    }

    /// Works off what waits, up to the next step that has something to compute.
    pub(crate) fn advance(&mut self) {
        while self.running.is_none() {
            match self.waiting.pop_front() {
                Some(Waiting::Step(frame)) => self.begin_step(frame),
                Some(Waiting::Fork { assignment, from, to, epoch, positions }) => {
                    self.fork(assignment, from, to, epoch, positions);
                }
                Some(Waiting::Truncate { assignment, session, epoch, positions }) => {
                    self.truncate(assignment, session, epoch, positions);
                }
                Some(Waiting::Unassign(id)) => self.drop_assignment(id),
                None => return,
            }
        }
    }

    /// `to` gets what `from` really holds of the prefix; if that is less than was asked for,
    /// the next step's gap says so.
    fn fork(
        &mut self,
        assignment: AssignmentId,
        from: SessionId,
        to: SessionId,
        epoch: u32,
        positions: u32,
    ) {
        if from == to {
            return self.truncate(assignment, to, epoch, positions);
        }
        let Some(ready) = self.ready(assignment) else { return };
        if ready.sessions.is_stale(to, epoch) {
            return;
        }
        let shard = ready.shard;
        let had_kv = ready.sessions.release(to);
        let room = ready.sessions.has_room();
        let positions = if room { positions.min(ready.sessions.positions(from)) } else { 0 };
        let layers = ready.sessions.layers(from).filter(|_| positions > 0);
        if let Some(layers) = layers {
            ready.sessions.hold(to, positions, layers);
        }
        if had_kv {
            self.act(Action::Release { shard, session: to });
        }
        if layers.is_some() {
            self.act(Action::Fork { shard, from, to, positions });
        }
    }

    fn truncate(&mut self, id: AssignmentId, session: SessionId, epoch: u32, positions: u32) {
        let Some(ready) = self.ready(id) else { return };
        if ready.sessions.is_stale(session, epoch) {
            return;
        }
        let shard = ready.shard;
        if positions == 0 {
            if ready.sessions.release(session) {
                self.act(Action::Release { shard, session });
            }
        } else if ready.sessions.cut(session, positions) {
            self.act(Action::Truncate { shard, session, positions });
        }
    }

    /// Judges a step's segments and has those computed that may run.
    fn begin_step(&mut self, mut step: Frame) {
        let (id, span, dtype) = (step.assignment, step.span, step.dtype);
        let Some(held) = self.assignments.get_mut(&id) else { return self.refuse(step) };
        let within = held.assignment.span;
        let divided = held.assignment.tensor.is_some();
        let Some(ready) = held.ready() else { return self.refuse(step) };
        let (shard, shape) = (ready.shard, ready.shape);
        let (tokens, width) = if span.first == 0 { (true, 1) } else { (false, shape.d_model) };
        // The ranks of a group all run what they were given, whole.
        let fits = within.first <= span.first && span.end <= within.end;
        let fits = fits && (!divided || span == within);
        if !fits || (dtype == Dtype::U32) != tokens || step.check_payload(false, width).is_err() {
            return self.refuse(step);
        }
        let layers = Span { first: span.first.max(1), end: span.end.min(shape.layers + 1) };
        let layers = Some(layers).filter(|l| l.first < l.end);
        let mut released = Vec::new();
        for segment in &mut step.segments {
            match ready.sessions.judge(segment, layers) {
                Verdict::Run => {}
                Verdict::RunAfresh => {
                    ready.sessions.release(segment.session);
                    released.push(segment.session);
                }
                Verdict::Refuse(status, held) => {
                    segment.status = status;
                    if status == Status::Gap {
                        segment.position = held;
                    }
                }
            }
            if let (Status::Ok, Some(layers)) = (segment.status, layers) {
                // From here to the answer the shard may hold anything up to the position.
                ready.sessions.hold(segment.session, segment.position, layers);
            }
        }
        for session in released {
            self.act(Action::Release { shard, session });
        }
        let gives_logits = span.end > shape.layers + 1;
        let row_bytes = match gives_logits {
            true => Dtype::F32.row_bytes(shape.vocab as usize),
            false => step.answer.row_bytes(shape.d_model as usize),
        };
        let run = RunId(0);
        let compute_us = 0;
        self.run(Running { run, shard, step, gives_logits, row_bytes, layers, compute_us });
    }

    /// Computes the segments of a step that are still [`Status::Ok`], or answers if none is.
    fn run(&mut self, mut running: Running) {
        let step = &running.step;
        let segments: Vec<Segment> =
            step.segments.iter().filter(|s| s.status == Status::Ok).copied().collect();
        if segments.is_empty() {
            return self.answer(running, Bytes::new());
        }
        self.last_key += 1;
        running.run = RunId(self.last_key);
        self.act(Action::Run(Run {
            id: running.run,
            shard: running.shard,
            span: step.span,
            payload: rows_of_ok(step),
            dtype: step.dtype,
            answer: step.answer,
            segments,
        }));
        self.running = Some(running);
    }

    pub(crate) fn run_done(
        &mut self,
        run: RunId,
        compute_us: u32,
        result: Result<Bytes, RunFault>,
    ) {
        // A run of a connection that is gone ends too; nobody waits for it.
        let Some(mut running) = self.running.take_if(|r| r.run == run) else { return };
        running.compute_us = running.compute_us.saturating_add(compute_us);
        match result {
            Ok(payload) => self.computed(running, payload),
            Err(fault) => self.faulted(running, fault),
        }
    }

    fn computed(&mut self, running: Running, payload: Bytes) {
        let ok = running.step.segments.iter().filter(|s| s.status == Status::Ok);
        let rows = |s: &Segment| if running.gives_logits { s.logits_rows } else { s.rows };
        let expected = ok.clone().map(|s| rows(s) as usize).sum::<usize>() * running.row_bytes;
        if payload.len() != expected {
            let got = payload.len();
            let reason = format!("the engine gave {got} bytes where {expected} were due");
            return self.faulted(running, RunFault::Broken(reason));
        }
        if let (Some(ready), Some(layers)) = (
            self.assignments.get_mut(&running.step.assignment).and_then(|h| h.ready()),
            running.layers,
        ) {
            for s in ok {
                ready.sessions.hold(s.session, s.position + s.rows, layers);
            }
        }
        self.answer(running, payload);
    }

    /// Gives the faulty segment its status and runs the others again without it.
    fn faulted(&mut self, mut running: Running, fault: RunFault) {
        let id = running.step.assignment;
        let (session, status, held) = match fault {
            RunFault::KvFull { session } => (session, Status::KvFull, None),
            RunFault::Numeric { session } => (session, Status::NumericFault, None),
            RunFault::Gap { session, held } => (session, Status::Gap, Some(held)),
            RunFault::BadInput { session } => (session, Status::BadInput, None),
            RunFault::BadStep(_) => return self.give_up(running),
            RunFault::Broken(reason) => {
                self.fail(id, &reason);
                return self.give_up(running);
            }
        };
        let mut segments = running.step.segments.iter_mut();
        let Some(segment) = segments.find(|s| s.session == session && s.status == Status::Ok)
        else {
            return self.give_up(running); // not a session of this run: don't run it for ever
        };
        segment.status = status;
        let kept = held.unwrap_or(segment.position).min(segment.position);
        if let Some(held) = held {
            segment.position = held;
        }
        if running.layers.is_some() {
            self.cut_to(id, session, kept);
        }
        // A newer epoch may have come meanwhile: there is no use in computing those again.
        if let Some(ready) = self.ready(id) {
            let sessions = &ready.sessions;
            let open = running.step.segments.iter_mut().filter(|s| s.status == Status::Ok);
            open.filter(|s| sessions.is_stale(s.session, s.epoch))
                .for_each(|s| s.status = Status::Stale);
        }
        self.run(running);
    }

    /// Records that a session holds at most `kept` after a fault; with 0 it goes.
    fn cut_to(&mut self, id: AssignmentId, session: SessionId, kept: u32) {
        let Some(ready) = self.ready(id) else { return };
        let shard = ready.shard;
        ready.sessions.cut(session, kept);
        if kept == 0 && ready.sessions.release(session) {
            self.act(Action::Release { shard, session });
        }
    }

    /// Answers the segments that are still open with [`Status::BadInput`].
    fn give_up(&mut self, mut running: Running) {
        let id = running.step.assignment;
        for i in 0..running.step.segments.len() {
            let Segment { session, position, status, .. } = running.step.segments[i];
            if status == Status::Ok {
                running.step.segments[i].status = Status::BadInput;
                if running.layers.is_some() {
                    self.cut_to(id, session, position);
                }
            }
        }
        self.answer(running, Bytes::new());
    }

    /// Answers a step that does not fit this worker: unknown assignment, wrong span or width.
    fn refuse(&mut self, mut step: Frame) {
        step.segments.iter_mut().for_each(|s| s.status = Status::BadInput);
        self.send_answer(step, Dtype::F32, 0, Bytes::new());
    }

    fn answer(&mut self, running: Running, payload: Bytes) {
        let dtype = if running.gives_logits { Dtype::F32 } else { running.step.answer };
        self.send_answer(running.step, dtype, running.compute_us, payload);
    }

    fn send_answer(&mut self, step: Frame, dtype: Dtype, compute_us: u32, payload: Bytes) {
        let kind = FrameKind::Result;
        self.act(Action::SendFrame(Frame { kind, dtype, compute_us, payload, ..step }));
    }
}

/// The payload rows of a step's segments that are [`Status::Ok`]: shared if that is all.
fn rows_of_ok(step: &Frame) -> Bytes {
    if step.segments.iter().all(|s| s.status == Status::Ok) {
        return step.payload.clone();
    }
    let row_bytes = step.payload.len() / step.rows() as usize;
    let mut rows = BytesMut::new();
    let mut at = 0;
    for s in &step.segments {
        let end = at + s.rows as usize * row_bytes;
        if s.status == Status::Ok {
            rows.extend_from_slice(&step.payload[at..end]);
        }
        at = end;
    }
    rows.freeze()
}
