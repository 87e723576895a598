//! Control messages: how each one looks, and what is refused.

use proptest::prelude::*;
use protocol::*;

fn hash(digit: char) -> String {
    String::from(digit).repeat(64)
}

fn assignment() -> Assignment {
    Assignment {
        id: AssignmentId(4),
        model: "smollm2-135m".into(),
        manifest: BlobRef { hash: hash('a'), bytes: 9000 },
        span: Span { first: 1, end: 11 },
        class: "canonical-1".into(),
        blobs: vec![BlobRef { hash: hash('b'), bytes: 1_900_000 }],
        kv_pages: 512,
        tensor: None,
    }
}

fn hello() -> Hello {
    Hello {
        protocol: 1,
        public_key: hash('c'),
        signature: hash('d').repeat(2),
        token: None,
        name: "quiet-otter".into(),
        kind: WorkerKind::Native,
        backend: "cpu".into(),
        device: String::new(),
        notes: Vec::new(),
        classes: vec!["canonical-1".into(), "exact-f32".into()],
        memory_bytes: 2 << 30,
        boundaries: Vec::new(),
        bytes_per_s: [2.5e10, 1e10],
        step_credits: 2,
        cached: vec![hash('e')],
    }
}

/// The message is that JSON, and back.
fn to_worker(message: ToWorker, json: &str) {
    assert_eq!(message.to_json().unwrap(), json);
    assert_eq!(ToWorker::from_json(json), Ok(message));
}

fn from_worker(message: FromWorker, json: &str) {
    assert_eq!(message.to_json().unwrap(), json);
    assert_eq!(FromWorker::from_json(json), Ok(message));
}

#[test]
fn every_message_to_a_worker() {
    to_worker(
        ToWorker::Challenge { protocol: 1, nonce: hash('0') },
        &format!(r#"{{"type":"challenge","protocol":1,"nonce":"{}"}}"#, hash('0')),
    );
    to_worker(
        ToWorker::Welcome { worker: WorkerId(3), blob_token: "t0ken".into(), trusted: true },
        r#"{"type":"welcome","worker":3,"blob_token":"t0ken","trusted":true}"#,
    );
    to_worker(
        ToWorker::Assign(assignment()),
        &format!(
            concat!(
                r#"{{"type":"assign","id":4,"model":"smollm2-135m","manifest":{{"hash":"{}","#,
                r#""bytes":9000}},"span":{{"first":1,"end":11}},"class":"canonical-1","#,
                r#""blobs":[{{"hash":"{}","bytes":1900000}}],"kv_pages":512}}"#
            ),
            hash('a'),
            hash('b')
        ),
    );
    to_worker(
        ToWorker::Unassign { assignment: AssignmentId(4) },
        r#"{"type":"unassign","assignment":4}"#,
    );
    to_worker(
        ToWorker::Fork {
            assignment: AssignmentId(4),
            from: SessionId(5),
            to: SessionId(6),
            epoch: 1,
            positions: 64,
        },
        r#"{"type":"fork","assignment":4,"from":5,"to":6,"epoch":1,"positions":64}"#,
    );
    to_worker(
        ToWorker::Truncate {
            assignment: AssignmentId(4),
            session: SessionId(u64::MAX),
            epoch: 2,
            positions: 0,
        },
        r#"{"type":"truncate","assignment":4,"session":18446744073709551615,"epoch":2,"positions":0}"#,
    );
    to_worker(ToWorker::Ping { nonce: 8 }, r#"{"type":"ping","nonce":8}"#);
    to_worker(
        ToWorker::Idle { reason: "all layers have holders".into() },
        r#"{"type":"idle","reason":"all layers have holders"}"#,
    );
    to_worker(
        ToWorker::Dismiss { reason: "restarting".into(), retry: true },
        r#"{"type":"dismiss","reason":"restarting","retry":true}"#,
    );
}

#[test]
fn every_message_from_a_worker() {
    from_worker(
        FromWorker::Hello(Box::new(hello())),
        &format!(
            concat!(
                r#"{{"type":"hello","protocol":1,"public_key":"{}","signature":"{}","#,
                r#""name":"quiet-otter","kind":"native","backend":"cpu","#,
                r#""classes":["canonical-1","exact-f32"],"memory_bytes":2147483648,"#,
                r#""bytes_per_s":[25000000000.0,10000000000.0],"step_credits":2,"cached":["{}"]}}"#
            ),
            hash('c'),
            hash('d').repeat(2),
            hash('e')
        ),
    );
    from_worker(
        FromWorker::Ready { assignment: AssignmentId(4) },
        r#"{"type":"ready","assignment":4}"#,
    );
    from_worker(
        FromWorker::Failed { assignment: AssignmentId(4), reason: "disk full".into() },
        r#"{"type":"failed","assignment":4,"reason":"disk full"}"#,
    );
    from_worker(
        FromWorker::Progress { assignment: AssignmentId(4), bytes_done: 10, bytes_total: 20 },
        r#"{"type":"progress","assignment":4,"bytes_done":10,"bytes_total":20}"#,
    );
    from_worker(
        FromWorker::Drain { reason: "SIGTERM".into() },
        r#"{"type":"drain","reason":"SIGTERM"}"#,
    );
    from_worker(FromWorker::Visibility { hidden: true }, r#"{"type":"visibility","hidden":true}"#);
    from_worker(FromWorker::Pong { nonce: 8 }, r#"{"type":"pong","nonce":8}"#);
}

#[test]
fn a_hello_may_say_what_computes_and_why_nothing_faster() {
    let notes = vec!["subgroups: row 3 is off by 0.2".to_owned()];
    let described = Hello { device: "llvmpipe".into(), notes, ..hello() };
    let plain = FromWorker::Hello(Box::new(hello())).to_json().unwrap();
    let extra = r#""backend":"cpu","device":"llvmpipe","notes":["subgroups: row 3 is off by 0.2"]"#;
    from_worker(
        FromWorker::Hello(Box::new(described)),
        &plain.replace(r#""backend":"cpu""#, extra),
    );
}

#[test]
fn a_hello_out_of_range_is_refused() {
    let check = |expected: &str, change: fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        let message = FromWorker::Hello(Box::new(hello));
        assert_eq!(message.to_json().unwrap_err().to_string(), expected);
        let unchecked = serde_json::to_string(&message).unwrap();
        assert!(FromWorker::from_json(&unchecked).is_err(), "{expected}");
    };
    check("public_key: 64 lower-case hex digits are needed", |h| h.public_key = "AB".repeat(32));
    check("signature: 128 lower-case hex digits are needed", |h| h.signature.truncate(127));
    check("name: length 257, at most 256 is allowed", |h| h.name = "x".repeat(257));
    check("name: control characters are not allowed", |h| h.name = "\u{1b}[2J".into());
    check("device: length 257, at most 256 is allowed", |h| h.device = "x".repeat(257));
    check("device: control characters are not allowed", |h| h.device = "a\nb".into());
    check("notes: length 17, at most 16 is allowed", |h| h.notes = vec![String::new(); 17]);
    check("notes: length 513, at most 512 is allowed", |h| h.notes = vec!["x".repeat(513)]);
    check("notes: control characters are not allowed", |h| h.notes = vec!["\u{1b}".into()]);
    check("token: length 4097, at most 4096 is allowed", |h| h.token = Some("x".repeat(4097)));
    check("classes: at least one is needed", |h| h.classes.clear());
    check("classes: length 17, at most 16 is allowed", |h| h.classes = vec!["x".into(); 17]);
    check("bytes_per_s: NaN is not above 0 and at most 1000000000000000", |h| {
        h.bytes_per_s[1] = f64::NAN;
    });
    check("bytes_per_s: 0 is not above 0 and at most 1000000000000000", |h| h.bytes_per_s[0] = 0.0);
    check("step_credits: at least 1 is needed", |h| h.step_credits = 0);
    check("step_credits: 17, at most 16 is allowed", |h| h.step_credits = 17);
    check("cached: length 4097, at most 4096 is allowed", |h| h.cached = vec![hash('e'); 4097]);
    check(&format!("cached: {} stands there twice", hash('e')), |h| h.cached = vec![hash('e'); 2]);
    check("memory_bytes: 18446744073709551615, at most 1125899906842624 is allowed", |h| {
        h.memory_bytes = u64::MAX;
    });
}

#[test]
fn an_assignment_out_of_range_is_refused() {
    let check = |expected: &str, change: fn(&mut Assignment)| {
        let mut assignment = assignment();
        change(&mut assignment);
        let message = ToWorker::Assign(assignment);
        assert_eq!(message.to_json().unwrap_err().to_string(), expected);
        let unchecked = serde_json::to_string(&message).unwrap();
        assert!(ToWorker::from_json(&unchecked).is_err(), "{expected}");
    };
    check("span: 4..4 is empty", |a| a.span = Span { first: 4, end: 4 });
    check("span: 5000, at most 4096 is allowed", |a| a.span.end = 5000);
    check("blobs: 64 lower-case hex digits are needed", |a| a.blobs[0].hash = "../../etc".into());
    check("manifest: 64 lower-case hex digits are needed", |a| a.manifest.hash.push('0'));
    check("manifest: 16777217, at most 16777216 is allowed", |a| a.manifest.bytes = (16 << 20) + 1);
    check("blobs: 68719476737, at most 68719476736 is allowed", |a| {
        a.blobs[0].bytes = (64 << 30) + 1;
    });
    check(&format!("blobs: {} stands there twice", hash('b')), |a| {
        a.blobs.push(a.blobs[0].clone())
    });
    check("blobs: length 4097, at most 4096 is allowed", |a| {
        a.blobs = vec![a.blobs[0].clone(); 4097]
    });
    check("kv_pages: 1048577, at most 1048576 is allowed", |a| a.kv_pages = (1 << 20) + 1);
    fn rank(rank: u32, weights: &[u32]) -> Option<TensorRank> {
        let (group, form) = (AssignmentId(4), "rows".into());
        Some(TensorRank { group, rank, form, weights: weights.to_vec() })
    }
    check("tensor: 1 ranks are no group", |a| a.tensor = rank(0, &[1]));
    check("tensor: length 9, at most 8 is allowed", |a| a.tensor = rank(0, &[1; 9]));
    check("tensor: rank 2 of 2", |a| a.tensor = rank(2, &[1, 1]));
    check("tensor: a weight of 0, 1 to 1024 are possible", |a| a.tensor = rank(0, &[1, 0]));
}

#[test]
fn a_place_in_a_tensor_group_is_part_of_an_assignment() {
    let (group, form, weights) = (AssignmentId(3), "rows".into(), vec![2, 1]);
    let tensor = TensorRank { group, rank: 1, form, weights };
    let follower = Assignment { tensor: Some(tensor), ..assignment() };
    assert!(follower.follows() && !assignment().follows());
    let message = ToWorker::Assign(follower);
    let json = message.to_json().unwrap();
    let place = r#""kv_pages":512,"tensor":{"group":3,"rank":1,"form":"rows","weights":[2,1]}}"#;
    assert!(json.ends_with(place), "{json}");
    assert_eq!(ToWorker::from_json(&json), Ok(message));
}

#[test]
fn what_is_not_a_message_is_refused() {
    let refused = |json: &str| ToWorker::from_json(json).unwrap_err().to_string();
    assert!(refused("").contains("EOF"), "{}", refused(""));
    assert!(refused(r#"{"type":"ping"}"#).contains("missing field `nonce`"));
    assert!(refused(r#"{"type":"ping","nonce":1,"x":2}"#).contains("unknown field `x`"));
    assert!(refused(r#"{"type":"reboot"}"#).contains("unknown variant `reboot`"));
    assert!(refused(r#"{"type":"ping","nonce":-1}"#).contains("invalid value"));
    assert!(refused(&"[".repeat(5000)).contains("control message"));
    let long = format!(r#"{{"type":"ping","nonce":1{}}}"#, " ".repeat(CONTROL_BYTES_MAX));
    assert_eq!(refused(&long), "control message of 1048601 bytes, at most 1048576 are allowed");
    let truncate = r#"{"type":"truncate","assignment":4,"session":1,"epoch":2,"positions":131073}"#;
    assert_eq!(refused(truncate), "positions: 131073, at most 131072 is allowed");
    let progress =
        FromWorker::Progress { assignment: AssignmentId(1), bytes_done: 3, bytes_total: 2 };
    assert!(progress.to_json().is_err());
}

#[test]
fn the_largest_lists_fit_a_message() {
    let nth = |i: usize| format!("{i:064x}");
    let cached = (0..CACHED_MAX).map(nth).collect();
    assert!(FromWorker::Hello(Box::new(Hello { cached, ..hello() })).to_json().is_ok());
    let blobs = (0..BLOBS_MAX).map(|i| BlobRef { hash: nth(i), bytes: BLOB_BYTES_MAX }).collect();
    assert!(ToWorker::Assign(Assignment { blobs, ..assignment() }).to_json().is_ok());
}

#[test]
fn reasons_are_made_fit() {
    assert_eq!(clean_text("two\nlines\u{1b}[0m"), "two lines [0m");
    let long = clean_text(&"é".repeat(TEXT_BYTES_MAX));
    assert_eq!(long.len(), TEXT_BYTES_MAX);
    let odd = clean_text(&format!("x{}", "é".repeat(TEXT_BYTES_MAX)));
    assert_eq!(odd.len(), TEXT_BYTES_MAX - 1);
    assert_eq!(clean_text_to("a\té", 3), "a ");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hellos_survive_the_trip(
        rates in prop::array::uniform2(1..1u64 << 49),
        memory_bytes in 0..MEMORY_BYTES_MAX,
        step_credits in 1..=STEP_CREDITS_MAX,
        name in "\\PC{0,40}",
        token in prop::option::of("\\PC{0,40}"),
        device in "\\PC{0,40}",
        notes in prop::collection::vec("\\PC{0,40}", 0..=NOTES_MAX),
    ) {
        let bytes_per_s = rates.map(|r| r as f64);
        let hello = Hello {
            bytes_per_s, memory_bytes, step_credits, name, token, device, notes, ..hello()
        };
        let message = FromWorker::Hello(Box::new(hello));
        prop_assert_eq!(FromWorker::from_json(&message.to_json().unwrap()), Ok(message));
    }

    #[test]
    fn arbitrary_text_is_only_refused(text in "\\PC{0,200}") {
        prop_assert!(ToWorker::from_json(&text).is_err());
        prop_assert!(FromWorker::from_json(&text).is_err());
    }
}
