//! A network that loses, repeats, delays, reorders and spoils, and that may be cut.

use protocol::{ToWorker, WorkerId};

use crate::faults::Fault;
use crate::fleet::CLASSES;
use crate::strikes::PARTITIONS;
use crate::world::{Answer, Happening, Parcel, World};

impl World {
    pub(crate) fn send(&mut self, to: WorkerId, parcel: Parcel) {
        self.trace("to", to, &parcel);
        if let Parcel::Control(ToWorker::Assign(assignment)) = &parcel {
            assert!(!assignment.blobs.is_empty());
            if let Some(machine) = self.machines.get(&to) {
                let has = |class: &&&str| machine.build.classes.iter().any(|c| c == **class);
                let first = CLASSES.iter().find(has);
                assert_eq!(Some(&&*assignment.class), first, "worker {to}");
            }
        }
        for at in self.arrivals(to, true) {
            self.at(at, Happening::ToWorker(to, parcel.clone()));
        }
    }

    pub(crate) fn reply(&mut self, from: WorkerId, mut answer: Answer) {
        if let Answer::Frame(frame) = &mut answer
            && self.faulty()
            && !frame.payload.is_empty()
        {
            if self.rng.chance(4) {
                self.tally.count(Fault::Nan);
                let mut bytes = frame.payload.to_vec();
                bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
                frame.payload = bytes.into();
            } else if self.rng.chance(4) {
                self.tally.count(Fault::Short);
                frame.payload = frame.payload.slice(4..);
            }
        }
        for at in self.arrivals(from, false) {
            self.at(at, Happening::ToCoordinator(from, answer.clone()));
        }
    }

    /// When a message arrives: once, or as the faults will have it.
    fn arrivals(&mut self, worker: WorkerId, down: bool) -> Vec<u64> {
        let latency = self.rng.between(100, 3_000);
        let (faulty, now) = (self.faulty(), self.now);
        let last = self.last_arrival.entry((worker, down)).or_default();
        let at = (now + latency).max(*last + 1);
        if !faulty {
            *last = at;
            return vec![at];
        }
        let cut = now < self.cut.1 && worker.0 % PARTITIONS == self.cut.0;
        if cut || self.rng.chance(8) {
            self.tally.count(Fault::Lost);
            return Vec::new();
        }
        if self.rng.chance(60) {
            self.tally.count(Fault::Reordered);
            return vec![at + self.rng.between(1_000, 50_000)];
        }
        if self.rng.chance(4) {
            self.tally.count(Fault::Late);
            return vec![at + self.rng.between(9_000_000, 20_000_000)];
        }
        *last = at;
        if self.rng.chance(60) {
            self.tally.count(Fault::Duplicated);
            return vec![at, at + self.rng.between(1, 30_000)];
        }
        vec![at]
    }
}
