//! The whole coordinator in this process: a tiny model, HTTP in, the embedded worker behind.

use std::net::SocketAddr;

use coordinator::config::{Config, Embedded, Settings};
use coordinator::serve;
use model::testing::TinyModel;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

async fn read(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Running {
    async fn start(change: impl FnOnce(&mut Settings)) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            home: Some(folder.path().join("home")),
            threads: Some(1),
            memory_mib: Some(256),
            ..Settings::default()
        };
        for (file, seed) in [("one.gguf", 1), ("two.gguf", 2)] {
            let path = folder.path().join(file);
            let model = TinyModel { tokenizer: true, ..TinyModel::llama(seed) };
            std::fs::write(&path, model.to_bytes()).unwrap();
            settings.model.push(path.to_str().unwrap().to_owned());
        }
        change(&mut settings);
        let config: Config = settings.resolve().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve::run(listener, config, stop.clone().cancelled_owned()));
        Running { address, stop, task, _folder: folder }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = reqwest::get(format!("http://{}{path}", self.address)).await.unwrap();
        read(response).await
    }

    async fn complete(&self, body: Value) -> (u16, Value) {
        let url = format!("http://{}/v1/completions", self.address);
        let request = reqwest::Client::new().post(url).body(body.to_string());
        let request = request.header("content-type", "application/json");
        let response = request.send().await.unwrap();
        read(response).await
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        let again = TcpListener::bind(self.address).await;
        assert!(again.is_ok(), "the port is free again: {again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_worker_answers_for_every_model() {
    let running = Running::start(|_| {}).await;
    let (_, models) = running.get("/v1/models").await;
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["one", "two"]);
    let mut texts = Vec::new();
    for model in names {
        let body = json!({
            "model": model, "prompt": "weft", "max_tokens": 5, "temperature": 0,
            "logit_bias": {}, "n": 2
        });
        let (status, answer) = running.complete(body.clone()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
        assert_eq!(answer["choices"][0]["text"], answer["choices"][1]["text"]);
        let (_, again) = running.complete(body).await;
        assert_eq!(again["choices"][0]["text"], answer["choices"][0]["text"]);
        assert!(again["usage"]["completion_tokens"].as_u64().unwrap() > 0);
        texts.push(answer["choices"][0]["text"].clone());
    }
    assert_eq!(texts.len(), 2);
    let (_, fleet) = running.get("/v1/fleet").await;
    assert_eq!(fleet["workers"][0]["kind"], "embedded");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_workers_requests_end_at_their_deadline() {
    let running = Running::start(|settings| settings.embedded = Some(Embedded::Off)).await;
    let (status, ready) = running.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(ready.to_string().contains("one"), "{ready}");
    let body = json!({"model": "one", "prompt": "weft", "max_tokens": 5, "timeout": 1});
    let (status, answer) = running.complete(body).await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("layers"), "{answer}");
    running.end().await;
}
