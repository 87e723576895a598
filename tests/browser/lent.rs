//! A tab and the coordinator that it is lent to.

use model::manifest::Dims;
use model::testing::TinyModel;
use serde_json::{Value, json};

use crate::chrome::Chrome;
use crate::harness::client::Answer;
use crate::harness::{Coordinator, Scratch};

/// Layers of [`tiny_model`].
pub const LAYERS: u64 = 6;
/// The model's name, as the coordinator gives it.
pub const MODEL: &str = "tiny";

/// Flags of a coordinator whose CPUs compute as exactly as its GPUs: the canonical class rounds
/// activations to 8 bits before each product, and that would hide what a GPU does.
pub const EXACT: [&str; 4] = ["--embedded", "ends", "--classes", "exact-f32,wgsl-f32"];

/// A random model, small enough for a software GPU and large enough that a generation takes its
/// time.
pub fn tiny_model() -> TinyModel {
    let dims = Dims {
        layers: LAYERS as u32,
        d_model: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        d_ff: 256,
        vocab: 288,
        context: 2048,
    };
    TinyModel { dims, ..TinyModel::llama(11) }
}

/// A coordinator that holds no layers itself, and a browser.
pub struct Lent {
    pub coordinator: Coordinator,
    pub chrome: Chrome,
    files: Scratch,
}

impl Lent {
    /// With the tiny model.
    pub async fn start(test: &str) -> Lent {
        Lent::start_model(test, &tiny_model(), &["--embedded", "ends"]).await
    }

    /// With the tiny model in f32 on all processors; see [`EXACT`].
    pub async fn start_exact(test: &str) -> Lent {
        Lent::start_model(test, &tiny_model(), &EXACT).await
    }

    /// With a random model, which is called the same, and these flags of the coordinator.
    pub async fn start_model(test: &str, model: &TinyModel, flags: &[&str]) -> Lent {
        let files = Scratch::new(&format!("{test}-model"));
        let path = files.path(&format!("{MODEL}.gguf"));
        std::fs::write(&path, model.to_bytes()).expect("a file");
        let coordinator = Coordinator::start_with(test, &path, flags).await;
        let chrome = Chrome::start(test).await;
        Lent { coordinator, chrome, files }
    }

    /// With the default model.
    pub async fn start_real(test: &str) -> Lent {
        Lent::start_real_with(test, &["--embedded", "ends"]).await
    }

    /// With the default model and these flags of the coordinator.
    pub async fn start_real_with(test: &str, flags: &[&str]) -> Lent {
        let files = Scratch::new(&format!("{test}-model"));
        let coordinator = Coordinator::start_with(test, &tests::required_model(), flags).await;
        let chrome = Chrome::start(test).await;
        Lent { coordinator, chrome, files }
    }

    /// With the tiny model, these flags of the coordinator and those of the browser.
    pub async fn start_with(test: &str, flags: &[&str], browser: &[&str]) -> Lent {
        let files = Scratch::new(&format!("{test}-model"));
        let path = files.path(&format!("{MODEL}.gguf"));
        std::fs::write(&path, tiny_model().to_bytes()).expect("a file");
        let coordinator = Coordinator::start_with(test, &path, flags).await;
        let chrome = Chrome::start_with(test, browser).await;
        Lent { coordinator, chrome, files }
    }

    /// Another coordinator with the same model, instead of the first, which is killed.
    pub async fn restart_coordinator(&mut self, test: &str) {
        self.coordinator.process.kill_9();
        let path = self.files.path(&format!("{MODEL}.gguf"));
        self.coordinator = Coordinator::start_with(test, &path, &["--embedded", "ends"]).await;
    }

    /// Keeps these choices of the page's owner, then opens it anew.
    pub async fn open_with(&self, url: &str, settings: &Value) {
        self.open_at(url).await;
        let keep = format!("localStorage.setItem('weft-settings-1', JSON.stringify({settings}))");
        self.chrome.script(&keep).await;
        self.open_at(url).await;
    }

    /// Opens the page and waits until it can be clicked.
    pub async fn open(&self, query: &str) {
        self.open_at(&format!("http://{}/{query}", self.coordinator.address)).await;
    }

    /// The same at another address of this coordinator.
    pub async fn open_at(&self, url: &str) {
        self.chrome.open(url).await;
        let ready = "return document.querySelector('#start:enabled') !== null";
        self.chrome.wait("the button can be pressed", ready).await;
    }

    /// Clicks on Start and waits until the tab serves.
    pub async fn serve(&self) {
        self.chrome.click("#start").await;
        self.phase("serving").await;
    }

    /// Waits for the page to say so.
    pub async fn phase(&self, phase: &str) {
        let script =
            format!("return document.querySelector('#status').dataset.phase === '{phase}'");
        self.chrome.wait(&format!("the page says {phase}"), &script).await;
    }

    /// The phase that the page shows.
    pub async fn shown_phase(&self) -> String {
        let phase =
            self.chrome.script("return document.querySelector('#status').dataset.phase").await;
        phase.as_str().expect("a phase").to_owned()
    }

    /// A figure of the page as a number, without separators and units.
    pub async fn figure(&self, id: &str) -> f64 {
        let text = self.chrome.text(&format!("#figure-{id}")).await;
        let number: String = text.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
        number.parse().unwrap_or_else(|_| panic!("'{text}' is no number"))
    }

    /// A figure of the page that is an amount of data, bytes.
    pub async fn figure_bytes(&self, id: &str) -> f64 {
        let text = self.chrome.text(&format!("#figure-{id}")).await;
        let (number, unit) = text.split_once(' ').expect("a number and a unit");
        let number: f64 = number.parse().unwrap_or_else(|_| panic!("'{text}' is no number"));
        let units = ["B", "kB", "MB", "GB"];
        let power = units.iter().position(|name| *name == unit).expect("a unit");
        number * 1000_f64.powi(power as i32)
    }

    /// Waits for the page's words about its state to contain these.
    pub async fn says(&self, words: &str) {
        let script =
            format!("return document.querySelector('#status').textContent.includes({words:?})");
        self.chrome.wait(&format!("the page says '{words}'"), &script).await;
    }

    /// The fleet's browser workers.
    pub async fn tabs(&self) -> Vec<Value> {
        let fleet = self.coordinator.fleet().await;
        fleet.workers().iter().filter(|worker| worker["kind"] == "browser").cloned().collect()
    }

    /// Waits until the fleet has so many tabs.
    pub async fn tabs_are(&self, count: usize) {
        self.coordinator
            .fleet_with(&format!("{count} tabs are here"), |fleet| {
                let tabs = fleet.workers().iter().filter(|worker| worker["kind"] == "browser");
                (tabs.count() == count).then_some(())
            })
            .await;
    }

    /// Weight bytes that the coordinator has sent since its start.
    pub async fn blob_bytes_sent(&self) -> u64 {
        self.coordinator.fleet().await.0["blob_bytes_sent"].as_u64().expect("a count")
    }

    /// A greedy generation.
    pub async fn generate(&self, tokens: u32) -> Answer {
        self.coordinator.api.post("/v1/completions", &request(tokens)).await
    }
}

/// A greedy generation of exactly so many tokens.
pub fn request(tokens: u32) -> Value {
    json!({
        "model": MODEL,
        "prompt": "A loom holds the warp",
        "temperature": 0,
        "max_tokens": tokens,
        "logprobs": 0,
        // The special tokens, one of which would end it.
        "logit_bias": {"0": -100, "1": -100, "2": -100},
    })
}
