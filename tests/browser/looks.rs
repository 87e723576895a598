//! What a visitor sees before the click, on any screen, by keyboard, and in both colour schemes.

use serde_json::{Value, json};

use crate::harness::machine;
use crate::lent::Lent;

/// Enter and Tab, as WebDriver names keys.
const ENTER: &str = "\u{E007}";
const TAB: &str = "\u{E004}";

#[tokio::test]
async fn nothing_is_fetched_run_or_kept_before_the_click() {
    let _machine = machine().await;
    let lent = Lent::start("before-click").await;
    lent.open("").await;
    // The page has asked for the fleet, so what it does by itself it has done.
    lent.chrome
        .wait("the fleet is shown", "return document.querySelector('.models li') !== null")
        .await;
    assert_eq!(lent.shown_phase().await, "waiting");
    let names =
        "return performance.getEntriesByType('resource').map((e) => new URL(e.name).pathname)";
    let fetched = lent.chrome.script(names).await;
    let fetched: Vec<&str> =
        fetched.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(fetched.contains(&"/web_bg.wasm"), "the list shows what is fetched: {fetched:?}");
    assert!(!fetched.iter().any(|path| path.starts_with("/worker/")), "{fetched:?}");
    assert!(!fetched.iter().any(|path| path.contains("blobs")), "{fetched:?}");
    assert!(lent.tabs().await.is_empty(), "no worker has joined");
    // What the coordinator's own worker took, it took from the disk.
    assert_eq!(lent.blob_bytes_sent().await, 0);
    let kept = lent
        .chrome
        .script("return Object.keys(localStorage).length + document.cookie.length")
        .await;
    assert_eq!(kept, 0, "nothing is kept here");
    let costs = lent.chrome.text("#costs").await;
    for cost in ["Download", "Disk", "Memory", "Upload"] {
        assert!(costs.contains(cost), "{cost} is shown first: {costs}");
    }
    assert_eq!(
        lent.chrome.console("SEVERE").await,
        Vec::<String>::new(),
        "the policy lets all of it pass"
    );
}

#[tokio::test]
async fn it_fits_a_phone_and_a_wide_screen_in_light_and_dark() {
    let _machine = machine().await;
    let lent = Lent::start("looks").await;
    lent.open("").await;
    lent.chrome
        .wait("the fleet is shown", "return document.querySelector('.models li') !== null")
        .await;
    let mut papers = Vec::new();
    for (width, height) in [(360, 740), (1100, 1400)] {
        for scheme in ["light", "dark"] {
            lent.chrome.emulate(width, height, scheme).await;
            for open in [false, true] {
                let script = format!("document.querySelector('#controls').open = {open}");
                lent.chrome.script(&script).await;
                let wide = "return [...document.querySelectorAll('body *')]
                    .filter((e) => !e.closest('pre, .skip') && e.getBoundingClientRect().right > innerWidth + 0.5)
                    .map((e) => e.tagName + '#' + e.id)";
                assert_eq!(lent.chrome.script(wide).await, json!([]), "at {width} pixels");
                let state = if open { "-settings" } else { "" };
                lent.chrome.screenshot(&format!("before-{width}-{scheme}{state}")).await;
            }
            let colours = "const style = getComputedStyle(document.body);
                           return [style.backgroundColor, style.color]";
            papers.push(lent.chrome.script(colours).await);
            let small = "return [...document.querySelectorAll('button, select, summary')]
                .filter((e) => e.offsetParent !== null && e.getBoundingClientRect().height < 36)
                .map((e) => e.textContent)";
            assert_eq!(lent.chrome.script(small).await, json!([]), "a thumb can hit them");
        }
    }
    assert_ne!(papers[0], papers[1], "dark is not light");
    assert_eq!(papers[0], papers[2], "the same colours at any width");
}

#[tokio::test]
async fn everything_can_be_reached_and_pressed_by_keyboard() {
    let _machine = machine().await;
    let lent = Lent::start("keyboard").await;
    lent.open("?backend=wasm").await;
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    let mut reached = Vec::new();
    for _ in 0..40 {
        lent.chrome.press(TAB).await;
        let id = lent.chrome.script("return document.activeElement?.id || ''").await;
        reached.push(id.as_str().unwrap_or_default().to_owned());
    }
    for id in ["start", "intensity", "memory", "disk", "data", "name", "hidden", "forget"] {
        assert!(reached.iter().any(|reached| reached == id), "{id} in {reached:?}");
    }
    // Every field has a name for those who cannot see it.
    let nameless = "return [...document.querySelectorAll('input, select')]
        .filter((e) => !e.labels?.length).map((e) => e.id)";
    assert_eq!(lent.chrome.script(nameless).await, json!([]));
    lent.chrome.script("document.querySelector('#start').focus()").await;
    lent.chrome.press(ENTER).await;
    lent.phase("serving").await;
    let focus = lent.chrome.script("return document.activeElement?.id").await;
    assert_eq!(focus, "start", "the button that is pressed keeps the focus");
    assert_eq!(lent.chrome.text("#start").await, "Pause");
}

#[tokio::test]
async fn choices_are_kept_between_visits() {
    let _machine = machine().await;
    let lent = Lent::start("choices").await;
    lent.open("").await;
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    lent.chrome.choose("#memory", "256 MB").await;
    lent.chrome.choose("#data", "500 MB").await;
    lent.chrome.click("#hidden").await;
    let memory = lent.chrome.text("#costs").await;
    assert!(memory.contains("up to 256 MB"), "the costs follow: {memory}");
    assert!(memory.contains("at most 500 MB"), "{memory}");
    lent.open("").await;
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    let kept = "const of = (id) => document.querySelector(id);
        const shown = (id) => of(id).selectedOptions[0].text;
        return [shown('#memory'), shown('#data'), of('#hidden').checked]";
    assert_eq!(lent.chrome.script(kept).await, json!(["256 MB", "500 MB", true]));
}

#[tokio::test]
async fn plain_http_from_elsewhere_is_told_what_to_do() {
    let _machine = machine().await;
    let lent = Lent::start("insecure").await;
    let port = lent.coordinator.address.rsplit(':').next().expect("a port").to_owned();
    // A name that is no localhost to the browser, but is this machine.
    lent.open_at(&format!("http://{}:{port}/", crate::chrome::ELSEWHERE)).await;
    let hint = lent.chrome.text("#hint").await;
    assert!(hint.contains("https://") && hint.contains("localhost"), "{hint}");
    lent.chrome.screenshot("insecure").await;
}
