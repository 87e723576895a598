//! The readable event log: what the scheduler noted lately.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use scheduler::Note;

/// Entries kept; the oldest go first.
pub const NOTES_MAX: usize = 256;

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When.
    pub at: SystemTime,
    /// What, for people; never a prompt or an output.
    pub text: String,
}

/// The last [`NOTES_MAX`] entries, shared.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<VecDeque<Entry>>>);

impl Notes {
    /// Logs a note and keeps it.
    pub(super) fn push(&self, note: &Note) {
        let text = note.to_string();
        match note {
            Note::Lost { .. }
            | Note::Waiting { .. }
            | Note::GroupFailed { .. }
            | Note::Disagreed { .. }
            | Note::Banned { .. } => tracing::warn!("{text}"),
            Note::Ignored { .. } => tracing::debug!("{text}"),
            Note::Joined { .. }
            | Note::Assigned { .. }
            | Note::Ready { .. }
            | Note::Draining { .. }
            | Note::Recovered { .. }
            | Note::Preempted { .. } => tracing::info!("{text}"),
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == NOTES_MAX {
            entries.pop_front();
        }
        entries.push_back(Entry { at: SystemTime::now(), text });
    }

    /// All that are kept, the oldest first.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::WorkerId;

    #[test]
    fn only_the_latest_entries_are_kept() {
        let notes = Notes::default();
        for id in 0..NOTES_MAX as u64 + 3 {
            notes.push(&Note::Joined { worker: WorkerId(id) });
        }
        let entries = notes.entries();
        assert_eq!(entries.len(), NOTES_MAX);
        assert_eq!(entries[0].text, "worker 3 joined");
    }
}
