//! An end to tests in which much happens at once, and a word about what was not over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;

use super::Coordinator;

/// How long the fleet may take to say what it looks like when something hangs.
const LAST_LOOK_MAX: Duration = Duration::from_secs(5);

/// What is under way, by its number.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<usize, String>>>);

impl Board {
    /// Something has begun, or has come further.
    pub fn note(&self, number: usize, what: String) {
        self.0.lock().expect("nobody panics with it").insert(number, what);
    }

    /// It is over.
    pub fn done(&self, number: usize) {
        self.0.lock().expect("nobody panics with it").remove(&number);
    }

    fn text(&self) -> String {
        let open = self.0.lock().expect("nobody panics with it");
        let lines: Vec<String> = open.iter().map(|(n, what)| format!("  {n}: {what}")).collect();
        lines.join("\n")
    }
}

/// Does it within a time.
///
/// # Panics
/// It takes longer; with what was under way and what the fleet looks like.
pub async fn within<T>(
    limit: Duration,
    coordinator: &Coordinator,
    board: &Board,
    work: impl Future<Output = T>,
) -> T {
    if let Ok(done) = timeout(limit, work).await {
        return done;
    }
    let look = async { coordinator.fleet().await.0.to_string() };
    let fleet = timeout(LAST_LOOK_MAX, look).await.unwrap_or("it does not answer".to_owned());
    panic!(
        "not over after {} s; under way:\n{}\nthe fleet: {fleet}",
        limit.as_secs(),
        board.text()
    );
}
