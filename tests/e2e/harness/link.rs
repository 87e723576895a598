//! A network between a worker and its coordinator, in this process: a relay on loopback that
//! delays, throttles, loses, stalls and cuts, by a seed.
//!
//! What a lost packet does to TCP is to hold back all that follows until it has been sent again,
//! so that is what a loss is here.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::rng::Rng;

/// Bytes that are sent on as one: two packets' worth.
const PIECE_BYTES: usize = 2920;
/// Pieces on their way in each direction of a connection; the sender waits for room beyond.
const PIECES_MAX: usize = 64;
/// How long it takes TCP to notice a loss and to send again.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What the network is like, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// From one end to the other.
    pub delay: Duration,
    /// More or less than that, at most.
    pub jitter: Duration,
    /// Pieces lost, of a thousand.
    pub lost_per_mille: u64,
    /// Bytes a second at most, if there is a bound.
    pub bytes_per_s: Option<u64>,
    /// Nothing passes, and neither end is told.
    pub parted: bool,
}

#[derive(Clone, Copy, Debug)]
struct State {
    conditions: Conditions,
    /// Counts how often all connections were cut.
    cuts: u32,
}

/// See the module's documentation. Dropping it cuts it.
pub struct Link {
    /// `127.0.0.1:PORT`, where workers find the coordinator.
    pub address: String,
    state: watch::Sender<State>,
    accepts: JoinHandle<()>,
}

impl Link {
    /// Leads to `target`, under no conditions at first.
    pub async fn start(target: &str, seed: u64) -> Link {
        let target: SocketAddr = target.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (state, watched) = watch::channel(State { conditions: Conditions::default(), cuts: 0 });
        let accepts = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            let mut rng = Rng::new(seed);
            loop {
                let (near, _) = listener.accept().await.expect("a connection");
                let seeds = [rng.next(), rng.next()];
                connections.spawn(relay(near, target, watched.clone(), seeds));
                while connections.try_join_next().is_some() {}
            }
        });
        Link { address, state, accepts }
    }

    /// It is like this from now on.
    pub fn set(&self, conditions: Conditions) {
        self.state.send_modify(|state| state.conditions = conditions);
    }

    /// Nothing passes from now on, or again.
    pub fn part(&self, parted: bool) {
        self.state.send_modify(|state| state.conditions.parted = parted);
    }

    /// Breaks every connection that there is.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

/// Relays a connection until it ends on both sides, or is cut.
async fn relay(
    near: TcpStream,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
    seeds: [u64; 2],
) {
    let cuts = state.borrow().cuts;
    let mut cut = state.clone();
    let both = async {
        // Nobody is reached beyond a network that is parted.
        joined(&mut state).await;
        let Ok(far) = TcpStream::connect(target).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let [up, down] = seeds.map(Rng::new);
        tokio::join!(
            pass(near_in, far_out, state.clone(), up),
            pass(far_in, near_out, state.clone(), down)
        );
    };
    tokio::select! {
        () = both => {}
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
    }
}

/// Waits until the network is not parted.
async fn joined(state: &mut watch::Receiver<State>) {
    if state.wait_for(|state| !state.conditions.parted).await.is_err() {
        // The link is gone, and this task with it.
        std::future::pending().await
    }
}

/// One direction.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    rng: Rng,
) {
    let (queue, mut due) = mpsc::channel(PIECES_MAX);
    let watched = state.clone();
    let take = async move {
        let mut wire = Wire { free_at: Instant::now(), last_at: Instant::now(), rng };
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            // Empty at the end, however that came.
            let read = from.read(&mut piece).await.unwrap_or(0);
            piece.truncate(read);
            let conditions = watched.borrow().conditions;
            let at = wire.arrival(Instant::now(), read, &conditions);
            if queue.send((at, piece)).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let give = async {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            joined(&mut state).await;
            if piece.is_empty() || to.write_all(&piece).await.is_err() {
                break;
            }
        }
        // The other direction may go on.
        let _ = to.shutdown().await;
    };
    tokio::select! {
        () = give => {}
        () = async { take.await; std::future::pending().await } => {}
    }
}

/// What is on its way in one direction.
struct Wire {
    /// When the last byte has left.
    free_at: Instant,
    /// When the last piece arrives: none overtakes another.
    last_at: Instant,
    rng: Rng,
}

impl Wire {
    /// When `bytes` arrive that are sent at `now`.
    fn arrival(&mut self, now: Instant, bytes: usize, conditions: &Conditions) -> Instant {
        let sending = conditions.bytes_per_s.map_or(0.0, |rate| bytes as f64 / rate as f64);
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(sending);
        let jitter = conditions.jitter.mul_f64(2.0 * self.rng.share());
        let mut late = (conditions.delay + jitter).saturating_sub(conditions.jitter);
        if self.rng.below(1000) < conditions.lost_per_mille {
            late += SENT_AGAIN_AFTER;
        }
        self.last_at = self.last_at.max(self.free_at + late);
        self.last_at
    }
}

/// A pair of sockets with a link between them.
#[cfg(test)]
async fn ends() -> (Link, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = listener.local_addr().expect("an address").to_string();
    let link = Link::start(&target, 7).await;
    let near = TcpStream::connect(&link.address).await.expect("it accepts");
    let (far, _) = listener.accept().await.expect("it comes through");
    (link, near, far)
}

#[tokio::test]
async fn bytes_arrive_whole_in_order_and_as_late_as_they_should() {
    let (link, mut near, mut far) = ends().await;
    link.set(Conditions {
        delay: Duration::from_millis(30),
        jitter: Duration::from_millis(5),
        lost_per_mille: 10,
        bytes_per_s: Some(400_000),
        parted: false,
    });
    let mut rng = Rng::new(1);
    let sent: Vec<u8> = (0..100_000).map(|_| rng.next() as u8).collect();
    let began = Instant::now();
    let writing = sent.clone();
    let writer = tokio::spawn(async move {
        near.write_all(&writing).await.expect("it takes all");
        near.shutdown().await.expect("it ends");
        near
    });
    let mut came = Vec::new();
    far.read_to_end(&mut came).await.expect("the end passes too");
    assert!(came == sent, "{} bytes came of {}", came.len(), sent.len());
    // A quarter of a second for the bytes, and the delay.
    assert!(began.elapsed() >= Duration::from_millis(275), "{:?}", began.elapsed());
    // The other direction is open still.
    far.write_all(b"yes").await.expect("it is open");
    drop(far);
    let mut near = writer.await.expect("no panic");
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.expect("it ends");
    assert_eq!(answer, b"yes");
}

#[tokio::test]
async fn parted_ends_hear_nothing_and_lose_nothing_and_a_cut_is_heard() {
    let (link, mut near, mut far) = ends().await;
    link.part(true);
    near.write_all(b"late").await.expect("it is taken");
    let mut word = [0; 4];
    let silent = tokio::time::timeout(Duration::from_millis(50), far.read(&mut word)).await;
    assert!(silent.is_err(), "{silent:?}");
    link.part(false);
    far.read_exact(&mut word).await.expect("it comes");
    assert_eq!(&word, b"late");
    link.cut();
    assert_eq!(near.read(&mut word).await.unwrap_or(0), 0);
    assert_eq!(far.read(&mut word).await.unwrap_or(0), 0);
}
