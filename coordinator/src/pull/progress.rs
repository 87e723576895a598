//! How far a download is: a bar on a terminal, a line every tenth elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

pub(super) struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    total: Option<u64>,
    done: u64,
    /// Tenths told so far.
    told: u64,
}

impl Progress {
    /// Of `what`, `total` bytes if known, of which `done` are here already.
    pub(super) fn new(what: &str, total: Option<u64>, done: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.unwrap_or(0));
            let style = ProgressStyle::with_template(
                "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            );
            bar.set_style(style.expect("the template is sound").progress_chars("=> "));
            bar.set_message(what.to_owned());
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        if bar.is_none() {
            let total = total.map_or(String::new(), |total| format!(" ({} MB)", total / 1_000_000));
            let from = if done > 0 { format!(", from byte {done} on") } else { String::new() };
            eprintln!("fetching {what}{total}{from}");
        }
        let told = total.map_or(0, |total| done * 10 / total.max(1));
        Progress { bar, what: what.to_owned(), total, done, told }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        match (&self.bar, self.total) {
            (Some(bar), _) => bar.set_position(self.done),
            (None, Some(total)) => {
                let tenth = self.done * 10 / total.max(1);
                if tenth > self.told {
                    self.told = tenth;
                    eprintln!("{}: {}0 %", self.what, tenth);
                }
            }
            (None, None) => {}
        }
    }

    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish();
        }
    }
}
