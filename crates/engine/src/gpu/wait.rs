//! Waiting for what wgpu reports through callbacks.
//!
//! In a browser callbacks come from the event loop. Natively they come only while somebody
//! polls the device, so there the future polls it, and sleeps in that poll for a while: any
//! executor will do, [`block_on`] too, but one thread waits for one device. The first poll only
//! looks: who has other things to look at does so before this sleeps, and a future of work that
//! was just submitted is always pending once, on the fastest device too.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::handle::Handle;

/// Longest sleep inside one poll of a future.
#[cfg(not(target_arch = "wasm32"))]
const POLL_MAX: std::time::Duration = std::time::Duration::from_millis(20);

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    is_sent: bool,
}

/// The end that a callback holds.
pub(crate) struct Sender<T>(Arc<Mutex<State<T>>>);

/// The end that is awaited; `None` if the callback was dropped without being called, or the
/// device was lost.
pub(crate) struct Receiver<T> {
    state: Arc<Mutex<State<T>>>,
    handle: Handle,
    #[cfg(not(target_arch = "wasm32"))]
    was_polled: bool,
}

/// A pair for one value.
pub(crate) fn channel<T>(handle: &Handle) -> (Sender<T>, Receiver<T>) {
    let state = Arc::new(Mutex::new(State { value: None, waker: None, is_sent: false }));
    let receiver = Receiver {
        state: state.clone(),
        handle: handle.clone(),
        #[cfg(not(target_arch = "wasm32"))]
        was_polled: false,
    };
    (Sender(state), receiver)
}

fn lock<T>(state: &Mutex<State<T>>) -> std::sync::MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Sender<T> {
    pub(crate) fn send(self, value: T) {
        lock(&self.0).value = Some(value);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_sent = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    fn look(&self) -> Option<Option<T>> {
        let mut state = lock(&self.state);
        let value = state.value.take();
        (value.is_some() || state.is_sent).then_some(value)
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let this = self.get_mut();
        if let Some(value) = this.look() {
            return Poll::Ready(value);
        }
        #[cfg(not(target_arch = "wasm32"))]
        {
            if std::mem::replace(&mut this.was_polled, true) {
                this.handle.poll(POLL_MAX);
            }
            if let Some(value) = this.look() {
                return Poll::Ready(value);
            }
            if this.handle.lost().is_some() {
                return Poll::Ready(None);
            }
            context.waker().wake_by_ref();
        }
        #[cfg(target_arch = "wasm32")]
        {
            if this.handle.lost().is_some() {
                return Poll::Ready(None);
            }
            let mut state = lock(&this.state);
            state.waker = Some(context.waker().clone());
            this.handle.wake_when_lost(context.waker());
        }
        Poll::Pending
    }
}

/// Runs a future of this module's to its end on the calling thread.
#[cfg(not(target_arch = "wasm32"))]
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::park();
    }
}
