//! What a model wrote, so that two runs can be compared to the bit.

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{Coordinator, Events, MODEL};

/// Tokens that each of the requests below is given.
pub const TOKENS: u32 = 40;

/// Prompts of different lengths, so that sessions which share steps are out of step.
pub(super) const PROMPTS: [&str; 8] = [
    "What is the capital of France?",
    "Write a short poem about the sea, and then explain in two sentences what it means.",
    "Hi!",
    "List the first ten prime numbers, one on each line.",
    "Translate to French: the weather is lovely today and the market is open.",
    "Why is the sky blue? Answer as if I were five years old.",
    "Give me a recipe for bread with only four ingredients.",
    "Who wrote Pride and Prejudice, when was it published, and what is it about?",
];

/// The `index`th of eight requests: greedy, with log probabilities.
pub fn request(index: usize) -> Value {
    json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPTS[index]}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "logprobs": true,
        "top_logprobs": 5,
    })
}

/// One choice of a completion, chat or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub text: String,
    /// One entry per token: its text, its log probability and the likeliest five, as printed.
    pub tokens: Vec<Value>,
    pub finish_reason: String,
}

impl Written {
    /// Of an answer that is not streamed.
    #[track_caller]
    pub fn of(answer: &Value, choice: usize) -> Written {
        let choice = &answer["choices"][choice];
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
        Written {
            text: text.unwrap_or_else(|| panic!("no content in {answer}")).to_owned(),
            tokens: tokens(&choice["logprobs"]),
            finish_reason: choice["finish_reason"].as_str().expect("a reason").to_owned(),
        }
    }

    /// Nothing yet.
    pub fn nothing() -> Written {
        Written { text: String::new(), tokens: Vec::new(), finish_reason: String::new() }
    }

    /// Takes one event of a stream.
    #[track_caller]
    pub fn add(&mut self, event: &Value) {
        assert!(event.get("error").is_none(), "{event}");
        let Some(choice) = event["choices"].get(0) else { return };
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        self.text.push_str(text.unwrap_or_default());
        self.tokens.extend(tokens(&choice["logprobs"]));
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert!(self.finish_reason.is_empty(), "it ends once");
            self.finish_reason = reason.to_owned();
        }
    }
}

/// What a choice's `logprobs` say of each token, chat's or the older form.
fn tokens(logprobs: &Value) -> Vec<Value> {
    if let Some(tokens) = logprobs["content"].as_array() {
        return tokens.clone();
    }
    let columns = ["tokens", "token_logprobs", "top_logprobs"];
    let of = |row: usize| columns.map(|column| logprobs[column][row].clone()).into();
    let rows = logprobs["tokens"].as_array().map_or(0, Vec::len);
    (0..rows).map(of).collect()
}

/// Reads a stream until `tokens` tokens have come.
pub async fn stream_of(events: &mut Events, written: &mut Written, tokens: usize) {
    while written.tokens.len() < tokens {
        let event = events.next().await.expect("the stream goes on");
        written.add(&event);
    }
}

/// What one process by itself answers to each of the eight requests, one after the other.
pub async fn alone() -> &'static Vec<Written> {
    static ALONE: OnceCell<Vec<Written>> = OnceCell::const_new();
    ALONE
        .get_or_init(|| async {
            let coordinator = Coordinator::start("alone", &[]).await;
            coordinator.ready().await;
            let mut answers = Vec::new();
            for index in 0..PROMPTS.len() {
                let answer = coordinator.api.post("/v1/chat/completions", &request(index)).await;
                answers.push(Written::of(&answer.ok(), 0));
            }
            let long = answers.iter().filter(|a| a.tokens.len() == TOKENS as usize).count();
            assert!(long >= 4, "most of them are long enough to be disturbed: {long}");
            answers
        })
        .await
}
