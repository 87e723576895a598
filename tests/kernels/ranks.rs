//! The ranks of a tensor group as threads, their messages over channels in memory.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, spawn};

use engine::tensor::{Exchange, ExchangeError, FollowError, Take, TensorShare};
use engine::{LoadError, Shard};
use model::tensor::TensorForm;

/// What one rank gives another.
#[derive(Clone)]
pub enum Sent {
    Order(Vec<u8>),
    Message(Vec<u8>),
}

/// A rank's ends of the channels from and to each other rank.
pub struct Link {
    pub to: Vec<(usize, Sender<Sent>)>,
    pub from: Vec<(usize, Receiver<Sent>)>,
    /// Changes what the others are sent, by how many messages were sent before.
    pub damage: Box<dyn FnMut(usize, Vec<u8>) -> Vec<u8> + Send>,
    sent: usize,
}

/// Links of a group of so many ranks. Orders go through channels of their own.
pub fn links(ranks: usize) -> (Vec<Link>, Vec<Receiver<Sent>>) {
    let (mut links, mut orders) = (Vec::new(), Vec::new());
    for _ in 0..ranks {
        let damage = Box::new(|_, message| message);
        links.push(Link { to: Vec::new(), from: Vec::new(), damage, sent: 0 });
    }
    for from in 0..ranks {
        for to in 0..ranks {
            if from != to {
                let (sender, receiver) = channel();
                links[from].to.push((to, sender));
                links[to].from.push((from, receiver));
            }
        }
    }
    for follower in 1..ranks {
        let (sender, receiver) = channel();
        links[0].to.push((ranks + follower, sender)); // an order's
        orders.push(receiver);
    }
    (links, orders)
}

impl Link {
    fn give(&self, is_order: bool, what: Sent) -> Result<(), ExchangeError> {
        let ranks = self.from.len() + 1;
        for (rank, sender) in self.to.iter().filter(|(rank, _)| (*rank > ranks) == is_order) {
            let lost = |_| ExchangeError::Lost { rank: rank % ranks, reason: "it ended".into() };
            sender.send(what.clone()).map_err(lost)?;
        }
        Ok(())
    }
}

impl Exchange for Link {
    fn order(&mut self, order: &[u8]) -> Result<(), ExchangeError> {
        self.give(true, Sent::Order(order.to_vec()))
    }

    fn send(&mut self, message: &[u8]) -> Result<(), ExchangeError> {
        let message = (self.damage)(self.sent, message.to_vec());
        self.sent += 1;
        self.give(false, Sent::Message(message))
    }

    fn receive(&mut self, take: &mut Take<'_>) -> Result<(), ExchangeError> {
        for (rank, receiver) in &self.from {
            match receiver.recv() {
                Ok(Sent::Message(message)) => take(*rank, &message)?,
                _ => return Err(ExchangeError::Lost { rank: *rank, reason: "it ended".into() }),
            }
        }
        Ok(())
    }
}

/// A leader, and its followers on threads of their own.
pub struct Ranks {
    pub leader: Option<Shard>,
    followers: Vec<JoinHandle<(Shard, Result<(), FollowError>)>>,
}

/// Loads the ranks of a group: `load` makes one of its share and link.
pub fn group(
    form: TensorForm,
    weights: &[u32],
    load: impl Fn(&TensorShare, Box<dyn Exchange>) -> Result<Shard, LoadError>,
    mut damage: impl FnMut(usize, &mut Link),
) -> Ranks {
    let (links, orders) = links(weights.len());
    let mut shards = links.into_iter().enumerate().map(|(rank, mut link)| {
        damage(rank, &mut link);
        load(&TensorShare { form, weights: weights.to_vec(), rank }, Box::new(link)).expect("loads")
    });
    let leader = shards.next();
    let follow = |(mut shard, orders): (Shard, Receiver<Sent>)| {
        spawn(move || {
            let mut followed = Ok(());
            while let (Ok(()), Ok(Sent::Order(order))) = (&followed, orders.recv()) {
                followed = shard.follow(&order);
            }
            (shard, followed)
        })
    };
    let followers = shards.zip(orders).map(follow).collect();
    Ranks { leader, followers }
}

impl Ranks {
    pub fn leader(&mut self) -> &mut Shard {
        self.leader.as_mut().expect("not ended")
    }

    /// What the followers came to, once the leader is gone.
    pub fn end(mut self) -> Vec<(Shard, Result<(), FollowError>)> {
        self.leader = None;
        self.followers.into_iter().map(|f| f.join().expect("no panic")).collect()
    }
}
