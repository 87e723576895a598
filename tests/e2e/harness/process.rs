//! One of our programs, running: its output is kept, and it does not outlive its test.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use super::until;

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub fn start(name: &str, mut command: Command) -> Process {
        // Settings of whoever runs the tests are not theirs.
        for (variable, _) in std::env::vars_os() {
            let ours = variable.to_string_lossy().starts_with("WEFT_");
            if ours {
                command.env_remove(variable);
            }
        }
        command.env("WEFT_LOG", "info").env("NO_COLOR", "1").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        keep(child.stdout.take().expect("it is piped"), log.clone());
        keep(child.stderr.take().expect("it is piped"), log.clone());
        Process { name: name.to_owned(), child, log }
    }

    /// What it has written so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no reader panics").clone()
    }

    /// Waits for a line with this text.
    pub async fn line_with(&self, text: &str) -> String {
        until(&format!("{} says \"{text}\"", self.name), || async {
            let log = self.log();
            let found = log.iter().find(|line| line.contains(text)).cloned();
            found.ok_or_else(|| log.join("\n"))
        })
        .await
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let child = Mutex::new(&mut self.child);
        until(&format!("{name} ends"), || async {
            let status = child.lock().expect("one task").try_wait().expect("it is our child");
            status.ok_or_else(|| "it runs".to_owned())
        })
        .await
    }

    /// `kill -9`, and waits for its end.
    pub fn kill_9(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Sends it a signal: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        let status = kill.arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill can be run").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, log.join("\n"));
            return;
        }
        let broken = |line: &&String| line.contains("panicked at") || line.contains(" ERROR ");
        if let Some(line) = log.iter().find(broken) {
            panic!("{} said: {line}", self.name);
        }
    }
}

/// Keeps every line, in a thread that ends with the stream.
fn keep(stream: impl Read + Send + 'static, log: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            log.lock().expect("no reader panics").push(line);
        }
    });
}
