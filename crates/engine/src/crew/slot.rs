//! Memory that a chief shares with one helper: who is at which order, the order, the answers.
//!
//! One word says which order is the last and how many of its pieces are begun or taken back;
//! both sides count it up with compare-and-exchange. The helper begins pieces from the first
//! on and the chief takes them from the last on, so the count is all that they must agree on.
//! The word is *closed* while the chief writes an order, and an order that was copied is valid
//! if the word is still the same when a piece of it is begun. So neither side ever waits for
//! the other's leave, but for an order: a helper that waits for one sleeps after a while.

use super::{OrderError, Share};

/// The order's number times 256, and the pieces that are begun or taken back.
const STATE: usize = 0;
/// The last order's number that an answer was given to, times 256, and the pieces answered.
const ANSWERED: usize = 1;
/// Bytes of the order.
const ORDER_BYTES: usize = 2;
/// Its pieces.
const PIECES: usize = 3;
/// Room for an order, bytes; the rest is for answers.
const ORDER_ROOM: usize = 4;
/// Words at its beginning.
const WORDS: usize = 8;
/// Bytes of these words.
const HEADER_BYTES: usize = 4 * WORDS;
/// Instead of a count of pieces: the order is being written.
const CLOSED: i32 = 0xff;
/// Instead of a state: the helper is to end.
const END: i32 = -1;
/// Numbers of orders; then they begin again.
const NUMBERS: i32 = 1 << 22;
/// Looks at a word between two at the clock.
const LOOKS: u32 = 32;
/// A helper looks for an order so long before it sleeps, ms: products follow each other within
/// tens of microseconds, and so does waking up.
const AWAKE_MS: f64 = 0.2;
/// A chief waits for an answer at least and at most so long, ms, and else as long as
/// computing the piece again may take it.
const PATIENCE_MS: [f64; 2] = [0.05, 10.0];

/// Bytes that a slot for such orders and answers takes.
pub const fn bytes(order_max: usize, answers_max: usize) -> usize {
    HEADER_BYTES + order_max.next_multiple_of(4) + answers_max
}

/// Shared memory: 32-bit words, which are read and written in one order for everybody, and
/// bytes, which are not.
pub trait Memory {
    /// Reads a word.
    fn load(&self, word: usize) -> i32;
    /// Writes a word, after everything that was written before.
    fn store(&self, word: usize, value: i32);
    /// Writes a word if it is `old`; whether it was.
    fn replace(&self, word: usize, old: i32, new: i32) -> bool;
    /// Sleeps until [`Memory::wake`], if the word is `old`; may return early.
    fn sleep(&self, word: usize, old: i32);
    /// Ends that sleep.
    fn wake(&self, word: usize);
    /// Reads bytes from an offset on.
    fn read(&self, at: usize, bytes: &mut [u8]);
    /// Writes bytes from an offset on.
    fn write(&self, at: usize, bytes: &[u8]);
    /// Bytes of all of it.
    fn bytes(&self) -> usize;
    /// Time from any start, ms.
    fn now_ms(&self) -> f64;
}

/// Begins or takes back a piece of order `number`; `false` if none is left.
fn count_up(memory: &impl Memory, number: i32, pieces: i32) -> bool {
    loop {
        let state = memory.load(STATE);
        // A closed state's count is past every number of pieces.
        if state >> 8 != number || state & 0xff >= pieces {
            return false;
        }
        if memory.replace(STATE, state, state + 1) {
            return true;
        }
    }
}

/// Prepares a slot with room for such an order, bytes.
pub fn prepare(memory: &impl Memory, order_max: usize) {
    memory.store(ORDER_ROOM, order_max.next_multiple_of(4) as i32);
    memory.store(STATE, CLOSED);
}

/// The chief's end.
pub struct ChiefSlot<M> {
    memory: M,
    number: i32,
    pieces: i32,
    began_ms: f64,
}

impl<M: Memory> ChiefSlot<M> {
    /// Of memory that the helper has [prepared](prepare).
    pub fn new(memory: M) -> ChiefSlot<M> {
        ChiefSlot { memory, number: 0, pieces: 0, began_ms: 0.0 }
    }

    /// Gives an order of so many pieces; `false` if the slot has no room for it: then none of
    /// its pieces is to be had here.
    ///
    /// # Panics
    /// If a piece of the order before is neither begun nor taken back: the helper could begin it
    /// while this one is written.
    pub fn order(&mut self, order: &[u8], pieces: usize) -> bool {
        let state = self.memory.load(STATE);
        let exhausted = state >> 8 != self.number || state & 0xff >= self.pieces;
        assert!(exhausted, "an order before the last one's pieces were begun or taken back");
        self.pieces = 0;
        if pieces == 0 {
            return true;
        }
        let room = self.memory.load(ORDER_ROOM) as usize;
        if order.len() > room || HEADER_BYTES + room > self.memory.bytes() || pieces >= 0xff {
            return false;
        }
        self.number = (self.number + 1) % NUMBERS;
        self.pieces = pieces as i32;
        let memory = &self.memory;
        memory.store(STATE, self.number << 8 | CLOSED);
        memory.write(HEADER_BYTES, order);
        memory.store(ORDER_BYTES, order.len() as i32);
        memory.store(PIECES, self.pieces);
        memory.store(STATE, self.number << 8);
        memory.wake(STATE);
        self.began_ms = memory.now_ms();
        true
    }

    /// See [`super::Crew::take`].
    pub fn take(&self) -> bool {
        count_up(&self.memory, self.number, self.pieces)
    }

    /// See [`super::Crew::answered`].
    pub fn answered(&self, begun: usize) -> usize {
        let count = || match self.memory.load(ANSWERED) {
            state if state >> 8 == self.number => (state & 0xff) as usize,
            _ => 0,
        };
        if begun > self.pieces as usize {
            return 0; // of an order that was refused
        }
        let start = self.memory.now_ms();
        // The chief has had a share as large as this one, in pieces, and some.
        let [least, most] = PATIENCE_MS;
        let patience = ((start - self.began_ms) / 4.0).clamp(least, most);
        loop {
            for _ in 0..LOOKS {
                if count() >= begun {
                    return begun;
                }
                std::hint::spin_loop();
            }
            if self.memory.now_ms() - start > patience {
                return count().min(begun);
            }
        }
    }

    /// See [`super::Crew::copy`].
    pub fn copy(&self, answers: &mut [u8]) {
        let room = self.memory.load(ORDER_ROOM) as usize;
        self.memory.read(HEADER_BYTES + room, answers);
    }

    /// Ends the helper, at once if it waits for an order, else after its piece.
    pub fn end(&self) {
        self.memory.store(STATE, END);
        self.memory.wake(STATE);
    }
}

/// Carries out orders until the chief ends it.
///
/// # Errors
/// An order is not for this share; it carries out none any more.
pub fn serve(memory: &impl Memory, share: &mut Share) -> Result<(), OrderError> {
    let room = memory.load(ORDER_ROOM) as usize;
    let (mut number, mut order, mut answer) = (0, Vec::new(), Vec::new());
    while let Some((begun, pieces)) = next(memory, room, number, &mut order) {
        number = begun;
        if share.begin(&order)? != pieces as usize {
            return Err(OrderError { bytes: order.len() });
        }
        let mut piece = 0;
        loop {
            let at = share.run(piece, &mut answer);
            memory.write(HEADER_BYTES + room + at, &answer);
            piece += 1;
            memory.store(ANSWERED, number << 8 | piece as i32);
            if !count_up(memory, number, pieces) {
                break;
            }
        }
    }
    Ok(())
}

/// Waits for an order other than that of number `last` and begins its first piece: copies it,
/// and gives its number and its pieces; `None` if there will be none.
fn next(
    memory: &impl Memory,
    room: usize,
    mut last: i32,
    order: &mut Vec<u8>,
) -> Option<(i32, i32)> {
    let mut awake_since = memory.now_ms();
    let mut looks = 0;
    loop {
        let state = memory.load(STATE);
        if state == END {
            return None;
        }
        let (number, count) = (state >> 8, state & 0xff);
        if number != last && count != CLOSED {
            let pieces = memory.load(PIECES);
            if count >= pieces {
                last = number; // the chief was quicker
                continue;
            }
            // Whatever is there; if it is not this order's, the state is another one by now.
            order.resize((memory.load(ORDER_BYTES) as usize).min(room), 0);
            memory.read(HEADER_BYTES, order);
            if memory.replace(STATE, state, state + 1) {
                return Some((number, pieces));
            }
            continue;
        }
        looks += 1;
        if looks % LOOKS == 0 && memory.now_ms() - awake_since > AWAKE_MS {
            memory.sleep(STATE, state);
            awake_since = memory.now_ms();
        }
        std::hint::spin_loop();
    }
}
