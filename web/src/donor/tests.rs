//! What the owner does, what the machine does, and what the worker is told.

use api::{FromTab, TabPhase, TabStatus, ToTab};

use super::{Donor, Effect, Event, Wish};
use crate::settings::Settings;

fn donor() -> Donor {
    Donor::new(Settings::default(), None)
}

fn status(phase: TabPhase) -> Event {
    Event::Said(Box::new(FromTab::Status(Box::new(TabStatus {
        phase,
        detail: "why".to_owned(),
        tokens: 7,
        ..TabStatus::default()
    }))))
}

fn loaded() -> Event {
    Event::Said(Box::new(FromTab::Loaded))
}

/// Posts in short: `start`, `pause: on battery`, ...
fn short(effects: &[Effect]) -> Vec<String> {
    let one = |effect: &Effect| match effect {
        Effect::Spawn => "spawn".to_owned(),
        Effect::Terminate => "terminate".to_owned(),
        Effect::Deadline(number) => format!("deadline {number}"),
        Effect::ForgetSettings => "forget settings".to_owned(),
        Effect::Post(ToTab::Start(_)) => "start".to_owned(),
        Effect::Post(ToTab::Set(set)) => format!("set {}", set.intensity_percent),
        Effect::Post(ToTab::Pause { reason }) => format!("pause: {reason}"),
        Effect::Post(ToTab::Finish { .. }) => "finish".to_owned(),
        Effect::Post(ToTab::Visibility { hidden }) => format!("hidden: {hidden}"),
        Effect::Post(ToTab::Forget) => "forget".to_owned(),
    };
    effects.iter().map(one).collect()
}

/// Feeds events, each with what it must lead to.
#[track_caller]
fn check(donor: &mut Donor, steps: &[(Event, &[&str])]) {
    for (event, expected) in steps {
        let effects = short(&donor.handle(event.clone()));
        assert_eq!(effects, *expected, "after {event:?}");
    }
}

fn started() -> Donor {
    let mut donor = donor();
    check(&mut donor, &[(Event::Start, &["spawn"]), (loaded(), &["start", "hidden: false"])]);
    donor
}

#[test]
fn nothing_happens_before_the_click() {
    let mut donor = donor();
    check(
        &mut donor,
        &[
            (Event::Visibility { hidden: true }, &[]),
            (Event::Charging(Some(true)), &[]),
            (Event::Settings(Settings { intensity_percent: 25, ..Settings::default() }), &[]),
            (Event::Frozen(true), &[]),
            (Event::Frozen(false), &[]),
            (Event::Left(true), &[]),
            (Event::Left(false), &[]),
        ],
    );
}

#[test]
fn a_pause_that_is_answered_keeps_the_worker() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (Event::Pause, &["pause: paused by its owner", "deadline 1"]),
            (status(TabPhase::Serving), &[]),
            (status(TabPhase::Paused), &[]),
            (Event::Overdue(1), &[]),
            (Event::Start, &["start", "hidden: false"]),
        ],
    );
}

#[test]
fn a_pause_that_is_not_answered_ends_the_worker() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (status(TabPhase::Serving), &[]),
            (Event::Pause, &["pause: paused by its owner", "deadline 1"]),
            (Event::Overdue(1), &["terminate"]),
        ],
    );
    assert_eq!((donor.status.phase, donor.status.tokens), (TabPhase::Paused, 7));
    check(&mut donor, &[(Event::Start, &["spawn"]), (loaded(), &["start", "hidden: false"])]);
    // The old deadline means nothing for the new worker.
    check(&mut donor, &[(Event::Overdue(1), &[])]);
}

#[test]
fn started_again_while_pausing_it_waits_for_the_pause() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (Event::Pause, &["pause: paused by its owner", "deadline 1"]),
            (Event::Start, &[]),
            (status(TabPhase::Paused), &["start", "hidden: false"]),
        ],
    );
}

#[test]
fn paused_while_its_code_is_fetched_it_is_not_loaded() {
    let mut donor = donor();
    check(&mut donor, &[(Event::Start, &["spawn"]), (Event::Pause, &["terminate"])]);
}

#[test]
fn finishing_ends_in_rest_and_may_be_cut_short() {
    let mut donor = started();
    check(&mut donor, &[(Event::Finish, &["finish"]), (status(TabPhase::Finishing), &[])]);
    assert_eq!(donor.wish(), Wish::Finishing);
    check(&mut donor, &[(status(TabPhase::Paused), &[])]);
    assert_eq!(donor.wish(), Wish::Stopped);

    let mut donor = started();
    check(
        &mut donor,
        &[
            (Event::Finish, &["finish"]),
            (Event::Pause, &["pause: paused by its owner", "deadline 1"]),
        ],
    );
}

#[test]
fn on_battery_it_pauses_and_goes_on_when_charging() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (Event::Charging(Some(false)), &["pause: on battery", "deadline 1"]),
            (status(TabPhase::Paused), &[]),
        ],
    );
    assert_eq!((donor.wish(), donor.held()), (Wish::Running, Some("on battery")));
    check(&mut donor, &[(Event::Charging(Some(true)), &["start", "hidden: false"])]);
    let careless = Settings { only_charging: false, ..Settings::default() };
    check(&mut donor, &[(Event::Settings(careless), &[]), (Event::Charging(Some(false)), &[])]);
}

#[test]
fn hidden_it_goes_on_unless_its_owner_says_otherwise() {
    let mut donor = started();
    check(&mut donor, &[(Event::Visibility { hidden: true }, &["hidden: true"])]);
    let strict = Settings { stop_when_hidden: true, ..Settings::default() };
    check(
        &mut donor,
        &[
            (Event::Settings(strict), &["pause: hidden", "deadline 1"]),
            (status(TabPhase::Paused), &[]),
            (Event::Visibility { hidden: false }, &["start", "hidden: false"]),
        ],
    );
}

#[test]
fn a_hidden_tab_says_so_to_the_worker_it_starts() {
    let mut donor = donor();
    check(
        &mut donor,
        &[
            (Event::Visibility { hidden: true }, &[]),
            (Event::Start, &["spawn"]),
            (loaded(), &["start", "hidden: true"]),
        ],
    );
}

#[test]
fn frozen_it_leaves_at_once_and_comes_back() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (Event::Frozen(true), &["terminate"]),
            (Event::Pause, &[]),
            (Event::Start, &[]),
            (Event::Frozen(false), &["spawn"]),
            (loaded(), &["start", "hidden: false"]),
        ],
    );
    assert_eq!(donor.held(), None);
}

#[test]
fn left_for_another_page_it_pauses_and_comes_back_with_its_worker() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (Event::Left(true), &["pause: its page was left", "deadline 1"]),
            (Event::Left(false), &[]),
            (status(TabPhase::Paused), &["start", "hidden: false"]),
        ],
    );
}

#[test]
fn a_worker_that_left_by_itself_says_why() {
    let mut donor = started();
    check(&mut donor, &[(status(TabPhase::Paused), &[])]);
    assert_eq!((donor.wish(), donor.notice.as_deref()), (Wish::Stopped, Some("why")));
}

#[test]
fn a_late_word_of_an_earlier_pause_lets_nothing_run_unnoticed() {
    let mut donor = started();
    check(
        &mut donor,
        &[
            (status(TabPhase::Paused), &[]),
            (status(TabPhase::Waiting), &[]),
            (status(TabPhase::Serving), &["pause: paused by its owner", "deadline 1"]),
            (status(TabPhase::Paused), &[]),
        ],
    );
    // Wanted again meanwhile, it is not paused, and does as the page says.
    let mut donor = started();
    check(&mut donor, &[(status(TabPhase::Paused), &[])]);
    let serving =
        FromTab::Status(Box::new(TabStatus { phase: TabPhase::Serving, ..TabStatus::default() }));
    check(
        &mut donor,
        &[
            (Event::Start, &["start", "hidden: false"]),
            (Event::Said(Box::new(serving)), &[]),
            (Event::Pause, &["pause: paused by its owner", "deadline 1"]),
        ],
    );
}

/// The data cap with which the worker is started or told otherwise, if it is.
fn cap(effects: &[Effect]) -> Option<Option<u64>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Post(ToTab::Start(settings) | ToTab::Set(settings)) => {
            Some(settings.data_bytes_max)
        }
        _ => None,
    })
}

#[test]
fn what_ended_workers_used_of_the_data_cap_stays_used() {
    let used = |bytes_down, bytes_up| {
        let status =
            TabStatus { phase: TabPhase::Serving, bytes_down, bytes_up, ..TabStatus::default() };
        Event::Said(Box::new(FromTab::Status(Box::new(status))))
    };
    let capped = |data_bytes| Settings { data_bytes, ..Settings::default() };
    let mut donor = Donor::new(capped(1000), None);
    donor.handle(Event::Start);
    assert_eq!(cap(&donor.handle(loaded())), Some(Some(1000)));
    // Of a worker only what it said last counts.
    donor.handle(used(100, 50));
    donor.handle(used(500, 100));
    donor.handle(Event::Pause);
    check(&mut donor, &[(Event::Overdue(1), &["terminate"])]);
    donor.handle(Event::Start);
    assert_eq!(cap(&donor.handle(loaded())), Some(Some(400)));
    donor.handle(used(400, 0));
    check(&mut donor, &[(Event::Broke("it threw".into()), &["terminate"])]);

    check(&mut donor, &[(Event::Start, &[])]);
    assert_eq!(donor.wish(), Wish::Stopped);
    assert!(donor.notice.as_deref().is_some_and(|why| why.contains("data cap")));
    donor.handle(Event::Settings(capped(1500)));
    donor.handle(Event::Start);
    assert_eq!(cap(&donor.handle(loaded())), Some(Some(500)));
    assert_eq!(cap(&donor.handle(Event::Settings(capped(0)))), Some(None), "no cap any more");
}

#[test]
fn the_figures_of_a_visit_outlive_its_workers() {
    let said = |tokens, credit_layer_tokens| {
        let status = TabStatus {
            phase: TabPhase::Serving,
            steps: tokens,
            tokens,
            credit_layer_tokens,
            bytes_up: 10,
            bytes_from_disk: 5,
            ..TabStatus::default()
        };
        Event::Said(Box::new(FromTab::Status(Box::new(status))))
    };
    let shown = |donor: &Donor| {
        let s = &donor.status;
        (s.steps, s.tokens, s.credit_layer_tokens, s.bytes_up, s.bytes_from_disk)
    };
    let mut donor = started();
    donor.handle(said(7, 1070));
    donor.handle(Event::Pause);
    check(&mut donor, &[(Event::Overdue(1), &["terminate"])]);
    assert_eq!(shown(&donor), (7, 7, 1070, 10, 5));
    donor.handle(Event::Start);
    donor.handle(loaded());
    // The credit is that of all visits, as soon as the new worker has read it. It may be less:
    // the last seconds of one that was ended are not written down.
    donor.handle(said(0, 0));
    assert_eq!(shown(&donor), (7, 7, 1070, 20, 10));
    donor.handle(said(0, 1000));
    assert_eq!(shown(&donor), (7, 7, 1000, 20, 10));
    donor.handle(said(30, 1300));
    assert_eq!(shown(&donor), (37, 37, 1300, 20, 10));
    donor.handle(Event::Broke("it threw".into()));
    assert_eq!(shown(&donor), (37, 37, 1300, 20, 10));

    donor.handle(Event::Forget);
    donor.handle(loaded());
    donor.handle(Event::Said(Box::new(FromTab::Forgotten { disk_bytes: 1 })));
    assert_eq!(shown(&donor), (0, 0, 0, 0, 0));
    donor.handle(said(1, 8));
    assert_eq!(shown(&donor), (1, 1, 8, 30, 5), "all but what crossed the network begins anew");
}

#[test]
fn a_broken_worker_is_ended_and_can_be_started_again() {
    let mut donor = started();
    let failed = FromTab::Failed { reason: "the GPU is gone".to_owned() };
    check(&mut donor, &[(Event::Said(Box::new(failed)), &["terminate"])]);
    assert_eq!(donor.notice.as_deref(), Some("the GPU is gone"));
    check(&mut donor, &[(Event::Start, &["spawn"])]);
    assert_eq!(donor.notice, None);
}

#[test]
fn changed_settings_reach_a_worker_that_runs() {
    let mut donor = started();
    let settings = Settings { intensity_percent: 25, ..Settings::default() };
    check(
        &mut donor,
        &[
            (Event::Settings(settings.clone()), &["set 25"]),
            (Event::Settings(Settings { only_charging: false, ..settings }), &[]),
        ],
    );
}

#[test]
fn deleting_needs_a_pause_and_loads_the_worker_for_it() {
    let mut donor = started();
    check(&mut donor, &[(Event::Forget, &[])]);
    let mut donor = super::tests::donor();
    let forgotten = FromTab::Forgotten { disk_bytes: 5_000_000 };
    check(
        &mut donor,
        &[
            (Event::Forget, &["spawn"]),
            (loaded(), &["forget"]),
            (Event::Said(Box::new(forgotten)), &["forget settings"]),
        ],
    );
    assert!(!donor.forgets());
    assert!(donor.notice.as_deref().is_some_and(|notice| notice.contains("5.0 MB")));
}
