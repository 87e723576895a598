//! A small HTTP client, as an application would have it.

use std::collections::VecDeque;

use reqwest::{Client, Response};
use serde_json::Value;

use super::WAIT_MAX;

/// A coordinator's HTTP API.
#[derive(Clone)]
pub struct Api {
    base: String,
    http: Client,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub text: String,
}

impl Answer {
    /// The body, which must be JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error} in {}: {}", self.status, self.text))
    }

    /// The body of a request that must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The error body of a request that must have failed so.
    #[track_caller]
    pub fn error(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.json()["error"].clone();
        assert_eq!(error["code"], code, "{}", self.text);
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{}", self.text);
        error
    }
}

impl Api {
    pub fn new(address: &str) -> Api {
        let http = Client::builder().no_proxy().timeout(2 * WAIT_MAX).build();
        Api { base: format!("http://{address}"), http: http.expect("a client") }
    }

    /// Over https, trusting this certificate (PEM) only.
    pub fn over_tls(address: &str, certificate: &str) -> Api {
        let certificate = reqwest::Certificate::from_pem(certificate.as_bytes()).expect("PEM");
        let client = Client::builder().no_proxy().timeout(2 * WAIT_MAX);
        let http = client.tls_certs_only([certificate]).build();
        Api { base: format!("https://{address}"), http: http.expect("a client") }
    }

    pub async fn get(&self, path: &str) -> Answer {
        let sent = self.http.get(format!("{}{path}", self.base)).send().await;
        whole(sent.unwrap_or_else(|error| panic!("GET {path}: {error}"))).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        whole(self.send(path, body).await).await
    }

    /// A request with `"stream": true`, which must be accepted.
    pub async fn stream(&self, path: &str, body: &Value) -> Events {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.send(path, body.to_string().into_bytes()).await;
        if response.status() != 200 {
            panic!("{path}: {:?}", whole(response).await);
        }
        let kind = response.headers()["content-type"].to_str().unwrap_or_default();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Events { response, bytes: Vec::new(), ready: VecDeque::new(), done: false }
    }

    async fn send(&self, path: &str, body: Vec<u8>) -> Response {
        let request = self.http.post(format!("{}{path}", self.base));
        let sent = request.header("content-type", "application/json").body(body).send().await;
        sent.unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }
}

async fn whole(response: Response) -> Answer {
    let status = response.status().as_u16();
    let header = response.headers().get("retry-after");
    let retry_after = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let text = response.text().await.expect("a body");
    Answer { status, retry_after, text }
}

/// A stream of server-sent events.
pub struct Events {
    response: Response,
    bytes: Vec<u8>,
    ready: VecDeque<String>,
    /// `[DONE]` came.
    pub done: bool,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                assert!(!self.done, "nothing comes after [DONE]: {data}");
                if data == "[DONE]" {
                    self.done = true;
                    continue;
                }
                return Some(serde_json::from_str(&data).expect("JSON in an event"));
            }
            let chunk = self.response.chunk().await.expect("the stream goes on")?;
            self.bytes.extend_from_slice(&chunk);
            while let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.bytes.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("UTF-8");
                let data = event.lines().filter_map(|line| line.strip_prefix("data:"));
                let data: Vec<&str> = data.map(str::trim_start).collect();
                // Without data it is a comment that keeps the connection alive.
                if !data.is_empty() {
                    self.ready.push_back(data.join("\n"));
                }
            }
        }
    }

    /// All that still comes.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
