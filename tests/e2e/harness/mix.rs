//! What many different clients ask at once, and what each of them must be told.

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::written::PROMPTS;
use super::{Api, Coordinator, MODEL, Written};

/// Requests that differ.
pub const ASKS: usize = 24;
/// Tokens that they are given at most.
const LENGTHS: [u32; 5] = [24, 48, 8, 96, 36];

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub path: &'static str,
    pub body: Value,
    pub streamed: bool,
}

/// The `index`th request, which is the same one again after [`ASKS`] of them: a chat or a
/// completion, greedy or drawn from a seed, short or long, streamed or not.
pub fn ask(index: usize) -> Ask {
    let number = index % ASKS;
    let prompt = PROMPTS[number % PROMPTS.len()];
    let mut body = json!({
        "model": MODEL,
        "max_tokens": LENGTHS[number % LENGTHS.len()],
        "temperature": 0,
    });
    if number % 2 == 1 {
        body["temperature"] = json!(0.9);
        body["top_p"] = json!(0.95);
        body["seed"] = json!(number);
    }
    let chat = number % 3 != 2;
    let path = match chat {
        true => {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(3);
            "/v1/chat/completions"
        }
        false => {
            body["prompt"] = json!(prompt);
            body["logprobs"] = json!(3);
            "/v1/completions"
        }
    };
    Ask { path, body, streamed: number % 4 < 2 }
}

/// When a request's tokens came.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Of a stream: once for each event that brought tokens, in order.
    pub tokens: Vec<Instant>,
}

impl Ask {
    /// Asks, and waits for all of the answer, which must be a good one.
    pub async fn put(&self, api: &Api) -> (Written, Times) {
        let mut times = Times::default();
        if !self.streamed {
            return (Written::of(&api.post(self.path, &self.body).await.ok(), 0), times);
        }
        let mut events = api.stream(self.path, &self.body).await;
        let mut written = Written::nothing();
        while let Some(event) = events.next().await {
            let before = written.tokens.len();
            written.add(&event);
            if written.tokens.len() > before {
                times.tokens.push(Instant::now());
            }
        }
        assert!(events.done, "the stream ended early after {written:?}");
        (written, times)
    }
}

/// What one process by itself answers to each of them.
pub async fn expected() -> &'static Vec<Written> {
    static EXPECTED: OnceCell<Vec<Written>> = OnceCell::const_new();
    EXPECTED
        .get_or_init(|| async {
            let coordinator = Coordinator::start("mix", &[]).await;
            coordinator.ready().await;
            let mut asked = JoinSet::new();
            for index in 0..ASKS {
                let api = coordinator.api.clone();
                let whole = Ask { streamed: false, ..ask(index) };
                asked.spawn(async move { (index, whole.put(&api).await.0) });
            }
            let mut answers = asked.join_all().await;
            answers.sort_by_key(|(index, _)| *index);
            answers.into_iter().map(|(_, written)| written).collect()
        })
        .await
}
