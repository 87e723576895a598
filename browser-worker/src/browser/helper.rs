//! What a helper does, a Web Worker of the same code: it measures itself, or holds its share of
//! a shard's rows and computes what its chief, the tab's worker, orders. Its chief ends it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use engine::BlobBytes;
use engine::crew::{Share, slot};
use js_sys::{Array, Map, Uint8Array};
use model::Manifest;
use wasm_bindgen::prelude::*;
use web_sys::MessageEvent;

use super::js;
use super::slot::{SharedBytes, shared};

/// Ends the worker's address where it is to be a helper.
pub const QUERY: &str = "helper";

/// What a chief says to a helper. It answers each, after a first `true` once it listens; an
/// answer in words is an error.
pub enum Say {
    /// Measure: the answer is the two rates of [`shards::benchmark::bytes_per_s`].
    Measure,
    /// Hold nothing yet, of that manifest, as which helper of how many: the answer is `true`.
    Begin(Uint8Array, [usize; 2]),
    /// Hold its tiles of the next part, whose blobs by hash are `Uint8Array`s of shared memory:
    /// `true`.
    Part(u32, Map),
    /// Serve what was held, in the [`SharedBytes`] that are the answer, and hear nothing more.
    Serve,
}

impl Say {
    /// For `postMessage`.
    pub fn to_js(&self) -> JsValue {
        let fields = Array::new();
        let say = |field: JsValue| {
            fields.push(&field);
        };
        match self {
            Say::Measure => say(0.into()),
            Say::Begin(manifest, [helper, helpers]) => {
                say(1.into());
                say(manifest.into());
                say((*helper as u32).into());
                say((*helpers as u32).into());
            }
            Say::Part(part, blobs) => {
                say(2.into());
                say((*part).into());
                say(blobs.into());
            }
            Say::Serve => say(3.into()),
        }
        fields.into()
    }

    fn from_js(message: JsValue) -> Say {
        let fields: Array = message.unchecked_into();
        let number = |at| fields.get(at).as_f64().unwrap_or_default() as u32;
        match number(0) {
            0 => Say::Measure,
            1 => {
                let place = [number(2) as usize, number(3) as usize];
                Say::Begin(fields.get(1).unchecked_into(), place)
            }
            2 => Say::Part(number(1), fields.get(2).unchecked_into()),
            _ => Say::Serve,
        }
    }
}

/// What it holds.
type Held = Option<(Manifest, Share)>;

/// Listens.
pub fn start() {
    let held: Rc<RefCell<Held>> = Rc::default();
    let listen = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        match hear(Say::from_js(event.data()), &mut held.borrow_mut()) {
            Ok(answer) => say(&answer),
            Err(reason) => say(&reason.into()),
        }
    });
    js::scope().set_onmessage(Some(listen.as_ref().unchecked_ref()));
    listen.forget();
    say(&JsValue::TRUE);
}

fn say(message: &JsValue) {
    // Only one that is being ended has no chief.
    let _ = js::scope().post_message(message);
}

fn hear(said: Say, held: &mut Held) -> Result<JsValue, String> {
    match said {
        Say::Measure => {
            let rates = shards::benchmark::bytes_per_s(1, || js::now_ms() / 1000.0)?;
            Ok(rates.into_iter().map(JsValue::from).collect::<Array>().into())
        }
        Say::Begin(manifest, [helper, helpers]) => {
            let manifest = Manifest::from_bytes(&manifest.to_vec());
            let manifest = manifest.map_err(|error| error.to_string())?;
            *held = Some((manifest, Share::new(helper, helpers)));
            Ok(JsValue::TRUE)
        }
        Say::Part(part, blobs) => {
            let (manifest, share) = held.as_mut().ok_or("a part before the manifest")?;
            let mut get = |hash: &str| {
                let blob = blobs.get(&hash.into());
                let there = !blob.is_undefined();
                there.then(|| Arc::new(blob.unchecked_into::<Uint8Array>().to_vec()) as BlobBytes)
            };
            share.add(manifest, part, &mut get).map_err(|error| error.to_string())?;
            Ok(JsValue::TRUE)
        }
        Say::Serve => {
            let (_, mut share) = held.take().ok_or("nothing to serve")?;
            let order_max = share.order_bytes_max();
            let buffer = shared(slot::bytes(order_max, share.answer_bytes_max()))?;
            let memory = SharedBytes::new(&buffer).ok_or("no shared memory")?;
            slot::prepare(&memory, order_max);
            wasm_bindgen_futures::spawn_local(async move {
                // What is posted goes out first.
                js::yield_now().await;
                slot::serve(&memory, &mut share);
            });
            Ok(buffer.into())
        }
    }
}
