//! Good and bad peers at the workers' socket. Whatever one does, it is told why, and the
//! others go on.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Heard, Server, answer, hello, invited};
use coordinator::driver::{RequestEvent, Submission, Submit};
use coordinator::sockets::{PROBE_BYTES_MAX, Trust};
use protocol::{
    AssignmentId, CHUNK_BYTES_MAX, CONTROL_BYTES_MAX, Chunks, Dtype, Frame, FrameKind, FromWorker,
    PAYLOAD_BYTES_MAX, RelayKind, SUBPROTOCOL, Segment, SessionId, Span, Status, ToWorker,
    WorkerKind, relay_pieces,
};
use tokio_tungstenite::tungstenite::Error;

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

async fn trusting() -> Server {
    Server::start(Trust::new(true, &["open sesame".into()])).await
}

async fn submit(server: &Server) -> Submission {
    let submit = Submit {
        model: "m".into(),
        prompt: vec![1, 2, 3],
        choices: 1,
        max_new_tokens: 4,
        timeout: Duration::from_secs(60),
        wish: scheduler::Wish::default(),
    };
    server.driver.submit(submit).await.unwrap()
}

async fn logits(submission: &mut Submission) -> Vec<u8> {
    loop {
        match submission.recv().await.unwrap() {
            RequestEvent::Logits { logits, .. } => return logits.to_vec(),
            RequestEvent::Started { .. } => {}
            RequestEvent::Refused(error) => panic!("{error}"),
        }
    }
}

/// A step that no coordinator sent.
fn stray(kind: FrameKind) -> Frame {
    Frame {
        kind,
        assignment: AssignmentId(77),
        span: Span { first: 0, end: 1 },
        step: 1,
        compute_us: 0,
        dtype: Dtype::F32,
        answer: Dtype::F32,
        segments: vec![Segment {
            session: SessionId(1),
            epoch: 0,
            position: 0,
            rows: 1,
            logits_rows: 0,
            status: Status::Ok,
        }],
        payload: vec![0; 16].into(),
    }
}

#[tokio::test]
async fn a_good_worker_is_welcomed_and_works() {
    let server = trusting().await;
    let (mut peer, welcome) = server.join(1).await;
    assert!(welcome.trusted, "it is native and comes from this machine");
    let view = server.driver.view().await;
    assert_eq!(view.workers.len(), 1);
    assert_eq!(view.workers[0].id, welcome.worker);
    let mut submission = submit(&server).await;
    let worker = tokio::spawn(async move {
        loop {
            let step = peer.until_step().await;
            peer.frame(&answer(&step, 1.0)).await;
        }
    });
    for _ in 0..3 {
        assert_eq!(logits(&mut submission).await, 1f32.to_le_bytes().repeat(5));
        submission.sampled(0, 2);
    }
    worker.abort();
    assert_eq!(count(&server.sockets.counters().welcomed), 1);
}

#[tokio::test]
async fn peers_of_other_versions_hear_both() {
    let server = trusting().await;
    let Err(Error::Http(response)) = server.connect(None, &[]).await else {
        panic!("a socket without subprotocol was taken")
    };
    assert_eq!(response.status(), 400);
    let mut newer = server.connect(Some("weft.v2"), &[]).await.unwrap();
    let (reason, retry) = newer.dismissed().await;
    assert!(reason.contains(SUBPROTOCOL) && reason.contains("weft.v2") && !retry, "{reason}");
    // The subprotocol fits but the hello does not, in a form that only version 2 has.
    let (mut peer, _) = server.meet().await;
    peer.text(r#"{"type":"hello","protocol":2,"public_key":"x","news":true}"#).await;
    let (reason, retry) = peer.dismissed().await;
    assert!(reason.contains("version 1") && reason.contains("worker 2") && !retry, "{reason}");
    assert_eq!(count(&server.sockets.counters().refused), 2);
    // Ours among others is taken.
    server.connect(Some("weft.v2, weft.v1"), &[]).await.unwrap();
    assert!(server.driver.view().await.workers.is_empty());
}

#[tokio::test]
async fn who_cannot_prove_its_key_stays_outside() {
    let server = trusting().await;
    let other = hello(2, "another nonce").signature;
    type Change = Box<dyn FnOnce(&mut protocol::Hello)>;
    let cases: [(&str, Change); 5] = [
        ("signature", Box::new(move |hello| hello.signature = other)),
        ("key", Box::new(|hello| hello.public_key = "f".repeat(64))),
        ("public_key", Box::new(|hello| hello.public_key = "xyz".into())),
        ("embedded", Box::new(|hello| hello.kind = WorkerKind::Embedded)),
        ("token", Box::new(|hello| hello.token = Some("let me in".into()))),
    ];
    for (word, change) in cases {
        let (_peer, heard) = server.hello(1, change).await;
        let Heard::Control(ToWorker::Dismiss { reason, retry: false }) = heard else {
            panic!("{word}: {heard:?}")
        };
        assert!(reason.contains(word), "{word}: {reason}");
    }
    for first in ["{}", "hello", r#"{"type":"drain","reason":"no"}"#] {
        let (mut peer, _) = server.meet().await;
        peer.text(first).await;
        assert!(!peer.dismissed().await.1);
    }
    let (mut peer, _) = server.meet().await;
    peer.binary(vec![1, 2, 3]).await;
    assert!(peer.dismissed().await.0.contains("hello"));
    assert!(server.driver.view().await.workers.is_empty());
    assert_eq!(count(&server.sockets.counters().refused), 9);
}

#[tokio::test]
async fn trust_is_for_native_workers_here_and_for_tokens() {
    let server = trusting().await;
    let trusted = async |key: u8, headers: &[(&'static str, &str)], kind, token: Option<&str>| {
        let mut peer = server.connect(Some(SUBPROTOCOL), headers).await.unwrap();
        let Heard::Control(ToWorker::Challenge { nonce, .. }) = peer.next().await else { panic!() };
        let hello = protocol::Hello { kind, token: token.map(Into::into), ..hello(key, &nonce) };
        peer.say(FromWorker::Hello(Box::new(hello))).await;
        match peer.next().await {
            Heard::Control(ToWorker::Welcome { trusted, .. }) => trusted,
            other => panic!("{other:?}"),
        }
    };
    let (native, browser) = (WorkerKind::Native, WorkerKind::Browser);
    assert!(trusted(1, &[], native, None).await);
    assert!(!trusted(2, &[], browser, None).await);
    assert!(trusted(3, &[], browser, Some("open sesame")).await);
    let ours = format!("http://{}", server.address);
    assert!(!trusted(4, &[("origin", &ours)], native, None).await, "a web page");
    assert!(!trusted(5, &[("x-forwarded-for", "192.0.2.1")], native, None).await, "a proxy");
}

#[tokio::test]
async fn an_invite_makes_one_native_worker_trusted_until_it_is_revoked() {
    let server = Server::start(Trust::new(false, &[])).await;
    let invite = server.ledger.invite("", None).await.unwrap();
    let say = async |key: u8, change: fn(&mut protocol::Hello)| {
        let (mut peer, nonce) = server.meet().await;
        let mut hello = invited(key, &nonce, &invite.token);
        change(&mut hello);
        peer.say(FromWorker::Hello(Box::new(hello))).await;
        let heard = peer.next().await;
        (peer, heard)
    };
    let refused = async |key: u8, change: fn(&mut protocol::Hello)| match say(key, change).await.1 {
        Heard::Control(ToWorker::Dismiss { reason, retry: false }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(!server.join(9).await.1.trusted, "nobody is without one");
    let reason = refused(1, |hello| hello.kind = WorkerKind::Browser).await;
    assert!(reason.contains("native"), "{reason}");
    let reason = refused(1, |hello| hello.token = Some("weft_invite_0".into())).await;
    assert!(reason.contains("signature"), "another token than was signed: {reason}");
    let (_peer, heard) = server.hello(1, |hello| hello.token = Some(invite.token.clone())).await;
    let Heard::Control(ToWorker::Dismiss { reason, retry: false }) = heard else { panic!() };
    assert!(reason.contains("does not sign"), "{reason}");

    let (mut peer, heard) = say(1, |_| {}).await;
    assert!(matches!(heard, Heard::Control(ToWorker::Welcome { trusted: true, .. })), "{heard:?}");
    let reason = refused(2, |_| {}).await;
    assert!(reason.contains("another worker"), "{reason}");
    // As `coordinator revoke` does it: nobody tells the sockets.
    assert!(server.ledger.revoke(invite.id).await.unwrap());
    let (reason, retry) = peer.dismissed().await;
    assert!(reason.contains("revoked") && !retry, "{reason}");
    let reason = refused(1, |_| {}).await;
    assert!(reason.contains("revoked"), "{reason}");
}

#[tokio::test]
async fn a_banned_key_stays_outside_and_is_told_why() {
    let server = trusting().await;
    let (peer, _) = server.join(1).await;
    peer.close().await;
    let key = hello(1, "").public_key;
    server.ledger.banned(&key, Some("its answers were wrong"));
    let (mut peer, nonce) = server.meet().await;
    peer.say(FromWorker::Hello(Box::new(hello(1, &nonce)))).await;
    let (reason, retry) = peer.dismissed().await;
    assert!(reason.contains("banned here: its answers were wrong") && !retry, "{reason}");
    server.join(2).await;
    assert!(server.ledger.unban(&key).await.unwrap());
    server.join(1).await;
}

#[tokio::test]
async fn rows_are_counted_over_all_visits() {
    let server = trusting().await;
    for visit in 1..=2u64 {
        let (mut peer, welcome) = server.join(1).await;
        let mut submission = submit(&server).await;
        let worker = tokio::spawn(async move {
            loop {
                let step = peer.until_step().await;
                peer.frame(&answer(&step, 1.0)).await;
            }
        });
        logits(&mut submission).await;
        server.ledger.flush().await.unwrap();
        let kept = server.ledger.standing(welcome.worker).unwrap();
        assert_eq!(kept.rows, 3 * visit, "a prompt of 3 rows each time");
        drop(submission);
        // Not in good order: its connection breaks.
        worker.abort();
    }
}

#[tokio::test]
async fn pages_of_other_sites_cannot_enlist_their_visitors() {
    let server = trusting().await;
    let Err(Error::Http(response)) =
        server.connect(Some(SUBPROTOCOL), &[("origin", "https://example.org")]).await
    else {
        panic!("a page of another site was let in")
    };
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_volunteer_may_answer_no_longer_than_it_was_asked() {
    let server = Server::start(Trust::new(false, &[])).await;
    let (mut peer, welcome) = server.join(1).await;
    assert!(!welcome.trusted);
    // Nothing was sent to it: the first chunk's announcement is too much already.
    peer.binary(Chunks::new(&stray(FrameKind::Result), 0).unwrap().next().unwrap().to_vec()).await;
    let (reason, retry) = peer.dismissed().await;
    assert!(reason.contains("bytes") && !retry, "{reason}");
}

#[tokio::test]
async fn a_link_is_measured_with_as_many_bytes_as_are_asked_for() {
    let server = trusting().await;
    let ask = async |query: &str| {
        let url = format!("http://{}/v1/worker/probe{query}", server.address);
        reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap()
    };
    let probe = ask("?bytes=70000").await;
    assert_eq!(probe.headers()["cache-control"], "no-store");
    assert_eq!(probe.bytes().await.unwrap().len(), 70_000);
    assert_eq!(ask(&format!("?bytes={PROBE_BYTES_MAX}")).await.status(), 200);
    assert_eq!(ask(&format!("?bytes={}", PROBE_BYTES_MAX + 1)).await.status(), 400);
    assert_eq!(ask("").await.status(), 400);
}

#[tokio::test]
async fn a_volunteer_takes_part_in_no_tensor_group() {
    let server = Server::start(Trust::new(false, &[])).await;
    let (mut peer, _) = server.join(1).await;
    let share = relay_pieces(AssignmentId(9), 0, RelayKind::Share, 0, b"x").next().unwrap();
    peer.binary(share.to_vec()).await;
    let (reason, retry) = peer.dismissed().await;
    assert!(reason.contains("only trusted workers") && !retry, "{reason}");
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_that_connection_only() {
    let server = trusting().await;
    let (mut good, _) = server.join(1).await;
    let mut huge = Chunks::new(&stray(FrameKind::Result), 0).unwrap().next().unwrap().to_vec();
    huge[8..12].copy_from_slice(&(u32::MAX).to_le_bytes()); // announces 4 GiB
    let step = Chunks::new(&stray(FrameKind::Step), 0).unwrap().next().unwrap().to_vec();
    let mut damaged = Chunks::new(&stray(FrameKind::Result), 0).unwrap().next().unwrap().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let late = Chunks::new(&stray(FrameKind::Result), 5).unwrap().next().unwrap().to_vec();
    // To a tensor group that there is not, or no more: it is dropped.
    let share = || relay_pieces(AssignmentId(9), 0, RelayKind::Share, 0, b"x").next().unwrap();
    good.binary(share().to_vec()).await;
    let cases: [(&str, Vec<u8>); 7] = [
        ("relayed piece", share()[..9].to_vec()),
        ("chunk", vec![0xA5; 100]),
        ("chunk", vec![0xA5; CHUNK_BYTES_MAX + 1]),
        ("frame bytes", huge),
        ("step came from a worker", step),
        ("checksum", damaged),
        ("frame 5", late),
    ];
    let mut key = 10;
    for (word, bytes) in cases {
        let (mut peer, _) = server.join(key).await;
        key += 1;
        peer.binary(bytes).await;
        let (reason, retry) = peer.dismissed().await;
        assert!(reason.contains(word) && !retry, "{word}: {reason}");
    }
    let long = format!(r#"{{"type":"drain","reason":"{}"}}"#, "x".repeat(10_000));
    for (word, text) in [
        ("control message", "not json".to_owned()),
        ("control message", r#"{"type":"dance"}"#.to_owned()),
        ("reason", long),
        (
            "second hello",
            serde_json::to_string(&FromWorker::Hello(Box::new(hello(1, "n")))).unwrap(),
        ),
    ] {
        let (mut peer, _) = server.join(key).await;
        key += 1;
        peer.text(&text).await;
        let (reason, retry) = peer.dismissed().await;
        assert!(reason.contains(word) && !retry, "{word}: {reason}");
    }
    assert_eq!(count(&server.sockets.counters().violations), 11);
    let ids: Vec<_> = server.driver.view().await.workers.iter().map(|w| w.id).collect();
    assert_eq!(ids.len(), 1, "only the good one is left: {ids:?}");
    let mut submission = submit(&server).await;
    let serving = tokio::spawn(async move {
        loop {
            let step = good.until_step().await;
            good.frame(&answer(&step, 3.0)).await;
        }
    });
    assert_eq!(logits(&mut submission).await, 3f32.to_le_bytes().repeat(5));
    serving.abort();
}

#[tokio::test]
async fn oversized_messages_are_not_read() {
    let server = trusting().await;
    for (key, bytes) in [(1, CONTROL_BYTES_MAX + 1), (2, PAYLOAD_BYTES_MAX)] {
        let (mut peer, _) = server.join(key).await;
        peer.binary(vec![0; bytes]).await;
        // The rest of it stands before any goodbye, so the end may come without a word.
        while !matches!(peer.next().await, Heard::Closed) {}
    }
    server.sockets.closed().await;
    assert_eq!(count(&server.sockets.counters().violations), 2);
    assert!(server.driver.view().await.workers.is_empty());
}

#[tokio::test]
async fn a_worker_that_answers_nan_is_sent_away_and_replaced() {
    let server = trusting().await;
    let (mut liar, _) = server.join(1).await;
    let mut submission = submit(&server).await;
    let step = liar.until_step().await;
    liar.frame(&answer(&step, f32::NAN)).await;
    let (reason, _) = liar.dismissed().await;
    assert!(!reason.is_empty());
    let (mut honest, _) = server.join(2).await;
    let serving = tokio::spawn(async move {
        loop {
            let step = honest.until_step().await;
            honest.frame(&answer(&step, 1.0)).await;
        }
    });
    assert_eq!(logits(&mut submission).await, 1f32.to_le_bytes().repeat(5));
    serving.abort();
}

#[tokio::test]
async fn a_reconnect_replaces_its_ghost() {
    let server = trusting().await;
    let (mut ghost, old) = server.join(1).await;
    let (_peer, new) = server.join(1).await;
    let _ = ghost.dismissed().await;
    let ids: Vec<_> = server.driver.view().await.workers.iter().map(|w| w.id).collect();
    assert_eq!(ids, [new.worker]);
    assert_ne!(old.worker, new.worker);
}

#[tokio::test]
async fn a_shutdown_says_goodbye() {
    let server = trusting().await;
    let (mut peer, _) = server.join(1).await;
    server.closing.cancel();
    let (reason, retry) = peer.dismissed().await;
    assert!(reason.contains("shutting down") && retry, "{reason}");
    server.sockets.closed().await;
}

async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = reqwest::Client::new().get(format!("http://{}{path}", server.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn blobs_are_for_joined_workers_in_whole_or_in_part() {
    let server = trusting().await;
    let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let hash = "ab".repeat(32);
    std::fs::write(server.blobs.path().join(&hash), &content).unwrap();
    let path = format!("/v1/blobs/{hash}");
    assert_eq!(get(&server, &path, &[]).await.status(), 401);
    let forged = format!("Bearer {}", "0".repeat(64));
    assert_eq!(get(&server, &path, &[("authorization", &forged)]).await.status(), 401);

    let (peer, welcome) = server.join(1).await;
    let bearer = format!("Bearer {}", welcome.blob_token);
    let auth = ("authorization", bearer.as_str());
    let whole = get(&server, &path, &[auth]).await;
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert!(whole.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    let etag = whole.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(whole.bytes().await.unwrap(), content);

    let part = get(&server, &path, &[auth, ("range", "bytes=399990-")]).await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], "bytes 399990-399999/400000");
    assert_eq!(part.bytes().await.unwrap(), content[399_990..]);
    let outside = get(&server, &path, &[auth, ("range", "bytes=400000-")]).await;
    assert_eq!(outside.status(), 416);
    assert_eq!(outside.headers()["content-range"], "bytes */400000");
    assert_eq!(get(&server, &path, &[auth, ("if-none-match", &etag)]).await.status(), 304);
    let other = [auth, ("range", "bytes=1-2"), ("if-range", "\"other\"")];
    assert_eq!(get(&server, &path, &other).await.status(), 200);

    let absent = format!("/v1/blobs/{}", "cd".repeat(32));
    assert_eq!(get(&server, &absent, &[auth]).await.status(), 404);
    for outside in ["..%2f..%2fetc%2fpasswd", "AB", ".."] {
        let status = get(&server, &format!("/v1/blobs/{outside}"), &[auth]).await.status();
        assert!(status == 400 || status == 404, "{outside}: {status}");
    }

    peer.close().await;
    server.sockets.closed().await;
    assert_eq!(get(&server, &path, &[auth]).await.status(), 401, "it has left");
}
