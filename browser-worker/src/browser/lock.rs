//! One worker per origin: the browser's Web Locks.

use std::cell::RefCell;
use std::rc::Rc;

use js_sys::{Object, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::AbortSignal;

use super::js;

const NAME: &str = "weft-worker";

/// Held until it is dropped, or this worker ends.
pub struct Lock {
    /// Lets it go; none where the browser has no locks.
    release: Option<js_sys::Function>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(release) = &self.release {
            let _ = release.call0(&JsValue::UNDEFINED);
        }
    }
}

/// The lock, or `None` if another tab of this origin has it.
pub async fn try_take() -> Option<Lock> {
    let options = Object::new();
    let _ = Reflect::set(&options, &"ifAvailable".into(), &true.into());
    request(&options).await
}

/// Waits for the lock; `None` once `signal` says so.
pub async fn take(signal: &AbortSignal) -> Option<Lock> {
    let options = Object::new();
    let _ = Reflect::set(&options, &"signal".into(), signal);
    request(&options).await
}

async fn request(options: &Object) -> Option<Lock> {
    let locks = js::get(&js::navigator(), "locks");
    let Some(request) = js::method(&locks, "request") else {
        return Some(Lock { release: None }); // a browser without locks
    };
    // The lock is held as long as the promise that the callback gives is open.
    let release: Rc<RefCell<Option<js_sys::Function>>> = Rc::default();
    let granted = Promise::new(&mut |tell, _| {
        let release = release.clone();
        let tell_not = tell.clone();
        let callback = Closure::once_into_js(move |lock: JsValue| -> JsValue {
            if lock.is_null() {
                let _ = tell.call1(&JsValue::UNDEFINED, &JsValue::FALSE);
                return JsValue::UNDEFINED;
            }
            let held = Promise::new(&mut |resolve, _| *release.borrow_mut() = Some(resolve));
            let _ = tell.call1(&JsValue::UNDEFINED, &JsValue::TRUE);
            held.into()
        });
        let requested = request.call3(&locks, &NAME.into(), options, &callback);
        // Refused, or aborted while it waited: whoever asks is told that there is none.
        let refused = Closure::once_into_js(move |_: JsValue| {
            let _ = tell_not.call1(&JsValue::UNDEFINED, &JsValue::FALSE);
        });
        match requested {
            Ok(requested) => {
                if let Some(catch) = js::method(&requested, "catch") {
                    let _ = catch.call1(&requested, &refused);
                }
            }
            Err(error) => {
                js::warn(&format!("no lock: {}", js::text(&error)));
                let _ = refused.unchecked_ref::<js_sys::Function>().call1(&error, &error);
            }
        }
    });
    let granted = JsFuture::from(granted).await.is_ok_and(|granted| granted.is_truthy());
    let release = release.borrow_mut().take();
    granted.then_some(Lock { release })
}
