//! Assignments: from `assign` over fetching and loading to `ready`, and their end.

use litemap::LiteMap;
use protocol::{Assignment, AssignmentId, BlobHash, BlobRef, FromWorker, WorkerKind, clean_text};

use crate::core::WorkerCore;
use crate::event::{Action, Shape, ShardKey};
use crate::limits::{ASSIGNMENTS_MAX, PROGRESS_BYTES_MAX, PROGRESS_SHARE};
use crate::sessions::Sessions;

/// An assignment that is not over.
#[derive(Debug)]
pub(crate) struct Held {
    pub assignment: Assignment,
    pub phase: Phase,
    /// `unassign` came and waits behind earlier steps.
    pub leaving: bool,
    /// Bytes fetched when that was last reported.
    bytes_reported: u64,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Fetching,
    Loading(ShardKey),
    Ready(Ready),
}

/// A loaded shard.
#[derive(Debug)]
pub(crate) struct Ready {
    pub shard: ShardKey,
    pub shape: Shape,
    pub sessions: Sessions,
}

/// A blob that assignments need.
#[derive(Debug)]
pub(crate) struct Blob {
    bytes: u64,
    /// Of which so many are here; all of them only once its hash matched.
    bytes_here: u64,
    users: LiteMap<AssignmentId, ()>,
}

impl Held {
    pub(crate) fn ready(&mut self) -> Option<&mut Ready> {
        match &mut self.phase {
            // What a rank that follows does is decided by its leader.
            Phase::Ready(ready) if !self.assignment.follows() => Some(ready),
            Phase::Fetching | Phase::Loading(_) | Phase::Ready(_) => None,
        }
    }

    fn shard(&self) -> Option<ShardKey> {
        match &self.phase {
            Phase::Fetching => None,
            Phase::Loading(shard) => Some(*shard),
            Phase::Ready(ready) => Some(ready.shard),
        }
    }
}

/// The manifest and the weights, each blob once.
fn blobs_of(assignment: &Assignment) -> impl Iterator<Item = &BlobRef> {
    let manifest = &assignment.manifest;
    std::iter::once(manifest).chain(assignment.blobs.iter().filter(|b| b.hash != manifest.hash))
}

impl WorkerCore {
    pub(crate) fn assign(&mut self, assignment: Assignment) {
        let id = assignment.id;
        match self.assignments.get(&id) {
            Some(held) if held.assignment == assignment => return,
            Some(_) => return self.violation(&format!("assignment {id} was given twice")),
            None => {}
        }
        if let Err(reason) = self.can_take(&assignment) {
            return self.act(Action::Send(FromWorker::Failed { assignment: id, reason }));
        }
        for blob in blobs_of(&assignment) {
            let new = Blob { bytes: blob.bytes, bytes_here: 0, users: LiteMap::new() };
            let known = self.blobs.contains_key(&blob.hash);
            self.blobs.entry(blob.hash.clone()).or_insert(new).users.insert(id, ());
            if !known {
                let shared_out = assignment.tensor.is_some();
                self.act(Action::Fetch { blob: blob.clone(), shared_out });
            }
        }
        let phase = Phase::Fetching;
        let held = Held { assignment, phase, leaving: false, bytes_reported: 0 };
        self.assignments.insert(id, held);
        self.load_if_complete(id);
    }

    /// Whether an assignment fits this worker, or why not.
    fn can_take(&self, assignment: &Assignment) -> Result<(), String> {
        if self.is_draining() {
            return Err("this worker is leaving".into());
        }
        if self.assignments.len() >= ASSIGNMENTS_MAX {
            return Err(format!("this worker holds {ASSIGNMENTS_MAX} assignments already"));
        }
        if !self.config.classes.contains(&assignment.class) {
            let (class, can) = (&assignment.class, self.config.classes.join(", "));
            return Err(format!("this worker does not compute in class {class}, only in {can}"));
        }
        if assignment.tensor.is_some() && self.config.kind != WorkerKind::Native {
            return Err("only native workers take part in tensor groups".into());
        }
        for blob in blobs_of(assignment) {
            if let Some(known) = self.blobs.get(&blob.hash).filter(|b| b.bytes != blob.bytes) {
                let (hash, one, other) = (&blob.hash, known.bytes, blob.bytes);
                return Err(format!("blob {hash} is said to have {one} bytes, and {other}"));
            }
        }
        let staying = self.assignments.values().filter(|h| !h.leaving).map(|h| &h.assignment);
        let mut weights: LiteMap<&BlobHash, u64> = LiteMap::new();
        // A rank keeps a share of its layers; whether that fits is known once it is loaded.
        let whole = staying.chain([assignment]).filter(|a| a.tensor.is_none());
        for blob in whole.flat_map(|a| &a.blobs) {
            weights.insert(&blob.hash, blob.bytes);
        }
        let needed = weights.values().copied().fold(0, u64::saturating_add);
        let lent = self.config.memory_bytes;
        if needed > lent {
            return Err(format!("its weights need {needed} bytes, this worker lends {lent}"));
        }
        Ok(())
    }

    pub(crate) fn blob_progress(&mut self, hash: &BlobHash, bytes: u64) {
        let Some(blob) = self.blobs.get_mut(hash) else { return };
        // The last byte counts when the hash matched.
        blob.bytes_here = blob.bytes_here.max(bytes.min(blob.bytes.saturating_sub(1)));
        let users: Vec<AssignmentId> = blob.users.keys().copied().collect();
        users.into_iter().for_each(|id| self.report_progress(id));
    }

    pub(crate) fn blob_ready(&mut self, hash: &BlobHash) {
        let Some(blob) = self.blobs.get_mut(hash) else { return };
        blob.bytes_here = blob.bytes;
        let users: Vec<AssignmentId> = blob.users.keys().copied().collect();
        for id in users {
            self.report_progress(id);
            self.load_if_complete(id);
        }
    }

    pub(crate) fn blob_failed(&mut self, hash: &BlobHash, reason: &str) {
        let Some(blob) = self.blobs.get(hash) else { return };
        let users: Vec<AssignmentId> = blob.users.keys().copied().collect();
        for id in users {
            self.fail(id, reason);
        }
    }

    /// Tells how far fetching is, if it got noticeably further.
    fn report_progress(&mut self, id: AssignmentId) {
        let Some(held) = self.assignments.get_mut(&id) else { return };
        if !matches!(held.phase, Phase::Fetching) {
            return;
        }
        let (mut bytes_done, mut bytes_total) = (0, 0);
        for blob in blobs_of(&held.assignment).filter_map(|b| self.blobs.get(&b.hash)) {
            bytes_done += blob.bytes_here;
            bytes_total += blob.bytes;
        }
        let step = (bytes_total / PROGRESS_SHARE).clamp(1, PROGRESS_BYTES_MAX);
        if bytes_done >= held.bytes_reported + step || bytes_done == bytes_total {
            held.bytes_reported = bytes_done;
            let assignment = id;
            self.act(Action::Send(FromWorker::Progress { assignment, bytes_done, bytes_total }));
        }
    }

    fn load_if_complete(&mut self, id: AssignmentId) {
        let Some(held) = self.assignments.get_mut(&id) else { return };
        let here = |b: &BlobRef| self.blobs.get(&b.hash).is_some_and(|b| b.bytes_here == b.bytes);
        if matches!(held.phase, Phase::Fetching) && blobs_of(&held.assignment).all(here) {
            self.last_key += 1;
            let shard = ShardKey(self.last_key);
            held.phase = Phase::Loading(shard);
            let assignment = held.assignment.clone();
            self.act(Action::Load { shard, assignment });
        }
    }

    pub(crate) fn loaded(&mut self, shard: ShardKey, shape: Shape) {
        // A shard that nobody waits for was given an `Unload` when its assignment ended.
        let Some((id, held)) = self.loading(shard) else { return };
        held.phase = Phase::Ready(Ready { shard, shape, sessions: Sessions::default() });
        self.act(Action::Send(FromWorker::Ready { assignment: id }));
    }

    pub(crate) fn load_failed(&mut self, shard: ShardKey, reason: &str) {
        let Some((id, held)) = self.loading(shard) else { return };
        held.phase = Phase::Fetching; // nothing to unload
        self.fail(id, reason);
    }

    fn loading(&mut self, shard: ShardKey) -> Option<(AssignmentId, &mut Held)> {
        let is_it = |h: &Held| matches!(h.phase, Phase::Loading(key) if key == shard);
        self.assignments.iter_mut().find(|(_, h)| is_it(h)).map(|(id, h)| (*id, h))
    }

    /// A shard takes no more steps: its assignment is over, if it was not already.
    pub(crate) fn broke(&mut self, shard: ShardKey, reason: &str) {
        let held = self.assignments.iter().find(|(_, held)| held.shard() == Some(shard));
        if let Some(id) = held.map(|(id, _)| *id) {
            self.fail(id, reason);
        }
    }

    /// Ends an assignment that cannot be held.
    pub(crate) fn fail(&mut self, id: AssignmentId, reason: &str) {
        let reason = clean_text(reason);
        self.act(Action::Send(FromWorker::Failed { assignment: id, reason }));
        self.drop_assignment(id);
    }

    /// Ends an assignment, its shard and whatever only it needed.
    pub(crate) fn drop_assignment(&mut self, id: AssignmentId) {
        let Some(held) = self.assignments.remove(&id) else { return };
        if let Some(shard) = held.shard() {
            self.act(Action::Unload { shard });
        }
        for blob in blobs_of(&held.assignment) {
            let Some(known) = self.blobs.get_mut(&blob.hash) else { continue };
            known.users.remove(&id);
            if known.users.is_empty() {
                self.blobs.remove(&blob.hash);
                self.act(Action::Forget(blob.hash.clone()));
            }
        }
    }
}
