//! The button, what it costs, and what comes of it.

use api::Fleet;
use leptos::prelude::*;

use crate::browser;
use crate::donor::{Event, Wish};
use crate::page::controls::Controls;
use crate::page::live::Live;
use crate::page::tab::Tab;
use crate::words;

/// What the fleet's view knows.
pub type FleetSignal = RwSignal<Option<Result<Fleet, String>>>;

/// All that an owner needs to decide, and to change their mind.
#[component]
pub fn Donate(tab: Tab, fleet: FleetSignal) -> impl IntoView {
    let (secure, gpu) = browser::secure_and_gpu();
    let hint =
        words::gpu_hint(secure, gpu).map(|hint| view! { <p class="hint" id="hint">{hint}</p> });
    let wish = Memo::new(move |_| tab.donor.with(|donor| donor.wish()));
    let begun = Memo::new(move |_| {
        tab.donor.with(|d| d.wish() != Wish::Stopped || d.status.phase != api::TabPhase::Waiting)
    });
    view! {
        {hint}
        <Show when=move || !begun.get()>
            <Costs tab fleet/>
        </Show>
        <div class="actions">
            <Buttons tab wish/>
        </div>
        <Status tab/>
        <Show when=move || begun.get()>
            <Live tab/>
        </Show>
        <Controls tab/>
    }
}

/// What running takes, at most.
#[component]
fn Costs(tab: Tab, fleet: FleetSignal) -> impl IntoView {
    let rows = move || {
        let settings = tab.settings.get();
        let costs = fleet.with(|fleet| {
            words::costs(&settings, fleet.as_ref().and_then(|fleet| fleet.as_ref().ok()))
        });
        costs.map(|(name, value, why)| {
            view! {
                <div>
                    <dt>{name}</dt>
                    <dd><strong>{value}</strong> <span>{why}</span></dd>
                </div>
            }
        })
    };
    view! {
        <h2 id="costs-title" class="small">"What it takes"</h2>
        <dl class="costs" id="costs" aria-labelledby="costs-title">{move || rows().into_iter().collect_view()}</dl>
    }
}

#[component]
fn Buttons(tab: Tab, wish: Memo<Wish>) -> impl IntoView {
    let forgets = Memo::new(move |_| tab.donor.with(|donor| donor.forgets()));
    let begun =
        Memo::new(move |_| tab.donor.with(|donor| donor.status.phase != api::TabPhase::Waiting));
    // One button whose meaning changes, so that it keeps the focus.
    let press = move |_| match wish.get_untracked() {
        Wish::Stopped => tab.handle(Event::Start),
        Wish::Running | Wish::Finishing => tab.handle(Event::Pause),
    };
    let label = move || match (wish.get(), begun.get()) {
        (Wish::Stopped, false) => "Start",
        (Wish::Stopped, true) => "Start again",
        (Wish::Running | Wish::Finishing, _) => "Pause",
    };
    view! {
        <button
            id="start"
            class="primary"
            class:running=move || wish.get() != Wish::Stopped
            type="button"
            disabled=move || forgets.get()
            on:click=press
        >
            {label}
        </button>
        <Show when=move || wish.get() == Wish::Running>
            <button id="finish" class="secondary" type="button" on:click=move |_| tab.handle(Event::Finish)>
                "Finish and stop"
            </button>
        </Show>
    }
}

/// Where things are, in words; read out when it changes.
#[component]
fn Status(tab: Tab) -> impl IntoView {
    let headline = Memo::new(move |_| tab.donor.with(words::headline));
    let phase = Memo::new(move |_| tab.donor.with(words::phase_name));
    let detail = Memo::new(move |_| {
        tab.donor.with(|donor| {
            // Why it is held back is in the headline.
            let told = donor.wish() != Wish::Stopped && donor.held().is_none();
            let detail = told.then(|| donor.status.detail.clone());
            donor.notice.clone().or(detail).filter(|detail| !detail.is_empty())
        })
    });
    let never = Memo::new(move |_| phase.get() == "waiting");
    view! {
        <div class="status" id="status" role="status" aria-live="polite" data-phase=move || phase.get()>
            <p class="headline"><span class="dot" aria-hidden="true"></span>{move || headline.get()}</p>
            <p class="detail" id="detail">
                {move || detail.get().or_else(|| {
                    let calm = "Nothing is downloaded or computed before you press Start.";
                    never.get().then(|| calm.to_owned())
                })}
            </p>
        </div>
    }
}
