//! Where messages between the ranks of a tensor group go: from one member's socket straight
//! into the other members' queues, past the scheduler.
//!
//! A rank waits for its peers several times in each layer, so every hop counts. The driver
//! keeps the list of groups as the scheduler forms and dissolves them; the sockets read it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use protocol::{AssignmentId, RelayHeader, WorkerId};
use tokio::sync::mpsc;
use worker::Down;

/// The groups that there are, shared.
#[derive(Clone, Default)]
pub struct Relays(Arc<RwLock<HashMap<AssignmentId, Arc<[Member]>>>>);

/// A rank's worker; their order is that of the ranks.
struct Member {
    worker: WorkerId,
    /// Not kept open by the group: who is let go hears nothing more. `None` of one that was let
    /// go before the group was formed.
    outbox: Option<mpsc::WeakSender<Down>>,
}

impl Relays {
    /// A group was formed, of these workers in the order of their ranks.
    pub(super) fn form(
        &self,
        group: AssignmentId,
        members: impl Iterator<Item = (WorkerId, Option<mpsc::WeakSender<Down>>)>,
    ) {
        let members = members.map(|(worker, outbox)| Member { worker, outbox }).collect();
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(group, members);
    }

    /// A group is over: what its members still send is dropped.
    pub(super) fn dissolve(&self, group: AssignmentId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    /// Passes a piece on to all other members of its group, without waiting. Gives those whose
    /// queues are full: they are too slow, and to be let go.
    ///
    /// # Errors
    /// It is no piece, or `from` is not the rank of that group that it says: its connection
    /// is over.
    pub fn pass_on(&self, from: WorkerId, piece: &Bytes) -> Result<Vec<WorkerId>, String> {
        let header = RelayHeader::decode(piece).map_err(|error| error.to_string())?;
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(members) = groups.get(&header.group).cloned() else { return Ok(Vec::new()) };
        drop(groups);
        let rank = usize::from(header.rank);
        if members.get(rank).is_none_or(|member| member.worker != from) {
            let group = header.group;
            return Err(format!("it is not rank {rank} of the tensor group {group}"));
        }
        let others = members.iter().enumerate().filter(|(i, _)| *i != rank);
        let stuck = others.filter(|(_, member)| {
            let outbox = member.outbox.as_ref().and_then(mpsc::WeakSender::upgrade);
            let Some(outbox) = outbox else { return false };
            let sent = outbox.try_send(Down::Relay(piece.clone()));
            matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
        });
        Ok(stuck.map(|(_, member)| member.worker).collect())
    }
}

#[cfg(test)]
mod tests {
    use protocol::{RelayKind, relay_pieces};

    use super::*;

    fn piece(group: u64, rank: u8) -> Bytes {
        let group = AssignmentId(group);
        relay_pieces(group, rank, RelayKind::Share, 0, b"share").next().unwrap()
    }

    #[test]
    fn a_piece_reaches_the_other_members_and_nobody_else() {
        let relays = Relays::default();
        let (senders, mut outboxes): (Vec<_>, Vec<_>) = (0..4).map(|_| mpsc::channel(1)).unzip();
        let members = || (0..3).map(|i| (WorkerId(i), Some(senders[i as usize].downgrade())));
        relays.form(AssignmentId(7), members());
        assert_eq!(relays.pass_on(WorkerId(1), &piece(7, 1)), Ok(vec![]));
        for (i, outbox) in outboxes.iter_mut().enumerate() {
            let got = matches!(outbox.try_recv(), Ok(Down::Relay(got)) if got == piece(7, 1));
            assert_eq!(got, i == 0 || i == 2, "worker {i}");
        }
        // Who takes nothing is named, and holds up nobody.
        assert_eq!(relays.pass_on(WorkerId(0), &piece(7, 0)), Ok(vec![]));
        outboxes[1].try_recv().unwrap();
        assert_eq!(relays.pass_on(WorkerId(0), &piece(7, 0)), Ok(vec![WorkerId(2)]));
        outboxes[1].try_recv().unwrap();

        // Another's rank, another's group, a group that is over.
        assert!(relays.pass_on(WorkerId(1), &piece(7, 0)).unwrap_err().contains("rank 0"));
        assert!(relays.pass_on(WorkerId(3), &piece(7, 3)).is_err());
        assert!(relays.pass_on(WorkerId(1), &Bytes::from_static(b"WFRL")).is_err());
        assert_eq!(relays.pass_on(WorkerId(3), &piece(8, 0)), Ok(vec![]));
        relays.dissolve(AssignmentId(7));
        assert_eq!(relays.pass_on(WorkerId(3), &piece(7, 0)), Ok(vec![]));
        assert!(outboxes[1].try_recv().is_err());
    }

    #[test]
    fn a_member_that_was_let_go_is_passed_over() {
        let relays = Relays::default();
        let (gone, _) = mpsc::channel(1);
        let (here, mut outbox) = mpsc::channel(1);
        let members =
            [(WorkerId(1), Some(gone.downgrade())), (WorkerId(2), Some(here.downgrade()))];
        relays.form(AssignmentId(1), members.into_iter());
        drop(gone);
        assert_eq!(relays.pass_on(WorkerId(2), &piece(1, 1)), Ok(vec![]));
        drop(here);
        assert!(matches!(outbox.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }
}
