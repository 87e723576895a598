//! Inviting a worker to hold a model's ends, and taking the invite back, as an operator does.

use serde_json::Value;

use crate::harness::{Coordinator, Written, alone, machine, request};
use crate::split::{ENDS_MIB, mib_for};

#[tokio::test]
async fn an_invited_worker_holds_the_ends_until_its_invite_is_revoked() {
    let _machine = machine().await;
    let alone = alone().await;
    let flags = ["--embedded", "off", "--no-trust-loopback"];
    let coordinator = Coordinator::start("invite", &flags).await;
    let said = coordinator.command(&["invite", "--name", "e2e", "--expires", "1h"]);
    let token = said.lines().find(|line| line.starts_with("weft_invite_")).expect("a token");
    let memory = mib_for(30) + ENDS_MIB;
    let stranger = coordinator.worker("stranger", memory);
    let mut friend = coordinator.worker_with("friend", memory, &["--invite", token]);
    coordinator.ready().await;
    let trusted = coordinator
        .fleet_with("both are here", |fleet| {
            let trusted = |name: &str| {
                let mut workers = fleet.workers().iter();
                workers.find(|worker| worker["name"] == name)?["trusted"].as_bool()
            };
            trusted("friend").zip(trusted("stranger"))
        })
        .await;
    assert_eq!(trusted, (true, false));
    let answer = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    assert_eq!(Written::of(&answer.ok(), 0), alone[1]);

    let listed = coordinator.command(&["invites"]);
    assert!(!listed.contains(token), "{listed}");
    let line = listed.lines().find(|line| line.contains("used")).expect("it was used");
    let id = line.split_whitespace().next().expect("its number");
    coordinator.command(&["revoke", id]);
    // Sent away for good, with the reason.
    let status = friend.ended().await;
    assert_eq!(status.code(), Some(3), "{:?}", friend.log());
    assert!(friend.log().iter().any(|line| line.contains("revoked")), "{:?}", friend.log());
    coordinator
        .fleet_with("nobody holds the ends", |fleet| {
            let covered: &Value = &fleet.0["models"][0]["covered"];
            (covered == false).then_some(())
        })
        .await;
    drop(stranger);
}
