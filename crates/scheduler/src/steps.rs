//! What goes to a worker as one step, and what its answer means.
//!
//! Batching is self-clocked: when a worker is ready for its next step (`pace`), everything that
//! waits for the same parts of the same shard goes as one, within bounds of rows and time.

use bytes::{Bytes, BytesMut};
use protocol::{
    AssignmentId, Dtype, Frame, FrameKind, PAYLOAD_BYTES_MAX, SEGMENTS_MAX, Segment, SessionId,
    Span, Status, WorkerId, boundary,
};

use crate::Scheduler;
use crate::audit::lag;
use crate::event::{Action, Note, RequestError};
use crate::fleet::StepInFlight;
use crate::session::{Overflow, Phase, Session};
use crate::{groups, links};

/// A prefill chunk is not made smaller than this to keep a step short.
const CHUNK_ROWS_MIN: u32 = 16;

/// What the rows of one step have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    /// The shard.
    assignment: AssignmentId,
    /// Its parts that are run.
    span: Span,
    /// What the rows are logged in before them and after.
    dtypes: [Dtype; 2],
}

/// Rows of one session that wait for a stage.
pub(crate) struct Waiting {
    pub(crate) session: SessionId,
    pub(crate) stage: usize,
    pub(crate) from: u32,
    pub(crate) to: u32,
    served: u64,
}

impl Scheduler {
    /// Sends steps until no worker with a credit has anything waiting.
    pub(crate) fn send_steps(&mut self) {
        self.settle();
        // Only who was touched can have something to be sent: the others were looked at when
        // they were.
        while let Some(worker) = self.due.send.pop_first() {
            while self.workers.get(&worker).is_some_and(|w| w.has_credit() && !w.draining) {
                let Some((target, rows)) = self.next_batch(worker) else { break };
                let rows = self.rows_due(worker, rows);
                if rows.is_empty() {
                    break;
                }
                // Rows that the log lacks wait for the stages before, which are touched by it.
                self.send_step(worker, target, rows);
                self.settle();
            }
        }
        self.trim_logs();
    }

    /// What waits for a worker: the group that was served the longest ago.
    fn next_batch(&self, worker: WorkerId) -> Option<(Target, Vec<Waiting>)> {
        let mut groups: std::collections::BTreeMap<Target, Vec<Waiting>> = Default::default();
        let skip_replay = self.config.sabotage.skip_replay;
        for id in self.index.waiting.get(&worker)? {
            let session = &self.sessions[id];
            for (i, stage) in session.stages.iter().enumerate() {
                let Some((holder, assignment)) = stage.holder else { continue };
                if holder != worker {
                    continue;
                }
                let Some((from, to)) = session.rows_waiting(i, skip_replay) else { continue };
                let dtypes = self.stage_dtypes(session, stage.span);
                let target = Target { assignment, span: stage.span, dtypes };
                groups.entry(target).or_default().push(Waiting {
                    session: session.id,
                    stage: i,
                    from,
                    to,
                    served: session.served,
                });
            }
        }
        let oldest = |rows: &Vec<Waiting>| rows.iter().map(|w| w.served).min();
        let (target, mut rows) =
            groups.into_iter().min_by_key(|(key, rows)| (oldest(rows), *key))?;
        // Decodes first, so that a long prompt holds nobody up.
        rows.sort_by_key(|w| (w.to - w.from > 1, w.served, w.session));
        Some((target, rows))
    }

    /// Rows that a step through `span` may have if it is not to take too long, of `row_bytes`
    /// over the link.
    fn rows_max(&self, worker: WorkerId, model: usize, span: Span, row_bytes: usize) -> u32 {
        let budget =
            if self.index.routed > 1 { self.config.step_busy } else { self.config.step_alone };
        let spec = &self.models[model].spec;
        let work = self.models[model].work_bytes(span);
        let per_row = self.workers[&worker].compute_s(work, 64) / 64.0;
        let rows = if per_row > 0.0 { budget.as_secs_f64() / per_row } else { f64::MAX };
        // Both sides of the wire must be able to take it.
        let wire = (PAYLOAD_BYTES_MAX / (spec.d_model as usize * 4)) as u32;
        let rows = (rows as u32).max(CHUNK_ROWS_MIN).min(wire);
        let rows = rows.min(self.workers[&worker].wire_rows_max(row_bytes));
        rows.min(self.config.step_rows_max).min(protocol::ROWS_MAX)
    }

    /// Sends one step with as many of the rows as fit.
    fn send_step(&mut self, worker: WorkerId, target: Target, waiting: Vec<Waiting>) {
        let Target { assignment, span, dtypes } = target;
        let model = self.workers[&worker].held[&assignment].model;
        let width = self.width(model);
        let wire = dtypes.map(|dtype| self.workers[&worker].on_wire(dtype));
        let parts = self.models[model].spec.parts.len() as u32;
        let logits_bytes = self.models[model].spec.vocab as usize * 4;
        let logits_max = (PAYLOAD_BYTES_MAX / logits_bytes.max(1)).max(1);
        let input_bytes = if span.first == 0 { 4 } else { wire[0].row_bytes(width) };
        let output_bytes = if span.end == parts { 0 } else { wire[1].row_bytes(width) };
        let mut rows_left = self.rows_max(worker, model, span, input_bytes + output_bytes);
        if self.workers[&worker].held[&assignment].rank.is_some() {
            rows_left = rows_left.min(groups::order_rows_max(width));
        }
        let step = self.next_step;
        // However many decode, a prompt or a replay that waits gets on.
        let long = waiting.iter().any(|w| w.to - w.from > 1);
        let mut decodes_left = match long {
            true => rows_left - (rows_left / 2).min(CHUNK_ROWS_MIN / 2),
            false => rows_left,
        };
        let mut segments = Vec::new();
        let mut payload: Vec<Bytes> = Vec::new();
        for wait in waiting {
            if wait.to - wait.from == 1 {
                if decodes_left == 0 {
                    continue;
                }
                decodes_left -= 1;
            }
            if rows_left == 0 || segments.len() == SEGMENTS_MAX.min(logits_max) {
                break;
            }
            let session = self.sessions.get_mut(&wait.session).expect("it waits");
            let rows = (wait.to - wait.from).min(rows_left).min(self.config.chunk_rows_max);
            let to = wait.from + rows;
            let Some(input) = input(session, wait.stage, wait.from, to) else {
                // The log was dropped: the stages before run those rows again.
                session.fence();
                session.rewind();
                continue;
            };
            let wants_logits =
                span.end == parts && to == session.positions() && session.phase == Phase::Computing;
            segments.push(Segment {
                session: session.id,
                epoch: session.epoch,
                position: wait.from,
                rows,
                logits_rows: u32::from(wants_logits),
                status: Status::Ok,
            });
            payload.push(links::convert(input, dtypes[0], wire[0], width));
            session.stages[wait.stage].sent = to;
            session.served = step + lag(session, &self.config);
            rows_left -= rows;
        }
        if segments.is_empty() {
            return;
        }
        self.next_step += 1;
        let rows: u32 = segments.iter().map(|s| s.rows).sum();
        let logits: u32 = segments.iter().map(|s| s.logits_rows).sum();
        let work = self.models[model].work_bytes(span);
        let w = self.workers.get_mut(&worker).expect("it has a credit");
        let predicted_s = w.compute_s(work, rows);
        let payload = join(payload);
        let answer_bytes = rows as usize * output_bytes + logits as usize * logits_bytes;
        let wire_s = w.wire_s(payload.len() + answer_bytes);
        let [ahead_s, ahead_wire_s] = w.with_those_ahead(predicted_s, wire_s);
        let in_flight = StepInFlight {
            assignment,
            span,
            segments: segments.clone(),
            wire,
            logged: dtypes[1],
            payload_bytes: payload.len(),
            sent_at: self.now,
            deadline: self.now.plus(w.patience(ahead_s + w.hop_s, ahead_wire_s)),
            predicted_s,
            wire_s,
            expected_s: ahead_s + w.hop_s + ahead_wire_s,
            alone: w.in_flight.is_empty(),
        };
        w.in_flight.insert(step, in_flight);
        let frame = Frame {
            kind: FrameKind::Step,
            assignment,
            span,
            step,
            compute_us: 0,
            dtype: wire[0],
            answer: wire[1],
            segments,
            payload,
        };
        self.actions.push_back(Action::Step { worker, frame });
    }

    /// A worker answered: its rows go into the log and on to the next stage.
    pub(crate) fn step_answered(&mut self, id: WorkerId, mut frame: Frame) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Some(step) = worker.in_flight.remove(&frame.step) else {
            let reason = format!("step {} is not outstanding", frame.step);
            self.note(Note::Ignored { worker: id, reason });
            return;
        };
        let Some(model) = worker.held.get(&step.assignment).map(|h| h.model) else {
            return; // The shard was taken back meanwhile; so were the sessions' stages.
        };
        let spec = &self.models[model].spec;
        let is_head = step.span.end == spec.parts.len() as u32;
        let width = if is_head { spec.vocab } else { spec.d_model } as usize;
        if let Err(reason) = check_answer(&step, &frame, is_head, width) {
            self.dismiss(id, &reason, false);
            return;
        }
        let work = self.models[model].work_bytes(step.span);
        if frame.segments.iter().all(|s| s.status == Status::Ok) {
            let worker = self.workers.get_mut(&id).expect("it answered");
            worker.learn(&step, work, frame.compute_us, frame.payload.len(), self.now);
            self.plan_visit(id);
            self.count_traffic(id, &step, model);
        }
        frame.payload = links::convert(frame.payload, step.wire[1], step.logged, width);
        let row_bytes = step.logged.row_bytes(width);
        let whole = frame.segments.len() == 1;
        let mut offset = 0;
        for (sent, got) in step.segments.iter().zip(&frame.segments) {
            let rows = if is_head { sent.logits_rows } else { sent.rows } as usize;
            let mut output = Bytes::new();
            if got.status == Status::Ok {
                let bytes = frame.payload.slice(offset..offset + rows * row_bytes);
                offset += rows * row_bytes;
                // A slice would keep the other sessions' rows alive with it.
                output = if whole { bytes } else { Bytes::copy_from_slice(&bytes) };
            }
            self.segment_answered(id, &step, sent, got, output);
        }
    }

    fn segment_answered(
        &mut self,
        worker: WorkerId,
        step: &StepInFlight,
        sent: &Segment,
        got: &Segment,
        output: Bytes,
    ) {
        // Anything from before the newest fence, or for a stage since replaced, is void.
        let Some(session) = self.sessions.get_mut(&sent.session) else { return };
        let holder = Some((worker, step.assignment));
        let stage = session.stages.iter().position(|s| s.holder == holder && s.span == step.span);
        let current = session.epoch == sent.epoch || self.config.sabotage.accept_old_epochs;
        let Some(i) = stage.filter(|_| current && !session.is_cached()) else {
            let reason = format!("session {} has moved on", sent.session);
            self.note(Note::Ignored { worker, reason });
            return;
        };
        match got.status {
            Status::Ok => self.rows_computed(worker, sent, i, output),
            Status::Gap => {
                session.stages[i].done = session.stages[i].done.min(got.position);
                self.again(sent.session, worker, "it lacks positions of its KV cache");
            }
            Status::Stale => self.again(sent.session, worker, "it saw a newer epoch"),
            Status::KvFull => {
                self.preempt(sent.session);
                self.failed_once(sent.session, worker, "its KV cache is full");
            }
            Status::NumericFault if self.replay_overflowed(sent.session, sent.position) => {}
            Status::NumericFault => self.numeric_fault(worker, sent, i),
            Status::BadInput => {
                // It does not hold what it said it holds.
                self.dismiss(worker, "it refused a step of its own shard", true);
            }
        }
    }

    /// Sends a session's unanswered rows again behind a new fence.
    fn again(&mut self, id: SessionId, worker: WorkerId, why: &str) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.fence();
            session.rewind();
        }
        self.failed_once(id, worker, why);
    }

    /// A value overflowed. A trusted worker's word ends the request; another's is checked by
    /// running the stage elsewhere, where that is possible.
    fn numeric_fault(&mut self, worker: WorkerId, sent: &Segment, stage: usize) {
        let session = &self.sessions[&sent.session];
        let (model, span, request) = (session.model, session.stages[stage].span, session.request);
        let trusted = self.workers.get(&worker).is_none_or(|w| w.spec.trusted);
        // Two workers that say so are believed as a trusted one is.
        let says = Overflow { worker, span, from: sent.position, to: sent.position + sent.rows };
        let confirmed = session.overflow.is_some_and(|other| {
            let rows = other.from < says.to && says.from < other.to;
            let parts = other.span.first < span.end && span.first < other.span.end;
            rows && parts && other.worker != worker
        });
        let (wish, stages) = (session.wish, session.stages.clone());
        let mut not: Vec<AssignmentId> = Vec::new();
        if let Some(w) = self.workers.get(&worker) {
            not.extend(w.held.keys().copied());
        }
        let its = not.len();
        not.extend(session.layered_shards());
        let positions = session.positions() + 1;
        let believed = trusted || confirmed;
        let position = sent.position;
        let (seed, whole) = (sent.session.0, self.models[model].whole());
        let other = match believed {
            true => None,
            false => self.find_wished(model, span, positions, &not, seed, wish.of_part()),
        };
        let mended = other.map(|other| {
            let mut stages = stages.clone();
            stages.splice(stage..=stage, other);
            stages
        });
        let mended = mended.filter(|stages| self.is_granted(wish, model, stages));
        let keeps = mended.is_some();
        let mended = match believed || keeps {
            true => mended,
            // Where the stage alone cannot be replaced as wished, another way may do.
            false => self.find_wished(model, whole, positions, &not[..its], seed, wish),
        };
        let Some(mended) = mended else {
            self.refuse(request, RequestError::Numeric { position });
            return;
        };
        self.audit_rest(sent.session);
        let old = if keeps { vec![stages[stage].clone()] } else { stages };
        let chosen = if keeps { Default::default() } else { self.dtypes_of(model, &mended) };
        let session = self.sessions.get_mut(&sent.session).expect("it was found");
        session.overflow = Some(says);
        session.stages = mended;
        session.fix_dtypes(chosen);
        session.fix_exact();
        session.fence();
        let epoch = session.epoch;
        self.forget_stages(sent.session, epoch, old);
        let session = self.sessions.get_mut(&sent.session).expect("it was found");
        session.rewind();
        let stages = session.stages.clone();
        if !self.reserve_or_evict(sent.session, &stages, positions) {
            self.preempt(sent.session);
        }
    }

    /// A stranger said that a value overflows where whoever came after it found none: the first
    /// time that may be so, from the second on it lowers its standing.
    fn doubt(&mut self, worker: WorkerId) {
        let Some(w) = self.workers.get_mut(&worker) else { return };
        w.overflows += 1;
        if w.overflows > 1 {
            let key = w.spec.key.clone();
            self.count_disagreement(&key);
        }
    }

    /// A stage computed rows `position..position + rows`.
    fn rows_computed(&mut self, worker: WorkerId, sent: &Segment, i: usize, output: Bytes) {
        let session = self.sessions.get_mut(&sent.session).expect("it was found");
        let next = session.stages[i].span.end;
        let width = self.models[session.model].spec.d_model as usize;
        let row_bytes = session.dtype(next).row_bytes(width);
        let stage = &mut session.stages[i];
        let end = sent.position + sent.rows;
        let in_order = sent.position == stage.done || (i > 0 && !stage.layers);
        if !in_order {
            self.again(sent.session, worker, "its answers came out of order");
            return;
        }
        stage.done = end;
        let span = stage.span;
        let has_passed = |said: &mut Overflow| {
            span.first < said.span.end && said.span.end <= span.end && said.to <= end
        };
        let doubted = session.overflow.take_if(has_passed);
        if i + 1 < session.stages.len() {
            let boundary = session.boundaries.entry(next).or_default();
            // A replay's rows are there already, from the first time.
            let mut skip = boundary.end().saturating_sub(sent.position).min(sent.rows) as usize;
            if self.config.sabotage.log_replays {
                skip = 0;
            }
            if skip < sent.rows as usize {
                let gap = sent.position > boundary.end();
                assert!(!gap || self.config.sabotage.accept_old_epochs, "rows after a gap");
                boundary.append(output.slice(skip * row_bytes..), row_bytes);
                self.rows_authored(sent.session, i, sent.position + skip as u32, end);
            }
        } else if session.is_audit() {
            self.replay_answered(sent.session, sent.position, &output);
        } else if sent.logits_rows == 1 && session.phase == Phase::Computing {
            if self.config.audits.full && !session.is_verified(end) {
                self.withhold(sent.session, end - 1, output);
            } else {
                self.give_logits(sent.session, end - 1, output);
            }
        }
        if let Some(said) = doubted {
            self.doubt(said.worker);
        }
    }

    /// Has the next token chosen: by every choice of the request, after its prompt.
    pub(crate) fn give_logits(&mut self, id: SessionId, position: u32, logits: Bytes) {
        let session = self.sessions.get_mut(&id).expect("it was found");
        session.phase = Phase::Sampling;
        let first = position + 1 == session.prompt_len;
        let to = if first { self.spread(id) } else { vec![id] };
        for session in to {
            let logits = logits.clone();
            self.actions.push_back(Action::Sample { session, position, logits });
        }
    }
}

/// The input rows `from..to` of a session's stage.
fn input(session: &Session, stage: usize, from: u32, to: u32) -> Option<Bytes> {
    match session.stages[stage].span.first {
        0 => {
            let tokens = &session.tokens[from as usize..to as usize];
            Some(tokens.iter().flat_map(|t| t.to_le_bytes()).collect())
        }
        part => session.boundaries.get(&part)?.rows(from, to),
    }
}

fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        joined.extend_from_slice(&piece);
    }
    joined.freeze()
}

/// Whether an answer has the shape of its step's, rows of `width` values, and finite numbers only.
fn check_answer(
    step: &StepInFlight,
    frame: &Frame,
    is_head: bool,
    width: usize,
) -> Result<(), String> {
    if frame.assignment != step.assignment || frame.span != step.span {
        return Err(format!("step {} was answered for another shard", frame.step));
    }
    let same = |(a, b): (&Segment, &Segment)| a.session == b.session && a.epoch == b.epoch;
    if frame.segments.len() != step.segments.len()
        || !step.segments.iter().zip(&frame.segments).all(same)
    {
        return Err(format!("step {} was answered with other segments", frame.step));
    }
    let ok = step.segments.iter().zip(&frame.segments).filter(|(_, g)| g.status == Status::Ok);
    let rows: usize = ok.map(|(s, _)| if is_head { s.logits_rows } else { s.rows } as usize).sum();
    let dtype = step.wire[1];
    let expected = rows * dtype.row_bytes(width);
    if frame.payload.len() != expected || (expected > 0 && frame.dtype != dtype) {
        return Err(format!(
            "step {} was answered with {} bytes of {} where {expected} of {} belong",
            frame.step,
            frame.payload.len(),
            frame.dtype.name(),
            dtype.name()
        ));
    }
    let sound = match dtype {
        Dtype::F32 => is_finite(&frame.payload),
        _ => boundary::is_sound(&frame.payload, dtype, width),
    };
    if !sound {
        return Err(format!("step {} was answered with values that are not finite", frame.step));
    }
    Ok(())
}

/// Whether all f32 of a payload are finite.
fn is_finite(payload: &[u8]) -> bool {
    // Whole blocks without a branch, which the compiler makes vector code of.
    payload.chunks(1024).all(|block| {
        let magnitudes = block
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7fff_ffff);
        magnitudes.fold(0, u32::max) < 0x7f80_0000
    })
}
