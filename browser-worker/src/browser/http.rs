//! Requests to the coordinator: `fetch`, never through the browser's own cache.

use std::rc::Rc;

use futures_util::future::{Either, select};
use js_sys::Uint8Array;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    AbortController, Headers, ReadableStreamDefaultReader, RequestCache, RequestInit, Response,
};

use super::js;
use crate::meter::Meter;

/// No byte for so long: the request has failed, ms.
pub const STALL_MS_MAX: f64 = 20_000.0;

/// Ends the requests made with it; clones are the same one. Those that it was cancelled
/// before fail at once.
#[derive(Clone)]
pub struct Cancel(Rc<AbortController>);

impl Cancel {
    /// One that is not cancelled.
    ///
    /// # Errors
    /// The browser has none, in words.
    pub fn new() -> Result<Cancel, String> {
        Ok(Cancel(Rc::new(AbortController::new().map_err(|e| js::text(&e))?)))
    }

    /// Ends the requests.
    pub fn cancel(&self) {
        self.0.abort();
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.signal().aborted()
    }

    /// For what takes a signal.
    pub fn signal(&self) -> web_sys::AbortSignal {
        self.0.signal()
    }
}

/// An answer whose body has not been read.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    response: Response,
    reader: Option<ReadableStreamDefaultReader>,
}

/// `GET path` on the page's own origin.
///
/// # Errors
/// There was no answer; why, in words as far as browsers tell.
pub async fn get(path: &str, headers: &[(&str, &str)], cancel: &Cancel) -> Result<Answer, String> {
    let words = |error: JsValue| js::text(&error);
    let init = RequestInit::new();
    init.set_cache(RequestCache::NoStore);
    init.set_signal(Some(&cancel.signal()));
    let list = Headers::new().map_err(words)?;
    for (name, value) in headers {
        list.set(name, value).map_err(words)?;
    }
    init.set_headers(&list);
    let response = JsFuture::from(js::scope().fetch_with_str_and_init(path, &init));
    let response: Response = in_time(response).await?.map_err(words)?.unchecked_into();
    Ok(Answer { status: response.status(), response, reader: None })
}

impl Answer {
    /// A header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.response.headers().get(name).ok().flatten()
    }

    /// The next piece of the body, counted by `meter`; `None` at its end.
    ///
    /// # Errors
    /// The connection broke, stalled, or was cancelled; in words.
    pub async fn piece(&mut self, meter: &Meter) -> Result<Option<Vec<u8>>, String> {
        if self.reader.is_none() {
            let Some(body) = self.response.body() else { return Ok(None) };
            self.reader = Some(body.get_reader().unchecked_into());
        }
        let Some(reader) = &self.reader else { return Ok(None) };
        let read = in_time(JsFuture::from(reader.read())).await?.map_err(|e| js::text(&e))?;
        let value = js::get(&read, "value");
        match js::get(&read, "done").is_truthy() || value.is_undefined() {
            true => Ok(None),
            false => {
                let piece = value.unchecked_into::<Uint8Array>().to_vec();
                meter.received(piece.len());
                Ok(Some(piece))
            }
        }
    }

    /// Reads the body to its end and forgets it.
    ///
    /// # Errors
    /// As [`Answer::piece`].
    pub async fn drain(&mut self, meter: &Meter) -> Result<usize, String> {
        let mut bytes = 0;
        while let Some(piece) = self.piece(meter).await? {
            bytes += piece.len();
        }
        Ok(bytes)
    }
}

impl Answer {
    /// Nobody wants the rest.
    pub fn abandon(self) {
        if let Some(reader) = &self.reader {
            // Its promise says nothing that matters now.
            let _ = reader.cancel();
        }
    }
}

/// A future that may take [`STALL_MS_MAX`].
async fn in_time<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let (future, stalled) = (Box::pin(future), Box::pin(js::sleep(STALL_MS_MAX)));
    match select(future, stalled).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(_) => Err(format!("nothing came for {} s", STALL_MS_MAX / 1000.0)),
    }
}
