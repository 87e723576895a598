//! The donor's events and effects, in a browser.

use api::{FromTab, ToTab};
use leptos::prelude::*;
use web_sys::Worker;

use crate::browser;
use crate::donor::{Donor, Effect, Event, PAUSE_MS_MAX};
use crate::settings::{STORAGE_KEY, Settings, backend_named};

/// This tab: the donor, and the worker that does what it says.
#[derive(Clone, Copy)]
pub struct Tab {
    /// What the views show.
    pub donor: RwSignal<Donor>,
    /// What the owner chose.
    pub settings: RwSignal<Settings>,
    /// Whether the browser says if the machine is charging.
    pub battery_known: RwSignal<bool>,
    worker: StoredValue<Option<Worker>, LocalStorage>,
    alarm: StoredValue<Option<Worker>, LocalStorage>,
    /// Counts the workers: what an ended one still says is not heard.
    spawned: StoredValue<u32>,
}

impl Tab {
    /// With the choices of the last visit.
    pub fn new() -> Tab {
        let settings = Settings::read(browser::kept(STORAGE_KEY).as_deref(), Tab::default());
        let backend = backend_named(browser::parameter("backend").as_deref());
        Tab {
            donor: RwSignal::new(Donor::new(settings.clone(), backend)),
            settings: RwSignal::new(settings),
            battery_known: RwSignal::new(false),
            worker: StoredValue::new_local(None),
            alarm: StoredValue::new_local(None),
            spawned: StoredValue::new(0),
        }
    }

    fn default() -> Settings {
        Settings::for_machine(browser::memory_gib(), browser::cores())
    }

    /// Hears of the page's life: shown, hidden, frozen, closed, on battery.
    pub fn listen(self) {
        let (window, document) = (browser::window(), browser::document());
        self.handle(Event::Visibility { hidden: browser::hidden() });
        browser::on(&document, "visibilitychange", move |_| {
            self.handle(Event::Visibility { hidden: browser::hidden() });
        });
        for (target, event, what) in [
            (document.as_ref(), "freeze", Event::Frozen(true)),
            (document.as_ref(), "resume", Event::Frozen(false)),
            (window.as_ref(), "pagehide", Event::Left(true)),
            (window.as_ref(), "pageshow", Event::Left(false)),
        ] {
            browser::on(target, event, move |_| self.handle(what.clone()));
        }
        let known = browser::watch_charging(move |charging| {
            self.battery_known.set(true);
            self.handle(Event::Charging(Some(charging)));
        });
        self.battery_known.set(known);
    }

    /// Changes the owner's choices, keeps them, and tells the worker.
    pub fn choose(self, change: impl FnOnce(&mut Settings)) {
        self.settings.update(change);
        let settings = self.settings.get_untracked();
        browser::keep(STORAGE_KEY, &settings.to_json());
        self.handle(Event::Settings(settings));
    }

    /// Takes an event and does what follows from it.
    pub fn handle(self, event: Event) {
        let effects = self.donor.try_update(|donor| donor.handle(event)).unwrap_or_default();
        for effect in effects {
            match effect {
                Effect::Spawn => self.spawn(),
                Effect::Post(message) => self.post(&message),
                Effect::Terminate => self.terminate(),
                Effect::Deadline(number) => {
                    self.alarm.with_value(|alarm| {
                        if let Some(alarm) = alarm {
                            browser::set_alarm(alarm, number, PAUSE_MS_MAX);
                        }
                    });
                    browser::after(PAUSE_MS_MAX, move || self.handle(Event::Overdue(number)));
                }
                Effect::ForgetSettings => {
                    browser::forget(STORAGE_KEY);
                    self.settings.set(Tab::default());
                    self.handle(Event::Settings(Tab::default()));
                }
            }
        }
    }

    fn spawn(self) {
        if self.alarm.with_value(Option::is_none) {
            let rang = move |number| self.handle(Event::Overdue(number));
            self.alarm.set_value(browser::alarm(rang));
        }
        if self.settings.with_untracked(|settings| settings.disk_bytes > 0) {
            browser::persist();
        }
        let number = self.spawned.get_value() + 1;
        self.spawned.set_value(number);
        let current = move || self.spawned.get_value() == number;
        let said = move |text: String| {
            if !current() {
                return;
            }
            match serde_json::from_str::<FromTab>(&text) {
                Ok(said) => self.handle(Event::Said(Box::new(said))),
                Err(error) => {
                    let why =
                        format!("The worker is of another version ({error}): reload the page.");
                    self.handle(Event::Broke(why));
                }
            }
        };
        let broke = move |why: String| {
            if current() {
                self.handle(Event::Broke(format!("The worker stopped: {why}.")));
            }
        };
        match browser::spawn(said, broke) {
            Ok(worker) => self.worker.set_value(Some(worker)),
            // Not from within the event that led here.
            Err(why) => browser::after(0, move || self.handle(Event::Broke(why))),
        }
    }

    fn post(self, message: &ToTab) {
        let text = serde_json::to_string(message).expect("plain fields");
        self.worker.with_value(|worker| {
            if let Some(worker) = worker {
                worker.post_message(&text.into()).expect("text can be posted");
            }
        });
    }

    fn terminate(self) {
        self.spawned.update_value(|number| *number += 1);
        self.worker.update_value(|worker| {
            if let Some(worker) = worker.take() {
                worker.terminate();
            }
        });
    }
}
