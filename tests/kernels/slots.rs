//! Helpers on threads of their own, through the slots that they share with their chief.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::Class;
use engine::crew::slot::{self, ChiefSlot, Memory};
use engine::crew::{Crew, OrderError};

use crate::crew::share;
use crate::tiny::{Tiny, expected, feed, models, same_bits};

/// Words of a slot.
const WORDS: usize = 8;
/// What stands for an order's number once the chief ended its helper.
const ENDED: i32 = -1;
/// Whoever waits longer for another thread fails.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Nobody is woken after so long: sleeps may end early.
const SLEEP_MAX: Duration = Duration::from_millis(50);

struct Bytes {
    words: [AtomicI32; WORDS],
    bytes: Vec<AtomicU8>,
    lock: Mutex<()>,
    changed: Condvar,
    start: Instant,
}

/// One side's view.
#[derive(Clone)]
struct View {
    bytes: Arc<Bytes>,
    /// Writes an answer only when the chief has gone on to another order.
    late: bool,
}

impl View {
    fn new(bytes: usize) -> View {
        let bytes = Bytes {
            words: Default::default(),
            bytes: (0..bytes).map(|_| AtomicU8::new(0xa5)).collect(),
            lock: Mutex::default(),
            changed: Condvar::new(),
            start: Instant::now(),
        };
        View { bytes: Arc::new(bytes), late: false }
    }

    fn order(&self) -> i32 {
        self.load(0) >> 8
    }
}

impl Memory for View {
    fn load(&self, word: usize) -> i32 {
        self.bytes.words[word].load(Ordering::SeqCst)
    }

    fn store(&self, word: usize, value: i32) {
        self.bytes.words[word].store(value, Ordering::SeqCst);
    }

    fn replace(&self, word: usize, old: i32, new: i32) -> bool {
        let word = &self.bytes.words[word];
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn sleep(&self, word: usize, old: i32) {
        let guard = self.bytes.lock.lock().expect("nobody panicked");
        if self.load(word) == old {
            drop(self.bytes.changed.wait_timeout(guard, SLEEP_MAX).expect("nobody panicked"));
        }
    }

    fn wake(&self, _: usize) {
        drop(self.bytes.lock.lock().expect("nobody panicked"));
        self.bytes.changed.notify_all();
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        for (to, from) in bytes.iter_mut().zip(&self.bytes.bytes[at..]) {
            *to = from.load(Ordering::Relaxed);
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let order = self.order();
        let limit = Instant::now() + ANSWER_MAX;
        while self.late && order != ENDED && self.order() == order {
            assert!(Instant::now() < limit, "no further order, and no end");
            std::thread::yield_now();
        }
        for (from, to) in bytes.iter().zip(&self.bytes.bytes[at..]) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    fn bytes(&self) -> usize {
        self.bytes.bytes.len()
    }

    fn now_ms(&self) -> f64 {
        self.bytes.start.elapsed().as_secs_f64() * 1000.0
    }
}

/// What is wrong with a helper.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    Nothing,
    /// Its thread never ran.
    Absent,
    /// It answers too late, always.
    Late,
    /// It ends after so many orders.
    Ends(u32),
}

struct Threads {
    members: Vec<(ChiefSlot<View>, Flaw)>,
    threads: Vec<JoinHandle<Result<(), OrderError>>>,
    orders: u32,
    /// Some helper answered something.
    helped: Arc<AtomicBool>,
}

impl Threads {
    fn start(tiny: &Tiny, flaws: &[Flaw], helped: &Arc<AtomicBool>) -> Box<Threads> {
        let (mut members, mut threads) = (Vec::new(), Vec::new());
        for (helper, &flaw) in flaws.iter().enumerate() {
            let mut share = share(tiny, helper, flaws.len());
            let order_max = share.order_bytes_max();
            let view = View::new(slot::bytes(order_max, share.answer_bytes_max()));
            slot::prepare(&view, order_max);
            members.push((ChiefSlot::new(view.clone()), flaw));
            if flaw != Flaw::Absent {
                let view = View { late: flaw == Flaw::Late, ..view };
                threads.push(std::thread::spawn(move || slot::serve(&view, &mut share)));
            }
        }
        Box::new(Threads { members, threads, orders: 0, helped: helped.clone() })
    }
}

impl Crew for Threads {
    fn helpers(&self) -> usize {
        self.members.len()
    }

    fn begin(&mut self, order: &[u8], pieces: &[usize]) {
        self.orders += 1;
        for ((slot, flaw), &pieces) in self.members.iter_mut().zip(pieces) {
            assert!(slot.order(order, pieces), "the slot has room");
            // However busy the machine is, it has taken part once.
            let limit = Instant::now() + ANSWER_MAX;
            while self.orders == 1 && *flaw == Flaw::Nothing && slot.answered(1) == 0 {
                assert!(Instant::now() < limit, "a helper does not answer");
                assert!(!self.threads.iter().any(JoinHandle::is_finished), "a helper ended");
            }
            if matches!(flaw, Flaw::Ends(after) if *after < self.orders) {
                slot.end();
            }
        }
    }

    fn take(&mut self, helper: usize) -> bool {
        self.members[helper].0.take()
    }

    fn answered(&mut self, helper: usize, begun: usize) -> usize {
        let answered = self.members[helper].0.answered(begun);
        self.helped.fetch_or(answered > 0, Ordering::Relaxed);
        answered
    }

    fn copy(&mut self, helper: usize, answers: &mut [u8]) {
        self.members[helper].0.copy(answers);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.members.iter().for_each(|(slot, _)| slot.end());
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            if !std::thread::panicking() {
                assert!(matches!(ended, Ok(Ok(()))), "a helper: {ended:?}");
            }
        }
    }
}

#[test]
fn helpers_on_threads_do_not_show_whatever_is_wrong_with_them() {
    use Flaw::{Absent, Ends, Late, Nothing};
    let (name, tiny) = models().swap_remove(0);
    let tokens = tiny.tokens(1, 48);
    let want = expected(&tiny.reference(), Class::Canonical1, &tokens).logits;
    let crews: [&[Flaw]; 5] =
        [&[Nothing], &[Nothing, Nothing, Nothing], &[Absent], &[Late, Nothing], &[Ends(7), Absent]];
    for flaws in crews {
        let helped = Arc::new(AtomicBool::new(false));
        let mut shard = tiny.whole(Class::Canonical1);
        shard.take_on(Threads::start(&tiny, flaws, &helped));
        let mut got = feed(&mut shard, 1, 0, &tokens[..32]);
        for (at, token) in tokens.iter().enumerate().skip(32) {
            got.extend(feed(&mut shard, 1, at as u32, std::slice::from_ref(token)));
        }
        same_bits(&got, &want, &format!("{name}, {flaws:?}"));
        if flaws == [Absent] {
            assert!(!helped.load(Ordering::Relaxed), "nobody is there");
        }
        if flaws.iter().all(|flaw| *flaw == Nothing) {
            assert!(helped.load(Ordering::Relaxed), "{flaws:?} took part");
        }
    }
}

#[test]
fn a_refused_order_is_nobodys_and_an_order_waits_for_the_last_ones_pieces() {
    let (_, tiny) = models().swap_remove(0);
    let share = share(&tiny, 0, 1);
    let order_max = share.order_bytes_max();
    let view = View::new(slot::bytes(order_max, share.answer_bytes_max()));
    slot::prepare(&view, order_max);
    let mut chief = ChiefSlot::new(view);
    assert!(chief.order(&[1; 8], 2));
    assert!(chief.take() && chief.take() && !chief.take(), "two pieces");
    assert!(!chief.order(&vec![1; order_max + 4], 3), "there is no room");
    assert!(!chief.take(), "nothing of it can be begun");
    assert_eq!(chief.answered(3), 0);
    assert!(chief.order(&[1; 8], 1));
    let early = std::panic::AssertUnwindSafe(|| chief.order(&[1; 8], 1));
    assert!(std::panic::catch_unwind(early).is_err(), "a piece is left");
}
