//! The views, and how they reach the worker.

mod controls;
mod donate;
mod fleet;
mod live;
mod tab;

use leptos::mount::mount_to;
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::wasm_bindgen;
use web_sys::HtmlElement;

use crate::browser;
use crate::page::donate::Donate;
use crate::page::fleet::{Endpoint, FleetView};
use crate::page::tab::Tab;

/// Puts the views into the page, in the place of what stood there for the first paint.
#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
    let fleet = fleet::watch();
    let tab = Tab::new();
    tab.listen();
    replace("donate-view", move || view! { <Donate tab fleet/> });
    replace("fleet-view", move || view! { <FleetView tab fleet/> });
    replace("endpoint-view", move || view! { <Endpoint fleet/> });
}

fn replace<V: IntoView + 'static>(id: &str, view: impl FnOnce() -> V + 'static) {
    let place = browser::document().get_element_by_id(id).expect("index.html has this place");
    place.set_inner_html("");
    let place: HtmlElement = place.unchecked_into();
    mount_to(place, view).forget();
}
