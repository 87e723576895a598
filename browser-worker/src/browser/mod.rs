//! What touches the browser.

mod backend;
mod benchmark;
mod compute;
mod credit;
mod download;
mod fetches;
mod helper;
mod helpers;
mod http;
mod identity;
mod inbox;
mod js;
mod lock;
mod prepare;
mod slot;
mod socket;
mod stay;
mod storage;
mod tab;
#[cfg(feature = "testing")]
mod testing;
mod weights;

use api::{FromTab, ToTab};
use wasm_bindgen::prelude::*;
use web_sys::MessageEvent;

use inbox::{Happened, Inbox};
use tab::{Tab, post};

/// The module's entry: listens to the page, and says that it does; or helps another worker.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|panic| {
        web_sys::console::error_1(&JsValue::from_str(&panic.to_string()));
        let reason = format!("the worker failed ({panic}): reload the page to start again");
        post(&FromTab::Failed { reason });
    }));
    if js::scope().location().search().ends_with(helper::QUERY) {
        return helper::start();
    }
    let inbox = Inbox::default();
    let told = inbox.clone();
    let listen = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        let json = event.data().as_string().unwrap_or_default();
        match serde_json::from_str::<ToTab>(&json) {
            Ok(message) => told.push(Happened::Page(message)),
            Err(error) => js::warn(&format!("the page said something else: {error}")),
        }
    });
    js::scope().set_onmessage(Some(listen.as_ref().unchecked_ref()));
    // It listens as long as the worker lives.
    listen.forget();
    wasm_bindgen_futures::spawn_local(Tab::new(inbox).run());
}
