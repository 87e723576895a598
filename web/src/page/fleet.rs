//! Who is here, and where requests go.

use api::{Fleet, FleetModel, FleetWorker};
use leptos::prelude::*;
use wasm_bindgen_futures::spawn_local;

use crate::browser;
use crate::page::donate::FleetSignal;
use crate::page::tab::Tab;
use crate::words;

/// How often the fleet is asked for while somebody looks, ms.
const ASK_EVERY_MS: u32 = 4000;
/// Once this tab does something else, the coordinator has heard of it after so long, ms.
const HEARD_MS: u32 = 500;
/// Replicas of a layer that the picture tells apart.
const REPLICAS_SHOWN_MAX: u32 = 3;

/// Asks for the fleet again and again, while the page is seen.
pub fn watch() -> FleetSignal {
    let fleet: FleetSignal = RwSignal::new(None);
    spawn_local(async move {
        loop {
            if !browser::hidden() || fleet.with_untracked(Option::is_none) {
                ask(fleet).await;
            }
            browser::sleep(ASK_EVERY_MS).await;
        }
    });
    fleet
}

async fn ask(fleet: FleetSignal) {
    fleet.set(Some(browser::get::<Fleet>("/v1/fleet").await));
}

/// Asks at once when this tab does something else, so that both views say the same of it.
fn follow(tab: Tab, fleet: FleetSignal) {
    let phase = Memo::new(move |_| tab.donor.with(words::phase_name));
    Effect::new(move |before: Option<&'static str>| {
        let now = phase.get();
        if before.is_some_and(|before| before != now) {
            browser::after(HEARD_MS, move || spawn_local(ask(fleet)));
        }
        now
    });
}

/// Models and workers.
#[component]
pub fn FleetView(tab: Tab, fleet: FleetSignal) -> impl IntoView {
    follow(tab, fleet);
    let last = Memo::new(move |last: Option<&Option<Fleet>>| {
        let now = fleet.with(|fleet| fleet.as_ref().and_then(|f| f.as_ref().ok().cloned()));
        now.or_else(|| last.cloned().flatten())
    });
    let problem =
        Memo::new(move |_| fleet.with(|f| f.as_ref().and_then(|f| f.as_ref().err().cloned())));
    let shown = move || {
        last.get().map(|fleet| {
        let running = fleet.sessions.len();
        let models: Vec<_> = fleet.models.into_iter().map(model).collect();
        let none = fleet.workers.is_empty().then(|| view! { <p class="soft">"Nobody is here yet."</p> });
        let workers: Vec<_> = fleet.workers.into_iter().map(worker).collect();
        let plural = if running == 1 { "" } else { "s" };
        view! {
            <ul class="models">{models}</ul>
            {none}
            <ul class="workers">{workers}</ul>
            <p class="soft">{format!("{running} generation{plural} running, {} waiting.", fleet.queued)}</p>
        }
    })
    };
    view! {
        {shown}
        {move || problem.get().map(|why| view! { <p class="hint">{why}</p> })}
    }
}

/// A model: its layers as threads, thicker where more workers hold them.
fn model(model: FleetModel) -> impl IntoView {
    let threads: Vec<_> = model
        .layer_replicas
        .iter()
        .map(|replicas| view! { <i class=format!("r{}", replicas.min(&REPLICAS_SHOWN_MAX))></i> })
        .collect();
    let held = model.layer_replicas.iter().filter(|replicas| **replicas > 0).count();
    let label = format!("{held} of {} layers are held", model.layers);
    let state = if model.covered { "good" } else { "warn" };
    let size = (model.weight_bytes > 0).then(|| format!(", {}", words::bytes(model.weight_bytes)));
    view! {
        <li>
            <p><strong>{model.name.clone()}</strong> " "
                <span class="soft">{format!("{} layers", model.layers)}{size}</span> " "
                <span class=state>{words::model_state(&model)}</span></p>
            <div class="threads" role="img" aria-label=label>{threads}</div>
        </li>
    }
}

fn worker(worker: FleetWorker) -> impl IntoView {
    let computes = match worker.device.is_empty() {
        true => worker.backend.clone(),
        false => format!("{}, {}", worker.backend, worker.device),
    };
    let hidden = if worker.hidden { ", hidden" } else { "" };
    view! {
        <li>
            <p><strong>{worker.name.clone()}</strong> " "
                <span class="soft">{format!("{} on {computes}{hidden}", worker.kind)}</span></p>
            <p class="soft">{words::holds(&worker)}</p>
        </li>
    }
}

/// How to send requests here.
#[component]
pub fn Endpoint(fleet: FleetSignal) -> impl IntoView {
    let base = format!("{}/v1", browser::origin());
    let model = Memo::new(move |_| {
        let name = |fleet: &Fleet| fleet.models.first().map(|model| model.name.clone());
        fleet.with(|f| f.as_ref().and_then(|f| f.as_ref().ok()).and_then(name)).unwrap_or_default()
    });
    let curl = {
        let base = base.clone();
        move || {
            let body = serde_json::json!({
                "model": model.get(),
                "messages": [{"role": "user", "content": "What is a loom?"}],
            });
            format!(
                "curl {base}/chat/completions \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}'"
            )
        }
    };
    view! {
        <p>"Any OpenAI client works with the base URL " <code>{base}</code> "."</p>
        <pre tabindex="0"><code>{curl}</code></pre>
    }
}
