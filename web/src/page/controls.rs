//! The owner's limits.

use leptos::prelude::*;

use crate::browser;
use crate::donor::{Event, Wish};
use crate::page::tab::Tab;
use crate::settings::{
    DATA_CHOICES, DISK_CHOICES, MEMORY_CHOICES, NAME_BYTES_MAX, Settings, thread_choices,
};
use crate::words;

/// Limits and manners, each with a label and the reason for it.
#[component]
pub fn Controls(tab: Tab) -> impl IntoView {
    let settings = tab.settings;
    // What is offered, and what was chosen otherwise.
    let choices = |offered: &[u64], read: fn(&Settings) -> u64, none: &str| -> Vec<_> {
        let mut choices = offered.to_vec();
        choices.push(settings.with_untracked(read));
        choices.sort_unstable();
        choices.dedup();
        let words = |choice| if choice == 0 { none.to_owned() } else { words::size(choice) };
        choices.into_iter().map(|choice| (choice, words(choice))).collect()
    };
    let memory = choices(&MEMORY_CHOICES, |s| s.memory_bytes, "nothing");
    let disk = choices(&DISK_CHOICES, |s| s.disk_bytes, "nothing");
    let data = choices(&DATA_CHOICES, |s| s.data_bytes, "no cap");
    let threads = thread_choices(browser::cores(), settings.with_untracked(|s| s.threads));
    let threads: Vec<_> = threads.into_iter().map(|n| (n.into(), n.to_string())).collect();
    let cores_why = match browser::is_isolated() {
        true => "That compute where no GPU does. Their copies of layers count as memory.",
        false => "This page may not use more than one: its connection or browser forbids it.",
    };
    let intensity = move || settings.with(|s| s.intensity_percent);
    view! {
        <details class="controls" id="controls">
            <summary>"Limits and settings"</summary>
            <div class="fields">
                <div class="field wide">
                    <label for="intensity">"Intensity"</label>
                    <div class="slider">
                        <input
                            id="intensity" type="range" min="25" max="100" step="25"
                            aria-describedby="intensity-why"
                            aria-valuetext=move || format!("{} percent", intensity())
                            prop:value=move || intensity().to_string()
                            on:input=move |event| {
                                if let Ok(percent) = event_target_value(&event).parse::<u8>() {
                                    tab.choose(|s| s.intensity_percent = percent.clamp(25, 100));
                                }
                            }
                        />
                        <output for="intensity">{move || format!("{} %", intensity())}</output>
                    </div>
                    <p class="why" id="intensity-why">"The share of the time that it computes; it rests between steps."</p>
                </div>
                <Choice tab id="memory" label="Memory" why="Weights, cache and scratch, on the GPU or not."
                    choices=memory read=|s| s.memory_bytes write=|s, v| s.memory_bytes = v/>
                <Choice tab id="disk" label="Disk" why="Layers kept for the next visit."
                    choices=disk read=|s| s.disk_bytes write=|s, v| s.disk_bytes = v/>
                <Choice tab id="data" label="Data cap" why="Layers, what tokens need and messages, down and up together in this visit; what is on its way counts. Reached, it stops at once; layers that do not fit are not fetched."
                    choices=data read=|s| s.data_bytes write=|s, v| s.data_bytes = v/>
                <Choice tab id="threads" label="Processor cores" why=cores_why
                    choices=threads read=|s| s.threads.into()
                    write=|s, v| s.threads = u32::try_from(v).unwrap_or(1)/>
                <div class="field wide">
                    <label for="name">"Name"</label>
                    <input
                        id="name" type="text" maxlength=NAME_BYTES_MAX.to_string() autocomplete="off"
                        placeholder="anonymous" aria-describedby="name-why"
                        prop:value=move || settings.with(|s| s.name.clone())
                        on:change=move |event| tab.choose(|s| s.name = event_target_value(&event))
                    />
                    <p class="why" id="name-why">"Shown to everyone in the fleet below. Changed while it runs, it leaves and joins again."</p>
                </div>
                <ChargingSwitch tab/>
                <Switch tab id="hidden" label="Pause while this tab is hidden"
                    why="Otherwise it goes on in the background, as fast as the browser lets it."
                    read=|s| s.stop_when_hidden write=|s, v| s.stop_when_hidden = v/>
                <Forget tab/>
            </div>
        </details>
    }
}

#[component]
fn Choice(
    tab: Tab,
    id: &'static str,
    label: &'static str,
    why: &'static str,
    choices: Vec<(u64, String)>,
    read: fn(&Settings) -> u64,
    write: fn(&mut Settings, u64),
) -> impl IntoView {
    let options = choices.into_iter().map(|(value, words)| {
        let chosen = move || tab.settings.with(read) == value;
        view! { <option value=value.to_string() selected=chosen>{words}</option> }
    });
    view! {
        <div class="field">
            <label for=id>{label}</label>
            <select
                id=id aria-describedby=format!("{id}-why")
                prop:value=move || tab.settings.with(read).to_string()
                on:change=move |event| {
                    if let Ok(value) = event_target_value(&event).parse() {
                        tab.choose(|settings| write(settings, value));
                    }
                }
            >
                {options.collect_view()}
            </select>
            <p class="why" id=format!("{id}-why")>{why}</p>
        </div>
    }
}

#[component]
fn Switch(
    tab: Tab,
    id: &'static str,
    label: &'static str,
    #[prop(into)] why: Signal<&'static str>,
    read: fn(&Settings) -> bool,
    write: fn(&mut Settings, bool),
    #[prop(into, optional)] disabled: Signal<bool>,
) -> impl IntoView {
    view! {
        <div class="field wide switch">
            <input
                id=id type="checkbox" aria-describedby=format!("{id}-why")
                disabled=move || disabled.get()
                prop:checked=move || !disabled.get() && tab.settings.with(read)
                on:change=move |event| tab.choose(|s| write(s, event_target_checked(&event)))
            />
            <label for=id>{label}</label>
            <p class="why" id=format!("{id}-why")>{move || why.get()}</p>
        </div>
    }
}

#[component]
fn ChargingSwitch(tab: Tab) -> impl IntoView {
    let unknown = Signal::derive(move || !tab.battery_known.get());
    let why = Signal::derive(move || match unknown.get() {
        true => "This browser does not say whether the machine is on its battery.",
        false => "On battery it pauses at once; it goes on when charging again.",
    });
    view! {
        <Switch tab id="charging" label="Only while charging" why
            read=|s| s.only_charging write=|s, v| s.only_charging = v disabled=unknown/>
    }
}

/// Deleting asks a second time, in place.
#[component]
fn Forget(tab: Tab) -> impl IntoView {
    let sure = RwSignal::new(false);
    let stopped = Memo::new(move |_| {
        tab.donor.with(|donor| donor.wish() == Wish::Stopped && !donor.forgets())
    });
    let press = move |_| {
        if sure.get_untracked() {
            tab.handle(Event::Forget);
        }
        sure.update(|sure| *sure = !*sure);
    };
    let label = move || if sure.get() { "Yes, delete all data" } else { "Delete all data" };
    let why = move || match stopped.get() {
        true => "Layers, this browser's key, figures and these settings.",
        false => "Pause first: layers, this browser's key, figures and these settings.",
    };
    view! {
        <div class="field wide forget">
            <button id="forget" class="danger" type="button" disabled=move || !stopped.get()
                aria-describedby="forget-why" on:click=press>{label}</button>
            <Show when=move || sure.get()>
                <button id="forget-not" class="secondary" type="button" on:click=move |_| sure.set(false)>"Keep it"</button>
            </Show>
            <p class="why" id="forget-why">{why}</p>
        </div>
    }
}
