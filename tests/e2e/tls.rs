//! TLS on the coordinator's port: requests over https, workers over wss.

use std::fs;

use crate::harness::{Coordinator, Scratch, Written, alone, machine, request};
use crate::split::mib_for;

#[tokio::test]
async fn a_certificate_serves_requests_and_workers() {
    let _machine = machine().await;
    let alone = alone().await;
    let scratch = Scratch::new("certificate");
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (certificate, key) = (scratch.path("weft.crt"), scratch.path("weft.key"));
    fs::write(&certificate, made.cert.pem()).expect("the scratch folder");
    fs::write(&key, made.signing_key.serialize_pem()).expect("the scratch folder");
    let path = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let (certificate, key) = (path(&certificate), path(&key));

    let flags = ["--embedded", "ends", "--tls-cert", &certificate, "--tls-key", &key];
    let coordinator = Coordinator::start_tls("tls", &flags, &made.cert.pem()).await;
    // Who has not been told of the certificate does not come in, and says what to do.
    let stranger = coordinator.worker("stranger", mib_for(30));
    stranger.line_with("--ca-cert").await;
    let _worker = coordinator.worker_with("known", mib_for(30), &["--ca-cert", &certificate]);
    coordinator.ready_over(1).await;
    let answer = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    assert_eq!(Written::of(&answer.ok(), 0), alone[1]);

    // Who speaks plain HTTP to that port is told so.
    let answer = coordinator.announce("/v1/chat/completions", 0).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https://"), "{answer}");
}
