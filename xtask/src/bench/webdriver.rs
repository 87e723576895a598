//! The little of the WebDriver protocol (W3C) that starts a tab: a browser, a page, a script.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::measure::agent;

/// No screen, WebGPU on the software adapter, nothing that the browser does on its own.
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A headless Chromium with a fresh profile; it ends with this.
pub struct Browser {
    driver: Child,
    /// `http://127.0.0.1:PORT/session/ID`.
    session: String,
}

impl Browser {
    /// Starts one whose profile lies in `folder`; `None` where there is no chromedriver.
    pub fn start(folder: &Path) -> Result<Option<Browser>> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stderr(Stdio::null());
        let Ok(mut driver) = command.stdout(Stdio::piped()).spawn() else { return Ok(None) };
        let output = driver.stdout.take().context("its output is piped")?;
        let mut browser = Browser { driver, session: String::new() };
        let mut lines = BufReader::new(output).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("successfully on port ")?.1.to_owned()))
            .context("chromedriver named no port")?;
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let mut flags: Vec<String> = FLAGS.map(str::to_owned).into();
        flags.push(format!("--user-data-dir={}", folder.join("profile").display()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": flags},
        }}});
        let sessions = format!("http://127.0.0.1:{}/session", port.trim_end_matches('.'));
        let started = post(&sessions, &wanted)?;
        let id = started["sessionId"].as_str().context("chromedriver gave no session")?;
        browser.session = format!("{sessions}/{id}");
        Ok(Some(browser))
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        post(&format!("{}/url", self.session), &json!({"url": url})).map(drop)
    }

    /// What a script returns.
    pub fn script(&self, script: &str) -> Result<Value> {
        post(&format!("{}/execute/sync", self.session), &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns `true`.
    pub fn wait(&self, script: &str, limit: Duration) -> Result<()> {
        let started = Instant::now();
        while self.script(script)? != true {
            if started.elapsed() > limit {
                let page = self.script("return document.querySelector('main')?.innerText")?;
                bail!("never came true: {script}; the page says {page}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for Browser {
    /// Ends the browser, which would outlive its driver.
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = agent().delete(&self.session).call();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn post(url: &str, body: &Value) -> Result<Value> {
    let request = agent().post(url).header("content-type", "application/json");
    let mut answer = request.send(body.to_string())?;
    let text = answer.body_mut().read_to_string()?;
    let mut value: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer.status() == 200, "chromedriver: {}", value["value"]["message"]);
    Ok(value["value"].take())
}
