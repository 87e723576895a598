//! Clients that ask, sample, come back with a next turn, or go away; and the judge of what
//! they are given.

use std::collections::BTreeMap;

use protocol::SessionId;
use scheduler::{Action, Event, Request, RequestError, RequestId, Time, Wish};

use crate::faults::{Fault, Rng, Tally};
use crate::fleet::Setting;
use crate::model::Oracle;

/// What a client does at some time.
pub enum Doing {
    Ask { prompt: Vec<u32>, choices: u32, new_tokens: u32, turns_left: u32, hurried: bool },
    Sampled { session: SessionId, token: u32 },
    Finish { session: SessionId },
    Leave { request: RequestId },
}

pub struct Clients {
    layers: u32,
    /// Requests that got all they asked for, or were left by their client.
    pub served: u64,
    /// Those that failed by a deadline that was too short, or at a bound.
    pub refused: u64,

    next_request: u64,
    requests: BTreeMap<RequestId, Ask>,
    sessions: BTreeMap<SessionId, Choice>,
    /// Asks that have not been made.
    to_come: u64,
    /// Whether wrong logits are counted instead of ending the run.
    may_be_wrong: bool,
    /// Logits given, and wrong ones among them.
    pub judged: (u64, u64),
}

struct Ask {
    prompt: Vec<u32>,
    new_tokens: u32,
    turns_left: u32,
    hurried: bool,
    deadline: u64,
    open: usize,
}

/// One session as its client sees it.
struct Choice {
    request: RequestId,
    rank: usize,
    /// What a whole model in one piece says about these tokens.
    oracle: Oracle,
    chosen: u32,
    /// The logits of that position are to come, and of no other.
    expects: Option<u32>,
}

impl Clients {
    /// Clients of a model of so many layers that take wrong logits as they come, or end the run
    /// at the first.
    pub fn new(layers: u32, may_be_wrong: bool) -> Clients {
        Clients {
            layers,
            served: 0,
            refused: 0,
            next_request: 0,
            requests: BTreeMap::new(),
            sessions: BTreeMap::new(),
            to_come: 0,
            may_be_wrong,
            judged: (0, 0),
        }
    }

    /// Who comes when.
    pub fn plan(&mut self, rng: &mut Rng, setting: &Setting) -> Vec<(u64, Doing)> {
        let n = rng.between(setting.requests.0, setting.requests.1);
        let until = setting.faults_until_us;
        self.to_come = n;
        (0..n)
            .map(|_| {
                let length =
                    if rng.chance(3_000) { rng.between(100, 300) } else { rng.between(1, 40) };
                let doing = Doing::Ask {
                    prompt: (0..length).map(|_| rng.below(16) as u32).collect(),
                    choices: if rng.chance(2_500) { 3 } else { 1 },
                    new_tokens: rng.between(1, 60) as u32,
                    turns_left: rng.below(3) as u32,
                    hurried: rng.chance(1_000),
                };
                (rng.below(until), doing)
            })
            .collect()
    }

    pub fn all_done(&self) -> bool {
        self.to_come == 0 && self.requests.is_empty()
    }

    pub fn describe(&self) -> String {
        format!("{} to come, open: {:?}", self.to_come, self.requests.keys().collect::<Vec<_>>())
    }

    /// Carries out what a client does: events for the scheduler, and what it does later.
    pub fn act(
        &mut self,
        doing: Doing,
        now: u64,
        tally: &mut Tally,
    ) -> (Vec<Event>, Vec<(u64, Doing)>) {
        match doing {
            Doing::Ask { prompt, choices, new_tokens, turns_left, hurried } => {
                self.to_come -= 1;
                let id = RequestId(self.next_request);
                self.next_request += 1;
                // Only who is in a hurry may be told that it took too long.
                let deadline = now + if hurried { 2_000_000 } else { 10_000_000_000 };
                let ask = Ask {
                    prompt: prompt.clone(),
                    new_tokens,
                    turns_left,
                    hurried,
                    deadline,
                    open: choices as usize,
                };
                self.requests.insert(id, ask);
                let request = Request {
                    id,
                    model: "fake".into(),
                    prompt,
                    choices,
                    max_new_tokens: new_tokens,
                    deadline: Time(deadline),
                    wish: Wish::default(),
                };
                (vec![Event::Submit(request)], Vec::new())
            }
            Doing::Sampled { session, token } => {
                (vec![Event::Sampled { session, token }], Vec::new())
            }
            Doing::Finish { session } => {
                let later = self.finished(session, now);
                (vec![Event::Finish { session }], later)
            }
            Doing::Leave { request } => {
                if self.requests.remove(&request).is_none() {
                    return (Vec::new(), Vec::new());
                }
                tally.count(Fault::Cancelled);
                self.served += 1;
                self.sessions.retain(|_, s| s.request != request);
                (vec![Event::Cancel { request }], Vec::new())
            }
        }
    }

    /// What a client has all of; perhaps it goes on with a next turn.
    fn finished(&mut self, session: SessionId, now: u64) -> Vec<(u64, Doing)> {
        let Some(choice) = self.sessions.remove(&session) else { return Vec::new() };
        let Some(ask) = self.requests.get_mut(&choice.request) else { return Vec::new() };
        ask.open -= 1;
        if ask.open > 0 {
            return Vec::new();
        }
        let ask = self.requests.remove(&choice.request).expect("it was just there");
        self.served += 1;
        if ask.turns_left == 0 {
            return Vec::new();
        }
        let mut prompt = choice.oracle.tokens().to_vec();
        prompt.extend([1, 2, 3]);
        self.to_come += 1;
        let turns_left = ask.turns_left - 1;
        let new_tokens = ask.new_tokens;
        let next = Doing::Ask { prompt, choices: 1, new_tokens, turns_left, hurried: false };
        vec![(now + 1_000_000, next)]
    }

    /// Judges what the scheduler gives, and answers what the client does next.
    pub fn hear(
        &mut self,
        action: Action,
        now: u64,
        rng: &mut Rng,
        tally: &mut Tally,
    ) -> Vec<(u64, Doing)> {
        match action {
            Action::Started { request, sessions, cached_tokens } => {
                if cached_tokens > 0 {
                    tally.count(Fault::Reused);
                }
                let Some(ask) = self.requests.get(&request) else { return Vec::new() };
                assert!(cached_tokens < ask.prompt.len() as u32);
                for (rank, session) in sessions.into_iter().enumerate() {
                    let mut oracle = Oracle::new(self.layers);
                    ask.prompt.iter().for_each(|t| oracle.push(*t));
                    let expects = Some(ask.prompt.len() as u32 - 1);
                    let choice = Choice { request, rank, oracle, chosen: 0, expects };
                    self.sessions.insert(session, choice);
                }
                match rng.chance(600) {
                    true => {
                        vec![(now + rng.below(3_000_000), Doing::Leave { request })]
                    }
                    false => Vec::new(),
                }
            }
            Action::Sample { session, position, logits } => {
                self.sample(session, position, &logits, now, rng)
            }
            Action::Refused { request, error } => {
                let ask = self.requests.remove(&request).expect("an open request was refused");
                self.sessions.retain(|_, s| s.request != request);
                self.refused += 1;
                match error {
                    RequestError::Busy { .. } | RequestError::TooManyChoices { .. } => {}
                    // Only what its client set ends a request, or what no fleet here could hold.
                    RequestError::Deadline { .. } => {
                        assert!(ask.hurried && now >= ask.deadline, "{error}");
                        tally.count(Fault::TooSlow);
                    }
                    RequestError::Numeric { .. } => {
                        assert!(tally.of(Fault::Overflow) > 0, "{error}");
                    }
                    RequestError::TooLong { positions, .. } => {
                        assert!(positions > 640, "{error}");
                    }
                    other => panic!("a request failed without need: {other}"),
                }
                Vec::new()
            }
            Action::Control { .. }
            | Action::Step { .. }
            | Action::Dismiss { .. }
            | Action::Group { .. }
            | Action::Ungroup { .. }
            | Action::Standing { .. }
            | Action::Verified { .. }
            | Action::Note(_) => unreachable!("not a client's"),
        }
    }

    fn sample(
        &mut self,
        session: SessionId,
        position: u32,
        logits: &[u8],
        now: u64,
        rng: &mut Rng,
    ) -> Vec<(u64, Doing)> {
        // A client that left may still be sent what was under way.
        let Some(choice) = self.sessions.get_mut(&session) else { return Vec::new() };
        assert_eq!(Some(position), choice.expects, "session {session}: not the next position");
        choice.expects = None;
        let got: Vec<f32> =
            logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let wanted = choice.oracle.logits_at(position);
        self.judged.0 += 1;
        self.judged.1 += u64::from(got != wanted);
        if !self.may_be_wrong {
            let what = "other logits than in one piece";
            assert_eq!(got, wanted, "session {session}, position {position}: {what}");
        }
        let ask = &self.requests[&choice.request];
        if choice.chosen == ask.new_tokens {
            return vec![(now + 10, Doing::Finish { session })];
        }
        // The n-th best for the n-th choice, so that choices part.
        let mut order: Vec<usize> = (0..got.len()).collect();
        order.sort_by(|a, b| got[*b].total_cmp(&got[*a]).then(a.cmp(b)));
        let token = order[choice.rank] as u32;
        choice.oracle.push(token);
        choice.chosen += 1;
        choice.expects = Some(position + 1);
        vec![(now + rng.between(10, 2_000), Doing::Sampled { session, token })]
    }
}
