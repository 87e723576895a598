//! Admission, the queue, choices, and a conversation's next turn.

use std::collections::BTreeSet;

use protocol::{AssignmentId, SessionId, Span, ToWorker, WorkerId};

use crate::Scheduler;
use crate::event::{Action, Doing, Request, RequestError, RequestId, Time};
use crate::fleet::{describe, pages_for};
use crate::index::PartIndex;
use crate::session::{Phase, Session, Stage};
use crate::wish::Wish;

/// Kinds of requests of which it is remembered that no route grants them; of further ones it is
/// found anew each time.
const WITHOUT_ROUTE_MAX: usize = 256;

/// A request that was admitted.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// Its sessions that have not finished, in the order of its choices.
    pub sessions: Vec<SessionId>,
    pub submitted_at: Time,
    pub deadline: Time,
}

/// What became of an attempt to start a request.
enum Start {
    Done,
    /// And whoever comes after it waits as well.
    Wait,
    /// For room on these shards: whoever asks for the same, or needs one of them, waits as well.
    WaitFor(Vec<AssignmentId>),
    /// For what others do not need.
    WaitAlone,
    Refuse(RequestError),
}

impl Scheduler {
    pub(crate) fn submit(&mut self, request: Request) {
        let error = self.inadmissible(&request);
        if let Some(error) = error {
            self.actions.push_back(Action::Refused { request: request.id, error });
            return;
        }
        self.request_deadlines.insert((request.deadline, request.id));
        self.queue.push_back((request, self.now));
        self.due.submitted = true;
    }

    /// Why a request can never run, or not now that so many wait.
    fn inadmissible(&self, request: &Request) -> Option<RequestError> {
        let Some(model) = self.models.iter().find(|m| m.spec.name == request.model) else {
            return Some(RequestError::NoModel { model: request.model.clone() });
        };
        let positions = request.prompt.len() as u32 + 1;
        if request.prompt.is_empty() || positions > model.spec.context {
            let why = "the model's context".to_owned();
            return Some(RequestError::TooLong { positions, limit: model.spec.context, why });
        }
        let (choices, limit) = (request.choices, self.config.sessions_max);
        if choices as usize > limit {
            return Some(RequestError::TooManyChoices { choices, limit });
        }
        if let Some((field, why)) = request.wish.impossible() {
            return Some(RequestError::NoRoute { field, why });
        }
        if self.queue.len() >= self.config.queue_max {
            let retry_after_s = 1 + self.queue.len() as u32 / 8;
            return Some(RequestError::Busy { waiting: self.queue.len(), retry_after_s });
        }
        None
    }

    /// Starts what waits, in order; a model that must wait does not hold up another.
    pub(crate) fn admit(&mut self) {
        // Whoever had its KV taken, or lost a stage, comes before whoever is new. What wishes
        // for more than they do keeps only the shards that it waits for.
        let any = Wish::default();
        let broken = self.broken().filter(|s| s.wish == any);
        let mut blocked: BTreeSet<(String, Wish)> =
            broken.map(|s| (self.models[s.model].spec.name.clone(), any)).collect();
        let picky = self.broken().filter(|s| s.wish != any);
        let mut claimed: BTreeSet<AssignmentId> =
            picky.flat_map(|s| s.waits_for_room.iter().copied()).collect();
        let mut i = 0;
        while let Some((request, _)) = self.queue.get(i) {
            let waits = |wish| blocked.contains(&(request.model.clone(), wish));
            if waits(any) || waits(request.wish) {
                i += 1;
                continue;
            }
            let (request, submitted_at) = self.queue[i].clone();
            self.settle();
            if self.index.live + request.choices as usize > self.config.sessions_max {
                return;
            }
            match self.start(&request, submitted_at, &claimed) {
                Start::Done => drop(self.queue.remove(i)),
                Start::Refuse(error) => {
                    self.queue.remove(i);
                    self.request_deadlines.remove(&(request.deadline, request.id));
                    self.actions.push_back(Action::Refused { request: request.id, error });
                }
                Start::Wait => {
                    blocked.insert((request.model, any));
                    i += 1;
                }
                Start::WaitFor(shards) => {
                    blocked.insert((request.model, request.wish));
                    claimed.extend(shards);
                    i += 1;
                }
                Start::WaitAlone => i += 1,
            }
        }
    }

    /// Starts a request without the `claimed` shards, which others before it wait for.
    fn start(
        &mut self,
        request: &Request,
        submitted_at: Time,
        claimed: &BTreeSet<AssignmentId>,
    ) -> Start {
        let Some(model) = self.models.iter().position(|m| m.spec.name == request.model) else {
            return Start::Refuse(RequestError::NoModel { model: request.model.clone() });
        };
        let id = SessionId(self.next_session);
        let prompt_len = request.prompt.len() as u32;
        let mut session = Session {
            tokens: request.prompt.clone(),
            prompt_len,
            wish: request.wish,
            ..Session::new(id, request.id, model, Phase::Computing)
        };
        let cached_tokens = match self.adopt(&mut session, claimed) {
            Some(positions) => positions,
            None => {
                // A shard that can hold all of it is better than one that it would outgrow.
                let context = self.models[model].spec.context;
                let whole = prompt_len.saturating_add(request.max_new_tokens).min(context);
                let (wish, sizes) = (request.wish, [whole, prompt_len + 1]);
                let claimed: Vec<AssignmentId> = claimed.iter().copied().collect();
                let mut find = |not: &[AssignmentId]| {
                    let mut sizes = sizes.into_iter();
                    sizes.find_map(|positions| self.find_whole(model, positions, not, id.0, wish))
                };
                let free = find(&claimed);
                let is_free = free.is_some();
                let Some(stages) = free.or_else(|| find(&[])) else {
                    return self.why_no_route(model, prompt_len + 1, wish);
                };
                session.fix_dtypes(self.dtypes_of(model, &stages));
                session.stages = stages;
                if !is_free || !self.reserve_or_evict(id, &session.stages, prompt_len + 1) {
                    // Without a wish any route does: nobody else has another one.
                    return match wish == Wish::default() {
                        true => Start::Wait,
                        false => Start::WaitFor(session.layered_shards().collect()),
                    };
                }
                0
            }
        };
        session.rewind();
        let followers = (1..u64::from(request.choices)).map(|n| SessionId(id.0 + n));
        let sessions: Vec<SessionId> = std::iter::once(id).chain(followers).collect();
        for &follower in &sessions[1..] {
            let waits = Session {
                id: follower,
                phase: Phase::Following,
                stages: Vec::new(),
                boundaries: Default::default(),
                ..session.clone()
            };
            self.sessions.insert(follower, waits);
        }
        self.sessions.insert(id, session);
        self.next_session += u64::from(request.choices);
        self.requests.insert(
            request.id,
            InFlight { sessions: sessions.clone(), submitted_at, deadline: request.deadline },
        );
        self.actions.push_back(Action::Started { request: request.id, sessions, cached_tokens });
        Start::Done
    }

    /// A way through the whole model, `not` over those named for layers. That there is none is
    /// remembered until something becomes free or ready.
    pub(crate) fn find_whole(
        &mut self,
        model: usize,
        positions: u32,
        not: &[AssignmentId],
        seed: u64,
        wish: Wish,
    ) -> Option<Vec<Stage>> {
        let key = (model, wish, pages_for(positions));
        if self.without_route.contains(&key) {
            return None;
        }
        let whole = self.models[model].whole();
        let found = self.find_wished(model, whole, positions, not, seed, wish);
        if found.is_none() && not.is_empty() && self.without_route.len() < WITHOUT_ROUTE_MAX {
            self.without_route.insert(key);
        }
        found
    }

    /// What becomes of a request for which [`Scheduler::find_whole`] has just found no route.
    fn why_no_route(&mut self, model: usize, positions: u32, wish: Wish) -> Start {
        let trusted = Wish { trusted_only: wish.trusted_only, ..Wish::default() };
        if self.find_whole(model, 1, &[], 0, trusted).is_none() {
            return match wish.trusted_only {
                true => Start::WaitAlone,
                false => Start::Wait,
            };
        }
        if self.find_whole(model, 1, &[], 0, wish).is_none()
            || self.find_whole(model, positions, &[], 0, trusted).is_some()
        {
            // A shard that loads may be what is lacking.
            if self.index.loading > 0 {
                return Start::WaitAlone;
            }
            let (field, why) = wish.not_now();
            return Start::Refuse(RequestError::NoRoute { field, why });
        }
        // Its longest route is as long as the layer that has the least room.
        let parts = &self.index.models[model].parts;
        let pages = parts.iter().filter_map(|part| part.most_kv_pages()).min().unwrap_or(0);
        Start::Refuse(RequestError::TooLong {
            positions,
            limit: pages.saturating_mul(crate::fleet::PAGE_POSITIONS),
            why: "the KV cache of the workers that are here".to_owned(),
        })
    }

    /// Lets a new session begin with the KV of a finished one that shares its beginning.
    /// Answers how many positions it starts with.
    fn adopt(&mut self, session: &mut Session, claimed: &BTreeSet<AssignmentId>) -> Option<u32> {
        let (from, common) = self.longest_common(session, claimed)?;
        let donor = &self.sessions[&from];
        session.stages = donor.stages.clone();
        session.boundaries = donor.boundaries.clone();
        session.dtypes = donor.dtypes.clone();
        session.authored = donor.authored.clone();
        session.next_authored = donor.next_authored;
        // The whole of a conversation that goes on is superseded; a shared beginning is not.
        let superseded = donor.positions() == common;
        cut(session, common);
        session.leave_audits_to_original();
        let released = if superseded { self.take_pages(from, &session.stages) } else { Vec::new() };
        if !self.reserve_or_evict(session.id, &session.stages, session.prompt_len + 1)
            || !self.exists(from)
        {
            self.take_pages(session.id, &session.stages);
            self.give_pages_back(from, released);
            session.stages.clear();
            session.boundaries.clear();
            session.dtypes.clear();
            session.authored.clear();
            return None;
        }
        self.send_forks(from, session, common);
        match superseded {
            true => self.release(from),
            false => self.touch(from),
        }
        Some(common)
    }

    /// The cached session with the longest common beginning, and its length, of those on shards
    /// that the new one may use, with rows that it may rest on.
    fn longest_common(
        &mut self,
        session: &Session,
        claimed: &BTreeSet<AssignmentId>,
    ) -> Option<(SessionId, u32)> {
        self.settle();
        let cached = self.index.cached.iter().map(|(_, id)| &self.sessions[id]);
        let cached = cached.filter(|s| s.model == session.model);
        let common = cached.map(|s| {
            let same = s.tokens.iter().zip(&session.tokens).take_while(|(a, b)| a == b).count();
            // The last prompt token is always computed: its logits are wanted.
            (s.id, (same as u32).min(session.prompt_len - 1))
        });
        let wish = session.wish;
        let suits = |(id, common): &(SessionId, u32)| {
            let donor = &self.sessions[id];
            *common >= self.config.reuse_min
                && !donor.layered_shards().any(|shard| claimed.contains(&shard))
                && self.is_granted(wish, donor.model, &donor.stages)
                && (!self.config.audits.full || donor.is_verified(*common))
                // Whoever holds its KV may have computed it from what a stranger gave.
                && (!wish.trusted_only || donor.next_authored == 0)
        };
        common.filter(suits).max_by_key(|(id, n)| (*n, *id))
    }

    fn exists(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    fn touch(&mut self, session: SessionId) {
        let since = self.now;
        if let Some(s) = self.sessions.get_mut(&session) {
            s.phase = Phase::Cached { since };
        }
    }

    /// Tells every stage with KV to let `session` begin as a copy of `from`.
    fn send_forks(&mut self, from: SessionId, session: &Session, positions: u32) {
        for stage in session.stages.iter().filter(|s| s.layers) {
            let Some((worker, assignment)) = stage.holder else { continue };
            let message = ToWorker::Fork {
                assignment,
                from,
                to: session.id,
                epoch: session.epoch,
                positions,
            };
            self.actions.push_back(Action::Control { worker, message });
        }
    }

    /// The first choice's prompt is computed: the others begin as copies of it.
    /// Answers the sessions that the logits are for.
    pub(crate) fn spread(&mut self, leader: SessionId) -> Vec<SessionId> {
        let Some(session) = self.sessions.get(&leader).cloned() else { return Vec::new() };
        let all = self.requests.get(&session.request).map(|r| r.sessions.clone());
        let follows =
            |id: &SessionId| self.sessions.get(id).is_some_and(|s| s.phase == Phase::Following);
        let followers: Vec<SessionId> =
            all.unwrap_or_default().into_iter().filter(follows).collect();
        for &id in &followers {
            let mut copy = Session { id, epoch: 1, ..session.clone() };
            copy.phase = Phase::Sampling;
            copy.leave_audits_to_original();
            if self.reserve_or_evict(id, &copy.stages, copy.positions() + 1) {
                self.send_forks(leader, &copy, copy.positions());
            } else {
                // No room beside its siblings: it comes later, from its log.
                copy.stages.clear();
            }
            self.sessions.insert(id, copy);
        }
        std::iter::once(leader).chain(followers).collect()
    }

    pub(crate) fn sampled(&mut self, id: SessionId, token: u32) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.phase != Phase::Sampling {
            return;
        }
        let context = self.models[session.model].spec.context;
        if session.positions() >= context {
            let error = RequestError::TooLong {
                positions: session.positions() + 1,
                limit: context,
                why: "the model's context".to_owned(),
            };
            let request = session.request;
            self.refuse(request, error);
            return;
        }
        session.tokens.push(token);
        session.phase = Phase::Computing;
        session.dawdles = false;
        session.attempts = 0;
        // The head alone has no KV to catch up with: only the newest row is wanted.
        let wanted = session.wanted();
        for stage in session.stages.iter_mut().skip(1).filter(|s| !s.layers) {
            stage.done = wanted;
            stage.sent = wanted;
        }
        self.grow(id);
    }

    pub(crate) fn finish(&mut self, id: SessionId) {
        let since = self.now;
        self.audit_rest(id);
        let Some(session) = self.sessions.get_mut(&id).filter(|s| s.is_live()) else { return };
        let request = session.request;
        session.withheld = None;
        let layered = session.stages.iter().filter(|s| s.layers);
        let held = layered.map(|s| if s.holder.is_some() { s.done } else { 0 }).min();
        let held = held.unwrap_or(0).min(session.positions());
        session.phase = Phase::Cached { since };
        session.epoch += 1;
        if held < self.config.reuse_min {
            self.release(id);
        } else {
            session.tokens.truncate(held as usize);
            cut(session, held);
            self.trim_pages(id, held);
        }
        if let Some(in_flight) = self.requests.get_mut(&request) {
            in_flight.sessions.retain(|s| *s != id);
            if in_flight.sessions.is_empty() {
                self.request_deadlines.remove(&(in_flight.deadline, request));
                self.requests.remove(&request);
            }
        }
        self.settle();
        if self.index.cached.len() > self.config.cached_sessions_max {
            self.evict(|_| true);
        }
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
        let waited = self.queue.iter().position(|(r, _)| r.id == id);
        if let Some((request, _)) = waited.and_then(|at| self.queue.remove(at)) {
            self.request_deadlines.remove(&(request.deadline, id));
        }
        if let Some(in_flight) = self.requests.remove(&id) {
            self.request_deadlines.remove(&(in_flight.deadline, id));
            for session in in_flight.sessions {
                self.release(session);
            }
        }
    }

    /// Ends a request with an error.
    pub(crate) fn refuse(&mut self, request: RequestId, error: RequestError) {
        self.cancel(request);
        self.actions.push_back(Action::Refused { request, error });
    }

    pub(crate) fn pass_request_deadlines(&mut self) {
        let now = self.now;
        let waited = |since: Time| now.since(since).as_secs();
        while let Some(&(deadline, id)) = self.request_deadlines.first() {
            if deadline > now {
                return;
            }
            let (submitted_at, doing) = match self.requests.get(&id) {
                Some(in_flight) => {
                    let holes = in_flight.sessions.iter().find_map(|s| self.waits_for(*s));
                    (in_flight.submitted_at, holes.map_or(Doing::Generating, Doing::WaitingFor))
                }
                None => {
                    let queued = self.queue.iter().find(|(r, _)| r.id == id);
                    let (request, submitted_at) = queued.expect("it waits or runs");
                    let model = self.model_index(&request.model);
                    let missing = model.and_then(|m| self.missing(m));
                    let missing = missing.map(|missing| format!("{missing} of {}", request.model));
                    let trusted = request.wish.trusted_only;
                    let missing =
                        missing.or_else(|| self.lacks_trusted(model?).filter(|_| trusted));
                    let doing = missing.map_or(Doing::WaitingForPlace, Doing::WaitingFor);
                    (*submitted_at, doing)
                }
            };
            let waited_s = waited(submitted_at);
            self.refuse(id, RequestError::Deadline { waited_s, doing });
        }
    }

    /// What a session waits for, in words.
    pub(crate) fn waits_for(&self, id: SessionId) -> Option<String> {
        let session = self.sessions.get(&id)?;
        let model = &self.models[session.model].spec;
        let wish = session.wish.in_words();
        if session.stages.is_empty() && session.phase != Phase::Following {
            return Some(match wish.filter(|_| session.waits_for_room.is_empty()) {
                Some(wish) => format!("a route through {} with {wish}", model.name),
                None => "room in the KV cache".to_owned(),
            });
        }
        let holes = session.holes();
        let words: Vec<String> = holes.iter().map(|h| describe(model, *h)).collect();
        let wish = wish.map_or(String::new(), |wish| format!(", for a route with {wish}"));
        (!words.is_empty()).then(|| format!("{} of {}{wish}", words.join(", "), model.name))
    }

    /// Whether stages are as a request wishes.
    pub(crate) fn is_granted(&self, wish: Wish, model: usize, stages: &[Stage]) -> bool {
        let trusted = |id| self.workers.get(&id).is_some_and(|w| w.spec.trusted);
        let mut holders = stages.iter().filter_map(|s| s.holder);
        let shared = |(worker, assignment): (WorkerId, AssignmentId)| {
            let held = self.workers.get(&worker).and_then(|w| w.held.get(&assignment));
            held.is_some_and(|h| h.rank.is_some())
        };
        let mut layered = stages.iter().filter(|s| s.layers).filter_map(|s| s.holder);
        layered.all(|holder| wish.takes(shared(holder)))
            && (!wish.trusted_only || holders.all(|(worker, _)| trusted(worker)))
            && wish.suits(stages, self.models[model].spec.parts.len())
    }

    /// The parts that no trusted worker is ready with, in words.
    fn lacks_trusted(&self, model: usize) -> Option<String> {
        let (parts, spec) = (&self.index.models[model].parts, &self.models[model].spec);
        let ready = |index: &PartIndex| {
            index.fastest().any(|(worker, _)| self.workers[&worker].spec.trusted)
        };
        let lacking = (0..parts.len()).filter(|part| !ready(&parts[*part]));
        let lacking = lacking.map(|part| Span { first: part as u32, end: part as u32 + 1 });
        let mut spans: Vec<Span> = Vec::new();
        for span in lacking {
            match spans.last_mut() {
                Some(last) if last.end == span.first => last.end = span.end,
                _ => spans.push(span),
            }
        }
        let words: Vec<String> = spans.into_iter().map(|span| describe(spec, span)).collect();
        let words = words.join(", ");
        (!words.is_empty()).then(|| format!("a trusted worker for {words} of {}", spec.name))
    }

    pub(crate) fn model_index(&self, name: &str) -> Option<usize> {
        self.models.iter().position(|m| m.spec.name == name)
    }

    /// Forgets a session everywhere.
    pub(crate) fn release(&mut self, id: SessionId) {
        if self.sessions.get(&id).is_some_and(Session::is_live) {
            self.audit_rest(id);
        }
        self.let_go(id);
        self.sessions.remove(&id);
    }

    /// Tells all stages to forget a session and frees its pages; the session itself stays.
    pub(crate) fn let_go(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.epoch += 1;
        let epoch = session.epoch;
        let stages = std::mem::take(&mut session.stages);
        self.forget_stages(id, epoch, stages);
    }

    /// Tells the holders of stages to forget a session, and frees its pages there.
    pub(crate) fn forget_stages(&mut self, id: SessionId, epoch: u32, stages: Vec<Stage>) {
        for stage in stages.into_iter().filter(|s| s.layers) {
            let Some((worker, assignment)) = stage.holder else { continue };
            let shard = self.workers.get_mut(&worker).and_then(|w| w.held.get_mut(&assignment));
            if let Some(shard) = shard {
                shard.pages.remove(&id);
                let message = ToWorker::Truncate { assignment, session: id, epoch, positions: 0 };
                self.actions.push_back(Action::Control { worker, message });
            }
        }
    }

    /// Promises pages for `positions` on every stage of a session, or on none.
    /// `Err` names the shards that lack some.
    pub(crate) fn reserve(
        &mut self,
        session: SessionId,
        stages: &[Stage],
        positions: u32,
    ) -> Result<(), Vec<(WorkerId, AssignmentId)>> {
        let need = pages_for(positions);
        let holders: Vec<(WorkerId, AssignmentId)> =
            stages.iter().filter(|s| s.layers).filter_map(|s| s.holder).collect();
        let mut lacking = Vec::new();
        for (worker, assignment) in &holders {
            let shard = self.workers.get(worker).and_then(|w| w.held.get(assignment));
            let free =
                shard.map_or(0, |h| h.pages_free() + h.pages.get(&session).copied().unwrap_or(0));
            if free < need {
                lacking.push((*worker, *assignment));
            }
        }
        if !lacking.is_empty() {
            return Err(lacking);
        }
        for (worker, assignment) in holders {
            let shard = self.workers.get_mut(&worker).and_then(|w| w.held.get_mut(&assignment));
            shard.expect("it was there a moment ago").pages.insert(session, need);
        }
        Ok(())
    }

    /// Promises pages, giving up cached sessions for them, the longest unused first, then
    /// replays; none of them where all together are too few.
    pub(crate) fn reserve_or_evict(
        &mut self,
        session: SessionId,
        stages: &[Stage],
        positions: u32,
    ) -> bool {
        loop {
            let Err(lacking) = self.reserve(session, stages, positions) else { return true };
            if !self.could_free(session, &lacking, positions, |_| false) {
                return false;
            }
            let uses = |s: &Session| {
                s.stages.iter().any(|t| t.holder.is_some_and(|h| lacking.contains(&h)))
            };
            if !self.evict(uses) && !self.evict_replay(session, &lacking) {
                return false;
            }
        }
    }

    /// Lets the longest unused cached session go that `which` is true of.
    pub(crate) fn evict(&mut self, which: impl Fn(&Session) -> bool) -> bool {
        self.settle();
        let mut cached = self.index.cached.iter().map(|(_, id)| *id);
        let oldest = cached.find(|id| which(&self.sessions[id]));
        if let Some(id) = oldest {
            self.release(id);
        }
        oldest.is_some()
    }

    /// Frees a session's pages on these stages, remembering how many there were on each shard.
    fn take_pages(
        &mut self,
        id: SessionId,
        stages: &[Stage],
    ) -> Vec<(WorkerId, AssignmentId, u32)> {
        let mut taken = Vec::new();
        for (worker, assignment) in stages.iter().filter_map(|s| s.holder) {
            let shard = self.workers.get_mut(&worker).and_then(|w| w.held.get_mut(&assignment));
            if let Some(pages) = shard.and_then(|shard| shard.pages.remove(&id)) {
                taken.push((worker, assignment, pages));
            }
        }
        taken
    }

    fn give_pages_back(&mut self, id: SessionId, taken: Vec<(WorkerId, AssignmentId, u32)>) {
        if !self.exists(id) {
            return;
        }
        for (worker, assignment, pages) in taken {
            let shard = self.workers.get_mut(&worker).and_then(|w| w.held.get_mut(&assignment));
            if let Some(shard) = shard {
                shard.pages.insert(id, pages);
            }
        }
    }

    /// Lowers a session's pages to what `positions` need.
    fn trim_pages(&mut self, id: SessionId, positions: u32) {
        let holders: Vec<(WorkerId, AssignmentId)> =
            self.sessions[&id].stages.iter().filter_map(|s| s.holder).collect();
        for (worker, assignment) in holders {
            let shard = self.workers.get_mut(&worker).and_then(|w| w.held.get_mut(&assignment));
            if let Some(pages) = shard.and_then(|shard| shard.pages.get_mut(&id)) {
                *pages = (*pages).min(pages_for(positions));
            }
        }
    }
}

/// Cuts what is known of a session's stages and boundaries to `positions`.
fn cut(session: &mut Session, positions: u32) {
    for stage in &mut session.stages {
        stage.done = stage.done.min(positions);
        stage.sent = stage.done;
    }
    for boundary in session.boundaries.values_mut() {
        boundary.truncate(positions);
    }
    for part in session.authored.iter().map(|e| e.span.end).collect::<Vec<_>>() {
        session.cut_authored(part, positions);
    }
}
