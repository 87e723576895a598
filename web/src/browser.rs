//! The few interfaces of the browser that the page uses.

use js_sys::{Function, Promise, Reflect};
use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    Document, ErrorEvent, EventTarget, MessageEvent, RequestCache, RequestInit, Response, Storage,
    UrlSearchParams, Window, Worker, WorkerOptions, WorkerType,
};

/// The worker's module; nothing of it is fetched before the first click.
const WORKER: &str = "/worker/worker.js";

/// Wakes the page in time also while it is hidden, when its own timers are held back.
const ALARM: &str = "/worker/alarm.js";

/// The page's window.
pub fn window() -> Window {
    web_sys::window().expect("a page has a window")
}

/// The page's document.
pub fn document() -> Document {
    window().document().expect("a window has a document")
}

/// Whether nobody sees the page.
pub fn hidden() -> bool {
    document().hidden()
}

/// The value of a parameter in the page's address.
pub fn parameter(name: &str) -> Option<String> {
    let search = window().location().search().ok()?;
    UrlSearchParams::new_with_str(&search).ok()?.get(name)
}

/// Where the page comes from: `https://host:port`.
pub fn origin() -> String {
    window().location().origin().unwrap_or_default()
}

/// Whether the browser trusts the connection, and whether it offers WebGPU.
pub fn secure_and_gpu() -> (bool, bool) {
    let gpu = property(&window().navigator(), "gpu").is_some_and(|gpu| gpu.is_object());
    (window().is_secure_context(), gpu)
}

/// The machine's memory in GiB, where the browser says it.
pub fn memory_gib() -> Option<f64> {
    property(&window().navigator(), "deviceMemory").and_then(|memory| memory.as_f64())
}

/// The machine's processor cores, where the browser says it.
pub fn cores() -> Option<u32> {
    let cores = property(&window().navigator(), "hardwareConcurrency")?.as_f64()?;
    (cores >= 1.0).then_some(cores as u32)
}

/// Whether threads of this page may share memory.
pub fn is_isolated() -> bool {
    property(&window(), "crossOriginIsolated").is_some_and(|isolated| isolated.is_truthy())
}

/// What is kept under this key; `None` also where nothing can be kept.
pub fn kept(key: &str) -> Option<String> {
    storage()?.get_item(key).ok()?
}

/// Keeps it; where nothing can be kept, it lasts as long as the page.
pub fn keep(key: &str, value: &str) {
    if let Some(storage) = storage() {
        let _ = storage.set_item(key, value);
    }
}

/// Keeps it no longer.
pub fn forget(key: &str) {
    if let Some(storage) = storage() {
        let _ = storage.remove_item(key);
    }
}

fn storage() -> Option<Storage> {
    window().local_storage().ok()?
}

/// Calls back at each such event, as long as the page lives.
pub fn on(target: &EventTarget, event: &str, call: impl FnMut(web_sys::Event) + 'static) {
    let closure = Closure::<dyn FnMut(web_sys::Event)>::new(call).into_js_value();
    let added = target.add_event_listener_with_callback(event, closure.unchecked_ref());
    added.expect("a listener can be added");
}

/// Calls back once, in so many milliseconds.
pub fn after(ms: u32, call: impl FnOnce() + 'static) {
    let closure = Closure::once_into_js(call);
    let ms = i32::try_from(ms).unwrap_or(i32::MAX);
    let set =
        window().set_timeout_with_callback_and_timeout_and_arguments_0(closure.unchecked_ref(), ms);
    set.expect("a timer can be set");
}

/// Waits so many milliseconds.
pub async fn sleep(ms: u32) {
    let promise = Promise::new(&mut |resolve: Function, _| {
        after(ms, move || {
            let _ = resolve.call0(&JsValue::NULL);
        });
    });
    let _ = JsFuture::from(promise).await;
}

/// `GET path` as JSON.
///
/// # Errors
/// What went wrong, in words.
pub async fn get<T: DeserializeOwned>(path: &str) -> Result<T, String> {
    let asked = RequestInit::new();
    asked.set_cache(RequestCache::NoStore);
    let answer = JsFuture::from(window().fetch_with_str_and_init(path, &asked));
    let answer = answer.await.map_err(|_| "the coordinator cannot be reached".to_owned())?;
    let answer: Response = answer.dyn_into().map_err(|_| "no response".to_owned())?;
    if !answer.ok() {
        return Err(format!("the coordinator answered {path} with status {}", answer.status()));
    }
    let text = answer.text().map_err(|_| "no body".to_owned())?;
    let text = JsFuture::from(text).await.map_err(|_| "the connection broke".to_owned())?;
    let text = text.as_string().unwrap_or_default();
    serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))
}

/// Asks the browser not to evict what is kept here when its disk runs short. It may say no, or
/// ask its owner.
pub fn persist() {
    let storage = property(&window().navigator(), "storage");
    let persist = storage.as_ref().and_then(|storage| property(storage, "persist"));
    let persist = persist.and_then(|persist| persist.dyn_into::<Function>().ok());
    if let (Some(storage), Some(persist)) = (storage, persist) {
        // The answer changes nothing here: layers that are gone are fetched again.
        let _ = persist.call0(&storage);
    }
}

/// The worker's address; `?simd=128` of the page is passed on.
fn worker_address() -> String {
    match parameter("simd").as_deref() {
        Some("128") => format!("{WORKER}?simd=128"),
        _ => WORKER.to_owned(),
    }
}

/// Loads the worker. What it says, and an error that it cannot catch itself, come back.
///
/// # Errors
/// If the browser has no module workers.
pub fn spawn(
    said: impl Fn(String) + 'static,
    broke: impl Fn(String) + 'static,
) -> Result<Worker, String> {
    let options = WorkerOptions::new();
    options.set_type(WorkerType::Module);
    let worker = Worker::new_with_options(&worker_address(), &options)
        .map_err(|_| "This browser cannot run module workers.".to_owned())?;
    on(&worker, "message", move |event| {
        let message: MessageEvent = event.unchecked_into();
        if let Some(text) = message.data().as_string() {
            said(text);
        }
    });
    on(&worker, "error", move |event| {
        event.prevent_default();
        let message = event.dyn_ref::<ErrorEvent>().map(ErrorEvent::message);
        let why = message.filter(|why| !why.is_empty());
        broke(why.unwrap_or_else(|| "its code could not be loaded".to_owned()));
    });
    Ok(worker)
}

/// Loads the alarm, whose messages are the numbers it was set with; `None` where that cannot be.
pub fn alarm(rang: impl Fn(u32) + 'static) -> Option<Worker> {
    let alarm = Worker::new(ALARM).ok()?;
    on(&alarm, "message", move |event| {
        let message: MessageEvent = event.unchecked_into();
        if let Some(number) = message.data().as_f64() {
            rang(number as u32);
        }
    });
    Some(alarm)
}

/// Has the alarm ring with this number after so many milliseconds.
pub fn set_alarm(alarm: &Worker, number: u32, ms: u32) {
    let set = js_sys::Array::of2(&number.into(), &ms.into());
    // The page's own timer is there as well.
    let _ = alarm.post_message(&set);
}

/// Tells whether the machine is charging, now and at each change. Never calls back where the
/// browser does not say; `false` then.
pub fn watch_charging(call: impl Fn(bool) + 'static) -> bool {
    let navigator = window().navigator();
    let get = property(&navigator, "getBattery").and_then(|get| get.dyn_into::<Function>().ok());
    let Some(promise) = get.and_then(|get| get.call0(&navigator).ok()) else { return false };
    wasm_bindgen_futures::spawn_local(async move {
        let Ok(promise) = promise.dyn_into::<Promise>() else { return };
        let Ok(battery) = JsFuture::from(promise).await else { return };
        let charging = |battery: &JsValue| {
            property(battery, "charging").is_none_or(|charging| charging.is_truthy())
        };
        call(charging(&battery));
        let target: EventTarget = battery.clone().unchecked_into();
        on(&target, "chargingchange", move |_| call(charging(&battery)));
    });
    true
}

fn property(of: &JsValue, name: &str) -> Option<JsValue> {
    let value = Reflect::get(of, &JsValue::from_str(name)).ok()?;
    (!value.is_undefined() && !value.is_null()).then_some(value)
}
