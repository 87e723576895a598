//! A rank's place in a tensor group: what comes from the other ranks, and how it waits for it.
//!
//! The compute thread sends its share of an exchange and blocks until those of all others are
//! here. They come through the coordinator, on the thread that reads its socket, which never
//! blocks. A wait ends when the seat does: with the assignment, with the connection, with a
//! message that was lost, or when it has taken too long.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::tensor::{Exchange, ExchangeError, Take};
use protocol::{
    AssignmentId, RELAY_BYTES_MAX, RelayKind, RelayReassembler, TensorRank, relay_pieces,
};

use crate::shell::Shared;

/// Longest wait for the other ranks in one exchange: what a rank computes between two is a
/// part of a layer, and the coordinator bounds what an order and the shares of it weigh. No step
/// is given less than 8 s by its coordinator.
const EXCHANGE_WAIT_MAX: Duration = Duration::from_secs(6);
/// Shares of one rank that may wait: it can be one exchange ahead, and no more.
const SHARES_WAITING_MAX: usize = 2;
/// Orders that may wait to be carried out: those that ask for no exchange come without one.
const ORDERS_WAITING_MAX: usize = 1 << 14;
/// Bytes of them: a step waits for its ranks, so that one with rows is followed by small ones.
const ORDER_BYTES_WAITING_MAX: usize = 2 * RELAY_BYTES_MAX;

/// One rank's place.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) group: AssignmentId,
    /// Its own assignment.
    pub(crate) assignment: AssignmentId,
    rank: u8,
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

/// What came and was not used yet.
#[derive(Debug)]
struct Inbox {
    /// Why nothing more is waited for, if so.
    ended: Option<String>,
    /// By rank.
    peers: Vec<Peer>,
    orders_waiting: usize,
    order_bytes_waiting: usize,
}

/// How long one compute thread waited for other ranks since that was last taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waited(Arc<AtomicU64>);

impl Waited {
    fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.fetch_add(us, Ordering::Relaxed);
    }

    /// Takes it, and begins at zero.
    pub(crate) fn take(&self) -> Duration {
        Duration::from_micros(self.0.swap(0, Ordering::Relaxed))
    }
}

#[derive(Debug, Default)]
struct Peer {
    pieces: RelayReassembler,
    shares: VecDeque<Bytes>,
}

impl Seat {
    pub(crate) fn new(assignment: AssignmentId, tensor: &TensorRank) -> Seat {
        let peers = tensor.weights.iter().map(|_| Peer::default()).collect();
        Seat {
            group: tensor.group,
            assignment,
            rank: u8::try_from(tensor.rank).expect("ranks are few, and checked"),
            inbox: Mutex::new(Inbox {
                ended: None,
                peers,
                orders_waiting: 0,
                order_bytes_waiting: 0,
            }),
            changed: Condvar::new(),
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every wait, from now on; the first reason stays.
    pub(crate) fn end(&self, reason: &str) {
        self.inbox().ended.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_all();
    }

    /// Why nothing more is waited for, if so.
    pub(crate) fn ended(&self) -> Option<String> {
        self.inbox().ended.clone()
    }

    /// Takes a piece of another rank in; gives the order that it completes, if it does.
    pub(crate) fn push(&self, rank: u8, piece: &Bytes) -> Option<Bytes> {
        let taken = self.inbox().take(self.rank, rank, piece);
        match taken {
            Ok(Some((RelayKind::Order, order))) => Some(order),
            Ok(Some((RelayKind::Share, _))) => {
                self.changed.notify_all();
                None
            }
            Ok(None) => None,
            Err(reason) => {
                self.end(&format!("rank {rank} of its tensor group: {reason}"));
                None
            }
        }
    }

    /// An order of so many bytes that [`Seat::push`] gave was carried out.
    pub(crate) fn obeyed(&self, bytes: usize) {
        let mut inbox = self.inbox();
        inbox.orders_waiting = inbox.orders_waiting.saturating_sub(1);
        inbox.order_bytes_waiting = inbox.order_bytes_waiting.saturating_sub(bytes);
    }

    /// The next share of every other rank, with that rank, in order.
    ///
    /// # Errors
    /// The first rank whose share is lacking, and why it is not waited for.
    fn wait(&self, longest: Duration) -> Result<Vec<(usize, Bytes)>, (usize, String)> {
        let due = Instant::now() + longest;
        let mut inbox = self.inbox();
        loop {
            let Some(late) = inbox.late(self.rank) else {
                return Ok(inbox.take_shares(self.rank));
            };
            if let Some(reason) = &inbox.ended {
                return Err((late, reason.clone()));
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = format!("it sent nothing for {} s", longest.as_secs());
                inbox.ended = Some(format!("rank {late} of its tensor group: {reason}"));
                return Err((late, reason));
            }
            let waited = self.changed.wait_timeout(inbox, left);
            inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Inbox {
    fn take(
        &mut self,
        own: u8,
        rank: u8,
        piece: &Bytes,
    ) -> Result<Option<(RelayKind, Bytes)>, String> {
        let peer = self.peers.get_mut(usize::from(rank)).filter(|_| rank != own);
        let peer = peer.ok_or("there is no such rank beside this one")?;
        let Some((kind, message)) = peer.pieces.push(piece).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        match kind {
            RelayKind::Order if rank != 0 => return Err("only rank 0 gives orders".into()),
            RelayKind::Order if self.orders_waiting == ORDERS_WAITING_MAX => {
                return Err(format!("{ORDERS_WAITING_MAX} orders wait already"));
            }
            RelayKind::Order
                if self.order_bytes_waiting + message.len() > ORDER_BYTES_WAITING_MAX =>
            {
                return Err(format!("orders of {} bytes wait already", self.order_bytes_waiting));
            }
            RelayKind::Order => {
                self.orders_waiting += 1;
                self.order_bytes_waiting += message.len();
            }
            RelayKind::Share if peer.shares.len() == SHARES_WAITING_MAX => {
                return Err("it is too far ahead".into());
            }
            RelayKind::Share => peer.shares.push_back(message.clone()),
        }
        Ok(Some((kind, message)))
    }

    /// The first other rank of which no share waits.
    fn late(&self, own: u8) -> Option<usize> {
        let others = self.peers.iter().enumerate().filter(|(i, _)| *i != usize::from(own));
        others.into_iter().find(|(_, peer)| peer.shares.is_empty()).map(|(i, _)| i)
    }

    fn take_shares(&mut self, own: u8) -> Vec<(usize, Bytes)> {
        let others = self.peers.iter_mut().enumerate().filter(|(i, _)| *i != usize::from(own));
        others.map(|(i, peer)| (i, peer.shares.pop_front().expect("it was there"))).collect()
    }
}

/// What the engine exchanges through.
pub(crate) struct Ranks {
    pub(crate) seat: Arc<Seat>,
    pub(crate) shared: Weak<Shared>,
    waited: Waited,
    /// Messages sent so far.
    sent: u32,
}

impl Ranks {
    pub(crate) fn new(seat: Arc<Seat>, shared: Weak<Shared>, waited: Waited) -> Ranks {
        Ranks { seat, shared, waited, sent: 0 }
    }

    fn give(&mut self, kind: RelayKind, message: &[u8]) -> Result<(), String> {
        if message.len() > RELAY_BYTES_MAX {
            return Err(format!("a message of {} bytes is too long", message.len()));
        }
        let shared = self.shared.upgrade().ok_or("the worker has ended")?;
        let number = self.sent;
        self.sent = self.sent.wrapping_add(1);
        for piece in relay_pieces(self.seat.group, self.seat.rank, kind, number, message) {
            shared.relay_up(&self.seat, piece)?;
        }
        Ok(())
    }
}

impl Exchange for Ranks {
    fn order(&mut self, order: &[u8]) -> Result<(), ExchangeError> {
        let lost = |reason| ExchangeError::Lost { rank: 1, reason };
        self.give(RelayKind::Order, order).map_err(lost)
    }

    fn send(&mut self, message: &[u8]) -> Result<(), ExchangeError> {
        // All others are behind the one way to the coordinator.
        let rank = usize::from(self.seat.rank == 0);
        let lost = |reason| ExchangeError::Lost { rank, reason };
        self.give(RelayKind::Share, message).map_err(lost)
    }

    fn receive(&mut self, take: &mut Take<'_>) -> Result<(), ExchangeError> {
        let began = Instant::now();
        let shares = self.seat.wait(EXCHANGE_WAIT_MAX);
        self.waited.add(began.elapsed());
        let shares = shares.map_err(|(rank, reason)| ExchangeError::Lost { rank, reason })?;
        shares.iter().try_for_each(|(rank, share)| take(*rank, share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn seat(rank: u32) -> Arc<Seat> {
        let tensor = TensorRank {
            group: AssignmentId(1),
            rank,
            form: "rows".into(),
            weights: vec![1, 1, 2],
        };
        Arc::new(Seat::new(AssignmentId(5), &tensor))
    }

    fn piece(rank: u8, kind: RelayKind, number: u32, message: &[u8]) -> Bytes {
        relay_pieces(AssignmentId(1), rank, kind, number, message).next().unwrap()
    }

    #[test]
    fn shares_are_waited_for_and_given_in_the_ranks_order() {
        let seat = seat(1);
        let waiting = {
            let seat = seat.clone();
            std::thread::spawn(move || seat.wait(SOON))
        };
        // One is an exchange ahead.
        assert_eq!(seat.push(2, &piece(2, RelayKind::Share, 0, b"c0")), None);
        assert_eq!(seat.push(2, &piece(2, RelayKind::Share, 1, b"c1")), None);
        let order = seat.push(0, &piece(0, RelayKind::Order, 0, b"step"));
        assert_eq!(order.as_deref(), Some(&b"step"[..]));
        seat.push(0, &piece(0, RelayKind::Share, 1, b"a0"));
        assert_eq!(waiting.join().unwrap(), Ok(vec![(0, "a0".into()), (2, "c0".into())]));
        seat.push(0, &piece(0, RelayKind::Share, 2, b"a1"));
        assert_eq!(seat.wait(SOON), Ok(vec![(0, "a1".into()), (2, "c1".into())]));
    }

    #[test]
    fn the_end_of_the_seat_ends_the_wait_at_once() {
        let seat = seat(0);
        let waiting = {
            let seat = seat.clone();
            std::thread::spawn(move || seat.wait(SOON))
        };
        seat.end("the assignment is over");
        assert_eq!(waiting.join().unwrap(), Err((1, "the assignment is over".into())));
        seat.end("something else");
        assert_eq!(seat.wait(SOON), Err((1, "the assignment is over".into())));
    }

    #[test]
    fn who_is_silent_is_named() {
        let seat = seat(0);
        seat.push(1, &piece(1, RelayKind::Share, 0, b""));
        let (rank, reason) = seat.wait(Duration::from_millis(1)).unwrap_err();
        assert_eq!((rank, reason.as_str()), (2, "it sent nothing for 0 s"));
        assert!(seat.ended().unwrap().starts_with("rank 2"), "it is not waited for again");
    }

    #[test]
    fn waiting_orders_are_bounded_in_bytes() {
        let seat = seat(1);
        let order = vec![0; RELAY_BYTES_MAX];
        let give = |number| {
            let pieces = relay_pieces(AssignmentId(1), 0, RelayKind::Order, number, &order);
            pieces.filter_map(|piece| seat.push(0, &piece)).next()
        };
        assert!(give(0).is_some() && give(1).is_some());
        seat.obeyed(order.len());
        assert!(give(2).is_some(), "there is room for another one");
        assert!(give(3).is_none());
        assert!(seat.ended().unwrap().contains("wait already"));
    }

    #[test]
    fn the_time_in_exchanges_is_known() {
        let waited = Waited::default();
        let mut ranks = Ranks::new(seat(0), Weak::new(), waited.clone());
        ranks.seat.end("a test");
        assert!(ranks.receive(&mut |_, _| Ok(())).is_err());
        waited.add(Duration::from_millis(7));
        assert!(waited.take() >= Duration::from_millis(7));
        assert_eq!(waited.take(), Duration::ZERO);
    }

    #[test]
    fn what_no_rank_of_ours_would_send_ends_the_seat() {
        let check = |pieces: &[Bytes], expected: &str| {
            let seat = seat(1);
            for piece in pieces {
                let rank = protocol::RelayHeader::decode(piece).unwrap().rank;
                assert_eq!(seat.push(rank, piece), None);
            }
            let reason = seat.ended().expect("it has ended");
            assert!(reason.contains(expected), "{reason}");
        };
        let share = |rank, number| piece(rank, RelayKind::Share, number, b"x");
        check(&[share(2, 0), share(2, 1), share(2, 2)], "too far ahead");
        check(&[share(2, 1)], "expected frame 0");
        check(&[share(1, 0)], "no such rank");
        check(&[share(3, 0)], "no such rank");
        check(&[piece(2, RelayKind::Order, 0, b"x")], "only rank 0");
    }
}
