//! Headless Chromium through chromedriver: the few commands of the WebDriver protocol (W3C) that
//! a person's hands and eyes need.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};

use crate::harness::{Process, Scratch, WAIT_MAX, until};

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Longest time for the browser to end, when a test does.
const QUIT_MAX: Duration = Duration::from_secs(20);

/// No screen, WebGPU on a software adapter, and nothing that the browser does on its own.
const FLAGS: [&str; 14] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--force-prefers-reduced-motion",
    "--host-resolver-rules=MAP volunteer.test 127.0.0.1",
    "--window-size=1100,1400",
];

/// A name of this machine that the browser takes for another one.
pub const ELSEWHERE: &str = "volunteer.test";

/// A browser that runs, with a fresh profile.
pub struct Chrome {
    driver: Process,
    address: String,
    session: String,
    http: Client,
    profile: Scratch,
}

/// One tab of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window(String);

impl Chrome {
    /// Starts one for this test.
    pub async fn start(test: &str) -> Chrome {
        Chrome::start_with(test, &[]).await
    }

    /// The same with further flags.
    pub async fn start_with(test: &str, more: &[&str]) -> Chrome {
        let profile = Scratch::new(&format!("{test}-profile"));
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("HOME", profile.path("."));
        let driver = Process::start("chromedriver", command);
        let line = driver.line_with("started successfully on port").await;
        let port = line.trim_end_matches('.').rsplit(' ').next().expect("a port").to_owned();
        let http = Client::builder().no_proxy().timeout(2 * WAIT_MAX).build().expect("a client");
        let mut flags: Vec<String> =
            FLAGS.iter().chain(more).map(|flag| (*flag).to_owned()).collect();
        flags.push(format!("--user-data-dir={}", profile.path("profile").display()));
        let mut options = json!({"args": flags});
        if let Some(binary) = binary() {
            options["binary"] = binary.display().to_string().into();
        }
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let address = format!("127.0.0.1:{port}");
        let mut chrome = Chrome { driver, address, session: String::new(), http, profile };
        let answer = chrome.command("POST", "/session", &wanted).await;
        chrome.session = answer["sessionId"].as_str().expect("a session").to_owned();
        chrome
    }

    /// Opens a page in the present tab and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.post("/url", &json!({"url": url})).await;
    }

    /// Opens a new tab and goes to it.
    pub async fn new_window(&self) -> Window {
        let answer = self.post("/window/new", &json!({"type": "tab"})).await;
        let window = Window(answer["handle"].as_str().expect("a handle").to_owned());
        self.switch(&window).await;
        window
    }

    /// The present tab.
    pub async fn window(&self) -> Window {
        Window(self.get("/window").await.as_str().expect("a handle").to_owned())
    }

    /// Goes to a tab; the others are then hidden.
    pub async fn switch(&self, window: &Window) {
        self.post("/window", &json!({"handle": window.0})).await;
    }

    /// Closes the present tab, as its owner would, and goes to another one.
    pub async fn close_and_switch(&self, to: &Window) {
        self.command("DELETE", &format!("/session/{}/window", self.session), &Value::Null).await;
        self.switch(to).await;
    }

    /// Clicks in the middle of an element.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/click"), &json!({})).await;
    }

    /// Types into whatever has the focus. See the WebDriver specification for special keys.
    pub async fn press(&self, keys: &str) {
        let mut actions = Vec::new();
        for key in keys.chars() {
            actions.push(json!({"type": "keyDown", "value": key.to_string()}));
            actions.push(json!({"type": "keyUp", "value": key.to_string()}));
        }
        let body = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.post("/actions", &body).await;
    }

    /// The value of a script's `return`; of a promise, what it comes to.
    pub async fn script(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []})).await
    }

    /// What a person reads in an element.
    pub async fn text(&self, selector: &str) -> String {
        let element = self.element(selector).await;
        let text = self.get(&format!("/element/{element}/text")).await;
        text.as_str().expect("text").to_owned()
    }

    /// The number of elements that fit.
    pub async fn count(&self, selector: &str) -> usize {
        let found = json!({"using": "css selector", "value": selector});
        self.post("/elements", &found).await.as_array().expect("elements").len()
    }

    /// Chooses the option with this text.
    pub async fn choose(&self, selector: &str, option: &str) {
        let script = format!(
            "const list = document.querySelector('{selector}');
             const found = [...list.options].find((o) => o.text === '{option}');
             if (!found) return false;
             list.value = found.value;
             list.dispatchEvent(new Event('change', {{bubbles: true}}));
             return true;"
        );
        assert_eq!(self.script(&script).await, true, "{selector} offers {option}");
    }

    /// How large the page is drawn, and how the system's choices are.
    pub async fn emulate(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.devtools("Emulation.setDeviceMetricsOverride", &size).await;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features).await;
    }

    /// A command of the DevTools protocol.
    pub async fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters})).await
    }

    /// Has a script run in every page of the present tab from now on, before the page's own.
    pub async fn before_each_page(&self, script: &str) {
        let source = json!({"source": script});
        self.devtools("Page.addScriptToEvaluateOnNewDocument", &source).await;
    }

    /// Saves what can be seen of the whole page, under the target folder, for people to look at.
    pub async fn screenshot(&self, name: &str) {
        let whole = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.devtools("Page.captureScreenshot", &whole).await;
        let bytes = from_base64(shot["data"].as_str().expect("a picture"));
        let this = std::env::current_exe().expect("this program's path");
        let folder = this.ancestors().nth(3).expect("a target folder").join("screenshots");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(format!("{name}.png")), bytes).expect("a file");
    }

    /// What the page and the browser wrote to the console since the last time, at this level.
    pub async fn console(&self, level: &str) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"})).await;
        let entries = log.as_array().expect("entries").iter();
        let entries = entries.filter(|entry| entry["level"] == level);
        entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Waits until a script returns something other than `null` and `false`.
    pub async fn wait(&self, what: &str, script: &str) -> Value {
        until(what, || async {
            match self.script(script).await {
                Value::Null | Value::Bool(false) => {
                    let text = "return document.querySelector('main')?.innerText";
                    let page = self.script(text).await;
                    Err(format!("the page says {}", page.as_str().unwrap_or_default()))
                }
                found => Ok(found),
            }
        })
        .await
    }

    async fn element(&self, selector: &str) -> String {
        until(&format!("{selector} is there"), || async {
            let found = json!({"using": "css selector", "value": selector});
            let all = self.post("/elements", &found).await;
            all[0][ELEMENT].as_str().map(str::to_owned).ok_or(all.to_string())
        })
        .await
    }

    async fn get(&self, path: &str) -> Value {
        self.command("GET", &format!("/session/{}{path}", self.session), &Value::Null).await
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        self.command("POST", &format!("/session/{}{path}", self.session), body).await
    }

    async fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.address);
        let request = self.http.request(method.parse().expect("a method"), url);
        let request = match body {
            Value::Null => request,
            body => request.header("content-type", "application/json").body(body.to_string()),
        };
        let answer = request.send().await.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert!(status.is_success(), "{method} {path} {body}: {}", answer["value"]);
        answer["value"].clone()
    }
}

impl Drop for Chrome {
    /// Ends the browser, which would outlive its driver.
    fn drop(&mut self) {
        let quit = || -> std::io::Result<()> {
            let mut socket = TcpStream::connect(&self.address)?;
            socket.set_read_timeout(Some(QUIT_MAX))?;
            let (session, address) = (&self.session, &self.address);
            write!(
                socket,
                "DELETE /session/{session} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
            )?;
            // It answers when the browser has ended, and may keep the connection.
            socket.read_exact(&mut [0])
        };
        if let Err(error) = quit() {
            eprintln!("the browser may still run: {error}");
        }
        let _ = (&self.driver, &self.profile);
    }
}

/// The browser, where chromedriver would not find it by itself.
fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let named = |folder: PathBuf| {
        ["chromium", "google-chrome"].map(|name| folder.join(name)).into_iter().find(|p| is_file(p))
    };
    std::env::split_paths(&path).find_map(named)
}

fn is_file(path: &Path) -> bool {
    path.is_file()
}

fn from_base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is not base64"),
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').map(value).collect();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for four in digits.chunks(4) {
        let bits = four.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit));
        let bits = bits << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}
