//! What a tab gives, as it gives it.

use api::TabStatus;
use leptos::prelude::*;

use crate::page::tab::Tab;
use crate::words;

/// The figures of this visit.
#[component]
pub fn Live(tab: Tab) -> impl IntoView {
    let status = Memo::new(move |_| tab.donor.with(|donor| donor.status.clone()));
    let fetching = Memo::new(move |_| status.with(|status| status.fetching));
    let progress = move || {
        fetching.get().map(|(done, total)| {
            view! {
                <label class="progress">
                    <span>{format!("{} of {} of weights", words::bytes(done), words::bytes(total))}</span>
                    <progress max=total.max(1).to_string() value=done.to_string()></progress>
                </label>
            }
        })
    };
    view! {
        <section class="live" id="live" aria-label="What this tab gives">
            {progress}
            <dl class="figures">
                <Figure id="layers" name="Layers held" status value=|s| words::layers_held(&s.shards).to_string()/>
                <Figure id="tokens" name="Tokens served" status value=|s| words::count(s.tokens)/>
                <Figure id="rate" name="Tokens per second" status value=|s| words::rate(s.tokens_per_s)/>
                <Figure id="credit" name="Credit" status value=|s| words::count(s.credit_layer_tokens)/>
                <Figure id="down" name="Received" status value=|s| words::bytes(s.bytes_down)/>
                <Figure id="up" name="Sent" status value=|s| words::bytes(s.bytes_up)/>
                <Figure id="disk" name="On disk" status value=|s| words::bytes(s.disk_bytes)/>
                <Figure id="busy" name="Busy" status value=|s| format!("{} %", (s.busy * 100.0).round() as u8)/>
            </dl>
            <p class="soft holds" id="holds">
                {move || status.with(|s| (!s.shards.is_empty()).then(|| format!("Holds {}.", words::held_layers(&s.shards))))}
            </p>
            <p class="soft" id="disk-problem">{move || status.with(|s| s.disk_problem.as_deref().map(words::sentence))}</p>
            <Device status/>
        </section>
    }
}

#[component]
fn Figure(
    id: &'static str,
    name: &'static str,
    status: Memo<TabStatus>,
    value: fn(&TabStatus) -> String,
) -> impl IntoView {
    view! {
        <div>
            <dt>{name}</dt>
            <dd id=format!("figure-{id}")>{move || status.with(value)}</dd>
        </div>
    }
}

/// What computes, why not something faster, and what the benchmark gave.
#[component]
fn Device(status: Memo<TabStatus>) -> impl IntoView {
    let device = Memo::new(move |_| status.with(|s| s.device.clone()));
    let benchmark = Memo::new(move |_| status.with(|s| s.benchmark));
    let shown = move || {
        device.get().map(|device| {
            let notes = device.notes.into_iter().map(|note| view! { <li>{note}</li> });
            view! {
                <p class="device" id="device">
                    "Computes on " {words::backend(device.backend)} ": " <strong>{device.name}</strong>
                </p>
                <ul class="notes" id="device-notes">{notes.collect_view()}</ul>
            }
        })
    };
    let figures = move || {
        benchmark.get().map(|benchmark| {
            let rows = words::benchmark(&benchmark).into_iter();
            let rows =
                rows.map(|(name, value)| view! { <div><dt>{name}</dt><dd>{value}</dd></div> });
            view! {
                <details class="benchmark" id="benchmark">
                    <summary>"Benchmark"</summary>
                    <dl class="rows">{rows.collect_view()}</dl>
                </details>
            }
        })
    };
    view! {
        {shown}
        {figures}
        <p class="soft fine">
            "Credit counts tokens times layers. It is what this tab says of itself: a measure, not a currency."
        </p>
    }
}
