//! Small things of the worker's global scope.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use js_sys::{Promise, Reflect};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{DedicatedWorkerGlobalScope, MessageChannel, WorkerNavigator};

/// The global scope.
pub fn scope() -> DedicatedWorkerGlobalScope {
    js_sys::global().unchecked_into()
}

/// `navigator`.
pub fn navigator() -> WorkerNavigator {
    scope().navigator()
}

/// ms since this worker began; does not jump when the clock is set, and stands still in some
/// browsers while the machine sleeps.
pub fn now_ms() -> f64 {
    scope().performance().map_or_else(js_sys::Date::now, |performance| performance.now())
}

/// ms of the wall clock.
pub fn wall_ms() -> f64 {
    js_sys::Date::now()
}

/// Waits. Dropped before, it takes its timer along.
pub fn sleep(ms: f64) -> Sleep {
    let state: Rc<State> = Rc::default();
    let told = state.clone();
    let callback = Closure::once(move || {
        told.over.set(true);
        if let Some(waker) = told.waker.take() {
            waker.wake();
        }
    });
    let ms = ms.clamp(0.0, f64::from(i32::MAX)) as i32;
    let call = callback.as_ref().unchecked_ref();
    // Only a worker that is being ended has no timers.
    let timer = scope().set_timeout_with_callback_and_timeout_and_arguments_0(call, ms).ok();
    Sleep { state, timer, _callback: callback }
}

/// See [`sleep`].
pub struct Sleep {
    state: Rc<State>,
    timer: Option<i32>,
    _callback: Closure<dyn FnMut()>,
}

#[derive(Default)]
struct State {
    over: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.state.over.get() {
            return Poll::Ready(());
        }
        self.state.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.filter(|_| !self.state.over.get()) {
            scope().clear_timeout_with_handle(timer);
        }
    }
}

/// Lets the event loop deliver what waits. A message to oneself: timers are held back by 4 ms
/// after a few in a row.
pub async fn yield_now() {
    let Ok(channel) = MessageChannel::new() else { return sleep(0.0).await };
    let port = channel.port1();
    let promise = Promise::new(&mut |resolve, _| port.set_onmessage(Some(&resolve)));
    let sent = channel.port2().post_message(&JsValue::NULL);
    if sent.is_ok() {
        let _ = JsFuture::from(promise).await;
    }
    port.close();
}

/// What a thrown value says.
pub fn text(error: &JsValue) -> String {
    if let Some(error) = error.dyn_ref::<js_sys::Error>() {
        return error.message().into();
    }
    error.as_string().unwrap_or_else(|| format!("{error:?}"))
}

/// The name of a thrown error or DOM exception, `QuotaExceededError` for example.
pub fn name(error: &JsValue) -> String {
    get(error, "name").as_string().unwrap_or_default()
}

/// A property, or undefined.
pub fn get(object: &JsValue, key: &str) -> JsValue {
    Reflect::get(object, &JsValue::from_str(key)).unwrap_or(JsValue::UNDEFINED)
}

/// A method, if the object has it.
pub fn method(object: &JsValue, key: &str) -> Option<js_sys::Function> {
    get(object, key).dyn_into().ok()
}

/// To the browser's console.
pub fn warn(text: &str) {
    web_sys::console::warn_1(&JsValue::from_str(text));
}
