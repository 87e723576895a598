//! Figures and states in words.

use api::{
    Fleet, FleetModel, FleetShard, FleetWorker, TabBackend, TabBenchmark, TabPhase, TabShard,
};

use crate::donor::{Donor, Wish};
use crate::settings::Settings;

/// `0 B`, `512 kB`, `1.5 GB`: decimal, as disks and data plans count.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `2 GB` for 2³¹: how memory is sold, for limits.
pub fn size(n: u64) -> String {
    let (mib, gib) = (n >> 20, n >> 30);
    if gib > 0 { format!("{gib} GB") } else { format!("{mib} MB") }
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `0.42`, `7.5`, `120`: three figures at most.
pub fn rate(x: f64) -> String {
    match x {
        x if !x.is_finite() || x <= 0.0 => "0".to_owned(),
        x if x < 0.995 => format!("{x:.2}"),
        x if x < 99.95 => format!("{x:.1}"),
        x => count(x.round() as u64),
    }
}

/// A remark as a sentence of its own.
pub fn sentence(remark: &str) -> String {
    let mut letters = remark.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

/// What a tab is doing, in a few words that change only when it does something else.
pub fn headline(donor: &Donor) -> String {
    if donor.forgets() {
        return "Deleting all data".to_owned();
    }
    if donor.pauses() {
        return "Pausing".to_owned();
    }
    match (donor.wish(), donor.held()) {
        (Wish::Running, Some(why)) => return format!("Paused: {why}"),
        (Wish::Running, None) if donor.loads() => return "Loading the worker".to_owned(),
        (Wish::Stopped, _) if donor.status.phase == TabPhase::Waiting => {
            return "Ready when you are".to_owned();
        }
        (Wish::Stopped, _) => return "Paused: nothing runs".to_owned(),
        _ => {}
    }
    let words = match donor.status.phase {
        TabPhase::Waiting => "Starting",
        TabPhase::Benchmarking => "Testing and measuring this machine",
        TabPhase::Connecting => "Connecting to the coordinator",
        TabPhase::Idle => "Joined, waiting for work",
        TabPhase::Loading => "Fetching its layers",
        TabPhase::Serving => "Serving",
        TabPhase::Finishing => "Finishing what is at hand",
        TabPhase::Paused => "Starting again",
    };
    words.to_owned()
}

/// The phase's name as an attribute: for style sheets and tests.
pub fn phase_name(donor: &Donor) -> &'static str {
    if donor.pauses() {
        return "pausing";
    }
    if donor.wish() == Wish::Stopped {
        return if donor.status.phase == TabPhase::Waiting { "waiting" } else { "paused" };
    }
    if donor.held().is_some() {
        return "held";
    }
    match donor.status.phase {
        TabPhase::Waiting | TabPhase::Paused => "starting",
        TabPhase::Benchmarking => "benchmarking",
        TabPhase::Connecting => "connecting",
        TabPhase::Idle => "idle",
        TabPhase::Loading => "loading",
        TabPhase::Serving => "serving",
        TabPhase::Finishing => "finishing",
    }
}

/// `layers 0 to 29 of smollm2-135m`, of all shards that a tab holds.
pub fn held_layers(shards: &[TabShard]) -> String {
    let one = |shard: &TabShard| {
        let layers = match shard.layers {
            Some((first, last)) if first == last => format!("layer {first}"),
            Some((first, last)) => format!("layers {first} to {last}"),
            None => "an end".to_owned(),
        };
        let loading = if shard.ready { "" } else { " (loading)" };
        format!("{layers} of {}{loading}", shard.model)
    };
    let all: Vec<String> = shards.iter().map(one).collect();
    if all.is_empty() { "none yet".to_owned() } else { all.join(", ") }
}

/// How many layers a tab holds and can run.
pub fn layers_held(shards: &[TabShard]) -> u64 {
    let layers = |shard: &TabShard| {
        let span = shard.layers.filter(|_| shard.ready);
        span.map_or(0, |(first, last)| u64::from(last.saturating_sub(first)) + 1)
    };
    shards.iter().map(layers).sum()
}

/// What computes, for people.
pub fn backend(backend: TabBackend) -> &'static str {
    match backend {
        TabBackend::Webgpu => "the GPU, by WebGPU",
        TabBackend::Wasm => "the CPU, by WASM",
    }
}

/// A benchmark's figures, name and value; those that do not apply are left out.
pub fn benchmark(b: &TabBenchmark) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut add = |name, value: f64, text: String| {
        if value > 0.0 {
            lines.push((name, text));
        }
    };
    let per_s = |x: f64| format!("{}/s", bytes(x as u64));
    add("Weights, one token", b.bytes_per_s_1, per_s(b.bytes_per_s_1));
    add("Weights, eight tokens", b.bytes_per_s_8, per_s(b.bytes_per_s_8));
    add("Prompt arithmetic", b.gmacs_per_s, format!("{} GMAC/s", rate(b.gmacs_per_s)));
    add("One dispatch", b.dispatch_us, format!("{} µs", rate(b.dispatch_us)));
    let spread = format!("{} ms, at worst {} ms", rate(b.readback_ms_p50), rate(b.readback_ms_p95));
    add("Reading back", b.readback_ms_p50, spread);
    add("Round trip", b.rtt_ms_p50, format!("{} ms", rate(b.rtt_ms_p50)));
    add("Download", b.down_bytes_per_s, per_s(b.down_bytes_per_s));
    add("Memory tried", b.memory_bytes as f64, bytes(b.memory_bytes));
    add("Took", b.took_ms, format!("{} s", rate(b.took_ms / 1000.0)));
    lines
}

/// What running costs at most under these limits: download, disk, memory, upload.
pub fn costs(settings: &Settings, fleet: Option<&Fleet>) -> [(&'static str, String, String); 4] {
    let weights = fleet.map(|fleet| fleet.models.iter().map(|m| m.weight_bytes).sum::<u64>());
    // Weights never take more than the memory lent, nor more than there is.
    let known = weights.filter(|weights| *weights > 0);
    let download = known.map_or(settings.memory_bytes, |all| all.min(settings.memory_bytes));
    let capped = |text: &str| match settings.data_bytes {
        0 => text.to_owned(),
        cap => format!("{text}; with uploads at most {}", size(cap)),
    };
    let disk = match settings.disk_bytes {
        0 => ("none".to_owned(), "layers are fetched again next time".to_owned()),
        limit => (
            format!("up to {}", bytes(download.min(limit))),
            "keeps the layers for next time; you can delete them here".to_owned(),
        ),
    };
    let once = if settings.disk_bytes == 0 { "at every visit" } else { "once" };
    [
        (
            "Download",
            format!("up to {}", bytes(download)),
            capped(&format!("model layers, {once}")),
        ),
        ("Disk", disk.0, disk.1),
        (
            "Memory",
            format!("up to {}", size(settings.memory_bytes)),
            "given back when you stop".to_owned(),
        ),
        ("Upload", "2 to 16 kB".to_owned(), "for each token, and about as much down".to_owned()),
    ]
}

/// Why WebGPU cannot be used, and what to do, if so.
pub fn gpu_hint(secure: bool, gpu: bool) -> Option<&'static str> {
    match (secure, gpu) {
        (true, true) => None,
        (true, false) => Some(
            "This browser offers no WebGPU, so the CPU would compute: that helps too, only slower. \
             A current Chrome, Edge, Firefox or Safari has it on most machines.",
        ),
        (false, _) => Some(
            "This page was opened over plain HTTP from another machine, so the browser withholds \
             WebGPU and disk storage. Open it over https:// (coordinator serve --tls-cert and \
             --tls-key), or on the coordinator's own machine as http://localhost.",
        ),
    }
}

/// A served model's state.
pub fn model_state(model: &FleetModel) -> String {
    if model.covered {
        "ready".to_owned()
    } else {
        format!("waits for {}", model.missing.as_deref().unwrap_or("workers"))
    }
}

/// What a worker holds, or why it holds nothing.
pub fn holds(worker: &FleetWorker) -> String {
    let one = |shard: &FleetShard| {
        let layers = match shard.first_layer.zip(shard.last_layer) {
            Some((first, last)) if first == last => Some(format!("layer {first}")),
            Some((first, last)) => Some(format!("layers {first} to {last}")),
            None => None,
        };
        let embedding = shard.embedding.then(|| "embedding".to_owned());
        let head = shard.head.then(|| "head".to_owned());
        let parts: Vec<String> = [embedding, layers, head].into_iter().flatten().collect();
        let loading = if shard.ready { "" } else { " (loading)" };
        format!("{} of {}{loading}", parts.join(", "), shard.model)
    };
    if worker.shards.is_empty() {
        return worker.idle_because.clone().unwrap_or_else(|| "holds nothing yet".to_owned());
    }
    worker.shards.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_few_digits() {
        let cases = [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_600, "1.0 MB")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(98_400_000), "98.4 MB");
        assert_eq!(bytes(491_400_000), "491 MB");
        assert_eq!((size(256 << 20), size(2 << 30)), ("256 MB".to_owned(), "2 GB".to_owned()));
        assert_eq!((count(7), count(1_234_567)), ("7".to_owned(), "1,234,567".to_owned()));
        let rates = [0.0, f64::NAN, 0.123, 7.0, 1234.4].map(rate);
        assert_eq!(rates, ["0", "0", "0.12", "7.0", "1,234"]);
    }

    #[test]
    fn remarks_become_sentences() {
        assert_eq!(
            sentence("the disk is full; it is kept in memory"),
            "The disk is full; it is kept in memory."
        );
    }

    #[test]
    fn costs_follow_the_limits_and_what_is_served() {
        let settings = Settings { memory_bytes: 1 << 30, ..Settings::default() };
        let unknown = costs(&settings, None);
        assert_eq!(unknown[0].1, "up to 1.1 GB");
        let mut fleet = Fleet::default();
        assert_eq!(costs(&settings, Some(&fleet))[0].1, "up to 1.1 GB");
        let model = r#"{"name": "m", "layers": 1, "weight_bytes": 90000000, "covered": true,
            "missing": null, "embedding_replicas": 1, "layer_replicas": [1], "head_replicas": 1}"#;
        fleet.models.push(serde_json::from_str(model).expect("a model"));
        let known = costs(&settings, Some(&fleet));
        assert_eq!((known[0].1.as_str(), known[1].1.as_str()), ("up to 90.0 MB", "up to 90.0 MB"));
        let frugal = Settings { disk_bytes: 0, data_bytes: 100 << 20, ..settings };
        let frugal = costs(&frugal, Some(&fleet));
        assert!(frugal[0].2.contains("every visit") && frugal[0].2.contains("100 MB"));
        assert_eq!(frugal[1].1, "none");
    }

    #[test]
    fn layers_are_counted_when_they_can_run() {
        let shard =
            |layers, ready| TabShard { model: "m".to_owned(), layers, weight_bytes: 1, ready };
        let shards = [shard(Some((0, 9)), true), shard(Some((4, 4)), true), shard(None, true)];
        assert_eq!(layers_held(&shards), 11);
        assert_eq!(layers_held(&[shard(Some((0, 9)), false)]), 0);
        assert_eq!(held_layers(&shards), "layers 0 to 9 of m, layer 4 of m, an end of m");
    }

    #[test]
    fn plain_http_from_elsewhere_is_told_what_to_do() {
        assert_eq!(gpu_hint(true, true), None);
        assert!(gpu_hint(false, false).is_some_and(|hint| hint.contains("https://")));
        assert!(gpu_hint(true, false).is_some_and(|hint| hint.contains("CPU")));
    }
}
