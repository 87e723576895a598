//! One worker's connection from its first byte to its goodbye.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::{
    CHUNK_BYTES_MAX, Chunks, Frame, FrameKind, FromWorker, PROTOCOL_VERSION, Reassembler, ToWorker,
    WorkerId, clean_text, codec, is_relay,
};
use scheduler::Event;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{timeout, timeout_at};
use worker::Down;

use super::handshake::{self, Refusal};
use super::{
    Counters, GOODBYE_WITHIN, HELLO_WITHIN, KNOWN_WITHIN, Origin, PING_EVERY, SILENCE_MAX, Shared,
    WORKERS_MAX,
};
use crate::blobs::Grant;
use crate::driver::OUTBOX_MAX;
use crate::ledger::{Joining, LedgerError};
use crate::random;

/// Control messages that a worker may send in one burst; ours send a few per assignment and
/// blob. Each runs the scheduler.
const CONTROL_BURST_MAX: u32 = 1000;
/// Control messages a second that it may send for long.
const CONTROL_PER_S_MAX: u32 = 200;

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// Serves one socket to its end.
pub(super) async fn serve(
    shared: &Shared,
    socket: WebSocket,
    origin: Origin,
    other_version: Option<String>,
    stranger: OwnedSemaphorePermit,
) {
    let (mut sink, mut source) = socket.split();
    let welcomed = match other_version {
        Some(offered) => Err(Some(handshake::other_subprotocol(&offered))),
        None => greet(shared, &mut sink, &mut source, origin).await,
    };
    drop(stranger);
    let Welcomed { worker, trusted, outbox, mut sent_away, _grant, _room } = match welcomed {
        Ok(welcomed) => welcomed,
        Err(refusal) => {
            if let Some(Refusal { reason, retry }) = refusal {
                tracing::warn!(address = %origin.address, %reason, "turned a peer away");
                Counters::add(&shared.counters.refused);
                goodbye(sink, source, &reason, retry).await;
            }
            return;
        }
    };
    let (pings, asked) = (Pings::default(), Asked { trusted, ..Asked::default() });
    let end = tokio::select! {
        end = read(shared, worker, &mut source, &pings, &asked) => end,
        end = write(&mut sink, outbox, &pings, &asked) => end,
        reason = told_to_go(&mut sent_away) => End::SentAway(reason),
        () = shared.shutdown.cancelled() => End::Shutdown,
    };
    let reason = end.reason();
    match end {
        End::Violation(_) => {
            Counters::add(&shared.counters.violations);
            tracing::warn!(%worker, %reason, "dismissed a worker");
        }
        End::Silence => Counters::add(&shared.counters.silent),
        End::SentAway(_) => tracing::warn!(%worker, %reason, "dismissed a worker"),
        End::Closed(_) | End::Released | End::Shutdown => {}
    }
    // The driver may have stopped: then nobody needs to know.
    let _ = shared.driver.event(Event::Leave { worker, reason: clean_text(&reason) }).await;
    shared.ledger.left(worker, &reason);
    match end {
        End::Violation(reason) | End::SentAway(reason) => {
            goodbye(sink, source, &reason, false).await
        }
        End::Silence => goodbye(sink, source, &reason, true).await,
        End::Shutdown => goodbye(sink, source, "the coordinator is shutting down", true).await,
        // The dismissal, if there was one, went out through the queue.
        End::Released => close(sink, source).await,
        End::Closed(_) => {}
    }
}

/// Why a connection ended.
enum End {
    /// The worker closed it, or the network did.
    Closed(String),
    /// It sent what no worker of ours sends.
    Violation(String),
    /// It sent nothing for too long.
    Silence,
    /// An operator sent it away.
    SentAway(String),
    /// The driver let go of it.
    Released,
    /// The coordinator goes down.
    Shutdown,
}

impl End {
    fn reason(&self) -> String {
        match self {
            End::Closed(reason) | End::SentAway(reason) => reason.clone(),
            End::Violation(reason) => format!("it broke the protocol: {reason}"),
            End::Silence => format!("nothing came from it for {} s", SILENCE_MAX.as_secs()),
            End::Released => "the coordinator let it go".into(),
            End::Shutdown => "the coordinator is shutting down".into(),
        }
    }
}

/// Waits until an operator sends the worker away; why, in words.
async fn told_to_go(sent_away: &mut watch::Receiver<Option<String>>) -> String {
    match sent_away.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
        Ok(Some(reason)) => reason,
        // Nobody is left who could.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// A worker that was taken in, and what it holds while it is connected.
struct Welcomed {
    worker: WorkerId,
    trusted: bool,
    outbox: mpsc::Receiver<Down>,
    /// Why it has to go, once an operator says so.
    sent_away: watch::Receiver<Option<String>>,
    _grant: Grant,
    _room: OwnedSemaphorePermit,
}

/// Challenge, hello, welcome. `Err(None)`: the peer has hung up.
async fn greet(
    shared: &Shared,
    sink: &mut Sink,
    source: &mut Source,
    origin: Origin,
) -> Result<Welcomed, Option<Refusal>> {
    let nonce = random::hex::<32>();
    let challenge = ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce: nonce.clone() };
    send_control(sink, &challenge).await.map_err(|_| None)?;
    let hello = match timeout(HELLO_WITHIN, first_text(source)).await {
        Ok(Ok(Some(json))) => handshake::read_hello(&json)?,
        Ok(Ok(None)) => return Err(None),
        Ok(Err(reason)) => return Err(Some(Refusal { reason, retry: false })),
        Err(_elapsed) => {
            Counters::add(&shared.counters.silent);
            let reason = format!("no hello within {} s", HELLO_WITHIN.as_secs());
            return Err(Some(Refusal { reason, retry: true }));
        }
    };
    let token_signed = handshake::verify(&hello, &nonce)?;
    let ledger = &shared.ledger;
    let known = async {
        let record = handshake::recall(&hello, ledger).await?;
        let admitted = handshake::admit(&hello, token_signed, origin, &shared.trust, ledger);
        Ok::<_, Refusal>((record, admitted.await?))
    };
    // A stranger's place is not held for a database that answers nothing.
    let known = timeout(KNOWN_WITHIN, known).await;
    let (record, (trusted, invite)) =
        known.unwrap_or_else(|_elapsed| Err(handshake::unreadable(&LedgerError::Stuck)))?;
    let room = shared.workers.clone().try_acquire_owned().map_err(|_| Refusal {
        reason: format!("{WORKERS_MAX} workers are connected, no more are taken: come back later"),
        retry: true,
    })?;
    let grant = shared.tokens.grant();
    let worker = shared.driver.fresh_worker();
    let blob_token = grant.token().to_owned();
    tracing::info!(
        %worker, address = %origin.address, name = %hello.name, key = %hello.public_key,
        trusted, "welcomed a worker"
    );
    let joining = Joining {
        worker,
        key: hello.public_key.clone(),
        name: hello.name.clone(),
        kind: hello.kind,
        invite,
    };
    let sent_away =
        ledger.joined(joining, record.clone()).map_err(|error| handshake::unreadable(&error))?;
    let welcome = ToWorker::Welcome { worker, blob_token, trusted };
    let (sender, outbox) = mpsc::channel(OUTBOX_MAX);
    let spec = handshake::spec(hello, worker, trusted, origin, record.as_ref());
    let joined = async {
        send_control(sink, &welcome).await.ok()?;
        shared.driver.join(spec, sender).await.ok()
    };
    if joined.await.is_none() {
        ledger.left(worker, "it hung up before it was in");
        return Err(None);
    }
    Counters::add(&shared.counters.welcomed);
    Ok(Welcomed { worker, trusted, outbox, sent_away, _grant: grant, _room: room })
}

/// The peer's first message; `None` if it has hung up.
async fn first_text(source: &mut Source) -> Result<Option<String>, String> {
    loop {
        match source.next().await {
            None | Some(Ok(Message::Close(_))) => return Ok(None),
            Some(Err(error)) => return Err(error.to_string()),
            Some(Ok(Message::Text(json))) => return Ok(Some(json.as_str().to_owned())),
            Some(Ok(Message::Binary(_))) => {
                return Err("the first message has to be a hello".into());
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
        }
    }
}

/// Turns the worker's messages into events until there are no more.
async fn read(
    shared: &Shared,
    worker: WorkerId,
    source: &mut Source,
    pings: &Pings,
    asked: &Asked,
) -> End {
    let mut frames = Reassembler::new();
    let mut allowance = Allowance::new(Instant::now());
    let mut draining = false;
    loop {
        let message = match timeout(SILENCE_MAX, source.next()).await {
            Err(_elapsed) => return End::Silence,
            Ok(None) => return End::Closed("its connection ended".into()),
            Ok(Some(Err(error))) => return broken(&error),
            Ok(Some(Ok(message))) => message,
        };
        if matches!(message, Message::Text(_)) && !allowance.take(Instant::now()) {
            return End::Violation(format!(
                "more than {CONTROL_PER_S_MAX} control messages a second"
            ));
        }
        let event = match message {
            Message::Text(json) => match FromWorker::from_json(json.as_str()) {
                // Once is enough.
                Ok(FromWorker::Drain { .. }) if draining => None,
                Ok(message) => match control_event(worker, message, pings) {
                    Ok(event) => event,
                    Err(reason) => return End::Violation(reason),
                },
                Err(error) => return End::Violation(error.to_string()),
            },
            Message::Binary(piece) if is_relay(&piece) => {
                let relayed = match asked.trusted {
                    true => shared.driver.relay(worker, &piece).await,
                    false => Err("only trusted workers take part in tensor groups".into()),
                };
                match relayed {
                    Ok(()) => None,
                    Err(reason) => return End::Violation(reason),
                }
            }
            Message::Binary(chunk) => match asked.bound(&mut frames).push(chunk) {
                Ok(Some(frame)) if frame.kind == FrameKind::Result => {
                    Some(Event::Result { worker, frame })
                }
                Ok(Some(_)) => return End::Violation("a step came from a worker".into()),
                Ok(None) => None,
                Err(error) => return End::Violation(error.to_string()),
            },
            Message::Ping(_) | Message::Pong(_) => None,
            Message::Close(_) => return End::Closed("it closed its connection".into()),
        };
        draining |= matches!(event, Some(Event::Drain { .. }));
        if let Some(event) = event
            && shared.driver.event(event).await.is_err()
        {
            return End::Shutdown;
        }
    }
}

/// What a control message means to the scheduler, if anything.
fn control_event(
    worker: WorkerId,
    message: FromWorker,
    pings: &Pings,
) -> Result<Option<Event>, String> {
    Ok(match message {
        FromWorker::Hello(_) => return Err("a second hello".into()),
        FromWorker::Ready { assignment } => Some(Event::Ready { worker, assignment }),
        FromWorker::Failed { assignment, reason } => {
            Some(Event::Failed { worker, assignment, reason })
        }
        FromWorker::Drain { reason } => Some(Event::Drain { worker, reason }),
        FromWorker::Visibility { hidden } => Some(Event::Visibility { worker, hidden }),
        FromWorker::Progress { assignment, bytes_done, bytes_total: _ } => {
            Some(Event::Progress { worker, assignment, bytes_done })
        }
        FromWorker::Pong { nonce } => {
            pings.answered(nonce).map(|rtt| Event::RoundTrip { worker, rtt })
        }
    })
}

/// A socket error: the network's, or the peer's fault if it broke the WebSocket's rules or
/// our size limits.
fn broken(error: &axum::Error) -> End {
    let text = error.to_string();
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    let io = causes.into_iter().any(|cause| cause.is::<std::io::Error>());
    // What a killed worker's end looks like; the library's error type is not reachable here.
    match io || text.contains("without closing handshake") {
        true => End::Closed(format!("its connection broke: {text}")),
        false => End::Violation(text),
    }
}

/// Sends what the driver queued, in that order, and pings, which go between a frame's chunks.
async fn write(
    sink: &mut Sink,
    mut outbox: mpsc::Receiver<Down>,
    pings: &Pings,
    asked: &Asked,
) -> End {
    let lost = |error: axum::Error| End::Closed(format!("its connection broke: {error}"));
    let mut frames_sent = 0u32;
    loop {
        let next = match outbox.try_recv() {
            Ok(next) => Some(next),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                if let Err(error) = sink.flush().await {
                    return lost(error);
                }
                match timeout_at(pings.due().into(), outbox.recv()).await {
                    Ok(next) => next,
                    Err(_elapsed) => {
                        if let Err(error) = ping_if_due(sink, pings).await {
                            return lost(error);
                        }
                        continue;
                    }
                }
            }
        };
        let sent = match next {
            None => return End::Released,
            Some(Down::Control(message)) => feed_control(sink, &message).await,
            Some(Down::Relay(piece)) => sink.feed(Message::Binary(piece)).await,
            Some(Down::Frame(frame)) => match Chunks::new(&frame, frames_sent) {
                Ok(chunks) => {
                    frames_sent = frames_sent.wrapping_add(1);
                    asked.note(&frame);
                    feed_chunks(sink, chunks, pings).await
                }
                Err(error) => {
                    // Ours, not the worker's: its step will miss its deadline.
                    tracing::error!(%error, step = frame.step, "a step could not be encoded");
                    Ok(())
                }
            },
        };
        if let Err(error) = sent {
            return lost(error);
        }
    }
}

async fn feed_chunks(sink: &mut Sink, chunks: Chunks, pings: &Pings) -> Result<(), axum::Error> {
    for chunk in chunks {
        debug_assert!(chunk.len() <= CHUNK_BYTES_MAX);
        sink.feed(Message::Binary(chunk)).await?;
        ping_if_due(sink, pings).await?;
    }
    Ok(())
}

async fn ping_if_due(sink: &mut Sink, pings: &Pings) -> Result<(), axum::Error> {
    match pings.begin_if_due() {
        Some(nonce) => feed_control(sink, &ToWorker::Ping { nonce }).await,
        None => Ok(()),
    }
}

async fn feed_control(sink: &mut Sink, message: &ToWorker) -> Result<(), axum::Error> {
    match message.to_json() {
        Ok(json) => sink.feed(Message::Text(json.into())).await,
        Err(error) => {
            tracing::error!(%error, "a control message could not be encoded");
            Ok(())
        }
    }
}

async fn send_control(sink: &mut Sink, message: &ToWorker) -> Result<(), axum::Error> {
    feed_control(sink, message).await?;
    sink.flush().await
}

/// Tells the peer why and closes.
async fn goodbye(mut sink: Sink, source: Source, reason: &str, retry: bool) {
    let dismiss = ToWorker::Dismiss { reason: clean_text(reason), retry };
    // It may be gone already, and a stuck one is not waited for.
    let _ = timeout(GOODBYE_WITHIN, send_control(&mut sink, &dismiss)).await;
    close(sink, source).await;
}

/// Closes in good order: reads on until the peer has closed too, so that what was sent last
/// is not lost to a reset.
async fn close(mut sink: Sink, mut source: Source) {
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    let _ = timeout(GOODBYE_WITHIN, async {
        let _ = sink.send(Message::Close(Some(frame))).await;
        while let Some(Ok(_)) = source.next().await {}
    })
    .await;
}

/// How many control messages a worker may still send: a bucket of [`CONTROL_BURST_MAX`] that
/// fills at [`CONTROL_PER_S_MAX`].
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Allowance {
        Allowance { left: f64::from(CONTROL_BURST_MAX), at: now }
    }

    /// Counts a message; false if it is one too many.
    fn take(&mut self, now: Instant) -> bool {
        let gained = (now - self.at).as_secs_f64() * f64::from(CONTROL_PER_S_MAX);
        self.left = (self.left + gained).min(f64::from(CONTROL_BURST_MAX));
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// The largest step that a worker was sent, shared by the two loops. Layers answer with as
/// many bytes as they were given; only the ends, which trusted workers hold, do not.
#[derive(Default)]
struct Asked {
    trusted: bool,
    bytes_max: AtomicUsize,
}

impl Asked {
    fn note(&self, step: &Frame) {
        let segments = step.segments.len() * codec::SEGMENT_BYTES;
        let bytes = codec::HEADER_BYTES + segments + step.payload.len();
        self.bytes_max.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Has longer answers refused before they are taken in.
    fn bound<'a>(&self, frames: &'a mut Reassembler) -> &'a mut Reassembler {
        if !self.trusted {
            frames.set_max_bytes(self.bytes_max.load(Ordering::Relaxed));
        }
        frames
    }
}

/// The ping in flight, shared by the two loops.
struct Pings(Mutex<PingState>);

struct PingState {
    due: Instant,
    nonce: u64,
    sent: Option<Instant>,
}

impl Default for Pings {
    /// The first is due at once.
    fn default() -> Pings {
        Pings(Mutex::new(PingState { due: Instant::now(), nonce: 0, sent: None }))
    }
}

impl Pings {
    fn due(&self) -> Instant {
        self.state().due
    }

    /// The nonce of a ping to send now, if one is due.
    fn begin_if_due(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state();
        if now < state.due {
            return None;
        }
        *state = PingState { due: now + PING_EVERY, nonce: state.nonce + 1, sent: Some(now) };
        Some(state.nonce)
    }

    /// The round trip, if this answers the ping in flight.
    fn answered(&self, nonce: u64) -> Option<Duration> {
        let mut state = self.state();
        if state.nonce != nonce {
            return None;
        }
        state.sent.take().map(|sent| sent.elapsed())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_control_messages_is_allowed_and_a_flood_is_not() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert!((0..CONTROL_BURST_MAX).all(|_| allowance.take(start)));
        assert!(!allowance.take(start), "one too many");
        let later = start + Duration::from_secs(1);
        assert!((0..CONTROL_PER_S_MAX).all(|_| allowance.take(later)));
        assert!(!allowance.take(later));
    }

    #[test]
    fn a_round_trip_is_measured_once_and_only_for_the_ping_in_flight() {
        let pings = Pings::default();
        let nonce = pings.begin_if_due().expect("the first is due at once");
        assert_eq!(pings.begin_if_due(), None, "the next is not");
        assert_eq!(pings.answered(nonce + 1), None);
        assert!(pings.answered(nonce).is_some());
        assert_eq!(pings.answered(nonce), None, "a pong said twice");
    }
}
