//! What happens to machines: they vanish, freeze, leave, slow down, are cut off, are hidden.

use protocol::{WorkerId, WorkerKind};
use worker_core::Event as CoreEvent;

use crate::faults::Fault;
use crate::machine::Machine;
use crate::world::{Happening, World};

/// How many times slower a straggler is.
const STRAGGLES: u64 = 10;
/// A partition cuts off one in so many workers.
pub const PARTITIONS: u64 = 7;

impl World {
    /// The scheduler closed a connection.
    pub(crate) fn dismissed(&mut self, id: WorkerId, retry: bool) {
        let Some(old) = self.machines.remove(&id) else { return };
        let back = self.rng.between(500_000, 5_000_000);
        let mut machine = old.restarted();
        let banned = self.liars.get_mut(&machine.build.key).filter(|liar| liar.banned);
        match banned {
            Some(liar) if !liar.tried_again => {
                // It does not take no for an answer, once.
                assert!(!retry);
                liar.tried_again = true;
            }
            Some(_) => {
                assert!(!retry);
                self.found.refused += 1;
                machine.build.key = self.new_key();
                (machine.build.lie, machine.lied) = (None, None);
            }
            // Its owner repairs it and it comes as another.
            None if !retry => {
                machine.build.key = self.new_key();
                machine.lied = None;
            }
            None => {}
        }
        self.at(self.now + back, Happening::Connect(Box::new(machine)));
    }

    /// A machine's connection breaks; the coordinator notices a little later.
    pub(crate) fn lose(&mut self, id: WorkerId, reason: String, comes_back: bool) {
        let Some(old) = self.machines.remove(&id) else { return };
        let noticed = self.now + self.rng.between(1_000, 2_000_000);
        self.at(noticed, Happening::Gone(id, reason));
        if comes_back {
            let ghost = self.rng.chance(2_000);
            let back = match ghost {
                true => self.now + 500,
                false => self.now + self.rng.between(1_000_000, 12_000_000),
            };
            if ghost {
                self.tally.count(Fault::Ghost);
            }
            self.at(back, Happening::Connect(Box::new(old.restarted())));
        }
    }

    /// Now and then something happens to a machine.
    pub(crate) fn strike(&mut self) {
        if !self.faulty() {
            return;
        }
        let (least, most) = self.setting.strike_us;
        let again = self.now + self.rng.between(least, most);
        self.at(again, Happening::Strike);
        let ids: Vec<WorkerId> = self.machines.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.rng.below(ids.len() as u64) as usize];
        match self.rng.below(21) {
            18..=19 => {
                self.tally.count(Fault::Straggles);
                let until = self.now + self.rng.between(1_000_000, 20_000_000);
                let machine = self.machines.get_mut(&id).expect("it is there");
                machine.straggles = (STRAGGLES, until);
            }
            20 => {
                self.tally.count(Fault::Partitioned);
                let until = self.now + self.rng.between(1_000_000, 12_000_000);
                self.cut = (id.0 % PARTITIONS, until);
            }
            14..=17 => self.strike_tab(id),
            10..=11 => {
                self.tally.count(Fault::LoadFailed);
                self.machines.get_mut(&id).expect("it is there").load_fails = true;
            }
            12..=13 => {
                let machine = self.machines.get_mut(&id).expect("it is there");
                if !machine.build.trusted {
                    machine.run_overflows = true;
                    self.tally.count(Fault::Overflow);
                }
            }
            0..=5 => {
                self.tally.count(Fault::Killed);
                self.lose(id, "killed".into(), true);
            }
            6..=7 => {
                self.tally.count(Fault::Frozen);
                let until = self.now + self.rng.between(1_000_000, 30_000_000);
                self.machines.get_mut(&id).expect("it is there").frozen_until = until;
            }
            _ => {
                self.tally.count(Fault::Drained);
                self.core(id, CoreEvent::Drain { reason: "its owner wants it back".into() });
            }
        }
    }

    /// A tab is hidden or shown again, or closed for good while another one is opened.
    fn strike_tab(&mut self, id: WorkerId) {
        let machine = self.machines.get_mut(&id).expect("it is there");
        if machine.build.kind != WorkerKind::Browser {
            return;
        }
        if self.rng.chance(3_000) {
            self.tally.count(Fault::Closed);
            self.lose(id, "its tab was closed".into(), false);
            let (build, later) = (self.new_build(false), self.rng.between(100_000, 5_000_000));
            let other = Machine::new(build);
            self.at(self.now + later, Happening::Connect(Box::new(other)));
            return;
        }
        self.tally.count(Fault::Hidden);
        machine.hidden = !machine.hidden;
        let hidden = machine.hidden;
        self.core(id, CoreEvent::Visibility { hidden });
    }
}
