//! The connection to the coordinator.

use std::collections::VecDeque;
use std::rc::Rc;

use protocol::{Chunks, Frame, FromWorker, SUBPROTOCOL};
use wasm_bindgen::prelude::*;
use web_sys::{BinaryType, CloseEvent, MessageEvent, WebSocket};

use super::inbox::{Happened, INBOX_MAX, Inbox, SocketEvent};
use super::js;
use crate::meter::Meter;

/// How long connecting may take, ms.
pub const CONNECT_MS_MAX: f64 = 10_000.0;
/// A coordinator that sends nothing for so long, not even a ping, is gone, ms.
pub const SILENCE_MS_MAX: f64 = 20_000.0;
/// Bytes that wait in the browser to be sent, above which the rest waits here, so that
/// control messages can still go first.
const BUFFERED_BYTES_MAX: u32 = 512 << 10;
/// Messages that wait here; a coordinator that lets more pile up is gone.
const QUEUE_MAX: usize = 1024;
/// Between looks whether there is room again, ms.
const LOOK_EVERY_MS: f64 = 10.0;
/// Nothing could be sent for so long: the coordinator is gone, ms.
const SEND_MS_MAX: f64 = 20_000.0;
/// Longest reason in a close frame, bytes (RFC 6455, 5.5).
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// One connection; dropping it closes it.
pub struct Socket {
    socket: WebSocket,
    number: u64,
    inbox: Inbox,
    meter: Rc<Meter>,
    control: VecDeque<String>,
    frames: VecDeque<Frame>,
    chunks: Option<Chunks>,
    next_frame: u32,
    /// Since when nothing could be sent, ms.
    stuck_since: Option<f64>,
    looking: bool,
    _callbacks: [Closure<dyn FnMut(JsValue)>; 3],
}

impl Socket {
    /// Begins to connect; what becomes of it goes to `inbox` as connection `number`.
    ///
    /// # Errors
    /// The browser refuses, in words.
    pub fn open(number: u64, inbox: &Inbox, meter: &Rc<Meter>) -> Result<Socket, String> {
        let location = js::scope().location();
        let scheme = if location.protocol() == "https:" { "wss" } else { "ws" };
        let url = format!("{scheme}://{}/v1/worker", location.host());
        let socket = WebSocket::new_with_str(&url, SUBPROTOCOL).map_err(|e| js::text(&e))?;
        socket.set_binary_type(BinaryType::Arraybuffer);
        let tell = |event: fn(JsValue, &Meter) -> SocketEvent| {
            let (inbox, meter) = (inbox.clone(), meter.clone());
            Closure::new(move |value: JsValue| {
                let event = match inbox.len() >= INBOX_MAX {
                    true => SocketEvent::Closed {
                        code: 1008,
                        reason: format!("over {INBOX_MAX} messages came at once"),
                    },
                    false => event(value, &meter),
                };
                inbox.push(Happened::Socket { connection: number, event });
            })
        };
        let opened = tell(|_, _| SocketEvent::Opened);
        let message = tell(|event, meter| {
            let data = event.unchecked_into::<MessageEvent>().data();
            match data.as_string() {
                Some(text) => {
                    meter.received(text.len());
                    SocketEvent::Text(text)
                }
                None => {
                    let bytes = js_sys::Uint8Array::new(&data).to_vec();
                    meter.received(bytes.len());
                    SocketEvent::Binary(bytes)
                }
            }
        });
        let closed = tell(|event, _| {
            let event = event.unchecked_into::<CloseEvent>();
            SocketEvent::Closed { code: event.code(), reason: event.reason() }
        });
        socket.set_onopen(Some(opened.as_ref().unchecked_ref()));
        socket.set_onmessage(Some(message.as_ref().unchecked_ref()));
        // An error is always followed by a close, which says more.
        socket.set_onclose(Some(closed.as_ref().unchecked_ref()));
        Ok(Socket {
            socket,
            number,
            inbox: inbox.clone(),
            meter: meter.clone(),
            control: VecDeque::new(),
            frames: VecDeque::new(),
            chunks: None,
            next_frame: 0,
            stuck_since: None,
            looking: false,
            _callbacks: [opened, message, closed],
        })
    }

    /// Sends a control message, before the chunks of frames that wait.
    ///
    /// # Errors
    /// The connection is of no more use, in words.
    pub fn send(&mut self, message: &FromWorker) -> Result<(), String> {
        self.control.push_back(message.to_json().map_err(|e| e.to_string())?);
        self.pump()
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// The connection is of no more use, in words.
    pub fn send_frame(&mut self, frame: Frame) -> Result<(), String> {
        self.frames.push_back(frame);
        self.pump()
    }

    /// There may be room again.
    ///
    /// # Errors
    /// The connection is of no more use, in words.
    pub fn look_again(&mut self) -> Result<(), String> {
        self.looking = false;
        self.pump()
    }

    fn pump(&mut self) -> Result<(), String> {
        if self.control.len() + self.frames.len() > QUEUE_MAX {
            return Err("the coordinator takes no messages".into());
        }
        while !self.is_empty() {
            // Beyond the owner's cap only what is said in leaving still goes.
            if self.control.is_empty() && self.meter.is_exhausted() {
                return Ok(());
            }
            if self.socket.buffered_amount() > BUFFERED_BYTES_MAX {
                return self.wait();
            }
            self.stuck_since = None;
            self.send_one()?;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.frames.is_empty() && self.chunks.is_none()
    }

    /// Sends a control message or a chunk.
    fn send_one(&mut self) -> Result<(), String> {
        let words = |error: JsValue| js::text(&error);
        if let Some(json) = self.control.pop_front() {
            self.meter.sent(json.len());
            return self.socket.send_with_str(&json).map_err(words);
        }
        if self.chunks.is_none()
            && let Some(frame) = self.frames.pop_front()
        {
            let chunks = Chunks::new(&frame, self.next_frame).map_err(|e| e.to_string())?;
            self.chunks = Some(chunks);
            self.next_frame = self.next_frame.wrapping_add(1);
        }
        match self.chunks.as_mut().and_then(Chunks::next) {
            Some(chunk) => {
                self.meter.sent(chunk.len());
                self.socket.send_with_u8_array(&chunk).map_err(words)
            }
            None => {
                self.chunks = None;
                Ok(())
            }
        }
    }

    /// Browsers do not tell when there is room again.
    fn wait(&mut self) -> Result<(), String> {
        let now = js::now_ms();
        if now - *self.stuck_since.get_or_insert(now) > SEND_MS_MAX {
            return Err(format!("nothing could be sent for {} s", SEND_MS_MAX / 1000.0));
        }
        if !self.looking {
            self.looking = true;
            let (inbox, connection) = (self.inbox.clone(), self.number);
            wasm_bindgen_futures::spawn_local(async move {
                js::sleep(LOOK_EVERY_MS).await;
                inbox.push(Happened::Socket { connection, event: SocketEvent::Drained });
            });
        }
        Ok(())
    }

    /// Closes it in good order; what was handed to the browser is still sent.
    pub fn close(&self, reason: &str) {
        let reason = protocol::clean_text_to(reason, CLOSE_REASON_BYTES_MAX);
        let _ = self.socket.close_with_code_and_reason(1000, &reason);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.socket.set_onopen(None);
        self.socket.set_onmessage(None);
        self.socket.set_onclose(None);
        let _ = self.socket.close();
    }
}
