//! Headless Chromium on a page of ours, which is served what it asks for and says what it saw.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// The longest line or body that the page may send.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// One run: which modules and files `page.html` finds, and what it does with them.
pub struct Page<'a> {
    pub source: PathBuf,
    pub what: &'a str,
    pub modules: &'a [PathBuf],
    pub files: Vec<(&'a str, PathBuf)>,
    /// The unpacked npm package.
    pub wllama: Option<PathBuf>,
}

enum Said {
    Line(String),
    End { passed: bool },
}

/// Ends the browser, whatever happens.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Page<'_> {
    /// Runs it; `true` if nothing failed.
    ///
    /// # Panics
    /// If the page has not ended after `limit`.
    pub fn run(
        &self,
        program: &str,
        profile: &Path,
        limit: Duration,
        mut line: impl FnMut(&str),
    ) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
        let address = listener.local_addr().expect("it is bound");
        let mut query = format!("what={}", self.what);
        for module in self.modules {
            query += &format!("&module={}", stem(module));
        }
        for (name, _) in &self.files {
            query += &format!("&file={name}");
        }
        let _ = std::fs::remove_dir_all(profile);
        let (sender, said) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| self.serve(&listener, sender));
            let browser = Command::new(program)
                .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"])
                .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
                .arg("--disable-component-update")
                .arg(format!("--user-data-dir={}", profile.display()))
                .arg(format!("http://{address}/?{query}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map(Browser)
                .expect("it answered before");
            let started = Instant::now();
            let end = loop {
                let left = limit.saturating_sub(started.elapsed());
                match said.recv_timeout(left) {
                    Ok(Said::Line(text)) => text.lines().for_each(&mut line),
                    Ok(Said::End { passed }) => break Some(passed),
                    Err(_) => break None,
                }
            };
            drop(browser);
            drop(said);
            // The server notices with its next connection.
            drop(TcpStream::connect(address));
            end.unwrap_or_else(|| panic!("the page did not end within {limit:?}"))
        })
    }

    /// Answers one request per connection until nobody listens to what is said.
    fn serve(&self, listener: &TcpListener, said: Sender<Said>) {
        for stream in listener.incoming().flatten() {
            let text = match self.answer(&stream) {
                Ok(Some(said)) => said,
                Ok(None) => Said::Line(String::new()),
                Err(error) => Said::Line(format!("the page's server: {error}")),
            };
            if said.send(text).is_err() {
                return;
            }
        }
    }

    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<Option<Said>> {
        let mut reader = BufReader::new(stream.take(BODY_BYTES_MAX));
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(None); // it connected and said nothing
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? <= 2 {
                break;
            }
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let path = request.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let (status, kind, content) = match self.file(path) {
            Some((kind, file)) => ("200 OK", kind, std::fs::read(file)?),
            None if path == "/say" || path == "/end" => ("200 OK", "text/plain", Vec::new()),
            None => ("404 Not Found", "text/plain", Vec::new()),
        };
        // Isolated, so that its clock is as fine as it can be.
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Cross-Origin-Opener-Policy: same-origin\r\n\
             Cross-Origin-Embedder-Policy: require-corp\r\nConnection: close\r\n\r\n",
            content.len()
        )?;
        stream.write_all(&content)?;
        Ok(match path {
            "/say" => Some(Said::Line(body)),
            "/end" => Some(Said::End { passed: body == "0" }),
            _ => None,
        })
    }

    fn file(&self, path: &str) -> Option<(&'static str, PathBuf)> {
        const BYTES: &str = "application/octet-stream";
        if path == "/" {
            return Some(("text/html", self.source.join("page.html")));
        }
        if path == "/run.mjs" {
            return Some(("text/javascript", self.source.join("run.mjs")));
        }
        if let (Some(folder), Some(name)) = (&self.wllama, path.strip_prefix("/wllama/")) {
            return match name {
                "index.js" => Some(("text/javascript", folder.join("esm/index.js"))),
                "wllama.wasm" => Some(("application/wasm", folder.join("esm/wasm/wllama.wasm"))),
                _ => None,
            };
        }
        if let Some(name) = path.strip_prefix("/module/") {
            let module = self.modules.iter().find(|module| stem(module) == name)?;
            return Some((BYTES, module.clone()));
        }
        let name = path.strip_prefix("/file/")?;
        let (_, file) = self.files.iter().find(|(known, _)| *known == name)?;
        Some((BYTES, file.clone()))
    }
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("modules are named by us")
}
