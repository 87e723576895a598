//! What only completions have: several prompts, echo, their own log probabilities.

use serde_json::json;

use super::*;

#[tokio::test]
async fn each_prompt_gets_its_choices() {
    let play = |a: &str, b: &str| Play {
        cached_tokens: 1,
        ..says_each(&[&[piece(a), END], &[piece(b), END]])
    };
    let mut server = Server::start(vec![play("Hel", "lo"), play("EN", "D")]).await;
    let answer = server.complete(r#""prompt":["a","bc"],"n":2,"echo":true"#).await.ok();
    let texts: Vec<_> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["index"].as_u64().unwrap(), c["text"].as_str().unwrap()))
        .collect();
    assert_eq!(texts, [(0, "aHel"), (1, "alo"), (2, "bcEN"), (3, "bcD")]);
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 3,
            "completion_tokens": 8,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 2},
        })
    );
    let Told::Submitted { submit, .. } = server.told().await else { panic!("a submission") };
    assert_eq!((submit.choices, submit.max_new_tokens), (2, 16));
}

#[tokio::test]
async fn the_same_prompt_twice_gets_two_samples() {
    let flat = Play { choices: vec![vec![Row::Flat; 8]], ..says(&[]) };
    let server = Server::start(vec![flat.clone(), flat]).await;
    let fields = r#""prompt":["a","a"],"seed":1,"max_tokens":8,"logprobs":0"#;
    let answer = server.complete(fields).await.ok();
    let tokens = |choice: usize| &answer["choices"][choice]["logprobs"]["tokens"];
    assert_ne!(tokens(0), tokens(1));
}

#[tokio::test]
async fn tokens_are_taken_as_they_are() {
    let mut server = Server::start(vec![says(&[piece("!"), END])]).await;
    let answer = server.complete(r#""prompt":[259,260],"echo":true"#).await.ok();
    assert_eq!(answer["choices"][0]["text"], "Hello!");
    let Told::Submitted { submit, .. } = server.told().await else { panic!("a submission") };
    assert_eq!(submit.prompt, [259, 260]);
}

#[tokio::test]
async fn special_tokens_in_a_prompt_are_parsed() {
    let mut server = Server::start(vec![says(&[END])]).await;
    server.complete(r#""prompt":"<s>a""#).await.ok();
    let Told::Submitted { submit, .. } = server.told().await else { panic!("a submission") };
    assert_eq!(submit.prompt, [1, byte(b'a')]);
}

#[tokio::test]
async fn logprobs_are_lists_with_offsets() {
    let tokens = [byte(0xc3), byte(0xa9), piece("▁wor"), piece("ld"), END];
    let server = Server::start(vec![says(&tokens)]).await;
    let answer = server.complete(r#""prompt":"hi","logprobs":1"#).await.ok();
    assert_eq!(answer["choices"][0]["text"], "é world");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["bytes:\\xc3", "bytes:\\xa9", " wor", "ld"]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 5]));
    for i in 0..4 {
        let logprob = logprobs["token_logprobs"][i].as_f64().unwrap();
        assert!(logprob.abs() < 1e-3, "{logprob}");
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        let name = logprobs["tokens"][i].as_str().unwrap();
        assert_eq!(top.keys().collect::<Vec<_>>(), [name]);
    }
}

#[tokio::test]
async fn one_prompt_that_fails_fails_them_all_and_frees_the_others() {
    let busy = RequestError::Busy { waiting: 3, retry_after_s: 4 };
    let mut server = Server::start(vec![says(&[]), refuses(busy)]).await;
    let answer = server.complete(r#""prompt":["a","b"]"#).await;
    answer.refused(429, "rate_limit_error", None, Some("rate_limit_exceeded"));
    let mut cancelled = 0;
    while cancelled < 2 {
        cancelled += usize::from(matches!(server.told().await, Told::Cancelled { .. }));
    }
}
