//! Several sessions at once, choices, conversations, clients that go, and queues that fill.

use serde_json::{Value, json};

use crate::harness::{Coordinator, Written, alone, machine, request};
use crate::split::workers;

#[tokio::test]
async fn eight_sessions_at_once_write_what_each_writes_alone() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("eight", &["--embedded", "ends"]).await;
    let _workers = workers(&coordinator, &[18, 14], false).await;
    let mut running = Vec::new();
    for index in 0..alone.len() {
        let api = coordinator.api.clone();
        running.push(tokio::spawn(async move {
            api.post("/v1/chat/completions", &request(index)).await
        }));
    }
    let most = coordinator
        .fleet_with("all eight are in flight", |fleet| {
            (fleet.sessions().len() == alone.len()).then(|| fleet.sessions().len())
        })
        .await;
    assert_eq!(most, 8);
    for (index, task) in running.into_iter().enumerate() {
        let answer = task.await.expect("it does not panic");
        assert_eq!(Written::of(&answer.ok(), 0), alone[index], "session {index}");
    }
}

#[tokio::test]
async fn choices_share_their_prompt_and_a_seed_repeats_them() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("choices", &[]).await;
    coordinator.ready().await;
    let mut greedy = request(0);
    greedy["n"] = json!(3);
    let answer = coordinator.api.post("/v1/chat/completions", &greedy).await.ok();
    for choice in 0..3 {
        assert_eq!(Written::of(&answer, choice), alone[0], "choice {choice}");
    }
    let tokens = alone[0].tokens.len() as u64;
    let written = answer["usage"]["completion_tokens"].as_u64().expect("a count");
    // The token that ends a text is counted, and has no entry among the log probabilities.
    assert!((3 * tokens..=3 * (tokens + 1)).contains(&written), "{}", answer["usage"]);

    let mut sampled = request(1);
    sampled["n"] = json!(3);
    sampled["temperature"] = json!(1.0);
    sampled["seed"] = json!(42);
    sampled["max_tokens"] = json!(16);
    let one = coordinator.api.post("/v1/chat/completions", &sampled).await.ok();
    let two = coordinator.api.post("/v1/chat/completions", &sampled).await.ok();
    let texts = |answer: &Value| (0..3).map(|i| Written::of(answer, i)).collect::<Vec<_>>();
    assert_eq!(texts(&one), texts(&two), "one seed, one answer");
    let [a, b, c] = &texts(&one)[..] else { panic!("three choices") };
    assert!(a.text != b.text && b.text != c.text && a.text != c.text, "each draws for itself");
}

#[tokio::test]
async fn a_conversations_next_turn_prefills_only_what_is_new() {
    let _machine = machine().await;
    let first = request(0);
    let conversation = |answer: &str| {
        let mut next = request(0);
        let messages = next["messages"].as_array_mut().expect("messages");
        messages.push(json!({"role": "assistant", "content": answer}));
        messages.push(json!({"role": "user", "content": "And of Spain?"}));
        next
    };
    let coordinator = Coordinator::start("turns", &[]).await;
    coordinator.ready().await;
    let one = coordinator.api.post("/v1/chat/completions", &first).await.ok();
    assert_eq!(one["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "{}", one["usage"]);
    let next = conversation(&Written::of(&one, 0).text);
    let two = coordinator.api.post("/v1/chat/completions", &next).await.ok();
    let usage = &two["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count");
    let first_prompt = one["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert!(cached >= first_prompt, "all of the first prompt was there: {usage}");
    assert!(cached < usage["prompt_tokens"].as_u64().expect("a count"), "{usage}");
    drop(coordinator);

    let forgetful = Coordinator::start("turns-anew", &["--cached-sessions-max", "0"]).await;
    forgetful.ready().await;
    let anew = forgetful.api.post("/v1/chat/completions", &next).await.ok();
    assert_eq!(anew["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(Written::of(&two, 0), Written::of(&anew, 0), "the cache changes no bit");
}

#[tokio::test]
async fn a_client_that_goes_frees_its_session() {
    let _machine = machine().await;
    let coordinator = Coordinator::start("gone", &[]).await;
    coordinator.ready().await;
    let mut body = request(1);
    body["max_tokens"] = json!(4000);
    body["logit_bias"] = json!({"2": -100});
    let mut events = coordinator.api.stream("/v1/chat/completions", &body).await;
    events.next().await.expect("it begins");
    assert_eq!(coordinator.fleet().await.sessions().len(), 1);
    drop(events);
    coordinator
        .fleet_with("the session is gone", |fleet| fleet.sessions().is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn past_its_bounds_a_request_is_queued_then_refused() {
    let _machine = machine().await;
    let bounds = ["--sessions-max", "1", "--queue-max", "1"];
    let coordinator = Coordinator::start("queue", &bounds).await;
    coordinator.ready().await;
    let mut endless = request(1);
    endless["max_tokens"] = json!(4000);
    endless["logit_bias"] = json!({"2": -100});
    let mut running = coordinator.api.stream("/v1/chat/completions", &endless).await;
    running.next().await.expect("it begins");
    let api = coordinator.api.clone();
    let queued = tokio::spawn(async move { api.post("/v1/chat/completions", &request(0)).await });
    coordinator
        .fleet_with("the second one waits", |fleet| (fleet.0["queued"] == 1).then_some(()))
        .await;
    let refused = coordinator.api.post("/v1/chat/completions", &request(2)).await;
    let error = refused.error(429, "rate_limit_exceeded");
    assert_eq!(error["type"], "rate_limit_error");
    let retry: u64 = refused.retry_after.expect("Retry-After").parse().expect("seconds");
    assert!(retry >= 1);
    drop(running);
    let answer = queued.await.expect("it does not panic");
    assert_eq!(Written::of(&answer.ok(), 0), alone().await[0], "its turn came");
}
