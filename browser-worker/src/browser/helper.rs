//! What a helper does, a Web Worker of the same code: it measures itself, or holds its share of
//! a shard's rows and computes what its chief, the tab's worker, orders. Its chief ends it.

use std::cell::RefCell;
use std::rc::Rc;

use engine::crew::{Cut, Share, Tiles, slot};
use js_sys::{Array, Uint8Array};
use model::Layout;
use wasm_bindgen::prelude::*;
use web_sys::MessageEvent;

use super::js;
use super::slot::{SharedBytes, shared};

/// Ends the worker's address where it is to be a helper.
pub const QUERY: &str = "helper";
/// The folder of this module, which a helper's `worker.js` is told, with the module.
pub const MODULE: &str = if cfg!(target_feature = "relaxed-simd") { "relaxed" } else { "simd128" };
/// What tiles may lie in, by number.
const LAYOUTS: [Layout; 6] =
    [Layout::Q4S, Layout::Q4M, Layout::Q4K, Layout::Q5S, Layout::Q6K, Layout::Q8];

/// What a chief says to a helper. Whatever the helper says in words is an error.
pub enum Say<'a> {
    /// Measure: the answer is the two rates of [`shards::benchmark::bytes_per_s`].
    Measure,
    /// Hold its share of the span's next product; no answer.
    Hold(&'a Cut<&'a [u8]>),
    /// Is all that held? `true`.
    Held,
    /// Serve what is held, in the [`SharedBytes`] that are the answer, and hear nothing more.
    Serve,
}

impl Say<'_> {
    /// For `postMessage`, and what is to be transferred.
    pub fn to_js(&self) -> (JsValue, Array) {
        let (fields, transfer) = (Array::new(), Array::new());
        let say = |number: usize| fields.push(&JsValue::from(number as u32));
        match self {
            Say::Measure => say(0),
            Say::Hold(cut) => {
                say(1);
                say(cut.columns_max);
                for tiles in &cut.matrices {
                    let layout = LAYOUTS.iter().position(|layout| *layout == tiles.layout);
                    for number in [layout.unwrap_or(LAYOUTS.len()), tiles.rows, tiles.cols] {
                        say(number);
                    }
                    let bytes = Uint8Array::from(tiles.bytes);
                    fields.push(&bytes);
                    transfer.push(&bytes.buffer());
                }
                fields.length()
            }
            Say::Held => say(2),
            Say::Serve => say(3),
        };
        (fields.into(), transfer)
    }
}

/// A cut of those fields; `None` if it is none.
fn cut(fields: &Array) -> Option<Cut<Vec<u8>>> {
    let number = |at| fields.get(at).as_f64().map(|number| number as usize);
    let tiles = |at| {
        Some(Tiles {
            layout: *LAYOUTS.get(number(at)?)?,
            rows: number(at + 1)?,
            cols: number(at + 2)?,
            bytes: fields.get(at + 3).dyn_into::<Uint8Array>().ok()?.to_vec(),
        })
    };
    let matrices = (2..fields.length()).step_by(4).map(tiles).collect::<Option<_>>()?;
    Some(Cut { columns_max: number(1)?, matrices })
}

/// Listens.
pub fn start() {
    let share = Rc::new(RefCell::new(Share::default()));
    let listen = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        match hear(&event.data().unchecked_into(), &share) {
            Ok(Some(answer)) => say(&answer),
            Ok(None) => {}
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

fn hear(said: &Array, share: &Rc<RefCell<Share>>) -> Result<Option<JsValue>, String> {
    match said.get(0).as_f64().unwrap_or_default() as u32 {
        0 => {
            let rates = shards::benchmark::bytes_per_s(1, || js::now_ms() / 1000.0)?;
            Ok(Some(rates.into_iter().map(JsValue::from).collect::<Array>().into()))
        }
        1 => {
            let cut = cut(said).ok_or("it was given something other than tiles")?;
            share.borrow_mut().add(cut).map_err(|error| error.to_string())?;
            Ok(None)
        }
        2 => Ok(Some(JsValue::TRUE)),
        _ => {
            let mut share = share.take();
            let order_max = share.order_bytes_max();
            let buffer = shared(slot::bytes(order_max, share.answer_bytes_max()))?;
            let memory = SharedBytes::new(&buffer).ok_or("no shared memory")?;
            slot::prepare(&memory, order_max);
            wasm_bindgen_futures::spawn_local(async move {
                // What is posted goes out first.
                js::yield_now().await;
                if let Err(error) = slot::serve(&memory, &mut share) {
                    say(&error.to_string().into());
                }
            });
            Ok(Some(buffer.into()))
        }
    }
}
