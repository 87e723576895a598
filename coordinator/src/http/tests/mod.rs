//! The API over a loopback listener, with a scripted driver behind it.

mod answers;
mod completions;
mod errors;
mod fleet;
mod gone;
mod slow;
mod streams;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use scheduler::{FleetView, RequestError};
use serde_json::Value;
use text::TokenizerData;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{AppState, Model};
use crate::driver::scripted::{Script, Told, scripted};
use crate::driver::{Handle, RequestEvent};

/// Tokens of the test model, after 256 byte tokens from id 3 on.
const PIECES: &[&str] = &["Hel", "lo", "▁wor", "ld", "EN", "D", "!"];
const END: u32 = 2;
const VOCABULARY: usize = 3 + 256 + PIECES.len();
/// Positions that the test model has.
const CONTEXT: u32 = 64;

/// What a test waits for is there at once; this only ends a test that fails.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// The id of one of [`PIECES`].
fn piece(text: &str) -> u32 {
    let index = PIECES.iter().position(|p| *p == text).expect("a piece of the test model");
    259 + index as u32
}

fn pieces(texts: &[&str]) -> Vec<u32> {
    texts.iter().map(|text| piece(text)).collect()
}

/// The token that is one byte.
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// A model whose tokens are bytes and a few pieces; its template writes `role:content;`.
fn model(name: &str) -> Model {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(PIECES.iter().map(|p| (*p).to_owned()));
    let mut token_types = vec![2, 3, 3];
    token_types.extend([6; 256]);
    token_types.extend(vec![1; PIECES.len()]);
    let data = TokenizerData {
        model: "llama".into(),
        scores: (0..tokens.len()).map(|i| -(i as f32)).collect(),
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(END),
        unknown: Some(0),
        add_bos: Some(false),
        add_space_prefix: Some(false),
        chat_template: Some(
            "{% for m in messages %}{% if m.content == 'refuse' %}{{ raise_exception('no') }}\
             {% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
                .into(),
        ),
        ..TokenizerData::default()
    };
    Model::new(name.into(), &data, CONTEXT, 1234, "fp_test".into()).expect("a sound test model")
}

/// What the driver does with one request.
#[derive(Clone)]
struct Play {
    cached_tokens: u32,
    /// Per choice, the logits of each step.
    choices: Vec<Vec<Row>>,
    /// Once a choice asks for more.
    then: Then,
}

#[derive(Clone, Copy)]
enum Row {
    /// One token is certain.
    Certain(u32),
    /// All tokens are as likely.
    Flat,
    /// A worker lies.
    Nan,
}

#[derive(Clone)]
enum Then {
    Wait,
    Refuse(RequestError),
    /// The driver stops.
    Stop,
}

/// A request whose only choice gets these tokens.
fn says(tokens: &[u32]) -> Play {
    says_each(&[tokens])
}

fn says_each(choices: &[&[u32]]) -> Play {
    let rows = |tokens: &&[u32]| tokens.iter().map(|t| Row::Certain(*t)).collect();
    Play { cached_tokens: 0, choices: choices.iter().map(rows).collect(), then: Then::Wait }
}

/// A request that is refused before its first token.
fn refuses(error: RequestError) -> Play {
    Play { then: Then::Refuse(error), ..says(&[]) }
}

fn logits(row: Row) -> Bytes {
    let value = |i: usize| match row {
        Row::Certain(token) if token as usize == i => 50.0,
        Row::Certain(_) | Row::Flat => 0.0f32,
        Row::Nan => f32::NAN,
    };
    (0..VOCABULARY).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// Plays one play per request, in order, and passes on what it is told.
async fn play(mut script: Script, plays: Vec<Play>, told: mpsc::UnboundedSender<Told>) {
    let mut plays = VecDeque::from(plays);
    let mut playing = std::collections::BTreeMap::new();
    while let Some(what) = script.next().await {
        let mut due = Vec::new();
        match &what {
            Told::Submitted { request, submit } => {
                let play = plays.pop_front().expect("a play for each request");
                let cached_tokens = play.cached_tokens;
                if !matches!(play.then, Then::Refuse(_))
                    || play.choices.iter().any(|c| !c.is_empty())
                {
                    script.send(*request, RequestEvent::Started { cached_tokens }).await;
                }
                due.extend((0..submit.choices).map(|choice| (*request, choice)));
                playing.insert(*request, (play, vec![0usize; submit.choices as usize]));
            }
            Told::Sampled { request, choice, .. } => due.push((*request, *choice)),
            Told::Finished { .. } | Told::Cancelled { .. } => {}
        }
        let _ = told.send(what);
        for (request, choice) in due {
            let (play, steps) = playing.get_mut(&request).expect("a request that plays");
            let step = &mut steps[choice as usize];
            match (play.choices[choice as usize].get(*step), play.then.clone()) {
                (Some(row), _) => {
                    let (logits, position) = (logits(*row), *step as u32);
                    *step += 1;
                    script.send(request, RequestEvent::Logits { choice, position, logits }).await;
                }
                (None, Then::Wait) => {}
                (None, Then::Refuse(error)) => {
                    script.send(request, RequestEvent::Refused(error)).await;
                }
                (None, Then::Stop) => return,
            }
        }
    }
}

/// A server on a loopback port.
struct Server {
    address: std::net::SocketAddr,
    client: reqwest::Client,
    told: mpsc::UnboundedReceiver<Told>,
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Server {
    async fn start(plays: Vec<Play>) -> Server {
        Server::with_view(plays, FleetView::default()).await
    }

    async fn with_view(plays: Vec<Play>, view: FleetView) -> Server {
        let (handle, mut script): (Handle, Script) = scripted();
        script.view = view;
        let (sender, told) = mpsc::unbounded_channel();
        tokio::spawn(play(script, plays, sender));
        let app = super::router(AppState::new(handle, vec![model("m"), model("org/other")]));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Server { address, client, told }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.text().await.expect("a whole body") }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(format!("http://{}{path}", self.address))).await
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.client.post(format!("http://{}{path}", self.address));
        self.send(request.header("content-type", "application/json").body(body)).await
    }

    /// A chat request with these fields besides one short message.
    async fn chat(&self, fields: &str) -> Answer {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{fields}}}"#);
        self.post("/v1/chat/completions", body).await
    }

    async fn complete(&self, fields: &str) -> Answer {
        self.post("/v1/completions", format!("{{{fields}}}")).await
    }

    /// The next thing that the driver is told.
    async fn told(&mut self) -> Told {
        let told = tokio::time::timeout(TOLD_WITHIN, self.told.recv()).await;
        told.expect("the driver is told in time").expect("the script runs")
    }
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.body))
    }

    /// A good answer's JSON with what differs each time written as `*`.
    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        let mut value = self.json();
        assert!(value["created"].as_u64().is_some_and(|at| at > 1_700_000_000), "{value}");
        value["id"] = masked(value["id"].as_str().expect("an id")).into();
        value["created"] = "*".into();
        value
    }

    /// A stream's events; what differs each time is written as `*`, and must not differ in
    /// one stream.
    #[track_caller]
    fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let events = self.body.strip_suffix("\n\n").expect("events end in an empty line");
        let mut varying = None;
        let event = |event: &str| {
            let data = event.strip_prefix("data: ").expect("data only");
            let Ok(Value::Object(map)) = serde_json::from_str(data) else { return data.to_owned() };
            let (Some(id), Some(at)) = (map.get("id"), map.get("created")) else {
                return data.to_owned();
            };
            let both = (id.clone(), at.clone());
            assert_eq!(*varying.get_or_insert(both.clone()), both);
            let id = id.as_str().expect("an id");
            data.replace(id, &masked(id)).replace(&format!("\"created\":{at}"), "\"created\":*")
        };
        events.split("\n\n").map(event).collect()
    }

    #[track_caller]
    fn refused(&self, status: u16, kind: &str, param: Option<&str>, code: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/json");
        let error = &self.json()["error"];
        assert_eq!(error["type"], kind, "{error}");
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert_eq!(error["code"].as_str(), code, "{error}");
        error["message"].as_str().expect("a message").to_owned()
    }
}

/// `chatcmpl-0123...` as `chatcmpl-*`.
fn masked(id: &str) -> String {
    let (prefix, rest) = id.split_once('-').expect("a prefix");
    assert!(rest.len() == 24 && rest.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    format!("{prefix}-*")
}
