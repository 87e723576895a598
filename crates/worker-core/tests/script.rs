//! The worker's behaviour as scripts: events in, actions out, one line each.
//!
//! Events: `assign`, `blob HASH [FAIL]`, `loaded`, `step N[/FIRST..END] SEG...`, `done`,
//! `short` (an answer of the wrong length), `fault KIND SESSION [HELD]`, `fork FROM TO EPOCH
//! POSITIONS`, `truncate SESSION EPOCH POSITIONS`, `unassign`, `drain`, `ms N`, `disconnect`,
//! `ping N`, `idle REASON`, `hidden`, `shown`. A segment is `sSESSIONeEPOCH@POSITION+ROWS`. The assignment is parts 1..4 of a
//! model with 6 layers, width 2; `join ends` assigns all of it instead.

use std::fmt::Write;

use bytes::Bytes;
use protocol::*;
use worker_core::*;

const WIDTH: usize = 2;
const VOCAB: usize = 5;
const LAYERS: u32 = 6;

struct Script {
    core: WorkerCore,
    now: u64,
    run: Option<Run>,
    loading: Option<ShardKey>,
    span: Span,
}

fn hash(digit: char) -> BlobHash {
    String::from(digit).repeat(64)
}

fn config(memory_bytes: u64) -> Config {
    Config {
        name: "w".into(),
        kind: WorkerKind::Native,
        backend: "cpu".into(),
        device: String::new(),
        notes: Vec::new(),
        classes: vec!["canonical-1".into()],
        memory_bytes,
        bytes_per_s: [1.0; 2],
        step_credits: 3,
        token: None,
    }
}

impl Script {
    fn new(span: Span) -> Script {
        Script::lending(span, 1000)
    }

    fn lending(span: Span, memory_bytes: u64) -> Script {
        let core = WorkerCore::new(config(memory_bytes));
        Script { core, now: 0, run: None, loading: None, span }
    }

    fn joined(span: Span) -> Script {
        let mut script = Script::new(span);
        script.greet();
        script
    }

    fn greet(&mut self) {
        assert_eq!(self.welcomed(), "joined 9 t true");
    }

    /// Joins; what the worker does after the welcome.
    fn welcomed(&mut self) -> String {
        let nonce = hash('0');
        let challenge = ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce: nonce.clone() };
        let signing = self.send(Event::Control(challenge));
        assert_eq!(signing, format!("sign {}", nonce.len() + "weft hello 1 ".len()));
        let (public_key, signature) = (hash('1'), hash('2').repeat(2));
        let signed = Event::Signed { public_key, signature, cached: vec![] };
        assert_eq!(self.send(signed), "hello");
        let blob_token = "t".to_string();
        let welcome = ToWorker::Welcome { worker: WorkerId(9), blob_token, trusted: true };
        self.send(Event::Control(welcome))
    }

    /// A worker that holds the assignment.
    fn ready(span: Span) -> Script {
        let mut script = Script::joined(span);
        script.play("assign\nblob a\nblob b\nloaded");
        script
    }

    fn assignment(&self) -> Assignment {
        Assignment {
            id: AssignmentId(1),
            model: "m".into(),
            manifest: BlobRef { hash: hash('a'), bytes: 10 },
            span: self.span,
            class: "canonical-1".into(),
            blobs: vec![BlobRef { hash: hash('b'), bytes: 990 }],
            kv_pages: 4,
            tensor: None,
        }
    }

    fn send(&mut self, event: Event) -> String {
        self.core.handle(self.now, event);
        let mut lines = Vec::new();
        while let Some(action) = self.core.poll_action() {
            match &action {
                Action::Run(run) => {
                    assert!(self.run.is_none(), "two runs at once");
                    let width = if run.dtype == Dtype::U32 { 1 } else { WIDTH };
                    let rows: u32 = run.segments.iter().map(|s| s.rows).sum();
                    assert_eq!(run.payload.len(), rows as usize * width * 4);
                    self.run = Some(run.clone());
                }
                Action::Load { shard, .. } => self.loading = Some(*shard),
                _ => {}
            }
            lines.push(show(&action));
        }
        lines.join("; ")
    }

    fn play(&mut self, script: &str) -> Vec<String> {
        let lines = script.lines().map(str::trim).filter(|l| !l.is_empty());
        lines.map(|line| self.line(line)).collect()
    }

    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
        let n = |i: usize| number(i).unwrap();
        let session = |i: usize| SessionId(u64::from(n(i)));
        let assignment = AssignmentId(1);
        let event = match words[0] {
            "assign" => Event::Control(ToWorker::Assign(self.assignment())),
            "blob" if words.len() > 2 => {
                Event::BlobFailed { hash: words[1].repeat(64), reason: words[2].into() }
            }
            "blob" => Event::BlobReady { hash: words[1].repeat(64) },
            "progress" => Event::BlobProgress { hash: words[1].repeat(64), bytes: n(2).into() },
            "loaded" => {
                let shape = Shape { layers: LAYERS, d_model: WIDTH as u32, vocab: VOCAB as u32 };
                Event::Loaded { shard: self.loading.take().unwrap(), shape }
            }
            "loadfailed" => {
                let shard = self.loading.take().unwrap();
                Event::LoadFailed { shard, reason: words[1].into() }
            }
            "step" => Event::Frame(self.step(&words[1..])),
            "done" | "short" => {
                let run = self.run.take().unwrap();
                let head = run.span.end == LAYERS + 2;
                let values = |s: &Segment| match head {
                    true => s.logits_rows as usize * VOCAB,
                    false => s.rows as usize * WIDTH,
                };
                let bytes = 4 * run.segments.iter().map(values).sum::<usize>();
                let bytes = bytes - 4 * usize::from(words[0] == "short");
                let result = Ok(Bytes::from(vec![1; bytes]));
                Event::RunDone { run: run.id, compute_us: 10, result }
            }
            "fault" => {
                let run = self.run.take().unwrap().id;
                let fault = match words[1] {
                    "kvfull" => RunFault::KvFull { session: session(2) },
                    "numeric" => RunFault::Numeric { session: session(2) },
                    "badinput" => RunFault::BadInput { session: session(2) },
                    "gap" => RunFault::Gap { session: session(2), held: n(3) },
                    "badstep" => RunFault::BadStep("x".into()),
                    "broken" => RunFault::Broken("smoke".into()),
                    other => panic!("fault {other}"),
                };
                Event::RunDone { run, compute_us: 10, result: Err(fault) }
            }
            "fork" => {
                let (from, to, epoch, positions) = (session(1), session(2), n(3), n(4));
                Event::Control(ToWorker::Fork { assignment, from, to, epoch, positions })
            }
            "truncate" => {
                let (session, epoch, positions) = (session(1), n(2), n(3));
                Event::Control(ToWorker::Truncate { assignment, session, epoch, positions })
            }
            "unassign" => Event::Control(ToWorker::Unassign { assignment }),
            "dismiss" => {
                Event::Control(ToWorker::Dismiss { reason: words[1].into(), retry: false })
            }
            "ping" => Event::Control(ToWorker::Ping { nonce: n(1).into() }),
            "idle" => Event::Control(ToWorker::Idle { reason: words[1].into() }),
            "hidden" => Event::Visibility { hidden: true },
            "shown" => Event::Visibility { hidden: false },
            "drain" => Event::Drain { reason: "SIGTERM".into() },
            "ms" => {
                self.now += 1000 * u64::from(n(1));
                Event::Tick
            }
            "disconnect" => Event::Disconnected,
            other => panic!("no event {other}"),
        };
        self.send(event)
    }

    fn step(&self, words: &[&str]) -> Frame {
        let (number, span) = words[0].split_once('/').unwrap_or((words[0], ""));
        let span = span.split_once("..").map_or(self.span, |(first, end)| Span {
            first: first.parse().unwrap(),
            end: end.parse().unwrap(),
        });
        let segments: Vec<Segment> = words[1..].iter().map(|w| segment(w)).collect();
        let rows: u32 = segments.iter().map(|s| s.rows).sum();
        let (dtype, width) = if span.first == 0 { (Dtype::U32, 1) } else { (Dtype::F32, WIDTH) };
        Frame {
            kind: FrameKind::Step,
            assignment: AssignmentId(1),
            span,
            step: number.parse().unwrap(),
            compute_us: 0,
            dtype,
            answer: Dtype::F32,
            segments,
            payload: Bytes::from(vec![0; rows as usize * width * 4]),
        }
    }
}

fn segment(text: &str) -> Segment {
    let numbers: Vec<u32> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|t| !t.is_empty())
        .map(|t| t.parse().unwrap())
        .collect();
    let [session, epoch, position, rows] = numbers[..] else { panic!("segment {text}") };
    let (session, status) = (SessionId(session.into()), Status::Ok);
    Segment { session, epoch, position, rows, logits_rows: 1, status }
}

fn show(action: &Action) -> String {
    let short = |hash: &BlobHash| hash[..1].to_string();
    match action {
        Action::Sign { message } => format!("sign {}", message.len()),
        Action::Joined { worker, blob_token, trusted } => {
            format!("joined {worker} {blob_token} {trusted}")
        }
        Action::Send(FromWorker::Hello(_)) => "hello".into(),
        Action::Send(FromWorker::Ready { assignment }) => format!("ready {assignment}"),
        Action::Send(FromWorker::Failed { assignment, reason }) => {
            format!("failed {assignment}: {reason}")
        }
        Action::Send(FromWorker::Progress { bytes_done, bytes_total, .. }) => {
            format!("progress {bytes_done}/{bytes_total}")
        }
        Action::Send(FromWorker::Drain { reason }) => format!("leaving: {reason}"),
        Action::Send(FromWorker::Visibility { hidden }) => format!("hidden {hidden}"),
        Action::Send(FromWorker::Pong { nonce }) => format!("pong {nonce}"),
        Action::SendFrame(frame) => {
            assert_eq!(frame.validate(), Ok(()));
            let mut text = format!("answer {}", frame.step);
            for s in &frame.segments {
                match s.status {
                    Status::Gap => write!(text, " Gap({})", s.position).unwrap(),
                    status => write!(text, " {status:?}").unwrap(),
                }
            }
            write!(text, " {}B", frame.payload.len()).unwrap();
            text
        }
        Action::Fetch { blob, shared_out: false } => format!("fetch {}", short(&blob.hash)),
        Action::Fetch { blob, .. } => format!("fetch {} to share", short(&blob.hash)),
        Action::Forget(hash) => format!("forget {}", short(hash)),
        Action::Load { .. } => "load".into(),
        Action::Run(run) => {
            let mut text = "run".to_string();
            for s in &run.segments {
                write!(text, " s{}@{}+{}", s.session, s.position, s.rows).unwrap();
            }
            text
        }
        Action::Fork { from, to, positions, .. } => format!("fork {from}>{to} {positions}"),
        Action::Truncate { session, positions, .. } => format!("truncate {session} {positions}"),
        Action::Release { session, .. } => format!("release {session}"),
        Action::Unload { .. } => "unload".into(),
        Action::Idle { reason } => format!("idle: {reason}"),
        Action::Close { reason, retry } => format!("close {retry}: {reason}"),
        Action::Drained => "drained".into(),
    }
}

const MIDDLE: Span = Span { first: 1, end: 4 };
const ALL: Span = Span { first: 0, end: LAYERS + 2 };

/// On a worker that holds the assignment: each line is `event => actions`.
fn check(span: Span, script: &str) {
    check_from(Script::ready(span), script);
}

fn check_from(mut worker: Script, script: &str) {
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (event, expected) = line.split_once("=>").expect("event => actions");
        assert_eq!(worker.line(event), expected.trim(), "after `{}`", event.trim());
    }
}

#[test]
fn a_tab_says_when_nobody_sees_it_and_its_owner_learns_why_it_idles() {
    let mut worker = Script::new(MIDDLE);
    // Before there is a connection it is remembered, and said after the welcome.
    assert_eq!(worker.play("hidden"), [""]);
    assert_eq!(worker.welcomed(), "joined 9 t true; hidden true");
    check_from(
        worker,
        "hidden =>
         shown  => hidden false
         shown  =>
         hidden => hidden true
         idle full => idle: full",
    );
}

#[test]
fn what_describes_a_device_is_cut_to_what_a_hello_may_say() {
    let mut worker = Script::new(MIDDLE);
    let long = |bytes: usize| "é".repeat(bytes);
    worker.core = WorkerCore::new(Config {
        device: long(NAME_BYTES_MAX),
        notes: vec![long(NOTE_BYTES_MAX); NOTES_MAX + 1],
        ..config(1000)
    });
    let nonce = hash('0');
    worker.send(Event::Control(ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce }));
    let signed =
        Event::Signed { public_key: hash('1'), signature: hash('2').repeat(2), cached: Vec::new() };
    worker.core.handle(0, signed);
    let Some(Action::Send(hello)) = worker.core.poll_action() else { panic!("no hello") };
    assert_eq!(hello.validate(), Ok(()));
    let FromWorker::Hello(hello) = hello else { panic!("no hello") };
    assert_eq!((hello.device.len(), hello.notes.len()), (NAME_BYTES_MAX, NOTES_MAX));
}

#[test]
fn an_assignment_is_fetched_loaded_and_let_go() {
    check_from(
        Script::joined(MIDDLE),
        "assign     => fetch a; fetch b
         progress b 3 =>
         progress b 400 => progress 400/1000
         progress b 410 =>
         blob a     => progress 420/1000
         assign     =>
         progress b 990 => progress 999/1000
         blob b     => progress 1000/1000; load
         step 7 s1e1@0+1 => answer 7 BadInput 0B
         loaded     => ready 1
         unassign   => unload; forget a; forget b
         unassign   =>
         step 8 s1e1@0+1 => answer 8 BadInput 0B
         ping 5     => pong 5",
    );
}

#[test]
fn a_large_assignment_on_a_slow_line_is_seen_to_get_on() {
    let mut worker = Script::lending(MIDDLE, 1 << 40);
    worker.greet();
    let mut assignment = worker.assignment();
    assignment.blobs[0].bytes = 1 << 33;
    worker.send(Event::Control(ToWorker::Assign(assignment)));
    let total = (1u64 << 33) + 10;
    let mut came = |bytes| worker.send(Event::BlobProgress { hash: hash('b'), bytes });
    assert_eq!(came((4 << 20) - 1), "");
    assert_eq!(came(4 << 20), format!("progress {}/{total}", 4 << 20));
    assert_eq!(came(7 << 20), "");
    assert_eq!(came(9 << 20), format!("progress {}/{total}", 9 << 20));
}

#[test]
fn what_cannot_be_had_fails_the_assignment_only() {
    check_from(
        Script::joined(MIDDLE),
        "assign     => fetch a; fetch b
         blob a     =>
         blob b 404 => failed 1: 404; forget a; forget b
         blob b     =>
         assign     => fetch a; fetch b
         blob a     =>
         blob b     => progress 1000/1000; load
         loadfailed torn => failed 1: torn; forget a; forget b
         assign     => fetch a; fetch b
         unassign   => forget a; forget b
         ping 1     => pong 1",
    );
}

#[test]
fn an_assignment_that_does_not_fit_is_refused() {
    let refused = |change: fn(&mut Assignment)| {
        let mut worker = Script::joined(MIDDLE);
        let mut assignment = worker.assignment();
        change(&mut assignment);
        worker.send(Event::Control(ToWorker::Assign(assignment)))
    };
    assert_eq!(
        refused(|a| a.class = "exact-f32".into()),
        "failed 1: this worker does not compute in class exact-f32, only in canonical-1"
    );
    assert_eq!(
        refused(|a| a.blobs.push(BlobRef { hash: hash('c'), bytes: 11 })),
        "failed 1: its weights need 1001 bytes, this worker lends 1000"
    );
    let mut worker = Script::ready(MIDDLE);
    let mut second = Assignment { id: AssignmentId(2), ..worker.assignment() };
    second.manifest = BlobRef { hash: hash('b'), bytes: 10 };
    assert_eq!(
        worker.send(Event::Control(ToWorker::Assign(second))),
        format!("failed 2: blob {} is said to have 990 bytes, and 10", hash('b'))
    );
}

#[test]
fn a_shard_on_its_way_out_makes_room() {
    let mut worker = Script::ready(MIDDLE);
    worker.play("step 1 s1e1@0+1");
    assert_eq!(worker.line("unassign"), "", "the step at hand comes first");
    let mut second = Assignment { id: AssignmentId(2), ..worker.assignment() };
    second.blobs = vec![BlobRef { hash: hash('c'), bytes: 1000 }];
    assert_eq!(worker.send(Event::Control(ToWorker::Assign(second))), "fetch c");
    assert_eq!(worker.line("done"), "answer 1 Ok 8B; unload; forget b");
}

#[test]
fn blobs_are_shared_between_assignments() {
    let mut worker = Script::ready(MIDDLE);
    let second = Assignment { id: AssignmentId(2), ..worker.assignment() };
    assert_eq!(worker.send(Event::Control(ToWorker::Assign(second))), "load");
    assert_eq!(worker.line("unassign"), "unload");
    let unassign = ToWorker::Unassign { assignment: AssignmentId(2) };
    assert_eq!(worker.send(Event::Control(unassign)), "unload; forget a; forget b");
}

#[test]
fn steps_run_in_order_and_answer_every_segment() {
    check(
        MIDDLE,
        "step 1 s1e1@0+3 s2e1@0+1     => run s1@0+3 s2@0+1
         step 2 s1e1@3+1 s3e1@4+1     =>
         step 3 s3e1@5+1              =>
         done                         => answer 1 Ok Ok 32B; run s1@3+1
         done                         => answer 2 Ok Gap(0) 8B; answer 3 Gap(0) 0B
         step 4 s1e1@2+1 s2e1@2+1     => run s1@2+1
         done                         => answer 4 Ok Gap(1) 8B
         step 5 s1e1@4+1              => answer 5 Gap(3) 0B",
    );
}

#[test]
fn older_epochs_are_dropped_even_where_they_wait() {
    check(
        MIDDLE,
        "step 1 s1e5@0+2              => run s1@0+2
         step 2 s1e5@2+1 s2e1@0+1     =>
         step 3 s1e6@0+1              =>
         done                         => answer 1 Ok 16B; run s2@0+1
         done                         => answer 2 Stale Ok 8B; run s1@0+1
         truncate s1 e7 0             =>
         done                         => answer 3 Ok 8B; release 1
         step 4 s1e6@0+1              => answer 4 Stale 0B
         truncate s1 e6 0             =>
         step 5 s1e7@0+1              => run s1@0+1",
    );
}

#[test]
fn forks_and_truncates_wait_for_the_steps_before_them() {
    check(
        MIDDLE,
        "step 1 s1e1@0+9              => run s1@0+9
         fork s1 s2 e1 9              =>
         truncate s1 e1 4             =>
         step 2 s2e1@9+1 s1e1@5+1     =>
         done                         => answer 1 Ok 72B; fork 1>2 9; truncate 1 4; run s2@9+1
         done                         => answer 2 Ok Gap(4) 8B
         fork s1 s3 e1 8              => fork 1>3 4
         step 3 s3e1@8+1              => answer 3 Gap(4) 0B
         fork s9 s3 e1 8              => release 3
         fork s9 s3 e0 8              =>
         fork s2 s2 e1 3              => truncate 2 3
         truncate s2 e1 64            =>
         truncate s2 e2 0             => release 2
         truncate s2 e2 0             =>",
    );
}

#[test]
fn one_segments_fault_does_not_harm_the_others() {
    check(
        MIDDLE,
        "step 1 s1e1@0+1 s2e1@0+2 s3e1@0+1 => run s1@0+1 s2@0+2 s3@0+1
         fault kvfull s2              => release 2; run s1@0+1 s3@0+1
         fault numeric s1             => release 1; run s3@0+1
         done                         => answer 1 NumericFault KvFull Ok 8B
         step 2 s3e1@1+1 s2e1@2+1     => run s3@1+1
         fault gap s3 0               => release 3; answer 2 Gap(0) Gap(0) 0B
         step 3 s3e1@0+2              => run s3@0+2
         done                         => answer 3 Ok 16B
         step 4 s3e1@2+1              => run s3@2+1
         fault badinput s3            => answer 4 BadInput 0B
         step 5 s3e1@2+1              => run s3@2+1
         fault badstep                => answer 5 BadInput 0B
         step 6 s3e1@2+1              => run s3@2+1
         fault kvfull s77             => answer 6 BadInput 0B
         step 7 s3e1@2+1 s4e1@0+1     => run s3@2+1 s4@0+1
         truncate s4 e2 0             =>
         fault numeric s3             => answer 7 NumericFault Stale 0B; release 4",
    );
}

#[test]
fn a_broken_shard_fails_its_assignment() {
    check(
        MIDDLE,
        "step 1 s1e1@0+1              => run s1@0+1
         step 2 s2e1@0+1              =>
         fault broken                 => failed 1: smoke; unload; forget a; forget b; answer 1 BadInput 0B; answer 2 BadInput 0B",
    );
    check(
        MIDDLE,
        "step 1 s1e1@0+1              => run s1@0+1
         short => failed 1: the engine gave 4 bytes where 8 were due; unload; forget a; forget b; answer 1 BadInput 0B",
    );
}

#[test]
fn a_span_inside_the_shard_may_be_entered_anywhere() {
    check(
        ALL,
        "step 1 s1e1@0+2              => run s1@0+2
         done                         => answer 1 Ok 20B
         step 2/0..1 s2e1@70+2        => run s2@70+2
         done                         => answer 2 Ok 16B
         step 3/7..8 s2e1@70+2        => run s2@70+2
         fault numeric s2             => answer 3 NumericFault 0B
         step 4/2..5 s2e1@0+2         => run s2@0+2
         done                         => answer 4 Ok 16B
         step 5/2..5 s2e1@2+1         => run s2@2+1
         done                         => answer 5 Ok 8B
         step 6/0..1 s2e1@3+1         => run s2@3+1
         fault badinput s2            => answer 6 BadInput 0B
         step 7/2..5 s2e1@3+1         => run s2@3+1
         done                         => answer 7 Ok 8B
         step 8/2..6 s2e1@4+1         => answer 8 Gap(0) 0B
         step 9/2..6 s2e1@0+1         => release 2; run s2@0+1
         done                         => answer 9 Ok 8B
         step 10/2..9 s2e1@1+1        => answer 10 BadInput 0B",
    );
    check(MIDDLE, "step 1/1..5 s1e1@0+1 => answer 1 BadInput 0B");
}

#[test]
fn rows_of_the_wrong_width_or_kind_are_refused() {
    let mut worker = Script::ready(MIDDLE);
    let mut frame = worker.step(&["1", "s1e1@0+2"]);
    frame.payload = vec![0; 8].into();
    assert_eq!(worker.send(Event::Frame(frame.clone())), "answer 1 BadInput 0B");
    frame.dtype = Dtype::U32;
    assert_eq!(worker.send(Event::Frame(frame)), "answer 1 BadInput 0B");
}

#[test]
fn breaking_the_protocol_closes_the_connection() {
    let closes = |script: &str, reason: &str| {
        let mut worker = Script::ready(MIDDLE);
        let last = worker.play(script).pop().unwrap();
        assert_eq!(last, format!("close true: the coordinator broke the protocol: {reason}"));
        assert_eq!(worker.line("ping 1"), "", "nothing counts any more");
        assert_eq!(worker.line("disconnect"), "unload; forget a; forget b");
        worker.run = None;
        worker.greet();
    };
    closes(
        "step 1 s1e1@0+1\nstep 2 s1e1@1+1\nstep 3 s1e1@2+1\nstep 4 s1e1@3+1",
        "step 4 came beyond the 3 credits",
    );
    closes("step 1 s1e1@0+0", "segment 0: rows of 0 does not fit");
    let mut worker = Script::joined(MIDDLE);
    worker.play("assign");
    let other = Assignment { kv_pages: 5, ..worker.assignment() };
    let closed = worker.send(Event::Control(ToWorker::Assign(other)));
    assert!(closed.ends_with("assignment 1 was given twice"), "{closed}");
    let mut early = Script::new(MIDDLE);
    let closed = early.line("assign");
    assert!(closed.ends_with("assign came while the challenge was due"), "{closed}");
}

#[test]
fn another_version_and_a_dismissal_end_it() {
    let mut worker = Script::new(MIDDLE);
    let challenge = ToWorker::Challenge { protocol: 99, nonce: hash('0') };
    let closed = worker.send(Event::Control(challenge));
    assert!(closed.starts_with("close false: the coordinator speaks protocol version 99"));
    let mut worker = Script::ready(MIDDLE);
    assert_eq!(worker.line("dismiss banned"), "close false: banned");
}

#[test]
fn duplicates_of_a_step_are_answered_once() {
    check(
        MIDDLE,
        "step 1 s1e1@0+1              => run s1@0+1
         step 1 s1e1@0+1              =>
         step 2 s1e1@1+1              =>
         step 2 s1e1@1+1              =>
         done                         => answer 1 Ok 8B; run s1@1+1
         done                         => answer 2 Ok 8B",
    );
}

#[test]
fn a_disconnect_forgets_everything() {
    let mut worker = Script::ready(MIDDLE);
    worker.play("step 1 s1e9@0+1\nstep 2 s2e1@0+1");
    assert_eq!(worker.line("disconnect"), "unload; forget a; forget b");
    let late = worker.line("done");
    assert_eq!(late, "", "the run of the lost connection changes nothing");
    worker.greet();
    worker.play("assign\nblob a\nblob b\nloaded");
    assert_eq!(worker.line("step 1 s1e1@0+1"), "run s1@0+1", "older epochs are over too");
}

#[test]
fn a_load_that_ends_after_the_disconnect_counts_for_nothing() {
    let mut worker = Script::joined(MIDDLE);
    worker.play("assign\nblob a\nblob b");
    let old = worker.loading;
    assert_eq!(worker.line("disconnect"), "unload; forget a; forget b");
    worker.greet();
    worker.play("assign\nblob a\nblob b");
    let new = std::mem::replace(&mut worker.loading, old);
    assert_eq!(worker.line("loaded"), "");
    worker.loading = new;
    assert_eq!(worker.line("loaded"), "ready 1");
}

#[test]
fn a_drain_finishes_the_steps_at_hand() {
    check(
        MIDDLE,
        "step 1 s1e1@0+1              => run s1@0+1
         drain                        => leaving: SIGTERM
         drain                        =>
         step 2 s1e1@1+1              =>
         ms 1000                      =>
         done                         => answer 1 Ok 8B; run s1@1+1
         done                         => answer 2 Ok 8B; drained
         ms 1000                      =>",
    );
    check(
        MIDDLE,
        "drain                        => leaving: SIGTERM
         ms 200                       =>
         step 1 s1e1@0+1              => run s1@0+1
         ms 200                       =>
         done                         => answer 1 Ok 8B
         ms 100                       => drained",
    );
    check(
        MIDDLE,
        "drain                        => leaving: SIGTERM
         unassign                     => unload; forget a; forget b; drained",
    );
    check(
        MIDDLE,
        "step 1 s1e1@0+1              => run s1@0+1
         drain                        => leaving: SIGTERM
         ms 20000                     => drained",
    );
    check_from(Script::joined(MIDDLE), "drain => leaving: SIGTERM; drained");
    check_from(Script::new(MIDDLE), "drain => drained");
}

#[test]
fn a_leaving_worker_takes_nothing_new() {
    let mut worker = Script::ready(MIDDLE);
    worker.line("drain");
    let second = Assignment { id: AssignmentId(2), ..worker.assignment() };
    let refused = worker.send(Event::Control(ToWorker::Assign(second)));
    assert_eq!(refused, "failed 2: this worker is leaving");
    assert_eq!(worker.core.next_deadline().unwrap().0, DRAIN_QUIET_US);
    worker.line("step 1 s1e1@0+1");
    assert_eq!(worker.core.next_deadline().unwrap().0, DRAIN_US_MAX);
}
